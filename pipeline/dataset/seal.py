"""Sealing a prepared dataset, whatever its shards were made from: rows left out, card, config, and at last the manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from pipeline.align.nearest import nearest_tokens
from pipeline.align.vocabulary import SideVocabulary, shared_tokens, vocabulary_file
from pipeline.dataset import shards
from pipeline.dataset.card import dataset_card
from pipeline.dataset.ids import repeated_ids
from pipeline.shards import counts, publish
from pipeline.shards.workspace import CARD, Workspace
from schemas import console, files
from schemas.columns import Side, arrow_schema
from schemas.config import ParseConfig
from schemas.console import counted
from schemas.errors import UserError
from schemas.manifest import CONFIG, InputFile, Manifest, OtherFile, read_manifest
from schemas.saved_dataset import dataset_files
from schemas.vocabulary import VOCABULARY

Outcome = publish.Outcome[Manifest]


@runtime_checkable
class DatasetPlan(publish.Plan, Protocol):
    """What a run that writes a dataset knows before its first row."""

    @property
    def config(self) -> ParseConfig:
        """The resolved config."""
        ...

    @property
    def files(self) -> tuple[InputFile, ...]:
        """The inputs as read."""
        ...

    @property
    def vocabularies(self) -> Mapping[Side, SideVocabulary]:
        """Both sides' tokens."""
        ...

    @property
    def quiet(self) -> bool:
        """Whether no progress is shown."""
        ...

    @property
    def texts(self) -> Mapping[str, str]:
        """Files that the folder gets beside those of every dataset, by name."""
        ...

    def carried(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Counts, and rows left out, that came before the first shard."""
        ...


def seal(plan: DatasetPlan, space: Workspace) -> Manifest:
    """Finish a folder all of whose shards are done. Raises `UserError` where no row is left in them."""
    stats, left_out = plan.carried()
    whole, teacher = shards.Fingerprint(), shards.Fingerprint()
    written = []
    path = space.out / shards.REJECTED
    with files.written(path) as stream:
        stream.writelines(map(_line, left_out))
        for index in range(plan.shards):
            receipt = space.receipt(index)
            stats = counts.added([stats, receipt.stats])
            digests = shards.digests_of(receipt)
            whole.update(row.whole for row in digests)
            teacher.update(row.teacher for row in digests)
            written.append(receipt.shard)
            stream.writelines(map(_line, receipt.details["left_out"]))
    if not path.stat().st_size:
        path.unlink()
    rows_out = sum(shard.rows for shard in written)
    if not rows_out:
        space.abandon()
        reasons = "; ".join(
            f"{count} {reason}" for lost in ("rejected", "dropped") for reason, count in stats[lost].items()
        )
        raise UserError(
            f"No row is left of {counted(stats['rows_in'], 'row')}: {reasons}. {path} has each with its reason."
        )
    stats["repeated_ids"] = repeated_ids(space, rows_out)
    sides = plan.vocabularies
    shared = shared_tokens(sides)
    stats["shared_tokens"] = len(shared)
    manifest = Manifest.model_validate(
        {
            "fingerprint": whole.hexdigest(),
            "teacher_fingerprint": teacher.hexdigest(),
            **plan.record(),
            "rows_in": stats.pop("rows_in"),
            "rows_out": rows_out,
            "rejected": stats.pop("rejected"),
            "dropped": stats.pop("dropped"),
            "counts": stats,
            "vocabulary": _written(space.out / VOCABULARY, vocabulary_file(sides, shared, _nearest(plan, sides))),
            "shards": written,
        }
    )
    optional = plan.config.parser.keep_trees, plan.config.mined is not None
    names = [shard.file for shard in manifest.shards]
    for name, text in dataset_files(arrow_schema(*optional), names, manifest.fingerprint).items():
        files.write_text(space.out / name, text)
    texts = {CARD: dataset_card(manifest, *optional), CONFIG: plan.config.to_yaml(), **plan.texts}
    space.seal(texts, manifest.to_json())
    return manifest


def _nearest(
    plan: DatasetPlan, sides: Mapping[Side, SideVocabulary]
) -> Int32[np.ndarray, " teacher_vocabulary"] | None:
    """Of each of the teacher's tokens the student's that is nearest to it, if that is asked for."""
    if plan.config.mined != "nearest":
        return None
    with console.row_progress("Nearest tokens", len(sides["teacher"].spelled), plan.quiet, unit="token") as progress:
        return nearest_tokens(sides, progress.advance)


def _written(path: Path, content: bytes) -> OtherFile:
    with files.written(path) as stream:
        stream.write(content)
    return OtherFile(file=path.name, bytes=len(content), sha256=files.sha256_of(path))


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


DATASET: Final = publish.Product(shards.LAYOUT, "Preparing", seal, read_manifest)
