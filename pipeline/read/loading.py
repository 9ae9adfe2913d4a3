"""Fast tokenizers for a dataset's sides, which tell where their tokens stand."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from pipeline.read.saved_tokenizer import open_saved
from schemas.columns import Side
from schemas.config import SideConfig
from schemas.errors import UserError
from trainer.models.tokenizer import around, load_tokenizer, surrounding_tokens


@dataclass(frozen=True)
class FastTokenizer:
    """What encoding needs of a tokenizer."""

    backend: Tokenizer
    before: list[int]  # ids of the special tokens that it puts before a text
    after: list[int]  # and behind it
    eos: int | None


def load_fast_tokenizer(side: Side, config: SideConfig) -> FastTokenizer:
    """The tokenizer exactly as `AutoTokenizer` builds it, so that training later sees the same ids.

    Raises `UserError` if there is none, or only a slow one, and `ResourceError` if a hub id is neither reachable nor
    cached.
    """
    saved = open_saved(config.tokenizer)
    if saved is not None:
        probe = saved.backend.encode("a")
        return FastTokenizer(saved.backend, *around(probe.ids, probe.special_tokens_mask), saved.eos)
    subject = f"The {side} tokenizer {config.tokenizer!r}"
    tokenizer = load_tokenizer(config.tokenizer, config.revision, subject)
    if not tokenizer.is_fast:
        raise UserError(
            f"{subject} is a slow tokenizer ({type(tokenizer).__name__}), which does not tell its tokens' places. "
            "Choose a model with a tokenizer.json, or convert this one to a fast tokenizer and save it."
        )
    return FastTokenizer(tokenizer.backend_tokenizer, *surrounding_tokens(tokenizer), tokenizer.eos_token_id)
