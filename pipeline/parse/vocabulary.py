"""A smaller vocabulary for a BERT-style encoder: a third of a compact encoder is rows that English never reads."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def prune_wordpiece(source: Path, target: Path, texts: Iterable[str], frequent: int) -> tuple[int, int]:
    """Write `source` (a BERT encoder, fast WordPiece tokenizer) to `target` with fewer word pieces.

    Kept: special tokens, the first `frequent` pieces (BERT's vocabulary is ordered by frequency), single Latin
    characters and typographic marks in both forms, and every piece that occurs in `texts`. Words of other pieces fall apart into
    smaller ones. Returns (pieces before, pieces kept).
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source, add_pooling_layer=False)
    definition = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    used = {index for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for index in ids}
    special = set(tokenizer.all_special_ids)

    def keep(token: str, index: int) -> bool:
        if index in special or index in used:
            return True
        bare = token.removeprefix("##")
        latin = all(ord(char) < 0x180 or 0x2010 <= ord(char) <= 0x2030 for char in bare)
        return latin and (len(bare) == 1 or (index < frequent and not token.startswith("[unused")))

    kept = sorted((index, token) for token, index in vocabulary.items() if keep(token, index))
    definition["model"]["vocab"] = {token: new for new, (_, token) in enumerate(kept)}
    renumber = {old: new for new, (old, _) in enumerate(kept)}
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
    rows = torch.tensor([old for old, _ in kept])
    weights = model.get_input_embeddings().weight.data[rows].clone()
    model.resize_token_embeddings(len(kept))
    model.get_input_embeddings().weight.data.copy_(weights)
    model.config.pad_token_id = renumber[tokenizer.pad_token_id]
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    (target / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    shutil.copy(source / "tokenizer_config.json", target)
    return len(vocabulary), len(kept)
