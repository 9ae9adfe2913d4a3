"""`mta-prep cache-teacher`, as typed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.commands.flags import merge
from schemas import console
from schemas.config import CacheConfig, ModelConfig
from schemas.errors import UsageError
from schemas.signals import RECIPES, StateTokens, Storage, Weights


def cache_teacher(
    dataset: Annotated[Path | None, typer.Argument(help="Folder of a prepared dataset.", show_default=False)] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The model: a folder, a hub id, or a GGUF file. Any causal language model.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the cache.", show_default=False)] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"What a method needs: {', '.join(RECIPES)}. Default: mta (or what --config says)."),
    ] = None,
    signals: Annotated[
        str | None,
        typer.Option(help="The same by hand: relations,units,states,final,topk,attention.", show_default=False),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Teacher layers and their units, as 24:words,36:chunks,48:chunks; 0 is the embeddings. `auto` "
            "(default): half, three quarters and all of the depth, of words, chunks, chunks."
        ),
    ] = None,
    student_layers: Annotated[
        str | None,
        typer.Option(help="Layers of the student, as 6,9,12; the teacher's follow. Needs --student-depth."),
    ] = None,
    student_depth: Annotated[int | None, typer.Option(min=1, help="Layers that the student has.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML config; flags override it. Every run writes its own to OUT/config.yaml.")
    ] = None,
    teacher_revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="GGUF file in the model's folder or repository.")] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None, typer.Option(help="Default: auto, as the model is.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:1, …")] = None,
    device_map: Annotated[str | None, typer.Option(help="`auto` and the like: one model over several devices.")] = None,
    quantization: Annotated[Literal["8bit", "4bit"] | None, typer.Option(help="Load with bitsandbytes.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = None,
    storage: Annotated[
        Storage | None, typer.Option(help="Type of all vectors on disk: bf16 (default), fp32, fp16, fp8, int8.")
    ] = None,
    units_storage: Annotated[Storage | None, typer.Option(help="The same for `units` alone.")] = None,
    states_storage: Annotated[Storage | None, typer.Option(help="The same for `states` alone.")] = None,
    final_storage: Annotated[Storage | None, typer.Option(help="The same for `final` alone.")] = None,
    state_tokens: Annotated[
        StateTokens | None,
        typer.Option(help="States of tokens in the layer's units (`covered`), or of all. Default: by the recipe."),
    ] = None,
    weights: Annotated[Weights | None, typer.Option(help="Token weights that units are pooled with.")] = None,
    topk: Annotated[int | None, typer.Option(min=1, help="Tokens kept of each distribution. Default: 64.")] = None,
    token_budget: Annotated[int | None, typer.Option(min=16, help="Tokens in one batch. Default: 4096.")] = None,
    shard_size: Annotated[str | None, typer.Option(help="About the size of one shard. Default: 1GiB.")] = None,
    shard_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens in one shard: what an interruption can cost. Default: 262144."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the dataset's first N rows.")] = None,
    engine: Annotated[
        Literal["local"], typer.Option(help="Processes on this machine; torchrun brings its own.")
    ] = "local",
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes, each with the model in memory: one a GPU. A process uses all cores (its share of them). "
            "Never changes the output.",
        ),
    ] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run of ours in the output folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Bytes per signal and layer, time and room on the disk; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
    # as torchrun tells its processes
    rank: Annotated[int, typer.Option(envvar="RANK", hidden=True)] = 0,
    world_size: Annotated[int, typer.Option(envvar="WORLD_SIZE", hidden=True)] = 1,
    local_rank: Annotated[int, typer.Option(envvar="LOCAL_RANK", hidden=True)] = 0,
    local_world_size: Annotated[int, typer.Option(envvar="LOCAL_WORLD_SIZE", hidden=True)] = 1,
) -> None:
    """Run a teacher over a prepared dataset once, and keep what losses need of it.

    An interrupted run goes on where it stopped: run the same command again. One cache serves every student of the
    dataset, also one that it is aligned with later.

    Example: mta-prep cache-teacher prepared --teacher Qwen/Qwen2.5-7B --device cuda -o cache

    On 8 GPUs, for the same bytes: torchrun --nproc-per-node 8 -m pipeline cache-teacher … (or --workers 8)
    """
    from pipeline.cache import estimate, plan, report
    from pipeline.cache.choice import Choice, resolved, size
    from pipeline.shards.ranks import Rank
    from schemas.manifest import read_manifest, same_tokens
    from trainer.teacher.shape import shape_of

    if out is None:
        raise UsageError("No output folder: pass --out FOLDER.")
    flags: dict[str, Any] = {
        "dataset": None if dataset is None else str(dataset),
        "teacher.model": teacher,
        "teacher.revision": teacher_revision,
        "teacher.gguf_file": gguf_file,
        "teacher.dtype": dtype,
        "teacher.device": device,
        "teacher.device_map": device_map,
        "teacher.quantization": quantization,
        "teacher.trust_remote_code": trust_remote_code,
        "storage.units": units_storage or storage,
        "storage.states": states_storage or storage,
        "storage.final": final_storage or storage,
        "state_tokens": state_tokens,
        "weights": weights,
        "topk": topk,
        "token_budget": token_budget,
        "shard_bytes": None if shard_size is None else size(shard_size),
        "shard_tokens": shard_tokens,
        "limit": limit,
    }
    where = "command line" if config is None else str(config)
    values = merge(CacheConfig.from_yaml(config) if config is not None else {}, flags)
    for need, flag in (("dataset", "a dataset"), ("teacher", "--teacher")):
        if need not in values:
            raise UsageError(f"Nothing given for {flag} (see mta-prep cache-teacher --help).")
    choice = Choice(recipe, signals, layers, student_layers, student_depth)
    same = same_tokens(read_manifest(Path(values["dataset"])))  # first, since a model takes longer to describe
    shape = shape_of(ModelConfig.parse(values["teacher"], f"{where}, teacher"))
    settled, notes = resolved(values, where, choice, shape, same)
    planned = plan.plan_cache(settled, notes, shape)
    if dry_run:
        found = estimate.estimate(planned, out, workers=workers)
        if as_json:
            console.emit_json(found)
        else:
            report.show_estimate(found, out)
        return
    mine = Rank(rank, world_size, local_rank, local_world_size)
    outcome = plan.cache(planned, out, workers=workers, overwrite=overwrite, quiet=as_json, rank=mine)
    if outcome.manifest is None:
        return  # rank 0 tells
    if as_json:
        console.emit_json({"out": str(out), **outcome.manifest.model_dump(mode="json")})
    else:
        report.show_outcome(outcome, out)
