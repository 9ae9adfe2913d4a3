"""`mta-prep parse`, as typed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.commands.flags import (
    AddressFlag,
    AllowRejectedFlag,
    ConfigFlag,
    EngineFlag,
    JsonFlag,
    Key,
    OverwriteFlag,
    RayResourcesFlag,
    SetFlag,
    SplitFlag,
    WorkersFlag,
    config_values,
    engine_of,
    require,
    run_workers,
)
from schemas import console
from schemas.config import Learn, Mined, ParseConfig
from schemas.errors import Exit, UsageError
from schemas.manifest import Manifest


def parse(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, globs, folders, hub ids, or `-` for JSON lines on standard input. "
            "JSON lines, JSON, CSV, TSV, Parquet, Arrow; text formats also as .gz or .zst.",
            show_default=False,
        ),
        Key("inputs"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the prepared dataset.", show_default=False)
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="The teacher's tokenizer: a folder, tokenizer.json, or hub id.", show_default=False),
        Key("teacher.tokenizer"),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="The student's tokenizer: a folder, tokenizer.json, or hub id.", show_default=False),
        Key("student.tokenizer"),
    ] = None,
    config: ConfigFlag = None,
    set_: SetFlag = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="auto (default, by the rows), alpaca, plain, native (a tokenizer's own chat template), chatml, or a Jinja "
            "file: of prompts, or of conversations if it uses `add_generation_prompt`."
        ),
        Key("template"),
    ] = None,
    teacher_template: Annotated[
        str | None, typer.Option(help="The same for the teacher alone."), Key("teacher.template")
    ] = None,
    student_template: Annotated[
        str | None, typer.Option(help="The same for the student alone."), Key("student.template")
    ] = None,
    learn: Annotated[
        Learn | None,
        typer.Option(
            help="Of conversations: every turn of the assistant (all), the last one, or all without reasoning."
        ),
        Key("conversations.learn"),
    ] = None,
    merge_turns: Annotated[
        bool | None,
        typer.Option("--merge-turns", help="Join neighbouring turns of one role.", show_default=False),
        Key("conversations.merge_turns"),
    ] = None,
    system_into_user: Annotated[
        bool | None,
        typer.Option(
            "--system-into-user",
            help="Put a system prompt in front of what the user says first.",
            show_default=False,
        ),
        Key("conversations.system_into_user"),
    ] = None,
    prompt_field: Annotated[
        str | None, typer.Option(help="Field with the ready-made prompt."), Key("fields.prompt")
    ] = None,
    response_field: Annotated[str | None, typer.Option(help="Field with the response."), Key("fields.response")] = None,
    instruction_field: Annotated[
        str | None, typer.Option(help="Field with the instruction."), Key("fields.instruction")
    ] = None,
    input_field: Annotated[
        str | None, typer.Option(help="Field with the instruction's input, in rows that have one."), Key("fields.input")
    ] = None,
    output_field: Annotated[
        str | None, typer.Option(help="Field with the instruction's answer."), Key("fields.output")
    ] = None,
    messages_field: Annotated[
        str | None, typer.Option(help="Field with chat messages."), Key("fields.messages")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field with plain text, no prompt."), Key("fields.text")
    ] = None,
    id_field: Annotated[
        str | None, typer.Option(help="Field with the row's id. Default: `id`, else from content."), Key("fields.id")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Most tokens of a row, special ones included, on both sides."),
        Key("teacher.max_length", "student.max_length"),
    ] = None,
    max_prompt_length: Annotated[
        int | None,
        typer.Option(min=1, help="Most prompt tokens, on both sides."),
        Key("teacher.max_prompt_length", "student.max_prompt_length"),
    ] = None,
    eos: Annotated[
        str | None,
        typer.Option(
            help="Token that ends a response, on both sides. Default: what the tokenizer puts there, or its eos."
        ),
        Key("teacher.eos", "student.eos"),
    ] = None,
    teacher_eos: Annotated[str | None, typer.Option(help="The same for the teacher alone."), Key("teacher.eos")] = None,
    student_eos: Annotated[str | None, typer.Option(help="The same for the student alone."), Key("student.eos")] = None,
    overflow: Annotated[
        Literal["truncate", "drop"] | None,
        typer.Option(
            help="Rows over a limit: cut the prompt's beginning and the response's end (of --max-length each may take "
            "half, and what the other leaves), or leave the row out."
        ),
        Key("overflow"),
    ] = None,
    parser: Annotated[
        Literal["benepar", "spacy"] | None,
        typer.Option(help="Constituents (default), or the paper's own extractor."),
        Key("parser.kind"),
    ] = None,
    parser_model: Annotated[
        str | None,
        typer.Option(
            help="benepar: `embedded` (default), a folder, or a published name; spacy: an installed pipeline."
        ),
        Key("parser.model"),
    ] = None,
    parser_precision: Annotated[
        Literal["auto", "float32", "bf16", "int8"] | None,
        typer.Option(
            help="Linear layers of the parser: float32 (default), bf16 for GPUs, int8 for CPUs, or auto, the fastest here."
        ),
        Key("parser.precision"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of the parser, such as cpu or cuda."), Key("parser.device")
    ] = None,
    line_breaks: Annotated[
        Literal["auto", "hard", "soft"] | None,
        typer.Option(
            help="Line breaks inside a paragraph: hard, each ends a sentence; soft, none does; auto (default), all but "
            "those that wrapping made."
        ),
        Key("segment.line_breaks"),
    ] = None,
    keep_trees: Annotated[
        bool | None,
        typer.Option("--keep-trees", help="Add a column with the bracketed parses."),
        Key("parser.keep_trees"),
    ] = None,
    mined: Annotated[
        Mined | None,
        typer.Option(
            help="Add what the term `mined` needs: tokens aligned by edit distance. With nearest, also which of the student's "
            "tokens is nearest to each of the teacher's (a minute or two)."
        ),
        Key("mined"),
    ] = None,
    split: SplitFlag = None,
    csv_delimiter: Annotated[
        str | None,
        typer.Option(help="Between the cells of CSV and TSV: a character, or tab. Default: by the header."),
        Key("csv.delimiter"),
    ] = None,
    csv_quote: Annotated[
        str | None,
        typer.Option(help='Around cells: a character, or none. Default: " in CSV, none in TSV.'),
        Key("csv.quote"),
    ] = None,
    csv_escape: Annotated[
        str | None,
        typer.Option(help=r"Before a quote that is text, such as \. Default: none, a quote is doubled."),
        Key("csv.escape"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only the first N rows."), Key("limit")] = None,
    workers: WorkersFlag = None,
    engine: EngineFlag = "local",
    address: AddressFlag = None,
    ray_resources: RayResourcesFlag = None,
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
    given = locals()
    from pipeline.dataset import prepare, report

    if out is None:
        raise UsageError("No output folder: pass --out FOLDER.")
    values, where = config_values(parse, given, ParseConfig)
    for key, named in (
        ("inputs", "an input"),
        ("teacher.tokenizer", "--teacher"),
        ("student.tokenizer", "--student"),
    ):
        require(values, key, named, "parse")
    settings = ParseConfig.parse(values, where)
    with engine_of(given, run_workers, settings.parser.device, settings.inputs) as made_by:
        if dry_run:
            estimated = prepare.estimate(settings, out, workers=made_by.workers)
        else:
            outcome = prepare.prepare(
                settings,
                out,
                workers=made_by.workers,
                overwrite=overwrite,
                quiet=as_json,
                rank=made_by.rank,
                cluster=made_by.cluster,
            )
    if dry_run:
        if as_json:
            console.emit_json(estimated)
        else:
            report.show_estimate(estimated, out)
        return
    finish(outcome, out, allow_rejected, as_json)


def finish(outcome: Any, out: Path, allow_rejected: bool, as_json: bool, before: Manifest | None = None) -> None:
    """Show a finished run; exits with `Exit.REJECTED` if it left rows out that were not allowed to be.

    `before`: of the dataset that it was made from, whose own rows left out are told, and no loss of this run.
    """
    from pipeline.dataset import report

    if outcome.manifest is None:
        return  # rank 0 tells
    if as_json:
        warnings = report.warnings_of(outcome.manifest, out, before)
        console.emit_json({"out": str(out), **outcome.manifest.model_dump(mode="json"), "warnings": warnings})
    else:
        report.show_outcome(outcome, out, before)
    rows = outcome.manifest.rows_in if before is None else before.rows_out
    if outcome.manifest.rows_out < rows and not allow_rejected:
        raise typer.Exit(Exit.REJECTED)
