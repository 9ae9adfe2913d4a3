"""What to do when memory runs out: tell it from any other failure, and go on in smaller parts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import torch

from schemas.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")


#: Of plain RuntimeErrors for want of memory: torch's on the CPU, the CUDA runtime's, cuBLAS's, NCCL's.
_TOLD: Final = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to CUDA calloc",
)


def out_of_memory(error: Exception) -> bool:
    """Whether `error` says that an allocation failed; not all that allocates raises an error of a kind of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _TOLD)


def in_halves(
    work: Callable[[Sequence[Item]], Result],
    batch: Sequence[Item],
    device: torch.device,
    alone: Callable[[Item], str],
) -> Iterator[Result]:
    """`work` on the batch, and where memory runs out on its halves, and on theirs, in order.

    Raises `ResourceError` where it runs out for a single item: `alone` says which that is and what to do.
    """
    try:
        result = work(batch)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    else:
        yield result
        return
    if len(batch) == 1:
        raise ResourceError(f"Out of memory on {device} with {alone(batch[0])}")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    yield from in_halves(work, batch[:middle], device, alone)
    yield from in_halves(work, batch[middle:], device, alone)
