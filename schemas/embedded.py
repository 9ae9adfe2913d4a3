"""The defaults that come with the package, by name: two samples, two small tokenizers, a small teacher."""

from pathlib import Path
from typing import Final

from schemas.config import SideConfig
from schemas.errors import UsageError

#: Beside the packages in a checkout and in a wheel.
DATA: Final = Path(__file__).resolve().parent.parent / "data"
PREFIX: Final = "embedded:"
NAMES: Final = {
    "sample": DATA / "sample" / "instructions.jsonl",
    "conversations": DATA / "sample" / "conversations.jsonl",
    "bytelevel-bpe": DATA / "tokenizers" / "bytelevel-bpe",
    "sentencepiece-bpe": DATA / "tokenizers" / "sentencepiece-bpe",
    "teacher": DATA / "teacher",
}


def resolve(name: str) -> str:
    """The path behind an embedded name; any other name as it is."""
    if not name.startswith(PREFIX):
        return name
    path: Path | None = NAMES.get(name.removeprefix(PREFIX))
    if path is None:
        raise UsageError(
            f"{name!r} is not among the embedded defaults: {', '.join(PREFIX + known for known in NAMES)}."
        )
    return str(path)


def side(config: SideConfig) -> SideConfig:
    """The same side with its tokenizer's name resolved."""
    return config.model_copy(update={"tokenizer": resolve(config.tokenizer)})
