"""`mta-prep inspect`, `verify` and `info`, as typed: a look at what is there, dataset or cache.

What is there is known before what looks at it is imported, which takes seconds for caches.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.flags import (
    FolderArgument,
    JsonFlag,
)
from schemas import console
from schemas.errors import Exit, UsageError
from schemas.manifest import CACHE_FORMAT, format_of, read_cache_manifest, read_manifest
from trainer.hub.folders import local_folder


def inspect(
    dataset: FolderArgument,
    row: Annotated[int, typer.Option(min=0, help="Row to show, counted from 0.")] = 0,
    row_id: Annotated[str | None, typer.Option("--id", help="Show the row with this id instead.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show one row: its sentences with words, chunks, phrases, and both tokenizations under each.

    Of a teacher cache: how its units relate to each other at each layer.
    """
    if format_of(dataset) == CACHE_FORMAT:
        from pipeline.cache import view as cache_view

        kept = cache_view.find_row(dataset, row, row_id)
        if as_json:
            console.emit_json(cache_view.as_json(kept))
        else:
            cache_view.show(kept, dataset)
        return
    from pipeline.dataset import view

    found = view.find_row(dataset, row, row_id)
    if as_json:
        console.emit_json(view.as_json(found))
    else:
        view.show(found, dataset)


def verify(
    dataset: FolderArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Checksums, schema and counts only, not every row.")] = False,
    teacher: Annotated[str | None, typer.Option(help="Where the teacher's tokenizer is now, if it moved.")] = None,
    student: Annotated[str | None, typer.Option(help="Where the student's tokenizer is now, if it moved.")] = None,
    of: Annotated[
        Path | None,
        typer.Option(
            "--dataset",
            help="Of a teacher cache: the dataset that it must belong to.",
            metavar="DATASET",
            parser=local_folder,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a prepared dataset: checksums, schema, offsets, spans and counts, on every row.

    Where a tokenizer can be loaded, every row is tokenized again and compared. Of a teacher cache: checksums, shapes,
    pointers, index, weights, and that every number is finite. Exits with 4 if anything is wrong.
    """
    if format_of(dataset) == CACHE_FORMAT:
        if teacher or student:
            raise UsageError("A teacher cache holds no tokenizers; --teacher and --student are for datasets.")
        if of is not None:
            read_manifest(of)  # a wrong one is told before what takes seconds to import
        from pipeline.cache import verify as cache_checks

        findings = cache_checks.verify(dataset, quick=quick, dataset=of)
    elif of is not None:
        raise UsageError(f"{dataset} is no teacher cache; --dataset says which dataset a cache must belong to.")
    else:
        from pipeline.dataset import verify as checks

        findings = checks.verify(dataset, quick=quick, moved={"teacher": teacher, "student": student})
    from pipeline.dataset import report

    if as_json:
        console.emit_json(findings.as_dict())
    else:
        report.show_findings(findings, dataset)
    if findings.problems:
        raise typer.Exit(Exit.STATE)


def info(dataset: FolderArgument, as_json: JsonFlag = False) -> None:
    """Say what a prepared dataset is: rows, tokenizers, parser, units, fingerprints; or a teacher cache.

    Of files only the map of tokens that both vocabularies have is read, and its checksum compared: exits with 4 if it is
    another one. `mta-prep verify` looks at all.
    """
    if format_of(dataset) == CACHE_FORMAT:
        from pipeline.cache import report as cache_report

        kept = read_cache_manifest(dataset)
        if as_json:
            console.emit_json(kept.model_dump(mode="json"))
        else:
            cache_report.show_info(kept, dataset)
        return
    from pipeline.dataset import report

    manifest = read_manifest(dataset)
    problem = manifest.vocabulary_problem(dataset)
    if as_json:
        console.emit_json(manifest.model_dump(mode="json"))
    else:
        report.show_info(manifest, dataset, problem)
    if problem is not None:
        from schemas.dataset import damaged

        raise damaged(dataset, problem)
