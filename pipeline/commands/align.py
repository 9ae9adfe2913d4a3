"""`mta-prep align`, as typed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.commands.flags import (
    AllowRejectedFlag,
    DatasetArgument,
    JsonFlag,
    OverwriteFlag,
    WorkersFlag,
    rank_here,
    run_workers,
)
from pipeline.commands.parse import finish
from schemas.columns import Side
from schemas.errors import UsageError
from schemas.manifest import read_manifest


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
    workers: WorkersFlag = None,
    overwrite: OverwriteFlag = False,
    allow_rejected: AllowRejectedFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a prepared dataset another tokenizer, or its conversations another chat template, without parsing again.

    With only the student changed the teacher side stays the same to the byte, and teacher caches made for it still fit.
    """
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
    sides: dict[Side, dict[str, Any]] = {
        side: values | limits | {"eos": values["eos"] or eos}
        for side, values in given.items()
        if values["tokenizer"] or values["template"]
    }
    if not sides:
        raise UsageError("Nothing to change: pass --student, --teacher, --student-template or --teacher-template.")
    target = out or realign.default_out(dataset, sides)
    rank = rank_here()
    count = workers or run_workers(rank.local_count)
    outcome = realign.realign(
        dataset, target, sides, overflow, workers=count, overwrite=overwrite, quiet=as_json, rank=rank
    )
    finish(outcome, target, allow_rejected, as_json, before=read_manifest(dataset))
