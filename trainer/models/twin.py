"""A model for each thread, with one set of weights for all."""

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

Whole = TypeVar("Whole")


def twin(whole: Whole, model: nn.Module) -> Whole:
    """Another copy of what runs `model`, with the very same weights, so that two threads can each run one."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(whole, shared)
