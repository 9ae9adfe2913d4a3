"""Limits of time and memory for what a template computes: a loop without end must not be the end of a run."""

import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

#: A template is given so much processor time for one row; honest ones take microseconds.
SECONDS: Final = 10.0
#: Memory that it may take on the way, some times what the largest prompt takes: an operation within it is done in a second.
BYTES: Final = 2**28
MEMORY: Final = f"{BYTES >> 20} MiB"


class TooLong(BaseException):
    """The time of a row is over. Nothing on the way may take it for an error of its own."""


@contextmanager
def limited() -> Iterator[None]:
    """Raises `TooLong` within, once `SECONDS` of processor time are over, and MemoryError for more than `BYTES` anew.

    Where it can: on Linux, in the main thread, in which rows are rendered.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGVTALRM, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    room = pages * resource.getpagesize() + BYTES
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        if soft == resource.RLIM_INFINITY or room < soft:
            resource.setrlimit(resource.RLIMIT_AS, (room, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, handler)
