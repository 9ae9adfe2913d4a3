"""Fast tokenizers for a dataset's sides, which tell where their tokens stand."""

from typing import Any

from schemas.columns import Side
from schemas.config import SideConfig
from schemas.errors import UserError
from trainer.models.tokenizer import load_tokenizer


def load_fast_tokenizer(side: Side, config: SideConfig) -> Any:
    """The tokenizer exactly as `AutoTokenizer` builds it, so that training later sees the same ids.

    Raises `UserError` if there is none, or only a slow one, and `ResourceError` if a hub id is neither reachable nor
    cached.
    """
    subject = f"The {side} tokenizer {config.tokenizer!r}"
    tokenizer = load_tokenizer(config.tokenizer, config.revision, subject)
    if not tokenizer.is_fast:
        raise UserError(
            f"{subject} is a slow tokenizer ({type(tokenizer).__name__}), which does not tell its tokens' places. "
            "Choose a model with a tokenizer.json, or convert this one to a fast tokenizer and save it."
        )
    return tokenizer
