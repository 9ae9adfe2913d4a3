"""`mta-prep generate`, as typed."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.commands.flags import (
    AddressFlag,
    AllowRejectedFlag,
    EngineFlag,
    JsonFlag,
    Key,
    ModelWorkersFlag,
    RayResourcesFlag,
    SplitFlag,
    config_values,
    engine_of,
    one_worker,
    require,
)
from schemas import console
from schemas.config import GenerateConfig
from schemas.errors import Exit, UsageError


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, globs, folders, hub ids, or `-`, as `mta-prep parse` reads them: `prompt`, or `instruction` and "
            "`input`, or conversations. What they hold as an answer is not looked at.",
            show_default=False,
        ),
        Key("inputs"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Who answers: a folder, a hub id, or a GGUF file. Any causal language model.", show_default=False
        ),
        Key("model.model"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of the answered rows, *.jsonl.", show_default=False)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML config; flags and --set override it.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key of the config, all of which FILE.json shows; over flags and --config. The value is YAML, and "
            "`null` the default.",
            show_default=False,
        ),
    ] = None,
    greedy: Annotated[
        bool | None, typer.Option("--greedy", help="The likeliest token always."), Key("sampling.greedy")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Divides the logits. Default: 1."), Key("sampling.temperature")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens of this mass. Default: 1, all."),
        Key("sampling.top_p"),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Sample from so many likeliest tokens. Default: 0, all."),
        Key("sampling.top_k"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="With a row's number, of its random numbers. Default: 42."),
        Key("sampling.seed"),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a response. Default: 256."), Key("max_new_tokens")
    ] = None,
    max_prompt_length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens of a prompt; longer ones are left out. Default: what the model has room for."
        ),
        Key("max_prompt_length"),
    ] = None,
    unfinished: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option(
            help="Responses that did not end by themselves: drop (default) leaves their rows out; keep, and parse puts an "
            "end behind them."
        ),
        Key("unfinished"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Responses generated at once. Default: 16."), Key("batch_size")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows."), Key("limit")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Chat template: native (the model's own), alpaca, plain, chatml or a Jinja file. Default: native where "
            "there are conversations; else rows are asked as a ready-made or Alpaca prompt."
        ),
        Key("template"),
    ] = None,
    merge_turns: Annotated[
        bool | None, typer.Option("--merge-turns", help="Join neighbouring turns of one role."), Key("merge_turns")
    ] = None,
    system_into_user: Annotated[
        bool | None,
        typer.Option("--system-into-user", help="Put what the system says into the user's turn."),
        Key("system_into_user"),
    ] = None,
    prompt_field: Annotated[
        str | None, typer.Option(help="Field with the prompt, as it is to be asked."), Key("fields.prompt")
    ] = None,
    instruction_field: Annotated[
        str | None, typer.Option(help="Field with the instruction."), Key("fields.instruction")
    ] = None,
    input_field: Annotated[
        str | None, typer.Option(help="Field with the instruction's input, in rows that have one."), Key("fields.input")
    ] = None,
    messages_field: Annotated[
        str | None, typer.Option(help="Field with chat messages."), Key("fields.messages")
    ] = None,
    id_field: Annotated[
        str | None, typer.Option(help="Field with the row's id. Default: `id`."), Key("fields.id")
    ] = None,
    backend: Annotated[
        Literal["transformers", "vllm"] | None,
        typer.Option(
            help="What runs the model: transformers (default), or vLLM where it is installed, with random numbers of its own."
        ),
        Key("backend"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:1, …"), Key("model.device")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Of the weights: float32 (default), in which a response does not depend on its batch; auto, as they are."
        ),
        Key("model.dtype"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model."), Key("model.revision")] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option("--trust-remote-code", help="Run code that comes with the model."),
        Key("model.trust_remote_code"),
    ] = None,
    split: SplitFlag = None,
    workers: ModelWorkersFlag = None,
    engine: EngineFlag = "local",
    address: AddressFlag = None,
    ray_resources: RayResourcesFlag = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier file of ours, or an unfinished run.")] = False,
    allow_rejected: AllowRejectedFlag = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Answer a few rows, and say how long all would take; write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer prompts with a teacher or a student, for a dataset of what it says itself.

    Prompts of like length run together; a row's response depends on the model, the prompt, the settings and the row's
    number alone. An interrupted run goes on where it stopped: run the same command again. OUT is read by `mta-prep parse`
    as it is; who made it, and how, is in OUT.json, rows left out are in OUT.rejected with the reason.

    Example: mta-prep generate data.jsonl --model Qwen/Qwen2.5-7B-Instruct --device cuda --temperature 0.8 --top-p 0.95
    -o responses.jsonl
    """
    given = locals()
    from pipeline.generate.plan import planned, require_writable

    if out is None:
        raise UsageError("No output file: pass --out FILE.jsonl.")
    values, where = config_values(generate, given, GenerateConfig)
    for key, named in (("inputs", "prompts"), ("model.model", "--model")):
        require(values, key, named, "generate")
    settings = GenerateConfig.parse(values, where)
    require_writable(out, overwrite)
    with (
        engine_of(given, one_worker, settings.model.device, settings.inputs) as made_by,
        planned(settings, out) as plan,
    ):
        # what takes seconds to import comes after all that a wrong name would be refused for
        from pipeline.generate import place, report

        if dry_run:
            estimated = report.estimate(plan, workers=made_by.workers)
        else:
            outcome = place.generate(
                plan,
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
            report.show_estimate(estimated, plan.config, out)
        return
    manifest = outcome.manifest
    if manifest is None:
        return  # rank 0 tells
    if as_json:
        console.emit_json({"out": str(out), **manifest.model_dump(mode="json")})
    else:
        report.show_outcome(outcome, out)
    if manifest.rows_out < manifest.rows_in and not allow_rejected:
        raise typer.Exit(Exit.REJECTED)
