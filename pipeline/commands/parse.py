"""`mta-prep parse`, as typed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.commands.flags import (
    AllowRejectedFlag,
    JsonFlag,
    OverwriteFlag,
    WorkersFlag,
    merge,
    run_workers,
)
from schemas import console
from schemas.config import ParseConfig
from schemas.errors import Exit, UsageError


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
    input_field: Annotated[
        str | None, typer.Option(help="Field with the instruction's input, in rows that have one.")
    ] = None,
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
    eos: Annotated[
        str | None,
        typer.Option(
            help="Token that ends a response, on both sides. Default: what the tokenizer puts there, or its eos."
        ),
    ] = None,
    teacher_eos: Annotated[str | None, typer.Option(help="The same for the teacher alone.")] = None,
    student_eos: Annotated[str | None, typer.Option(help="The same for the student alone.")] = None,
    overflow: Annotated[
        Literal["truncate", "drop"] | None,
        typer.Option(
            help="Rows over a limit: cut the prompt's beginning and the response's end (of --max-length each may take "
            "half, and what the other leaves), or leave the row out."
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
    line_breaks: Annotated[
        Literal["auto", "hard", "soft"] | None,
        typer.Option(
            help="Line breaks inside a paragraph: hard, each ends a sentence; soft, none does; auto (default), all but "
            "those that wrapping made."
        ),
    ] = None,
    keep_trees: Annotated[
        bool | None, typer.Option("--keep-trees", help="Add a column with the bracketed parses.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a hub dataset, or of a folder that has several.", show_default=False)
    ] = None,
    input_revision: Annotated[str | None, typer.Option(help="Revision of a hub dataset.")] = None,
    csv_delimiter: Annotated[
        str | None, typer.Option(help="Between the cells of CSV and TSV: a character, or tab. Default: by the header.")
    ] = None,
    csv_quote: Annotated[
        str | None, typer.Option(help='Around cells: a character, or none. Default: " in CSV, none in TSV.')
    ] = None,
    csv_escape: Annotated[
        str | None, typer.Option(help=r"Before a quote that is text, such as \. Default: none, a quote is doubled.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only the first N rows.")] = None,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="Input rows in one shard. Default: by corpus size.")
    ] = None,
    workers: WorkersFlag = None,
    overwrite: OverwriteFlag = False,
    allow_rejected: AllowRejectedFlag = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read and written, with time and bytes from a sample.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Prepare a dataset: tokenize with both tokenizers, parse, and align words, chunks and phrases with tokens.

    An interrupted run goes on where it stopped: run the same command again. Rows that cannot be used, or are over a limit
    and not cut, are kept in OUT/rejected.jsonl with their place and the reason.

    Example: mta-prep parse data.jsonl --teacher Qwen/Qwen2.5-7B --student openai-community/gpt2 -o prepared
    """
    from pipeline.dataset import prepare, report

    if out is None:
        raise UsageError("No output folder: pass --out FOLDER.")
    flags = {
        "inputs": inputs or None,
        "teacher.tokenizer": teacher,
        "teacher.revision": teacher_revision,
        "teacher.eos": teacher_eos or eos,
        "teacher.max_length": teacher_max_length or max_length,
        "teacher.max_prompt_length": teacher_max_prompt_length or max_prompt_length,
        "student.tokenizer": student,
        "student.revision": student_revision,
        "student.eos": student_eos or eos,
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
        "segment.line_breaks": line_breaks,
        "split": split,
        "input_revision": input_revision,
        "csv.delimiter": csv_delimiter,
        "csv.quote": csv_quote,
        "csv.escape": csv_escape,
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
    assert outcome.manifest is not None
    finish(outcome, out, outcome.manifest.rows_in, allow_rejected, as_json)


def finish(outcome: Any, out: Path, rows: int, allow_rejected: bool, as_json: bool) -> None:
    """Show a finished run; exits with `Exit.REJECTED` if not all `rows` are in it and that was not allowed."""
    from pipeline.dataset import report

    if as_json:
        console.emit_json({"out": str(out), **outcome.manifest.model_dump(mode="json")})
    else:
        report.show_outcome(outcome, out)
    if outcome.manifest.rows_out < rows and not allow_rejected:
        raise typer.Exit(Exit.REJECTED)
