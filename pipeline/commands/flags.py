"""Flags that several commands have, and how flags meet a config."""

from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.errors import Exit, UsageError, quoted

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
WorkersFlag = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that prepare shards. Default: one a core. Never changes the output."),
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


def merge(base: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """`base` with every flag that was given (dotted names reach into nested mappings)."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for name, value in flags.items():
        if value is None:
            continue
        place = merged
        *path, last = name.split(".")
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"The config's `{part}` must be a mapping, it is {quoted(inner)}.")
            place = inner
        place[last] = value
    return merged


def run_workers() -> int:
    """Default number of workers."""
    from pipeline.shards.pool import default_workers

    return default_workers()
