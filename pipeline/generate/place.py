"""The file of responses: whether it may be written, and how the shards of a run become it."""

import glob
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from transformers.utils.logging import disable_progress_bar

from pipeline.generate.plan import GeneratePlan
from pipeline.generate.stage import GenerateStage, json_line
from pipeline.shards import counts, pool
from pipeline.shards.publish import Outcome, Product, publish
from pipeline.shards.ranks import ALONE, Rank
from pipeline.shards.workspace import Layout, Workspace, require_same_run
from schemas import console, files
from schemas.console import counted
from schemas.errors import StateError, UsageError, UserError
from schemas.responses import ResponsesManifest, manifest_of, read_responses_manifest, rejected_of, work_of
from trainer.models.loading import placed

if TYPE_CHECKING:
    from pipeline.shards.cluster import Cluster


def shard_name(index: int, total: int) -> str:
    """The name of a shard, which is there until the file is."""
    return f"{index:05d}.rows"


LAYOUT: Final = Layout(
    name="file of responses",
    recorded=("versions", "config", "inputs", "model", "template"),
    shard=shard_name,
    shards="*.rows",
    files=frozenset(),
)


def finished(plan: GeneratePlan) -> ResponsesManifest | None:
    """The manifest, if this very run has finished already. Raises `StateError` if another has, or its file was changed."""
    path = manifest_of(plan.out)
    if not path.exists():
        return None
    manifest = read_responses_manifest(plan.out)
    require_same_run(plan.out, LAYOUT, plan.record(), path)
    if problem := manifest.problem(plan.out):
        raise StateError(f"{plan.out} {problem} ({path}). Choose another --out, or pass --overwrite to make it anew.")
    shutil.rmtree(work_of(plan.out), ignore_errors=True)  # of a run that ended just before it was removed
    return manifest


def clear(out: Path) -> None:
    """Remove an earlier run of ours; its manifest first, so that nobody takes the rest for finished."""
    if manifest_of(out).exists():
        for path in (manifest_of(out), rejected_of(out), out):
            path.unlink(missing_ok=True)


def make_stage(plan: GeneratePlan, local: int, threads: int) -> GenerateStage:
    """The stage in the process that runs it; `local`: which of this machine's processes that is. With `cuda` as its device
    each takes another GPU."""
    disable_progress_bar()  # of loading weights; the run has its own
    return GenerateStage(plan.config, placed(plan.config.model, local + pool.worker_number()), threads)


def generate(
    plan: GeneratePlan,
    *,
    workers: int,
    overwrite: bool = False,
    quiet: bool = False,
    rank: Rank = ALONE,
    cluster: "Cluster | None" = None,
) -> Outcome[ResponsesManifest]:
    """Write the file; goes on from an interrupted run of the same config.

    Raises `StateError` for a file that another run or somebody else has made, or that is being written.
    """
    if plan.config.backend == "vllm" and (workers > 1 or rank.count > 1 or cluster is not None):
        raise UsageError(
            "--backend vllm runs in one process, in which it uses all there is: leave out --workers and --engine, and start "
            "no ranks."
        )
    if rank.number == 0:
        for note in plan.notes:
            console.stderr.print(console.Text(note, "yellow"))
        if overwrite:
            clear(plan.out)
    if not overwrite and (manifest := finished(plan)) is not None:
        return Outcome(None if rank.number else manifest, plan.shards, already_finished=True)
    workers = min(workers, plan.shards)
    threads = cluster.cores if cluster else pool.threads_of(workers, rank.local_count)
    stage: Callable[[], pool.Stage] = partial(make_stage, plan, rank.local * workers, threads)
    if workers == 1 and cluster is None:
        stage = pool.Made(stage(), stage)  # a model that cannot be used is refused before anything is written
    work = work_of(plan.out)
    return publish(
        RESPONSES, plan, stage, work, workers=workers, overwrite=overwrite, quiet=quiet, rank=rank, cluster=cluster
    )


def seal(plan: GeneratePlan, space: Workspace) -> ResponsesManifest:
    """Join the shards, all of which are done; the manifest comes last. Raises `UserError` where no row was answered."""
    out = plan.out
    for leftover in out.parent.glob(f"{glob.escape(out.name)}*{files.PARTIAL}"):
        leftover.unlink()
    stats: dict[str, Any] = {}
    rows_out = 0
    with files.written(rejected_of(out)) as stream:
        for index in range(plan.shards):
            receipt = space.receipt(index)
            stats = counts.added([stats, receipt.stats])
            stream.writelines(map(json_line, receipt.details["left_out"]))
            rows_out += receipt.shard.rows
    if not rejected_of(out).stat().st_size:
        rejected_of(out).unlink()
    if not rows_out:
        shutil.rmtree(space.out)
        reasons = "; ".join(
            f"{count} {reason}" for lost in ("rejected", "dropped") for reason, count in stats[lost].items()
        )
        raise UserError(
            f"No row of {counted(stats['rows_in'], 'row')} was answered: {reasons}. {rejected_of(out)} has each."
        )
    with files.written(out) as stream:
        _join(space, plan.shards, stream)
    manifest = ResponsesManifest.model_validate(
        {
            **plan.record(),
            "stop": space.receipt(0).details["stop"],
            "rows_in": stats.pop("rows_in"),
            "rows_out": rows_out,
            "rejected": stats.pop("rejected"),
            "dropped": stats.pop("dropped"),
            "counts": stats,
            "bytes": out.stat().st_size,
            "sha256": files.sha256_of(out),
        }
    )
    files.write_text(manifest_of(out), manifest.to_json())
    shutil.rmtree(space.out)
    files.flush(out.parent)
    return manifest


def _join(space: Workspace, shards: int, stream: IO[bytes]) -> None:
    for index in range(shards):
        with (space.out / space.layout.shard(index, shards)).open("rb") as shard:
            shutil.copyfileobj(shard, stream)


def _read(work: Path) -> ResponsesManifest:
    return read_responses_manifest(work.with_suffix(""))


RESPONSES: Final = Product(LAYOUT, "Generating", seal, _read)
