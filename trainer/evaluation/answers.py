"""What of a response is its answer: a thinking model's reasoning is not scored."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


class Answer(NamedTuple):
    """The text that is scored, whether reasoning was set apart from it, and whether that came to an end."""

    text: str
    reasoned: bool
    finished: bool


def answer_of(response: str, thinking: bool = False) -> Answer:
    """What stands behind reasoning at the beginning of a response, or all of it as it stands where it does not think.

    Reasoning that does not end has no answer behind it. `thinking`: the prompt has opened it already.
    """
    if not thinking and not response.lstrip().startswith(_OPEN):
        return Answer(response, False, True)
    _, close, behind = response.partition(_CLOSE)
    return Answer(behind.strip(), True, bool(close))


def opens_reasoning(prompt: str) -> bool:
    """Whether what follows a rendered prompt is reasoning."""
    return prompt.rstrip().endswith(_OPEN)


def with_its_opening(response: str, thinking: bool) -> str:
    """The response as a turn of the assistant: with the beginning of its reasoning, if the prompt has opened that."""
    return f"{_OPEN}\n{response}" if thinking else response


class Decoder:
    """From token ids to a response's text: without special tokens, but for those that set reasoning apart."""

    def __init__(self, tokenizer: Any, closing: str = "") -> None:
        """`closing`: what a template writes in plain text between an answer and the token that ends it."""
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._hidden = {index for index, token in added if token.special and token.content not in (_OPEN, _CLOSE)}
        self._closing = closing

    def __call__(self, ids: Sequence[int]) -> str:
        """The whole text, white space around it aside."""
        text: str = self._tokenizer.decode([index for index in ids if index not in self._hidden])
        return text.strip().removesuffix(self._closing).rstrip()
