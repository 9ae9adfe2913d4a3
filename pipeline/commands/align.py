"""`mta-prep align`, as typed."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.commands.flags import (
    AddressFlag,
    AllowRejectedFlag,
    DatasetArgument,
    EngineFlag,
    JsonFlag,
    OverwriteFlag,
    RayResourcesFlag,
    WorkersFlag,
    engine_of,
    run_workers,
)
from pipeline.commands.parse import finish
from schemas.columns import SIDES, Side
from schemas.commands import parse_again
from schemas.config import Mined, ParseConfig
from schemas.errors import UsageError
from schemas.keys import assignment, spelled
from schemas.manifest import read_manifest
from trainer.hub.folders import is_copy


def align(
    dataset: DatasetArgument,
    student: Annotated[str | None, typer.Option(help="New student tokenizer.", show_default=False)] = None,
    teacher: Annotated[str | None, typer.Option(help="New teacher tokenizer.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the new dataset. Default: beside the old one, named after the tokenizer."
        ),
    ] = None,
    student_revision: Annotated[str | None, typer.Option(help="Revision of a hub tokenizer.")] = None,
    teacher_revision: Annotated[str | None, typer.Option(help="Revision of a hub tokenizer.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a row on the sides that change.")
    ] = None,
    max_prompt_length: Annotated[
        int | None, typer.Option(min=1, help="Most prompt tokens on the sides that change.")
    ] = None,
    eos: Annotated[
        str | None,
        typer.Option(help="Token that ends a response, on the sides that change. Default: the tokenizer's own."),
    ] = None,
    student_eos: Annotated[str | None, typer.Option(help="The same for the student alone.")] = None,
    teacher_eos: Annotated[str | None, typer.Option(help="The same for the teacher alone.")] = None,
    student_template: Annotated[
        str | None, typer.Option(help="The student's chat template, of conversations. Default: as it was.")
    ] = None,
    teacher_template: Annotated[
        str | None, typer.Option(help="The teacher's chat template, of conversations. Default: as it was.")
    ] = None,
    overflow: Annotated[Literal["truncate", "drop"] | None, typer.Option(help="Rows over a limit.")] = None,
    mined: Annotated[
        Mined | None,
        typer.Option(help="Also align tokens by edit distance (MinED); alone, no side changes. Default: as it was."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key of `student`, of `teacher`, `overflow` or `mined`, as OUT/config.yaml shows them; over flags. The "
            "value is YAML, and `null` the default. Other keys are of how rows were parsed.",
            show_default=False,
        ),
    ] = None,
    workers: WorkersFlag = None,
    engine: EngineFlag = "local",
    address: AddressFlag = None,
    ray_resources: RayResourcesFlag = None,
    overwrite: OverwriteFlag = False,
    allow_rejected: AllowRejectedFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a prepared dataset another tokenizer, or its conversations another chat template, without parsing again.

    With only the student changed the teacher side stays the same to the byte, and teacher caches made for it still fit.
    """
    flags = locals()
    from pipeline.dataset import realign

    given: dict[Side, dict[str, Any]] = {
        "student": {
            "tokenizer": student,
            "revision": student_revision,
            "eos": student_eos,
            "template": student_template,
        },
        "teacher": {
            "tokenizer": teacher,
            "revision": teacher_revision,
            "eos": teacher_eos,
            "template": teacher_template,
        },
    }
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    changes: dict[str, Any] = {
        side: _given(values | limits | {"eos": values["eos"] or eos})
        for side, values in given.items()
        if values["tokenizer"] or values["template"]
    } | _given({"overflow": overflow, "mined": mined})
    for text in set_ or ():
        _set(changes, *assignment(text), dataset)
    overflow, alignment = changes.pop("overflow", None), changes.pop("mined", "before")
    sides: dict[Side, dict[str, Any]] = {side: changes[side] for side in SIDES if changes.get(side)}
    if not sides and alignment == "before":
        raise UsageError(
            "Nothing to change: pass --student, --teacher, --student-template, --teacher-template, --mined, or --set for a "
            "key of `student` or `teacher`."
        )
    if out is None and is_copy(dataset):
        raise UsageError("No output folder: pass --out FOLDER, as the dataset is one of the Hub's.")
    target = out or realign.default_out(dataset, sides)
    with engine_of(flags, run_workers) as made_by:
        outcome = realign.realign(
            dataset,
            target,
            sides,
            overflow,
            mined=alignment,
            workers=made_by.workers,
            overwrite=overwrite,
            quiet=as_json,
            rank=made_by.rank,
            cluster=made_by.cluster,
        )
    finish(outcome, target, allow_rejected, as_json, before=read_manifest(dataset))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are."""
    return {key: value for key, value in values.items() if value is not None}


def _set(changes: dict[str, Any], key: str, value: Any, dataset: Path) -> None:
    """Set a dotted key. Raises `UsageError` for one that is neither of a side nor one that `align` changes."""
    side, dot, own = key.partition(".")
    if side in SIDES and dot:
        changes.setdefault(side, {})[own] = value  # also nothing, which lifts a limit that the dataset has
    elif key in ("overflow", "mined"):
        changes[key] = value
    elif side in ParseConfig.model_fields and side not in SIDES:
        again = shlex.join(["--set", spelled(key, value)])
        raise UsageError(
            f"`{key}` says how rows are read and parsed, which `mta-prep align` leaves as it was: "
            f"`{parse_again(dataset)} {again}` parses anew."
        )
    else:
        raise UsageError(
            f"`{key}` is no key that `mta-prep align` changes: those are `overflow`, `mined`, and the keys of `student` and "
            "`teacher`, such as `student.max_length`."
        )
