"""`mta-prep push`, as typed."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.flags import JsonFlag
from schemas import console
from schemas.errors import UsageError
from schemas.hub import CALLED, REPOSITORY_TYPES, hub_name


def push(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of a prepared dataset, a teacher cache, an exported student or a parser.", show_default=False
        ),
    ],
    name: Annotated[str, typer.Argument(help="Where to: OWNER/NAME on the Hub.", show_default=False)],
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Licence of what is pushed, as the Hub spells it: cc-by-4.0, apache-2.0, … Default: what the card says.",
            show_default=False,
        ),
    ] = None,
    text_license: Annotated[
        str | None,
        typer.Option(
            help="Licence of the texts in it, or of which it was made. Default: what the card says.", show_default=False
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to push to, made if there is none. Default: main.", show_default=False)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a dataset, cache, student or parser on the Hub, in one commit.

    A dataset goes as Parquet, which the Hub's viewer shows and `datasets.load_dataset` reads; `mta-prep pull` gives the
    folder back, byte for byte. An interrupted push goes on where it stopped: run the same command again. Pushing again
    brings the repository up to date. Log in once, with `hf auth login`.

    Example: mta-prep push prepared you/prepared --license cc-by-4.0 --text-license cc-by-sa-4.0
    """
    target = hub_name(name if revision is None else f"{name}@{revision}")
    from pipeline.hub.card import Licences
    from pipeline.hub.contents import contents_of
    from pipeline.hub.pushing import push as push_contents

    contents = contents_of(folder)
    kind = REPOSITORY_TYPES[contents.kind]
    if target.type not in (None, kind):
        raise UsageError(
            f"{folder} is {CALLED[contents.kind]}, which goes to a {kind}'s repository; write {target.id}."
        )
    if not as_json:
        for left in contents.left_out:
            console.stderr.print(f"Not pushed, since it is no part of {CALLED[contents.kind]}: {left}.")
    licences = Licences(license_, text_license)
    pushed = push_contents(contents, target.at(kind), licences, private=private, quiet=as_json)
    if as_json:
        console.emit_json(
            {
                "name": str(pushed.name),
                "kind": contents.kind,
                "commit": pushed.commit,
                "files": pushed.files,
                "bytes": pushed.bytes,
                "left_out": contents.left_out,
            }
        )
        return
    told = f"{console.counted(pushed.files, 'file')}, {console.size(pushed.bytes)}, commit {pushed.commit[:12]}"
    console.stdout.print(f"Pushed to {pushed.name}: {told}.")
    source = target.id if target.revision is None else f"{target.id}@{target.revision}"
    console.stdout.print(f"Whoever may see it gets it by: mta-prep pull {source}")
