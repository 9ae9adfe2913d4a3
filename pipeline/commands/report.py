"""`mta-prep report`, as typed."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.flags import JsonFlag
from schemas import console
from schemas.manifest import require_there
from trainer.hub.folders import local_folder


def report(
    targets: Annotated[
        list[Path],
        typer.Argument(
            help="Prepared datasets and teacher caches, also as hf://datasets/OWNER/NAME; training runs; results of evaluations.",
            metavar="DATASET|CACHE|RUN…",
            parser=local_folder,
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    rows: Annotated[int, typer.Option(min=0, max=100, help="Rows of a dataset that are drawn.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Make one page to look at, print or send: whole in itself, without scripts, loading nothing.

    Of a dataset: what it is, what was left out and why, sizes, alignment, and rows with their units drawn over both
    tokenizations. Of a cache: what it keeps, at what size, and the relations of a row layer by layer. Of runs: curves over
    one another, evaluations with intervals (files of `mta-prep evaluate run --out`, given or lying in a run's folder), and what
    differed in their configs.

    Example: mta-prep report prepared cache runs/sft runs/mta -o report.html
    """
    for target in targets:
        require_there(target)
    from pipeline.report import build  # slow to import

    build.require_writable(out)
    size = build.write(targets, rows, out)
    if as_json:
        console.emit_json({"out": str(out), "bytes": size})
    else:
        console.stdout.print(f"Written to {out}: {console.size(size)}.")
