"""Errors meant for the person at the terminal, the exit codes they end with, and what was meant by a misspelt name."""

import difflib
import reprlib
import shlex
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

#: Most characters of a wrong value that a message repeats.
QUOTED_LIMIT: Final = 200
#: And of what a library says.
_REPEATED_LIMIT: Final = 500
_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = QUOTED_LIMIT


class Exit(IntEnum):
    """Exit codes of every command (documented in the README)."""

    OK = 0
    FAILED = 1  # an internal error: a bug
    USAGE = 2  # the command line or a config
    INPUT = 3  # the input cannot be read or does not fit
    STATE = 4  # the output folder is in use, of another config, or damaged
    RESOURCE = 5  # disk full, read-only, out of memory, no network
    REJECTED = 6  # finished, but some input rows could not be used
    INTERRUPTED = 130


class UserError(Exception):
    """What is wrong, where, and what to do next, in one or two sentences; shown without a traceback."""

    exit_code: Exit = Exit.INPUT


class UsageError(UserError):
    """The command line or a config asks for something that does not exist or does not fit."""

    exit_code = Exit.USAGE


class StateError(UserError):
    """A folder is in use, unfinished, damaged, or was made by another config."""

    exit_code = Exit.STATE


class DamagedError(StateError):
    """A finished folder is not what was written; `what` is wrong with it, and `again` the command that writes it anew."""

    def __init__(self, folder: Path, what: str, again: str) -> None:
        super().__init__(folder, what, again)  # as they are: an error that comes out of a worker is made again of them
        self.what = what

    def __str__(self) -> str:
        folder, what, again = self.args
        return (
            f"{folder} is damaged: {what}. `{shlex.join(['mta-prep', 'verify', str(folder)])}` says what else is wrong; "
            f"`{again}` writes it anew."
        )


class ResourceError(UserError):
    """The machine cannot: disk full, folder read-only, no network."""

    exit_code = Exit.RESOURCE


def sentence(text: str) -> str:
    """With a full stop at its end, of which messages of others have one already."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def one_line(error: BaseException) -> str:
    """What a library says of what went wrong, on one line, without a full stop, and no more of it than a person reads."""
    return _repeated(str(error), error)


def first_line(error: BaseException) -> str:
    """The first line of it alone, where others follow that tell a person less."""
    return _repeated(next(iter(str(error).strip().splitlines()), ""), error)


def _repeated(text: str, error: BaseException) -> str:
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return text if len(text) <= _REPEATED_LIMIT else f"{text[:_REPEATED_LIMIT]}…"


def quoted(value: Any) -> str:
    """A wrong value as messages show it, without ever making the whole of it into text."""
    text = _SHORT.repr(value)
    return text if len(text) <= QUOTED_LIMIT else f"{text[:QUOTED_LIMIT]}…"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a misspelt one; None where none is much like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)), None)
