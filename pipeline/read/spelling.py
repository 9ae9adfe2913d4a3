"""What the tokens of a tokenizer spell, read from its definition (the JSON form of the `tokenizers` library).

Also the form of a definition that continues a text instead of beginning one: without the dummy prefix, the space that
some tokenizers put before their input.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import Normalizer

Definition = dict[str, Any]

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")
_NESTED: Final = ("normalizers", "pretokenizers", "decoders", "processors")


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letter for every byte: printable Latin-1 stands for itself, the rest follow from U+0100 on.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", released code.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET: Final = _byte_alphabet()
_LETTERS: Final = frozenset(_ALPHABET)


@dataclass(frozen=True)
class Spelling:
    """What each token id spells, in the tokenizer's own writing."""

    spelled: list[bytes]  # by id; with spaces as `marker`, without prefixes that only mark a word's inside
    lengths: Int64[np.ndarray, " ids"]  # bytes of each
    marker: str | None  # what is written for a space, where it is not a space
    literals: dict[int, str]  # added tokens found in the raw text, before normalisation
    unknown: int | None  # the token for what the vocabulary lacks; it spells anything
    fallback: frozenset[int]  # byte tokens: of characters that the vocabulary lacks

    def text_bytes(self) -> list[bytes]:
        """What each token id spells in the text's writing, spaces as such."""
        if self.marker is None:
            return self.spelled
        marker = self.marker.encode("utf-8")
        return [
            text if index in self.literals else text.replace(marker, b" ") for index, text in enumerate(self.spelled)
        ]


def settle(backend: Tokenizer) -> Definition:
    """Take truncation, padding and chance (dropout) out of a tokenizer, and return its definition.

    Raises the library's bare `Exception` for a tokenizer with parts written in Python.
    """
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    definition: Definition = json.loads(backend.to_str())
    return definition


def continuation(definition: Definition) -> Definition:
    """The same tokenizer for text that continues other text: nothing is put before its input."""
    return definition | {
        "normalizer": _without(definition["normalizer"], "Prepend"),
        "pre_tokenizer": _unprefixed(definition["pre_tokenizer"], leads=True),
    }


def _unprefixed(component: Definition | None, leads: bool) -> Definition | None:
    """Dummy prefixes off. A stage that does not lead prefixes every piece of an earlier cut: it marks words, and stays.

    The scheme `first` concerns the beginning of the input wherever the stage stands.
    """
    if component is None:
        return None
    match component["type"]:
        case "Sequence":
            stages = component["pretokenizers"]
            return component | {
                "pretokenizers": [_unprefixed(stage, leads and not i) for i, stage in enumerate(stages)]
            }
        case "Metaspace" if leads or component["prepend_scheme"] == "first":
            return component | {"prepend_scheme": "never"}
        case "ByteLevel" if leads:
            return component | {"add_prefix_space": False}
    return component


def _without(component: Definition | None, *kinds: str) -> Definition | None:
    """A normaliser without stages of these kinds; None if nothing is left."""
    if component is None or component["type"] in kinds:
        return None
    if component["type"] != "Sequence":
        return component
    stages = [kept for stage in component["normalizers"] if (kept := _without(stage, *kinds)) is not None]
    return component | {"normalizers": stages} if stages else None


def _stages(component: Definition | None) -> Iterator[Definition]:
    """Every component inside, nested ones included."""
    if component is not None:
        yield component
        for nested in _NESTED:
            for stage in component.get(nested, ()):
                yield from _stages(stage)


def text_normalizer(definition: Definition) -> Normalizer | None:
    """The normaliser for text in the middle of other text, giving characters (not byte-level letters)."""
    kept = _without(definition["normalizer"], "Prepend", "ByteLevel")
    if kept is None:
        return None
    model = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    empty: Definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": kept,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    normalizer: Normalizer = Tokenizer.from_str(json.dumps(empty)).normalizer
    return normalizer


def read_spelling(definition: Definition, backend: Tokenizer) -> Spelling:
    """What every id of the vocabulary spells; `backend` is built from `definition`."""
    model = definition["model"]
    text_stages = [*_stages(definition["normalizer"]), *_stages(definition["pre_tokenizer"])]
    byte_level = any(stage["type"] == "ByteLevel" for stage in [*text_stages, *_stages(definition["decoder"])])
    marker = None if byte_level else _space_marker(text_stages)
    inside = model.get("continuing_subword_prefix") or ""
    closing = model.get("end_of_word_suffix") or ""

    def byte_of(token: str) -> "re.Match[str] | None":
        return _BYTE_TOKEN.fullmatch(token) if model.get("byte_fallback") else None

    def spell(token: str) -> bytes:
        if byte := byte_of(token):
            return bytes([int(byte[1], 16)])
        if len(token) > len(inside):
            token = token.removeprefix(inside)
        token = token.removesuffix(closing)
        if byte_level and _LETTERS.issuperset(token):
            return bytes(map(_ALPHABET.__getitem__, token))
        return token.encode("utf-8")

    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    spelled = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        spelled[index] = spell(token)
    normalizer = text_normalizer(definition)
    added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
    for index, entry in added.items():
        content: str = entry.content
        if entry.normalized and normalizer is not None:
            content = normalizer.normalize_str(content)
        spelled[index] = content.encode("utf-8")
    return Spelling(
        spelled,
        np.fromiter(map(len, spelled), dtype=np.int64, count=len(spelled)),
        marker,
        {index: entry.content for index, entry in added.items() if not entry.normalized},
        _unknown(model, vocabulary),
        frozenset(index for token, index in vocabulary.items() if byte_of(token) and index not in added),
    )


def _space_marker(stages: list[Definition]) -> str | None:
    for stage in stages:
        if stage["type"] == "Metaspace":
            return str(stage["replacement"])
        if stage["type"] == "Replace" and stage["pattern"] == {"String": " "} and len(stage["content"]) == 1:
            return str(stage["content"])
    return None


def _unknown(model: Definition, vocabulary: dict[str, int]) -> int | None:
    if model["type"] == "Unigram":
        index: int | None = model["unk_id"]
        return index
    token = model.get("unk_token")
    return vocabulary.get(token) if token is not None else None
