"""Prompts of like length generate together; where memory runs out, the batch does in halves."""

from collections.abc import Iterator, Sequence

import torch

from trainer.evaluation.generate import Generator, Prompt, Response
from trainer.models.memory import in_halves


def batches_by_length(prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
    """Numbers of the prompts of each batch, the longest first: if there is too little memory, it shows at once."""
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number].ids), number))
    for first in range(0, len(order), size):
        yield order[first : first + size]


def responses_of(batch: Sequence[Prompt], generator: Generator, device: torch.device) -> list[Response]:
    """The response to each prompt of a batch. Raises `ResourceError` where memory does not hold a single one."""
    parts = in_halves(generator, batch, device, _too_large)
    return [response for part in parts for response in part]


def _too_large(prompt: Prompt) -> str:
    return f"a single prompt of {len(prompt.ids)} tokens; allow fewer tokens, or use a shorter --dtype."
