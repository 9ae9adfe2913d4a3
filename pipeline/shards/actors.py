"""Shards through a stage on the nodes of a Ray cluster: an actor a slot, in Ray's own `ActorPool`, the same bytes as here.

An actor is what a worker of `pipeline.shards.pool` is: it makes the stage once, turns item after item into shards, and
publishes them into the shared folder. One that is lost, with its node or alone, costs the shard it had in work: that goes to
another actor, and a new one is asked for, which begins where the cluster has room.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pipeline.shards import cluster, pool
from pipeline.shards.workspace import Workspace
from schemas import console
from schemas.errors import ResourceError, UserError

#: Seconds between looks at actors that are not ready yet.
POLL: Final = 0.5
#: Times that a shard, or an actor before its first one, may be lost with the process that had it.
LOSSES: Final = 3
#: Seconds without an actor that is ready until that is said.
QUIET_FOR: Final = 60.0


class ShardActor:
    """A worker of the cluster: `start`, then `work` by `work`."""

    def __init__(self) -> None:
        self._stage: pool.Stage | None = None
        self._space: Workspace | None = None

    def start(self, make: Callable[[], pool.Stage], needed: cluster.Shared) -> tuple[str, str]:
        """Make the stage; the ids of this actor and of its node. Raises `UserError` that names the node."""
        import ray

        if problem := needed.problem():
            raise UserError(f"The node {cluster.name_of_this()} of the Ray cluster {problem}")
        needed.enter()
        pool.settle_torch()
        try:
            self._stage, self._space = make(), needed.space
        except UserError as error:
            told = UserError(f"The node {cluster.name_of_this()} of the Ray cluster: {error}")
            told.exit_code = error.exit_code
            raise told from None
        context = ray.get_runtime_context()
        return context.get_actor_id(), context.get_node_id()

    def work(self, index: int, item: Any) -> tuple[str, int, int]:
        """A shard; the id of this actor, and rows and tokens done."""
        import ray

        assert self._stage is not None
        assert self._space is not None
        rows, tokens = pool.publish_one(self._stage, self._space, index, item)
        return ray.get_runtime_context().get_actor_id(), rows, tokens


def run_shards(
    on: cluster.Cluster,
    needed: cluster.Shared,
    make: Callable[[], pool.Stage],
    items: Iterable[tuple[int, Any]],
    workers: int,
    tick: pool.Tick,
) -> None:
    """`pool.run_shards` with actors for workers.

    Raises what a stage raises, and `ResourceError` for a shard, or an actor, that is lost again and again.
    """
    cluster.require_shared(on, needed)
    crew = _Crew(on, make, needed)
    try:
        for _ in range(workers):
            crew.hire()
        crew.run(iter(items), tick)
    finally:
        crew.dismiss()


@dataclass(frozen=True)
class _Job:
    """A shard in work."""

    index: int
    item: Any
    result: Any  # what `work` will give


class _Crew:
    """Actors that start, those that are ready (in Ray's pool), and what each has in work."""

    def __init__(self, on: cluster.Cluster, make: Callable[[], pool.Stage], needed: cluster.Shared) -> None:
        import ray
        from ray.util import ActorPool

        self._ray = ray
        self._on = on
        self._kind = ray.remote(**on.options())(ShardActor)
        self._told = ray.put(make), ray.put(needed)
        self._ready = ActorPool([])
        self._starting: dict[Any, tuple[Any, int]] = {}  # what `start` will give -> actor, losses before
        self._actors: dict[str, tuple[Any, str]] = {}  # by id: actor, id of its node
        self._in_work: dict[str, _Job] = {}  # by the actor's id
        self._again: deque[tuple[int, Any]] = deque()
        self._losses: Counter[int] = Counter()

    def hire(self, losses: int = 0) -> None:
        """Ask for an actor; `losses`: how often one in its place was lost before it was ready."""
        actor = self._kind.remote()
        self._starting[actor.start.remote(*self._told)] = actor, losses

    def run(self, items: Iterator[tuple[int, Any]], tick: pool.Tick) -> None:
        """All items, as actors become free."""
        idle = 0.0
        while True:
            self._welcome()
            while self._ready.has_free() and (item := self._next(items)) is not None:
                self._ready.submit(self._give, item)
            if self._ready.has_next():
                idle = 0.0
                self._take_one(tick)
            elif self._actors and not self._again:
                return  # actors are free, and nothing is left
            else:
                self._ray.wait(list(self._starting), timeout=POLL)
                idle += POLL
                if idle == QUIET_FOR:
                    console.stderr.print(
                        f"No actor of the Ray cluster is ready after {QUIET_FOR:.0f} s; `ray status` says whether there is room "
                        f"for {self._on.described}."
                    )

    def dismiss(self) -> None:
        """End all actors, whatever they do."""
        for actor, _ in (*self._actors.values(), *self._starting.values()):
            self._ray.kill(actor)

    def _next(self, items: Iterator[tuple[int, Any]]) -> tuple[int, Any] | None:
        return self._again.popleft() if self._again else next(items, None)

    def _give(self, actor: Any, numbered: tuple[int, Any]) -> Any:
        own = next(number for number, (other, _) in self._actors.items() if other is actor)
        result = actor.work.remote(*numbered)
        self._in_work[own] = _Job(*numbered, result)
        return result

    def _welcome(self) -> None:
        """Put actors that are ready by now into the pool."""
        done = (
            self._ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)[0]
            if self._starting
            else []
        )
        for begun in done:
            actor, losses = self._starting.pop(begun)
            try:
                number, node = self._ray.get(begun)
            except self._ray.exceptions.RayTaskError as error:
                self._ray.kill(actor)
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                self._ray.kill(actor)
                if losses + 1 == LOSSES:
                    raise ResourceError(
                        f"Actors of the Ray cluster were lost {LOSSES} times before they were ready "
                        f"({cluster.first_line(error)}). Finished shards are kept: run the same command again, with more for "
                        "each by --ray-resources."
                    ) from None
                self.hire(losses + 1)
            else:
                self._actors[number] = actor, node
                self._ready.push(actor)

    def _take_one(self, tick: pool.Tick) -> None:
        """Wait a while for a shard."""
        try:
            number, rows, tokens = self._ready.get_next_unordered(timeout=POLL)
        except self._ray.exceptions.RayTaskError as error:  # of any other kind besides, so it goes first
            raise error.cause from error
        except TimeoutError:
            return
        except self._ray.exceptions.RayError:  # which does not always say whose it is
            for number, why in self._lost().items():
                self._replace(number, why)
            self._only_known()
        else:
            del self._in_work[number]
            tick(rows, tokens)

    def _lost(self) -> dict[str, Exception]:
        """Actors that will not finish what they have in work, and why; the pool has told of one or more of them."""
        ended, _ = self._ray.wait(
            [job.result for job in self._in_work.values()], num_returns=len(self._in_work), timeout=0
        )
        lost: dict[str, Exception] = {}
        for number, job in self._in_work.items():
            if job.result in ended:
                try:
                    self._ray.get(job.result)
                except self._ray.exceptions.RayTaskError:
                    pass  # the stage's own, which the pool tells next
                except self._ray.exceptions.RayError as error:
                    lost[number] = error
        return lost

    def _replace(self, number: str, error: Exception) -> None:
        """An actor is lost: its shard is next, and actors of its node that have none are not relied on either."""
        job, (_, node) = self._in_work.pop(number), self._actors[number]
        self._losses[job.index] += 1
        if self._losses[job.index] == LOSSES:
            raise ResourceError(
                f"Shard {job.index} was lost {LOSSES} times with the actor that made it, most likely for lack of memory "
                f"({cluster.first_line(error)}). Finished shards are kept: run the same command again, with more for each actor "
                "by --ray-resources."
            )
        console.stderr.print(f"An actor of the Ray cluster was lost; shard {job.index} begins anew on another.")
        self._again.append((job.index, job.item))
        for other in [other for other, (_, its) in self._actors.items() if its == node and other not in self._in_work]:
            self._ray.kill(self._actors.pop(other)[0])
            self.hire()

    def _only_known(self) -> None:
        """Take those that are lost out of the pool, which keeps some of them."""
        known = [actor for actor, _ in self._actors.values()]
        for actor in [self._ready.pop_idle() for _ in iter(self._ready.has_free, False)]:
            if actor in known:
                self._ready.push(actor)
