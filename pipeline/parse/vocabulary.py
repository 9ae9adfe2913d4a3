"""A smaller vocabulary for a BERT-style encoder: a third of a compact encoder is rows that English never reads."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

#: A word piece that is kept: its number in the larger vocabulary, and itself.
Piece = tuple[int, str]


def kept_pieces(source: Path, texts: Iterable[str], frequent: int | None) -> list[Piece]:
    """Word pieces of the tokenizer in `source` that are kept, in their order.

    Those are special tokens, the first `frequent` pieces (BERT's vocabulary is ordered by frequency), single Latin
    characters and typographic marks in both forms, and every piece that occurs in `texts`. `frequent` None: all.
    """
    reader = Tokenizer.from_file(str(source / "tokenizer.json"))
    if frequent is None:
        return sorted((index, token) for token, index in reader.get_vocab().items())
    reader.no_truncation()
    used = {index for item in reader.encode_batch(list(texts), add_special_tokens=False) for index in item.ids}
    special = set(AutoTokenizer.from_pretrained(source).all_special_ids)

    def keep(token: str, index: int) -> bool:
        if index in special or index in used:
            return True
        bare = token.removeprefix("##")
        latin = all(ord(char) < 0x180 or 0x2010 <= ord(char) <= 0x2030 for char in bare)
        return latin and (len(bare) == 1 or (index < frequent and not token.startswith("[unused")))

    return sorted((index, token) for token, index in reader.get_vocab().items() if keep(token, index))


def write_tokenizer(source: Path, target: Path, pieces: list[Piece]) -> None:
    """The tokenizer in `source` with `pieces` alone, numbered anew. Words of other pieces fall apart into smaller ones."""
    definition = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    definition["model"]["vocab"] = {token: new for new, (_, token) in enumerate(pieces)}
    renumber = {old: new for new, (old, _) in enumerate(pieces)}
    for added in definition["added_tokens"]:
        added["id"] = renumber[added["id"]]
    # stored by some encoders with the file, and not meant for a parser: a sentence is neither cut nor filled up
    definition["truncation"] = definition["padding"] = None
    processor = definition["post_processor"]
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [renumber[index] for index in entry["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = renumber[processor[name][1]]
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    shutil.copy(source / "tokenizer_config.json", target)


def prune_wordpiece(
    source: Path, target: Path, texts: Iterable[str], frequent: int, layers: int | None = None
) -> tuple[int, int]:
    """Write `source` (a BERT encoder, fast WordPiece tokenizer) to `target` with fewer word pieces (`kept_pieces`), and
    with its first `layers` layers alone where that is given. Returns (pieces before, pieces kept).
    """
    model = AutoModel.from_pretrained(source, add_pooling_layer=False)
    pieces = kept_pieces(source, texts, frequent)
    before = model.get_input_embeddings().weight.data
    after = before[torch.tensor([old for old, _ in pieces])].clone()
    renumber = {old: new for new, (old, _) in enumerate(pieces)}
    model.resize_token_embeddings(len(pieces))
    model.get_input_embeddings().weight.data.copy_(after)
    model.config.pad_token_id = renumber[AutoTokenizer.from_pretrained(source).pad_token_id]
    if layers is not None:
        model.encoder.layer = model.encoder.layer[:layers]
        model.config.num_hidden_layers = layers
    write_tokenizer(source, target, pieces)
    model.save_pretrained(target)
    return len(before), len(pieces)
