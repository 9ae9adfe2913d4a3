"""Two vocabularies by what their tokens spell: which tokens are the same bytes, and the file that says so.

Published code compares the tokens' own spellings, in which a SentencePiece and a byte-level vocabulary share hardly more than
what begins no word: of Llama-2's tokens 10,563 are Qwen2.5's by spelling, and 29,234 by bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pipeline.read.tokenizers import OffsetTokenizer
from schemas.columns import MISSING, SIDES, Side
from schemas.vocabulary import NEAREST, SHARED, VOCABULARY, part_name


class OlderVocabularyError(ValueError):
    """A file that does not say which tokens are byte tokens."""


@dataclass(frozen=True)
class SideVocabulary:
    """One side's tokens."""

    spelled: tuple[bytes, ...]  # by id; nothing for ids that no token has
    special: tuple[int, ...]  # rising
    end: tuple[int, ...]  # what usually ends what is learnt; empty where nothing is known to
    fallback: tuple[int, ...] = ()  # byte tokens, rising: of characters that the vocabulary lacks

    @classmethod
    def of(cls, tokenizer: OffsetTokenizer) -> "SideVocabulary":
        """That of a tokenizer."""
        spelling = tokenizer.spelling
        special, end = tuple(tokenizer.special), tuple(tokenizer.end())
        return cls(tuple(spelling.text_bytes()), special, end, tuple(sorted(spelling.fallback)))

    def ids(self) -> dict[bytes, int]:
        """The lowest id of each spelling; special tokens, and ids that spell nothing, left out.

        A byte token only where no other spells its byte: of a character that is in the vocabulary it is never used.
        """
        hidden, fallback = set(self.special), set(self.fallback)
        ids = [index for index, text in enumerate(self.spelled) if text and index not in hidden]
        ids.sort(key=lambda index: (index not in fallback, -index))
        return {self.spelled[index]: index for index in ids}


def shared_tokens(sides: Mapping[Side, SideVocabulary]) -> Int32[np.ndarray, "shared 2"]:
    """Ids of the student and of the teacher with the same bytes, and of what usually ends what is learnt; by the student's."""
    student, teacher = sides["student"], sides["teacher"]
    ours, theirs = student.ids(), teacher.ids()
    pairs = [(index, theirs[text]) for text, index in ours.items() if text in theirs]
    pairs += zip(student.end, teacher.end, strict=False)
    return np.array(sorted(pairs), dtype=np.int32).reshape(-1, 2)


def vocabulary_file(
    sides: Mapping[Side, SideVocabulary],
    shared: Int32[np.ndarray, "shared 2"],
    nearest: Int32[np.ndarray, " teacher_vocabulary"] | None = None,
) -> bytes:
    """The file's bytes, the same for the same tokenizers (`schemas.vocabulary`).

    `shared`: `shared_tokens`' of the sides; `nearest`: `pipeline.align.nearest`'s, if it is asked for.
    """
    tensors: dict[str, np.ndarray] = {SHARED: shared}
    if nearest is not None:
        tensors[NEAREST] = nearest
    for side in SIDES:
        own = sides[side]
        tensors[part_name(side, "bytes")] = np.frombuffer(b"".join(own.spelled), dtype=np.uint8)
        tensors[part_name(side, "lengths")] = np.array([len(text) for text in own.spelled], dtype=np.int32)
        tensors[part_name(side, "special")] = np.array(own.special, dtype=np.int32)
        tensors[part_name(side, "end")] = np.array(own.end, dtype=np.int32)
        tensors[part_name(side, "fallback")] = np.array(own.fallback, dtype=np.int32)
    return save(tensors)


def read_nearest(folder: Path, sides: Mapping[Side, SideVocabulary]) -> Int32[np.ndarray, " teacher_vocabulary"]:
    """The nearest tokens out of a dataset's file. Raises ValueError if they are not in it, or cannot be those of the sides."""
    nearest = load_file(folder / VOCABULARY).get(NEAREST)
    if nearest is None:
        raise ValueError(f"{VOCABULARY} does not say which tokens are nearest to which")
    shared = shared_tokens(sides)
    size, limit = len(sides["teacher"].spelled), len(sides["student"].spelled)
    if nearest.shape != (size,) or ((nearest < MISSING) | (nearest >= limit)).any():
        raise ValueError(f"{VOCABULARY} has nearest tokens that its sides do not have")
    if (nearest[shared[:, 1]] != shared[:, 0]).any():
        raise ValueError(f"{VOCABULARY} has other tokens nearest to some than those of the same bytes")
    return nearest


def read_side(folder: Path, side: Side) -> SideVocabulary:
    """A side's tokens out of a dataset's file. Raises ValueError if they are not in it, or as an earlier version had them."""
    try:
        tensors = load_file(folder / VOCABULARY)
        lengths, special, end = (tensors[part_name(side, part)] for part in ("lengths", "special", "end"))
        fallback = tensors.get(part_name(side, "fallback"))
        text = tensors[part_name(side, "bytes")].tobytes()
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{VOCABULARY} is not the {side}'s tokens ({error})") from None
    if (lengths < 0).any() or lengths.sum() != len(text):
        raise ValueError(f"{VOCABULARY} has {len(text)} bytes of the {side}'s tokens, which have {lengths.sum()}")
    if fallback is None:
        raise OlderVocabularyError(f"{VOCABULARY} is of an earlier version, which took byte tokens for characters")
    last = np.cumsum(lengths).tolist()
    spelled = tuple(text[stop - length : stop] for stop, length in zip(last, lengths.tolist(), strict=True))
    return SideVocabulary(spelled, *(tuple(ids.tolist()) for ids in (special, end, fallback)))
