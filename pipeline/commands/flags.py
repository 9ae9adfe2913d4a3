"""Flags that several commands have, and how flags and `--set` meet a config."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args, get_type_hints

import typer

from schemas.config import Strict
from schemas.errors import Exit, UsageError
from schemas.keys import assign, assignment
from trainer.hub.folders import local_folder

if TYPE_CHECKING:
    from pipeline.shards.cluster import Cluster
    from pipeline.shards.ranks import Rank

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
WorkersFlag = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that prepare shards. Default: one a core (this rank's share of them), or as many as a Ray cluster has "
        "room for. Never changes the output.",
        show_default=False,
    ),
]
ModelWorkersFlag = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes, each with the model in memory: one a GPU. A process uses all cores (its share of them). Default: 1, or "
        "as many as a Ray cluster has room for. Never changes the output.",
        show_default=False,
    ),
]
EngineFlag = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="Who prepares shards: processes of this machine, or actors on a Ray cluster that is there already (needs "
        "`pip install 'mta-prep[ray]'`). Never changes the output."
    ),
]
AddressFlag = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster: HOST:PORT, or `auto` (default), the one that this machine belongs to.",
        show_default=False,
    ),
]
RayResourcesFlag = Annotated[
    str | None,
    typer.Option(
        "--ray-resources",
        help="What each actor takes of the Ray cluster, as CPU=4,GPU=1,memory=8e9. Default: CPU=1, and GPU=1 with a device of "
        "cuda.",
        show_default=False,
    ),
]
OverwriteFlag = Annotated[bool, typer.Option(help="Replace an earlier run of ours in the output folder.")]
AllowRejectedFlag = Annotated[
    bool,
    typer.Option("--allow-rejected", help=f"Exit with 0 although rows were left out (otherwise {Exit.REJECTED})."),
]
DatasetArgument = Annotated[
    Path,
    typer.Argument(
        help="A prepared dataset: its folder, or hf://datasets/OWNER/NAME.",
        metavar="DATASET",
        parser=local_folder,
        show_default=False,
    ),
]
FolderArgument = Annotated[
    Path,
    typer.Argument(
        help="A prepared dataset or a teacher cache: its folder, or hf://datasets/OWNER/NAME.",
        metavar="FOLDER",
        parser=local_folder,
        show_default=False,
    ),
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


def one_worker(sharing: int = 1) -> int:
    """Default number of workers that have a model each."""
    return 1


@dataclass(frozen=True)
class Engine:
    """Who prepares shards: so many processes here, as this rank, or so many actors of a cluster."""

    workers: int
    rank: "Rank"
    cluster: "Cluster | None" = None


@contextmanager
def engine_of(
    given: Mapping[str, Any], usual: Callable[[int], int], device: str = "cpu", inputs: Sequence[str] = ()
) -> Iterator[Engine]:
    """The engine of a command's arguments; `usual`: workers where none are named, on a machine that so many ranks share.

    While a cluster is used, nothing may be printed on stdout. Raises `UsageError` for flags of the other engine,
    `ResourceError` for a cluster that cannot be reached.
    """
    rank = rank_here(inputs)
    if given["engine"] == "local":
        for flag, value in (("--address", given["address"]), ("--ray-resources", given["ray_resources"])):
            if value is not None:
                raise UsageError(f"{flag} is of --engine ray; pass both or neither.")
        yield Engine(given["workers"] or usual(rank.local_count), rank)
        return
    if rank.count > 1:
        raise UsageError(
            f"--engine ray starts its own workers, and this is rank {rank.number} of {rank.count}; start the command once."
        )
    from pipeline.shards.cluster import connected, resources_of

    with connected(given["address"] or "auto", resources_of(given["ray_resources"], device)) as cluster:
        yield Engine(given["workers"] or cluster.slots(), rank, cluster)
