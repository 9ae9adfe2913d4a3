"""Functions of plain loops: interpreted as long as they have little to do, compiled by numba from then on.

To import numba and load what it compiled before takes most of a second, longer than a few sentences take to parse.
"""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

Loop = Callable[..., None]


def machine_code(function: Callable[..., Any], **options: Any) -> Any:
    """A function compiled by numba, which is kept on disk where a folder can be written: its own, or the user's."""
    import numba

    # unwrapped, since run-time shape checks wrap every function and cannot be compiled
    own = inspect.unwrap(function)
    try:
        return numba.njit(cache=True, nogil=True, **options)(own)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return numba.njit(nogil=True, **options)(own)  # anew in every process


class Loops:
    """Functions that go together. Those that are ever interpreted must compute the same bits in either way.

    `patience`: work until they are compiled, in whatever unit the caller counts. `options` are `numba.njit`'s.
    """

    def __init__(self, *functions: Loop, patience: int, **options: Any) -> None:
        self.interpreted = tuple(inspect.unwrap(function) for function in functions)
        self._left = patience
        self._options = options

    @cached_property
    def compiled(self) -> tuple[Loop, ...]:
        """The functions compiled; from the first call on these are the ones."""
        self._left = 0
        return tuple(machine_code(function, **self._options) for function in self.interpreted)

    def for_work(self, work: int) -> tuple[Loop, ...]:
        """The functions, for so much more work."""
        self._left -= work
        return self.interpreted if self._left >= 0 else self.compiled
