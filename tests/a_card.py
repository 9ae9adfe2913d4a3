"""A real CUDA device behind the interface of `StandInCuda`: what that one promises is held against the card itself.

    with Card() as cuda:
        units = geometry.pool(hidden.to("cuda:0"), weights.to("cuda:0"), spans)
    assert cuda.places() == set()      # where Python had to wait for values of the device

torch itself tells of every call that waits. `waits` are those for values, as the stand-in counts them; `uploads` are those
in which only memory that is not pinned was copied to the device, which the stand-in does not know of.
"""

import warnings
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stand_in_cuda import place_in_our_code

#: Marks of a file of tests that need one.
NEEDS_A_CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device here that torch can use."),
]
#: Float32 sums of a few thousand terms agree to about √4096 · 2⁻²⁴ of their terms' size, whatever their order; a depth of
#: some layers on top. TF32's products, of 2⁻¹¹ each, are no way within it.
SAME_IN_FLOAT32 = {"rtol": 1e-4, "atol": 2e-5}

_WAITED = "called a synchronizing CUDA operation"

aten = torch.ops.aten
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}


class Card(TorchDispatchMode):
    """While it lasts there are no gradients, as with the stand-in, and every wait is noted."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()  # (file:Class.function, operation)
        self.uploads: Counter[tuple[str, str]] = Counter()

    def __enter__(self):
        self._within = ExitStack()
        self._within.enter_context(torch.no_grad())
        self._within.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        warnings.filterwarnings("always", message=_WAITED)
        warnings.showwarning = self._tell
        torch.cuda.set_sync_debug_mode("warn")
        self._within.callback(torch.cuda.set_sync_debug_mode, "default")
        return super().__enter__()

    def __exit__(self, *error):
        try:
            return super().__exit__(*error)
        finally:
            self._within.close()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        # torch tells of a wait only when the whole call is over: an operation that may not wait ends instead, before it does
        torch.cuda.set_sync_debug_mode("error")
        try:
            return operation(*args, **(kwargs or {}))
        except RuntimeError as error:
            if _WAITED not in str(error):
                raise
        finally:
            torch.cuda.set_sync_debug_mode("warn")
        noted = self.waits if _brings_values(operation, args, kwargs or {}) else self.uploads
        noted[place_in_our_code(), str(operation)] += 1
        torch.cuda.set_sync_debug_mode("default")
        try:
            return operation(*args, **(kwargs or {}))
        finally:
            torch.cuda.set_sync_debug_mode("warn")

    def places(self):
        """file:Class.function of every wait for values."""
        return {place for place, _ in self.waits}

    def values(self, tensor):
        """Of a tensor that must lie on the device, on the CPU."""
        assert tensor.is_cuda, "a result was left on the CPU"
        return tensor.cpu()

    @staticmethod
    def tolerance(exactly):
        """How close the CPU's values are. `exactly` is no matter: the card's sums run in another order than the CPU's."""
        return SAME_IN_FLOAT32

    def _tell(self, message, category, filename, lineno, file=None, line=None):
        self.uploads[place_in_our_code(), "no operation"] += 1


def _brings_values(operation, args, kwargs):
    """Whether what it waits for are values, or shapes that depend on them, of tensors on the device."""
    if operation in _INDEXING:  # places on the CPU are copied there; a mask on the device has to be counted
        return any(leaf.is_cuda and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if leaf is not None)
    if operation is aten.copy_.default:
        return args[1].is_cuda
    return any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in tree_leaves((args, kwargs)))
