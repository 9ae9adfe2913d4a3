"""What answers prompts: one of the back ends of `mta-prep generate`."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pipeline.shards.pool import Tick
from trainer.evaluation.generate import Prompt, Response
from trainer.evaluation.responses import Speech


@runtime_checkable
class Responder(Protocol):
    """A model that is loaded."""

    @property
    def speech(self) -> Speech:
        """What turns its tokens into responses."""

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest prompt and response together that it takes; None: no limit."""

    @property
    def threads(self) -> int:
        """Batches that it has in work at a time."""

    def __call__(self, prompts: Sequence[Prompt], tick: Tick) -> list[Response]:
        """The response to each, in their order; a row's random numbers are of the prompt's seed and row alone."""
