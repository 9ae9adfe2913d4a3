"""Finding a fast tokenizer by folder, file or hub id, or saying in one sentence why there is none."""

from pathlib import Path
from typing import Any

import transformers

from schemas.columns import Side
from schemas.config import SideConfig
from schemas.errors import ResourceError, UserError
from trainer.models.hub import first_line, hub_commit

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)


def load_fast_tokenizer(side: Side, config: SideConfig) -> Any:
    """The tokenizer exactly as `AutoTokenizer` builds it, so that training later sees the same ids.

    `config.tokenizer` is a folder, a `tokenizer.json` (read alone it knows no eos; a `tokenizer_config.json` beside it
    is used) or a hub id. Code that comes with a tokenizer is never run. Raises `UserError` if it is unusable, and
    `ResourceError` if a hub id is neither reachable nor cached.
    """
    name = config.tokenizer
    path = Path(name).expanduser()
    subject = f"The {side} tokenizer {name!r}"
    if path.is_file() and not path.with_name("tokenizer_config.json").is_file():
        tokenizer = _build(subject, transformers.PreTrainedTokenizerFast, tokenizer_file=str(path))
    elif path.is_file() or path.is_dir():
        folder = path if path.is_dir() else path.parent
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):
            raise UserError(
                f"{subject}: the folder holds no tokenizer (looked for {', '.join(TOKENIZER_FILES)}). Save one "
                "there with `tokenizer.save_pretrained`, or name another folder or a hub id."
            )
        tokenizer = _build(subject, transformers.AutoTokenizer.from_pretrained, str(folder), trust_remote_code=False)
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".json":
        raise UserError(f"{subject}: no such folder or file. Give a folder with a tokenizer.json, or a hub id.")
    else:
        online = hub_commit(subject, name, config.revision) is not None
        tokenizer = _build(
            subject,
            transformers.AutoTokenizer.from_pretrained,
            name,
            revision=config.revision or "main",
            local_files_only=not online,
            trust_remote_code=False,
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"{subject} is a slow tokenizer ({type(tokenizer).__name__}), which does not tell its tokens' places. "
            "Choose a model with a tokenizer.json, or convert this one to a fast tokenizer and save it."
        )
    return tokenizer


def _build(subject: str, build: Any, *source: str, **options: Any) -> Any:
    """Build it; what fails is told in a sentence. Bad files make the libraries raise anything from KeyError to Exception."""
    try:
        return build(*source, **options)
    except Exception as error:
        reason = first_line(error)
        if options.get("local_files_only"):
            raise ResourceError(
                f"{subject} is no local folder, the hub cannot be reached, and the local cache lacks it. Name a folder "
                "that holds a tokenizer.json, or try again with a network connection."
            ) from error
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{subject} comes with code of its own, which is not run here. Choose a tokenizer that needs none."
            ) from error
        raise UserError(
            f"{subject} cannot be loaded as a fast tokenizer: {reason} Choose one with an intact tokenizer.json."
        ) from error
