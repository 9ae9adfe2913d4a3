"""`mta-prep pull`, as typed."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.flags import JsonFlag
from schemas import console
from schemas.hub import CALLED, hub_name


def pull(
    name: Annotated[
        str,
        typer.Argument(help="What to fetch: OWNER/NAME on the Hub, or OWNER/NAME@REVISION.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for it. Default: NAME, in the current folder.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetch what `mta-prep push` put on the Hub: the folder as it was, every file checked.

    Of a repository only the files that were pushed are taken, none of which can run code. An interrupted pull goes on
    where it stopped: run the same command again.

    Example: mta-prep pull somebody/prepared -o prepared
    """
    source = hub_name(name)
    from trainer.hub.pulling import pull as pull_into

    pulled = pull_into(source, out or Path(source.id.partition("/")[2]), quiet=as_json)
    if as_json:
        console.emit_json(
            {
                "out": str(pulled.folder),
                "name": str(pulled.name),
                "kind": pulled.kind,
                "commit": pulled.commit,
                "bytes": pulled.bytes,
                "already": pulled.already,
            }
        )
        return
    told = f"{CALLED[pulled.kind]}, {console.size(pulled.bytes)}, commit {pulled.commit[:12]}"
    place = f"is in {pulled.folder} already, every file checked" if pulled.already else f"is in {pulled.folder}"
    console.stdout.print(f"{pulled.name} ({told}) {place}.")
