"""A run from its first shard to its manifest: claim the folder, do what is left to do, seal it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pipeline import console, counts, run
from pipeline.store import shards
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
        receipts = workspace.finished()
        before = len(receipts)
        if before:
            console.stderr.print(f"Going on: {before} of {plan.shards} shards were already finished.")
        left = plan.rows - sum(receipt.stats["rows_in"] for receipt in receipts.values())
        todo = min(workers, max(1, plan.shards - before))
        with console.row_progress("Preparing", left, quiet) as progress:
            items = plan.items(lambda index: index not in receipts)
            for index, receipt in run.run_shards(make_stage, items, workspace, todo):
                receipts[index] = receipt
                progress.advance(receipt.stats["rows_in"])
        ordered = [receipts[index] for index in range(plan.shards)]
        carried, rejected = plan.carried()
        manifest = manifest_of(plan, [carried, *(receipt.stats for receipt in ordered)], ordered)
        rejected += [entry for receipt in ordered for entry in receipt.rejected]
        texts = {
            shards.CARD: dataset_card(manifest, plan.config.parser.keep_trees),
            shards.CONFIG: plan.config.to_yaml(),
        }
        if rejected:
            texts[shards.REJECTED] = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected)
        workspace.seal(texts, arrow_schema(plan.config.parser.keep_trees), manifest.fingerprint, manifest.to_json())
        return Outcome(manifest, before)


def manifest_of(plan: Plan, parts: list[dict[str, Any]], receipts: list[shards.Receipt]) -> Manifest:
    """The manifest of a finished run; `parts` are the counts to add up."""
    stats = counts.added(parts)
    return Manifest.model_validate(
        {
            "fingerprint": shards.fingerprint(row.whole for receipt in receipts for row in receipt.digests),
            "teacher_fingerprint": shards.fingerprint(row.teacher for receipt in receipts for row in receipt.digests),
            **plan.record(),
            "rows_in": stats.pop("rows_in"),
            "rows_out": sum(receipt.shard.rows for receipt in receipts),
            "rejected": stats.pop("rejected"),
            "dropped": stats.pop("dropped"),
            "counts": stats,
            "shards": [receipt.shard for receipt in receipts],
        }
    )
