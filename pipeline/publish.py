"""A run from its first shard to its manifest: claim the folder, do what is left to do, seal it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pipeline import console, counts, run
from pipeline.store import files, shards
from pipeline.store.card import dataset_card
from schemas.columns import arrow_schema
from schemas.config import ParseConfig
from schemas.manifest import InputFile, Manifest, read_manifest


@runtime_checkable
class Plan(Protocol):
    """What a run will do, known before its first row."""

    @property
    def config(self) -> ParseConfig:
        """The resolved config."""
        ...

    @property
    def files(self) -> tuple[InputFile, ...]:
        """The inputs as read."""
        ...

    @property
    def rows(self) -> int:
        """Input rows."""
        ...

    @property
    def shards(self) -> int:
        """Number of shards."""
        ...

    def record(self) -> dict[str, Any]:
        """What makes two runs the same run (`shards.RECORDED`)."""
        ...

    def carried(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Counts, and rejected rows, that came before the first shard."""
        ...

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
        """(index, item) of the wanted shards, in order."""
        ...


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    manifest: Manifest
    shards_done_before: int  # shards that an earlier, interrupted run had finished
    already_finished: bool = False


def publish(
    plan: Plan, make_stage: Callable[[], run.Stage], out: Path, *, workers: int, overwrite: bool, quiet: bool
) -> Outcome:
    """Run `plan` into `out`, going on from what is finished there.

    Raises `StateError` if `out` is in use or holds something else.
    """
    with shards.workspace(out, plan.record(), plan.shards, overwrite) as workspace:
        if workspace is None:
            return Outcome(read_manifest(out), plan.shards, already_finished=True)
        done = workspace.finished()
        before = len(done)
        if before:
            console.stderr.print(f"Going on: {before} of {plan.shards} shards were already finished.")
        with console.row_progress("Preparing", plan.rows - sum(done.values()), quiet) as progress:
            items = plan.items(lambda index: index not in done)
            few = min(workers, max(1, plan.shards - before))
            for _, rows in run.run_shards(make_stage, items, workspace, few):
                progress.advance(rows)
        return Outcome(seal(plan, workspace), before)


def seal(plan: Plan, workspace: shards.Workspace) -> Manifest:
    """Finish a folder all of whose shards are done: rejected rows, card, config, and at last the manifest."""
    stats, rejected = plan.carried()
    whole, teacher = shards.Fingerprint(), shards.Fingerprint()
    written = []
    path = workspace.out / shards.REJECTED
    with files.published(path) as stream:
        stream.writelines(map(_line, rejected))
        for index in range(plan.shards):
            receipt = workspace.receipt(index)
            stats = counts.added([stats, receipt.stats])
            whole.update(row.whole for row in receipt.digests)
            teacher.update(row.teacher for row in receipt.digests)
            written.append(receipt.shard)
            stream.writelines(map(_line, receipt.rejected))
    if not path.stat().st_size:
        path.unlink()
    manifest = Manifest.model_validate(
        {
            "fingerprint": whole.hexdigest(),
            "teacher_fingerprint": teacher.hexdigest(),
            **plan.record(),
            "rows_in": stats.pop("rows_in"),
            "rows_out": sum(shard.rows for shard in written),
            "rejected": stats.pop("rejected"),
            "dropped": stats.pop("dropped"),
            "counts": stats,
            "shards": written,
        }
    )
    trees = plan.config.parser.keep_trees
    texts = {shards.CARD: dataset_card(manifest, trees), shards.CONFIG: plan.config.to_yaml()}
    workspace.seal(texts, arrow_schema(trees), manifest.fingerprint, manifest.to_json())
    return manifest


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
