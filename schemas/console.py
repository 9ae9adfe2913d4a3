"""The terminal: progress on stderr, tables and JSON on stdout, errors in one or two sentences.

Much of what is shown is not ours: ids, names, paths, texts, what libraries say. Both consoles show all of it as it is,
brackets included, and nothing of it can steer the terminal: that is seen to here, where everything passes, and nowhere else.
"""

import errno
import io
import json
import math
import re
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text as RichText
from rich.text import TextType

from schemas.errors import Exit, ResourceError, UsageError, UserError, quoted

#: Seconds between progress lines where there is no terminal.
LOG_EVERY_S = 10.0

#: Longer messages are cut: whatever they repeat, nobody reads more.
MESSAGE_LIMIT: Final = 2_000
#: What steers a terminal: control characters but for tab and line feed, and marks that turn the direction of text.
_STEERING: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: Of control characters there are pictures, of which a terminal does nothing.
_PICTURES: Final = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}

#: What would break a line or not show at all; control characters have pictures of their own.
_VISIBLE: Final = str.maketrans({"\n": "⏎", "\t": "⇥", "\u00a0": "⍽", "\u200b": "∅"})


def harmless(text: str) -> str:
    """The text with a picture in place of each control character, and `\ufffd` for what has none."""
    return _STEERING.sub(lambda match: _PICTURES.get(ord(match[0]), "\ufffd"), text)


def visible(text: str) -> str:
    """Text on one line, control characters and unusual spaces shown, nothing that could steer what shows it."""
    return "".join(_shown(char) for char in harmless(text.translate(_VISIBLE)))


def _shown(char: str) -> str:
    if char.isprintable() or char == "\u200d":  # the joiner inside emoji
        return char
    return "⍽" if char.isspace() else "�"


class Text(RichText):
    """Text of which nothing vanishes: rich's own drops some control characters before a console sees them."""

    def __init__(self, text: str = "", style: str | Style = "", **options: Any) -> None:
        super().__init__(harmless(text), style, **options)

    def append(self, text: TextType, style: str | Style | None = None) -> "Text":
        """Add to the end."""
        super().append(harmless(text) if isinstance(text, str) else text, style)
        return self


class _Terminal(Console):
    """A console that takes no text for markup, and shows what would steer the terminal."""

    def render_str(self, text: str, **options: Any) -> RichText:
        return super().render_str(harmless(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


stdout: Console = _Terminal(highlight=False, markup=False, emoji=False, soft_wrap=True)
stderr: Console = _Terminal(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(f"- {task.fields['unit']}s/s", style="cyan")
        tokens = task.fields["tokens"] / task.completed * speed if task.completed else 0
        return Text(f"{_rate(speed, task.fields['unit'])}{_and_tokens(tokens)}", style="cyan")


def _rate(per_second: float, unit: str) -> str:
    return f"{per_second:.1f} {unit}s/s"


def _and_tokens(per_second: float) -> str:
    return f", {per_second:,.0f} tokens/s" if per_second else ""


@dataclass
class RowProgress:
    """Rows done, or what else is called `unit`, and tokens where they are counted; `advance` is called from one thread only."""

    total: int
    unit: str = "row"
    _bar: Progress | None = None
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _done: int = 0
    _tokens: int = 0

    def advance(self, rows: int, tokens: int = 0) -> None:
        """Count `rows` more, of so many tokens, and show it."""
        self._done += rows
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=rows, tokens=self._tokens)
            return
        now = time.monotonic()
        if now - self._said >= LOG_EVERY_S or self._done >= self.total:
            self._said = now
            elapsed = max(now - self._began, 1e-9)
            rate = self._done / elapsed
            left = (self.total - self._done) / rate if rate else 0.0
            stderr.print(f"{self._line(rate, self._tokens / elapsed)}, {duration(left)} left")

    def _line(self, rate: float, tokens: float) -> str:
        """What is done, and how fast."""
        return f"{self._done}/{counted(self.total, self.unit)}, {_rate(rate, self.unit)}{_and_tokens(tokens)}"


class ByteProgress(RowProgress):
    """The same of bytes."""

    def _line(self, rate: float, tokens: float) -> str:
        return f"{size(self._done)} of {size(self.total)}, {size(rate)}/s"


@contextmanager
def row_progress(what: str, total: int, quiet: bool, unit: str = "row") -> Iterator[RowProgress]:
    """A bar on a terminal, plain lines in a log, nothing if `quiet`; `unit`: what is counted."""
    if quiet:
        yield _Silent(total)
        return
    if not stderr.is_terminal:
        yield RowProgress(total, unit)
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=stderr, speed_estimate_period=120) as bar:
        bar.add_task(what, total=total, tokens=0, unit=unit)
        yield RowProgress(total, unit, bar)


@contextmanager
def byte_progress(what: str, total: int, quiet: bool) -> Iterator[RowProgress]:
    """The same of bytes that are transferred."""
    if quiet or not stderr.is_terminal:
        yield _Silent(total) if quiet else ByteProgress(total)
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=stderr, speed_estimate_period=120) as bar:
        bar.add_task(what, total=total)
        yield RowProgress(total, "byte", bar)


class _Silent(RowProgress):
    def advance(self, rows: int, tokens: int = 0) -> None:
        self._done += rows


def duration(seconds: float | int) -> str:
    """`75` -> `1 min 15 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(count: int, noun: str) -> str:
    """`1, "row"` -> `1 row`; `2, "row"` -> `2 rows`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: float | int) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def emit_json(value: Any) -> None:
    """One JSON object on one line of stdout; what would steer a terminal is escaped in it."""
    text = json.dumps(value, ensure_ascii=False)
    sys.stdout.write(_STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; all columns but the first are right-aligned."""
    view = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(columns):
        view.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        view.add_row(*(Text(cell) for cell in row))
    stdout.print(view)


def positive(value: float | None) -> float | None:
    """Callback of a flag: its number, if that is above 0 and finite; nothing where the flag was not given."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value} is no finite number above 0.")
    return value


def run(app: typer.Typer, name: str, interrupted: str | None, may_be_empty: Collection[str] = ()) -> NoReturn:
    """Run a command line, and turn every error into a sentence and an exit code (`schemas.errors.Exit`).

    `interrupted`: what is said after Ctrl-C, if anything. `may_be_empty`: flags that take an empty value. `--debug` anywhere
    shows tracebacks.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _require_no_empty(arguments, may_be_empty)
        code = app(args=arguments, prog_name=name, standalone_mode=False)
        if code == Exit.INTERRUPTED and interrupted is not None:  # typer's own word for Ctrl-C
            stderr.print(interrupted)
        sys.exit(code if isinstance(code, int) else Exit.OK)
    except BrokenPipeError:
        sys.exit(Exit.OK)  # the reader of our output (head, less) has seen enough
    except Exception as error:
        if isinstance(error, typer.TyperException):
            words = io.StringIO()
            error.show(words)  # type: ignore[attr-defined]  # of every kind that it raises
            stderr.print(words.getvalue().rstrip())
            sys.exit(Exit.USAGE)
        sys.exit(explain(error, debug))


def _require_no_empty(arguments: Sequence[str], may_be_empty: Collection[str]) -> None:
    """Raises `UsageError` for an argument that is empty: as a path it would be the current folder."""
    for before, argument in pairwise(["", *arguments]):
        flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
        if equals and not value and flag not in may_be_empty:
            where = f"behind {flag} " if flag.startswith("-") else ""
            raise UsageError(
                f"The argument {where}is empty, as a shell's variable is that is not set. Give it a value."
            )


def explain(error: BaseException, debug: bool) -> Exit:
    """Say what went wrong on stderr and return the exit code for it."""
    if debug:
        stderr.print("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, UserError):
        stderr.print(Text(f"Error: {_cut(str(error))}", style="red"))
        return error.exit_code
    if isinstance(error, OSError) and (told := os_problem(error)) is not None:
        return explain(told, debug=False)
    what = f"{type(error).__name__}: {_cut(str(error)).removesuffix('.')}."
    stderr.print(Text(f"Internal error: {what} This is a bug in mta-prep; --debug shows where.", "red"))
    return Exit.FAILED


def _cut(message: str) -> str:
    if len(message) <= MESSAGE_LIMIT:
        return message
    return f"{message[:MESSAGE_LIMIT]} … ({len(message) - MESSAGE_LIMIT:,} more characters)"


def os_problem(error: OSError) -> UserError | None:
    """What an operating system error means to a person, or None if it is none of theirs."""
    place = error.filename or "the output folder"
    if error.errno == errno.ENAMETOOLONG:
        name = "of that name" if error.filename is None else f"of the name {quoted(str(error.filename))}"
        return UsageError(f"There is no file {name}: it is longer than names of files can be.")
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return ResourceError(
            f"No room left on the disk (writing {place}). What is finished is kept: "
            "make room and run the same command again."
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ResourceError(
            f"No permission for {place}: the folder is read-only or belongs to somebody else. Choose another --out."
        )
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return ResourceError("Too many open files. Raise the limit (ulimit -n) or use fewer --workers.")
    return None
