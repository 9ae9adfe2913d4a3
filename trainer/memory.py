"""Telling that memory ran out from any other failure."""

import torch


def out_of_memory(error: Exception) -> bool:
    """Whether `error` says that an allocation failed; torch raises a plain RuntimeError for the CPU's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
