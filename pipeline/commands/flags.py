"""Flags that several commands have, and how flags and `--set` meet a config."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_type_hints

import typer

from schemas.config import Strict
from schemas.errors import Exit, UsageError
from schemas.keys import assign, assignment

if TYPE_CHECKING:
    from pipeline.shards.ranks import Rank

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
WorkersFlag = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that prepare shards. Default: one a core (this rank's share of them). Never changes the output.",
    ),
]
OverwriteFlag = Annotated[bool, typer.Option(help="Replace an earlier run of ours in the output folder.")]
AllowRejectedFlag = Annotated[
    bool,
    typer.Option("--allow-rejected", help=f"Exit with 0 although rows were left out (otherwise {Exit.REJECTED})."),
]
DatasetArgument = Annotated[Path, typer.Argument(help="Folder of a prepared dataset.", show_default=False)]
FolderArgument = Annotated[
    Path, typer.Argument(help="Folder of a prepared dataset or a teacher cache.", metavar="FOLDER", show_default=False)
]

ConfigFlag = Annotated[
    Path | None,
    typer.Option(help="YAML config; flags and --set override it. Every run writes its own to OUT/config.yaml."),
]
SetFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key of the config, all of which OUT/config.yaml shows; over flags and --config. The value is YAML, "
        "and `null` the default.",
        show_default=False,
    ),
]


class Key:
    """Beside a flag's type: the keys of the config that it sets. Of two flags for one key, the one declared last counts."""

    def __init__(self, *names: str) -> None:
        self.names = names


SplitFlag = Annotated[
    str | None,
    typer.Option(help="Split of a hub dataset, or of a folder that has several.", show_default=False),
    Key("split"),
]


def config_values(
    command: Callable[..., Any], given: Mapping[str, Any], model: type[Strict]
) -> tuple[dict[str, Any], str]:
    """Values for `model` out of a command's arguments (`given`: its `locals()` at first), and what messages call them.

    The file of --config, over it the flags that were given, over these each --set. Raises `UsageError` for what is no
    assignment, or for a key below a value that has none; `model.parse` says what else is wrong.
    """
    values = {} if given["config"] is None else model.from_yaml(given["config"])
    for flag, hint in get_type_hints(command, include_extras=True).items():
        keys = [name for note in get_args(hint) if isinstance(note, Key) for name in note.names]
        value = str(given[flag]) if isinstance(given.get(flag), Path) else given.get(flag)
        for key in keys if value not in (None, []) else ():
            assign(values, key, value)
    for text in given["set_"] or ():
        assign(values, *assignment(text))
    return values, "command line" if given["config"] is None else str(given["config"])


def require(values: Mapping[str, Any], key: str, named: str, command: str) -> None:
    """Raises `UsageError` if a dotted key has no value, with what a person calls it."""
    inner: Any = values
    for part in key.split("."):
        if not isinstance(inner, Mapping):
            return  # of the wrong kind, as parsing says
        if part not in inner:
            raise UsageError(f"Nothing given for {named} (see mta-prep {command} --help).")
        inner = inner[part]


#: How standard input is named.
_STDIN: Final = "-"


def rank_here(inputs: Sequence[str] = ()) -> "Rank":
    """This process among those that torchrun or srun has started. Raises `UsageError` for inputs that one alone can read."""
    from pipeline.shards.ranks import rank_of

    rank = rank_of(os.environ)
    if rank.count > 1 and _STDIN in inputs:
        raise UsageError(f"One rank alone can read standard input, and there are {rank.count}: name a file.")
    return rank


def run_workers(sharing: int = 1) -> int:
    """Default number of workers, where so many ranks share this machine."""
    from pipeline.shards.pool import threads_of

    return threads_of(1, sharing)
