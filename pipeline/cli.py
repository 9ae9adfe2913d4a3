"""The `mta-prep` command: flags and YAML to configs, one thin function per command."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.parse.commands import eval_parser, export_parser, train_parser
from pipeline.teacher.commands import cache_teacher
from schemas import console
from schemas.columns import Side
from schemas.config import ParseConfig
from schemas.errors import Exit, UsageError
from schemas.manifest import CACHE_FORMAT, format_of

app = typer.Typer(
    name="mta-prep",
    help="Prepare text for structure-aware distillation: parses, aligned token spans, teacher signals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
WorkersFlag = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that prepare shards. Default: one a core. Never changes the output."),
]
OverwriteFlag = Annotated[bool, typer.Option(help="Replace an earlier run of ours in the output folder.")]
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
                raise UsageError(f"The config's `{part}` must be a mapping, it is {inner!r}.")
            place = inner
        place[last] = value
    return merged


@app.command()
def parse(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, globs, folders, hub ids, or `-` for JSON lines on standard input. "
            "JSON lines, JSON, CSV, TSV, Parquet, Arrow; text formats also as .gz or .zst.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the prepared dataset.", show_default=False)
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="The teacher's tokenizer: a folder, tokenizer.json, or hub id.", show_default=False),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="The student's tokenizer: a folder, tokenizer.json, or hub id.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML config; flags override it. Every run writes its own to OUT/config.yaml.")
    ] = None,
    teacher_revision: Annotated[str | None, typer.Option(help="Revision of a hub tokenizer.")] = None,
    student_revision: Annotated[str | None, typer.Option(help="Revision of a hub tokenizer.")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="auto, alpaca, plain, chat, or a Jinja file that renders the prompt. Default: auto, by the fields."
        ),
    ] = None,
    prompt_field: Annotated[str | None, typer.Option(help="Field with the ready-made prompt.")] = None,
    response_field: Annotated[str | None, typer.Option(help="Field with the response.")] = None,
    instruction_field: Annotated[str | None, typer.Option(help="Field with the instruction.")] = None,
    input_field: Annotated[str | None, typer.Option(help="Field with the instruction's input.")] = None,
    output_field: Annotated[str | None, typer.Option(help="Field with the instruction's answer.")] = None,
    messages_field: Annotated[str | None, typer.Option(help="Field with chat messages.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field with plain text, no prompt.")] = None,
    id_field: Annotated[
        str | None, typer.Option(help="Field with the row's id. Default: `id`, else from content.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a row, special ones included, on both sides.")
    ] = None,
    max_prompt_length: Annotated[int | None, typer.Option(min=1, help="Most prompt tokens, on both sides.")] = None,
    teacher_max_length: Annotated[int | None, typer.Option(min=2, help="The same for the teacher alone.")] = None,
    teacher_max_prompt_length: Annotated[
        int | None, typer.Option(min=1, help="The same for the teacher alone.")
    ] = None,
    student_max_length: Annotated[int | None, typer.Option(min=2, help="The same for the student alone.")] = None,
    student_max_prompt_length: Annotated[
        int | None, typer.Option(min=1, help="The same for the student alone.")
    ] = None,
    overflow: Annotated[
        Literal["truncate", "drop"] | None,
        typer.Option(
            help="Rows over a limit: cut the prompt's beginning and the response's end, or leave the row out."
        ),
    ] = None,
    parser: Annotated[
        Literal["benepar", "spacy"] | None, typer.Option(help="Constituents (default), or the paper's own extractor.")
    ] = None,
    parser_model: Annotated[
        str | None,
        typer.Option(
            help="benepar: `embedded` (default), a folder, or a published name; spacy: an installed pipeline."
        ),
    ] = None,
    parser_precision: Annotated[
        Literal["float32", "bf16", "int8"] | None,
        typer.Option(help="Linear layers of the parser: float32 (default), bf16 for GPUs, int8 for CPUs."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of the parser, such as cpu or cuda.")] = None,
    sentences: Annotated[
        str | None,
        typer.Option(help="Sentence splitter: rules (default), or senter:PIPELINE of an installed spaCy pipeline."),
    ] = None,
    keep_trees: Annotated[
        bool | None, typer.Option("--keep-trees", help="Add a column with the bracketed parses.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub dataset. Default: train.")] = None,
    input_revision: Annotated[str | None, typer.Option(help="Revision of a hub dataset.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only the first N rows.")] = None,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="Input rows in one shard. Default: by corpus size.")
    ] = None,
    workers: WorkersFlag = None,
    overwrite: OverwriteFlag = False,
    allow_rejected: Annotated[
        bool,
        typer.Option("--allow-rejected", help=f"Exit with 0 although rows were rejected (otherwise {Exit.REJECTED})."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read and written, with time and bytes from a sample.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Prepare a dataset: tokenize with both tokenizers, parse, and align words, chunks and phrases with tokens.

    An interrupted run goes on where it stopped: run the same command again. Rows that cannot be used are kept in
    OUT/rejected.jsonl with their place and the reason.

    Example: mta-prep parse data.jsonl --teacher Qwen/Qwen2.5-7B --student openai-community/gpt2 -o prepared
    """
    from pipeline import prepare, report

    if out is None:
        raise UsageError("No output folder: pass --out FOLDER.")
    flags = {
        "inputs": inputs or None,
        "teacher.tokenizer": teacher,
        "teacher.revision": teacher_revision,
        "teacher.max_length": teacher_max_length or max_length,
        "teacher.max_prompt_length": teacher_max_prompt_length or max_prompt_length,
        "student.tokenizer": student,
        "student.revision": student_revision,
        "student.max_length": student_max_length or max_length,
        "student.max_prompt_length": student_max_prompt_length or max_prompt_length,
        "template": template,
        "fields.prompt": prompt_field,
        "fields.response": response_field,
        "fields.instruction": instruction_field,
        "fields.input": input_field,
        "fields.output": output_field,
        "fields.messages": messages_field,
        "fields.text": text_field,
        "fields.id": id_field,
        "overflow": overflow,
        "parser.kind": parser,
        "parser.model": parser_model,
        "parser.precision": parser_precision,
        "parser.device": device,
        "parser.keep_trees": keep_trees,
        "segment.sentences": sentences,
        "split": split,
        "input_revision": input_revision,
        "limit": limit,
        "shard_rows": shard_rows,
    }
    base = ParseConfig.from_yaml(config) if config is not None else {}
    merged = merge(base, flags)
    for need, flag in (("inputs", "an input"), ("teacher", "--teacher"), ("student", "--student")):
        if need not in merged:
            raise UsageError(f"Nothing given for {flag} (see mta-prep parse --help).")
    settings = ParseConfig.parse(merged, str(config) if config is not None else "command line")
    count = workers or run_workers()
    if dry_run:
        found = prepare.estimate(settings, out, workers=count)
        if as_json:
            console.emit_json(found)
        else:
            report.show_estimate(found, out)
        return
    outcome = prepare.prepare(settings, out, workers=count, overwrite=overwrite, quiet=as_json)
    finish(outcome, out, allow_rejected, as_json)


def run_workers() -> int:
    """Default number of workers."""
    from pipeline.run import default_workers

    return default_workers()


def finish(outcome: Any, out: Path, allow_rejected: bool, as_json: bool) -> None:
    """Show a finished run; exits with `Exit.REJECTED` if rows were rejected and that was not allowed."""
    from pipeline import report

    if as_json:
        console.emit_json({"out": str(out), **outcome.manifest.model_dump(mode="json")})
    else:
        report.show_outcome(outcome, out)
    if outcome.manifest.rejected and not allow_rejected:
        raise typer.Exit(Exit.REJECTED)


@app.command()
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
    overflow: Annotated[Literal["truncate", "drop"] | None, typer.Option(help="Rows over a limit.")] = None,
    workers: WorkersFlag = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a prepared dataset another tokenizer, without parsing again.

    With only the student changed the teacher side stays the same to the byte, and teacher caches made for it still fit.
    """
    from pipeline import realign

    if student is None and teacher is None:
        raise UsageError("Nothing to change: pass --student, --teacher, or both.")
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    sides: dict[Side, dict[str, Any]] = {}
    if student is not None:
        sides["student"] = {"tokenizer": student, "revision": student_revision, **limits}
    if teacher is not None:
        sides["teacher"] = {"tokenizer": teacher, "revision": teacher_revision, **limits}
    target = out or realign.default_out(dataset, sides)
    outcome = realign.realign(
        dataset, target, sides, overflow, workers=workers or run_workers(), overwrite=overwrite, quiet=as_json
    )
    finish(outcome, target, allow_rejected=True, as_json=as_json)


@app.command()
def inspect(
    dataset: FolderArgument,
    row: Annotated[int, typer.Option(min=0, help="Row to show, counted from 0.")] = 0,
    row_id: Annotated[str | None, typer.Option("--id", help="Show the row with this id instead.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show one row: its sentences with words, chunks, phrases, and both tokenizations under each.

    Of a teacher cache: how its units relate to each other at each layer.
    """
    from pipeline import view
    from pipeline.teacher import view as cache_view

    if format_of(dataset) == CACHE_FORMAT:
        kept = cache_view.find_row(dataset, row, row_id)
        if as_json:
            console.emit_json(cache_view.as_json(kept))
        else:
            cache_view.show(kept, dataset)
        return
    found = view.find_row(dataset, row, row_id)
    if as_json:
        console.emit_json(view.as_json(found))
    else:
        view.show(found, dataset)


@app.command()
def verify(
    dataset: FolderArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Checksums, schema and counts only, not every row.")] = False,
    teacher: Annotated[str | None, typer.Option(help="Where the teacher's tokenizer is now, if it moved.")] = None,
    student: Annotated[str | None, typer.Option(help="Where the student's tokenizer is now, if it moved.")] = None,
    of: Annotated[
        Path | None, typer.Option("--dataset", help="Of a teacher cache: the dataset that it must belong to.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a prepared dataset: checksums, schema, offsets, spans and counts, on every row.

    Where a tokenizer can be loaded, every row is tokenized again and compared. Of a teacher cache: checksums, shapes,
    pointers, index, weights, and that every number is finite. Exits with 4 if anything is wrong.
    """
    from pipeline import report
    from pipeline.store import verify as checks
    from pipeline.teacher import verify as cache_checks

    if format_of(dataset) == CACHE_FORMAT:
        if teacher or student:
            raise UsageError("A teacher cache holds no tokenizers; --teacher and --student are for datasets.")
        findings = cache_checks.verify(dataset, quick=quick, dataset=of)
    elif of is not None:
        raise UsageError(f"{dataset} is no teacher cache; --dataset says which dataset a cache must belong to.")
    else:
        findings = checks.verify(dataset, quick=quick, moved={"teacher": teacher, "student": student})
    if as_json:
        console.emit_json(findings.as_dict())
    else:
        report.show_findings(findings, dataset)
    if findings.problems:
        raise typer.Exit(Exit.STATE)


@app.command()
def info(dataset: FolderArgument, as_json: JsonFlag = False) -> None:
    """Say what a prepared dataset is: rows, tokenizers, parser, units, fingerprints; or a teacher cache."""
    from pipeline import report
    from pipeline.teacher import report as cache_report
    from schemas.manifest import read_cache_manifest, read_manifest

    if format_of(dataset) == CACHE_FORMAT:
        kept = read_cache_manifest(dataset)
        if as_json:
            console.emit_json(kept.model_dump(mode="json"))
        else:
            cache_report.show_info(kept, dataset)
        return
    manifest = read_manifest(dataset)
    if as_json:
        console.emit_json(manifest.model_dump(mode="json"))
    else:
        report.show_info(manifest, dataset)


bench_app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@bench_app.command("parser")
def bench_parser(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Rows of text, as `mta-prep parse` reads them. Default: the sample.")
    ] = None,
    parser_model: Annotated[str, typer.Option(help="`embedded`, a folder, or a published name.")] = "embedded",
    rounds: Annotated[int, typer.Option(min=1, help="Each contestant runs this often; medians are shown.")] = 2,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores for each contestant. Default: all.")] = None,
    longest: Annotated[int, typer.Option(min=2, help="Leave sentences of more words out.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """Sentences per second of this parser beside stock benepar, whether the trees agree, and a table by length."""
    from pipeline import bench, machine, report

    documents = bench.documents_of(inputs or ["embedded:sample"], longest)
    found = bench.measure(parser_model, documents, rounds, cores or run_workers(), console.stderr.print)
    if as_json:
        console.emit_json({**found, "machine": machine.describe()})
    else:
        report.show_bench(found, machine.describe())


app.command()(cache_teacher)
app.command()(train_parser)
app.command()(eval_parser)
app.command()(export_parser)


def main() -> None:
    """Entry point."""
    console.run(app, "mta-prep", "Interrupted. Finished shards are kept: run the same command again to go on.")
