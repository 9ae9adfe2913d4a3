"""Which files of a folder are data, and of which split, by their names alone.

Splits are told as `datasets` tells them: `train-00000-of-00004.parquet` by what stands before the numbers, other names by
a word that stands apart (`dolly_test.jsonl`, `dev.csv`). A file that names no split (`heldout.jsonl`) is of none beside files
that do.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: What `datasets`, the hub, and models keep in formats that rows have too.
METADATA: Final = frozenset(
    {
        *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
        *("config.json", "generation_config.json", "adapter_config.json", "preprocessor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
    }
)

_WORDS: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF: Final = {word: split for split, words in _WORDS.items() for word in words}
_SHARD: Final = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?(\.\w+)*")
_APART: Final = re.compile(rf"(?:^|[-._ \d])({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?=[-._ \d]|$)")


def canonical(split: str) -> str:
    """`dev` -> `validation`; names of no known meaning as they are."""
    return _SPLIT_OF.get(split.lower(), split)


def split_of(path: Path) -> str | None:
    """The split that a file's name tells, if any."""
    if shard := _SHARD.fullmatch(path.name):
        return canonical(shard["split"])
    word = _APART.search(path.name.lower())
    return _SPLIT_OF[word[1]] if word else None


def splits_of(paths: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files by split, in order of the splits' names, and those whose names tell none."""
    splits: dict[str, list[Path]] = {}
    untold = []
    for path in paths:
        if (split := split_of(path)) is None:
            untold.append(path)
        else:
            splits.setdefault(split, []).append(path)
    return dict(sorted(splits.items())), untold
