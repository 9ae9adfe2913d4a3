"""Tokenizers whose two files say all that `AutoTokenizer` would make of them: opened without transformers.

Importing transformers takes longer than a row takes to prepare. What it adds to a `tokenizer.json` depends on the folder
and on `tokenizer_config.json`: another class, tokens, a post-processor, a mended pre-tokenizer. Where either might, here
is None, and `trainer.models.tokenizer` is asked.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from schemas import embedded

#: Nothing else may lie in the folder: any other file may say something too.
FILES: Final = frozenset({"tokenizer.json", "tokenizer_config.json"})
#: But for a template of conversations, which renders texts before they are tokenized.
TEMPLATE: Final = "chat_template.jinja"
#: The class that does with a `tokenizer.json` only what it says, by its names in transformers 4 and 5.
CLASSES: Final = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
#: Settings that name a special token.
NAMED: Final = frozenset({f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")})
#: Settings that change no id: they concern decoding, padding's limit, and where the files came from.
IDLE: Final = frozenset(
    {"backend", "clean_up_tokenization_spaces", "is_local", "local_files_only", "model_max_length", "tokenizer_class"}
)
#: Of larger vocabularies transformers looks for a pre-tokenizer that it knows to be wrong, and may replace it.
LARGEST: Final = 100_000


@dataclass(frozen=True)
class SavedTokenizer:
    """A tokenizer as its files define it."""

    backend: Tokenizer
    eos: int | None


def open_saved(name: str) -> SavedTokenizer | None:
    """The tokenizer of a folder, or of an embedded name; None where only transformers knows what it does."""
    folder = Path(embedded.resolve(name)).expanduser()
    try:
        if {path.name for path in folder.iterdir()} - {TEMPLATE} != FILES:
            return None
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if not says_all(json.loads(text), settings):
            return None
        backend = Tokenizer.from_str(text)
    except Exception:  # no folder, or damaged files, for which the library raises anything: `load_tokenizer` says which
        return None
    if backend.get_vocab_size() > LARGEST:
        return None
    eos = settings.get("eos_token")
    return SavedTokenizer(backend, None if eos is None else backend.token_to_id(eos))


def says_all(definition: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` stays as it is under the settings beside it."""
    special = {token["content"] for token in definition["added_tokens"] if token["special"]}
    named = {settings[key] for key in NAMED & settings.keys()} - {None}
    return (
        settings.get("tokenizer_class") in CLASSES
        and settings.keys() <= NAMED | IDLE
        and settings.get("backend", "tokenizers") == "tokenizers"
        and named <= special  # any other is added to the vocabulary
        and definition.get("post_processor") is not None  # else one is made of bos and eos
        and definition.get("truncation") is None
        and definition.get("padding") is None
    )
