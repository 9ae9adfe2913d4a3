"""A run from its first shard to its manifest: claim the folder, do what is left to do, seal it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from pipeline.shards import pool, ranks
from pipeline.shards.workspace import Layout, Workspace
from schemas import console
from schemas.errors import UserError

if TYPE_CHECKING:
    from pipeline.shards.cluster import Cluster

Manifested = TypeVar("Manifested")


@runtime_checkable
class Plan(Protocol):
    """What a run will do, known before its first row."""

    @property
    def shards(self) -> int:
        """Number of shards."""
        ...

    def record(self) -> dict[str, Any]:
        """What makes two runs the same run: the layout's `recorded` parts of the manifest."""
        ...

    @property
    def reads(self) -> Mapping[str, str]:
        """What its stage opens, as the config names it, by what a person calls it."""
        ...

    def rows_in(self, index: int) -> int:
        """Input rows of a shard."""
        ...

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
        """(index, item) of the wanted shards, in order."""
        ...


@dataclass(frozen=True)
class Product(Generic[Manifested]):
    """What a run makes of its shards."""

    layout: Layout
    doing: str  # a word for the progress bar
    seal: Callable[[Any, Workspace], Manifested]  # plan, folder all of whose shards are done -> its manifest, written
    read: Callable[[Path], Manifested]


@dataclass(frozen=True)
class Outcome(Generic[Manifested]):
    """A finished run."""

    manifest: Manifested | None  # None: this was one of several ranks, and rank 0 seals
    shards_done_before: int  # shards that an earlier, interrupted run had finished
    already_finished: bool = False


def publish(
    product: Product[Manifested],
    plan: Plan,
    make_stage: Callable[[], pool.Stage],
    out: Path,
    *,
    workers: int,
    overwrite: bool,
    quiet: bool,
    rank: ranks.Rank = ranks.ALONE,
    cluster: "Cluster | None" = None,
) -> Outcome[Manifested]:
    """Run `plan` into `out`, going on from what is finished there; with a cluster, by so many actors on its nodes.

    Raises `StateError` if `out` is in use or holds something else, `UserError` if a node of the cluster lacks what it needs. A
        run that is refused before its first shard leaves nothing behind.
    """
    folder = ranks.shared_workspace(out, product.layout, plan.record(), plan.shards, overwrite, rank)
    with folder as (space, done):
        before = len(done)
        if space is None:
            return Outcome(None if rank.number else product.read(out), plan.shards, already_finished=True)
        if before and not rank.number:
            console.stderr.print(f"Going on: {before} of {console.counted(plan.shards, 'shard')} finished before.")
        mine = {index for index in range(plan.shards) if index not in done and rank.takes(index)}
        rows = sum(map(plan.rows_in, mine))
        with console.row_progress(product.doing, rows, quiet or rank.number > 0) as progress:
            items, count = plan.items(mine.__contains__), min(workers, max(1, len(mine)))
            try:
                if cluster is None or not mine:
                    pool.run_shards(make_stage, items, space, count, progress.advance)
                else:
                    _run_on(cluster, plan, make_stage, items, space, count, progress.advance)
            except UserError:
                if rank.count == 1:
                    space.forget_unless_begun()
                raise
        if rank.number:
            return Outcome(None, before)
        ranks.wait_for_others(space, rank)
        space.clear_partial()  # of workers that were lost in the middle
        return Outcome(product.seal(plan, space), before)


def _run_on(
    cluster: "Cluster",
    plan: Plan,
    make_stage: Callable[[], pool.Stage],
    items: Iterator[tuple[int, Any]],
    space: Workspace,
    actors: int,
    tick: pool.Tick,
) -> None:
    from pipeline.shards.actors import run_shards
    from pipeline.shards.cluster import shared

    with shared(space, plan.reads) as needed:
        run_shards(cluster, needed, make_stage, items, actors, tick)
