"""`mta-prep cache-teacher`, as typed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from pipeline.commands.flags import (
    AddressFlag,
    ConfigFlag,
    EngineFlag,
    JsonFlag,
    Key,
    ModelWorkersFlag,
    OverwriteFlag,
    RayResourcesFlag,
    SetFlag,
    config_values,
    engine_of,
    one_worker,
    require,
)
from schemas import console
from schemas.config import CacheConfig
from schemas.errors import UsageError
from schemas.keys import assignment
from schemas.manifest import read_manifest, same_tokens
from schemas.signals import RECIPES, Signal, Storage

if TYPE_CHECKING:
    from pipeline.cache.choice import Choice


def cache_teacher(
    dataset: Annotated[
        str | None,
        typer.Argument(help="A prepared dataset: its folder, or hf://datasets/OWNER/NAME.", show_default=False),
        Key("dataset"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The model: a folder, a hub id, or a GGUF file. Any causal language model.", show_default=False
        ),
        Key("teacher.model"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the cache.", show_default=False)] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"What a method needs: {', '.join(RECIPES)}. Default: mta (or what --config says)."),
    ] = None,
    signals: Annotated[
        str | None,
        typer.Option(help=f"The same by hand: {','.join(get_args(Signal))}.", show_default=False),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Teacher layers and their units, as 24:words,36:chunks,48:chunks; 0 is the embeddings. `auto` "
            "(default, but for sra the last one): half, three quarters and all of the depth, of words, chunks, chunks."
        ),
    ] = None,
    student_layers: Annotated[
        str | None,
        typer.Option(help="Layers of the student, as 6,9,12; the teacher's follow. Needs --student-depth."),
    ] = None,
    student_depth: Annotated[int | None, typer.Option(min=1, help="Layers that the student has.")] = None,
    config: ConfigFlag = None,
    set_: SetFlag = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(help="Default: auto, as the model is."),
        Key("teacher.dtype"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:1, …"), Key("teacher.device")] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option("--trust-remote-code", help="Run code that comes with the model."),
        Key("teacher.trust_remote_code"),
    ] = None,
    storage: Annotated[
        Storage | None,
        typer.Option(help="Type of all vectors on disk: bf16 (default), fp32, fp16, fp8, int8."),
        Key("storage.units", "storage.states", "storage.final"),
    ] = None,
    response_only: Annotated[
        bool | None,
        typer.Option(
            "--response-only/--all-tokens",
            help="States, `final` and what is of the next token: of what is learnt, and of the token before it, alone. "
            "Default: by the recipe.",
        ),
        Key("response_only"),
    ] = None,
    topk: Annotated[
        int | None, typer.Option(min=1, help="Tokens kept of each distribution. Default: 64."), Key("topk")
    ] = None,
    sorted_: Annotated[
        int | None,
        typer.Option(
            "--sorted", min=1, help="Probabilities kept of each sorted distribution, or all there are. Default: 1024."
        ),
        Key("sorted"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the dataset's first N rows."), Key("limit")] = None,
    workers: ModelWorkersFlag = None,
    engine: EngineFlag = "local",
    address: AddressFlag = None,
    ray_resources: RayResourcesFlag = None,
    overwrite: OverwriteFlag = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Bytes per signal and layer, time and room on the disk; write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a teacher over a prepared dataset once, and keep what losses need of it.

    An interrupted run goes on where it stopped: run the same command again. One cache serves every student of the
    dataset, also one that it is aligned with later.

    Example: mta-prep cache-teacher prepared --teacher Qwen/Qwen2.5-7B --device cuda -o cache

    On 8 GPUs, for the same bytes: torchrun --nproc-per-node 8 -m pipeline cache-teacher … (or --workers 8)
    """
    given = locals()
    from pipeline.cache.choice import Choice, resolved, stated
    from trainer.hub.folders import local_folder
    from trainer.models.hub import located_here

    if out is None:
        raise UsageError("No output folder: pass --out FOLDER.")
    values, where = config_values(cache_teacher, given, CacheConfig)
    for key, named in (("dataset", "a dataset"), ("teacher.model", "--teacher")):
        require(values, key, named, "cache-teacher")
    choice = Choice(recipe, signals, layers, student_layers, student_depth)
    _require_one_voice(choice, set_ or ())
    # a manifest is read, and a model described, only for what can be meant
    sources = CacheConfig.parse({"signals": ["final"]} | values, where)
    same = same_tokens(read_manifest(local_folder(sources.dataset)))
    located_here(sources.teacher)
    wanted, notes = stated(values, where, choice, same)
    # what takes seconds to import comes after all that a wrong name would be refused for
    from pipeline.cache import estimate, plan, report
    from trainer.teacher.shape import shape_of

    shape = shape_of(sources.teacher)
    settled = resolved(wanted, choice, shape)
    with engine_of(given, one_worker, settled.teacher.device) as made_by:
        planned = plan.plan_cache(settled, notes, shape)
        if dry_run:
            estimated = estimate.estimate(planned, out, workers=made_by.workers)
        else:
            outcome = plan.cache(
                planned,
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
    if outcome.manifest is None:
        return  # rank 0 tells
    if as_json:
        console.emit_json({"out": str(out), **outcome.manifest.model_dump(mode="json")})
    else:
        report.show_outcome(outcome, out)


def _require_one_voice(choice: "Choice", assignments: Sequence[str]) -> None:
    assigned = {assignment(text)[0].partition(".")[0] for text in assignments}
    if "signals" in assigned and (choice.recipe or choice.signals):
        raise UsageError("--set signals=… says what to cache, and so does --recipe or --signals; pass one of them.")
    if "layers" in assigned and (choice.layers or choice.student_layers):
        raise UsageError("--set layers=… says which layers to cache, and so does another flag; pass one of them.")
