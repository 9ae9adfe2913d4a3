"""`mta-prep cache-teacher`: prepared dataset and teacher in, teacher cache out.

`planned` settles everything before the first row: teacher and dataset belong together, what every shard will hold, and
whether it fits the disk. `cache` runs the shards (`pipeline.shards.publish`, as for datasets) and seals the folder.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from transformers.utils.logging import disable_progress_bar

from pipeline.cache import matching, sizes
from pipeline.cache.card import cache_card
from pipeline.cache.documents import TeacherSide
from pipeline.cache.measure import Measured, measure
from pipeline.cache.stage import CacheStage
from pipeline.shards import counts, pool
from pipeline.shards.publish import Outcome, Product, publish
from pipeline.shards.ranks import ALONE, Rank
from pipeline.shards.workspace import CARD, Layout, Workspace
from schemas import console, files
from schemas.columns import side_column
from schemas.config import CacheConfig
from schemas.errors import ResourceError, UserError
from schemas.manifest import CONFIG, CacheManifest, Manifest, OtherFile, read_cache_manifest, read_manifest
from schemas.signals import EMBEDDINGS, HEAD, INDEX, SHARDS, index_schema
from trainer.hub.folders import local_folder
from trainer.models.hub import identity
from trainer.models.loading import placed
from trainer.teacher.shape import TeacherShape

if TYPE_CHECKING:
    from pipeline.shards.cluster import Cluster

#: Bytes a row of `index.arrow` takes besides its id: three int32 and an offset.
INDEX_ROW_BYTES: Final = 16


def shard_name(index: int, total: int) -> str:
    """`shards/00000.safetensors`."""
    return f"{SHARDS}/{index:05d}.safetensors"


LAYOUT: Final = Layout(
    name="teacher cache",
    recorded=("teacher_fingerprint", "versions", "config", "teacher"),
    shard=shard_name,
    shards=f"{SHARDS}/*.safetensors",
    files=frozenset({INDEX, HEAD, EMBEDDINGS}),
)


@dataclass(frozen=True)
class CachePlan:
    """What a run will do, known before its first row (protocol: `pipeline.shards.publish.Plan`)."""

    config: CacheConfig
    shape: TeacherShape
    dataset: Manifest
    documents: TeacherSide
    measured: Measured
    teacher: dict[str, Any]  # who it is
    notes: tuple[str, ...]  # what the user should know

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.measured.bounds) - 1

    def record(self) -> dict[str, Any]:
        """What makes two runs the same run (`LAYOUT.recorded`)."""
        return {
            "teacher_fingerprint": self.dataset.teacher_fingerprint,
            "versions": {name: version(name) for name in ("mta-prep", "torch", "transformers")},
            "config": self.config.model_dump(mode="json"),
            "teacher": self.teacher,
        }

    @property
    def reads(self) -> dict[str, str]:
        """What the stage opens."""
        return {"teacher": self.config.teacher.model, "dataset": self.config.dataset}

    def rows_in(self, index: int) -> int:
        """Rows of a shard."""
        return self.measured.bounds[index + 1] - self.measured.bounds[index]

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, tuple[int, int]]]:
        """(index, rows [first, last)) of the wanted shards."""
        for index in filter(wanted, range(self.shards)):
            yield index, (self.measured.bounds[index], self.measured.bounds[index + 1])

    def sizes(self) -> dict[str, int]:
        """Bytes of every kind of file that will be written."""
        measured, config = self.measured, self.config
        # what every shard has besides its rows: one pointer more, and a header
        more = (self.shards - 1) * sizes.shard_bytes(config, self.shape, sizes.nothing(config))
        found = {
            SHARDS: sizes.shard_bytes(config, self.shape, measured.counts) + more,
            INDEX: measured.id_bytes + INDEX_ROW_BYTES * measured.counts.rows,
        }
        if "final" in config.signals:
            # the norm beside it is two of its rows at most
            found[HEAD] = self.shape.vocabulary * self.shape.width(None) * self.shape.number_bytes
        if self.measured.token_ids is not None and not (self.shape.tied and "final" in config.signals):
            row_bytes = self.shape.embedding_width * self.shape.number_bytes
            found[EMBEDDINGS] = len(self.measured.token_ids) * (row_bytes + self.measured.token_ids.itemsize)
        return found


def plan_cache(config: CacheConfig, notes: list[str], shape: TeacherShape) -> CachePlan:
    """Find and measure the dataset, check that the teacher is its own. Raises `UserError` and its kin."""
    folder = local_folder(config.dataset)
    dataset = read_manifest(folder)
    documents = TeacherSide.of(folder, dataset, config.limit)
    if not documents.rows:
        raise UserError(f"The dataset {folder} has no rows, so there is nothing to cache.")
    measured = measure(documents, config, shape)
    unseen = matching.require_match(config.teacher, shape, dataset, documents, measured)
    who = identity(config.teacher)
    return CachePlan(
        config=config,
        shape=shape,
        dataset=dataset,
        documents=documents,
        measured=measured,
        teacher={**who, **shape.identity()},
        notes=tuple(notes if unseen is None else [*notes, unseen]),
    )


def make_stage(plan: CachePlan, local: int, threads: int) -> CacheStage:
    """The stage in the process that runs it; `local`: which of this machine's processes that is."""
    disable_progress_bar()  # of loading weights; the run has its own
    return CacheStage(
        plan.config,
        placed(plan.config.teacher, local + pool.worker_number()),
        plan.shape,
        plan.documents,
        plan.measured.longest,
        plan.measured.token_ids,
        threads,
    )


def cache(
    plan: CachePlan,
    out: Path,
    *,
    workers: int,
    overwrite: bool = False,
    quiet: bool = False,
    rank: Rank = ALONE,
    cluster: "Cluster | None" = None,
) -> Outcome[CacheManifest]:
    """Write a cache to `out`; goes on from an interrupted run of the same config.

    Raises `StateError` for a folder that is in use or holds something else, `ResourceError` if the disk cannot hold it.
    """
    if rank.number == 0:
        for note in plan.notes:
            console.stderr.print(note)
        require_room(plan, out)
    threads = cluster.cores if cluster else pool.threads_of(min(workers, plan.shards), rank.local_count)
    stage = partial(make_stage, plan, rank.local * workers, threads)
    return publish(
        CACHE, plan, stage, out, workers=workers, overwrite=overwrite, quiet=quiet, rank=rank, cluster=cluster
    )


def free_bytes(out: Path) -> int:
    """What may still be written to `out`; files of an earlier run there are kept or replaced, so they count as free."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    there = sum(path.stat().st_size for path in LAYOUT.ours(out)[0]) if out.is_dir() else 0
    return shutil.disk_usage(place).free + there


def require_room(plan: CachePlan, out: Path) -> None:
    """Raises `ResourceError` if the disk cannot hold the cache."""
    needed, free = sum(plan.sizes().values()), free_bytes(out)
    if needed > free:
        raise ResourceError(
            f"The cache needs about {console.size(needed)}, and the disk of {out} has room for {console.size(free)}. Make "
            "room, choose another --out, or keep less: fewer layers or signals, --storage int8, --limit."
        )


def seal(plan: CachePlan, space: Workspace) -> CacheManifest:
    """Finish a folder all of whose shards are done: index, card, config, and at last the manifest."""
    stats: dict[str, Any] = {}
    written = []
    for index in range(plan.shards):
        receipt = space.receipt(index)
        stats = counts.added([stats, receipt.stats])
        written.append(receipt.shard)
    first = space.receipt(0)
    others = {other.file: other for other in first.others}
    for layer, missing in plan.measured.without_span.items():
        stats["layers"][str(layer)]["units_without_span"] = missing
    manifest = CacheManifest.model_validate(
        {
            **plan.record(),
            "logits": first.details["logits"],
            "norm": first.details.get("norm"),  # which an older package that was interrupted has not told
            "rows": sum(shard.rows for shard in written),
            "tokens": stats.pop("tokens"),
            "counts": stats,
            "index": _write_index(plan, space.out / INDEX),
            "head": others.get(HEAD),
            "embeddings": others.get(EMBEDDINGS),
            "tied_embeddings": first.details["tied_embeddings"],
            "shards": written,
        }
    )
    space.seal({CARD: cache_card(manifest), CONFIG: plan.config.to_yaml()}, manifest.to_json())
    return manifest


def _write_index(plan: CachePlan, path: Path) -> OtherFile:
    bounds = np.array(plan.measured.bounds)
    first = 0
    with files.written(path) as stream, pa.ipc.new_file(stream, index_schema()) as writer:
        for table in plan.documents.tables(["id", side_column("teacher", "input_ids")]):
            rows = np.arange(first, first + table.num_rows)
            shard = np.searchsorted(bounds, rows, side="right") - 1
            columns = [
                table.column("id").combine_chunks(),
                pa.array(shard, pa.int32()),
                pa.array(rows - bounds[shard], pa.int32()),
                table.column(1).combine_chunks().value_lengths(),
            ]
            writer.write_table(pa.table(columns, schema=index_schema()))
            first += table.num_rows
    return OtherFile(file=path.name, bytes=path.stat().st_size, sha256=files.sha256_of(path))


CACHE: Final = Product(LAYOUT, "Caching", seal, read_cache_manifest)
