"""`mta-prep align`: another tokenizer for a prepared dataset, shard by shard, without parsing.

The result is what `mta-prep parse` with that tokenizer would have written, to the byte, as long as neither of the two
tokenizers makes a row drop out.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from pipeline.align.edit_distance import EditAlignment
from pipeline.align.vocabulary import OlderVocabularyError, SideVocabulary, read_side
from pipeline.dataset import assemble, shards
from pipeline.dataset.prepare import load_tokenizers, reads_of
from pipeline.dataset.rows import ROW_COLUMNS, stored_rows
from pipeline.dataset.seal import DATASET, Outcome
from pipeline.read.records import RAW_LIMIT, Rejected
from pipeline.read.template import require_no_prompt_limit
from pipeline.shards import pool
from pipeline.shards.publish import publish
from pipeline.shards.ranks import ALONE, Rank
from schemas import console
from schemas.columns import SIDES, Side
from schemas.config import Mined, ParseConfig
from schemas.dataset import damaged, open_shard
from schemas.errors import UsageError, UserError
from schemas.keys import assign
from schemas.manifest import CONFIG, InputFile, Manifest, ShardFile, read_manifest
from trainer.models.chat_template import require_known

if TYPE_CHECKING:
    from pipeline.shards.cluster import Cluster

#: Rows on which a new tokenizer is audited before the run.
AUDIT_ROWS = 200


class RealignStage:
    """A written shard to the same shard with other tokens."""

    def __init__(self, config: ParseConfig, changed: tuple[Side, ...], stay: Mapping[Side, SideVocabulary]) -> None:
        """`stay`: the tokens of the sides that do."""
        self.tokenizers = load_tokenizers(config, changed)
        self._stay = stay
        self.edits = EditAlignment.of(self.vocabularies) if config.mined is not None else None

    @property
    def vocabularies(self) -> dict[Side, SideVocabulary]:
        """Both sides' tokens."""
        changed: dict[Side, SideVocabulary] = {
            side: SideVocabulary.of(tokenizer) for side, tokenizer in self.tokenizers.items()
        }
        return changed | dict(self._stay)

    def run(self, item: tuple[Path, ShardFile], tick: pool.Tick = pool.untold) -> shards.ShardOutput:
        """A shard of the dataset in this folder, aligned anew. Raises `DamagedError` if it is not as it was written."""
        table = open_shard(*item, content=True)
        documents = assemble.DocumentColumns.from_table(table)
        stay = {side: assemble.stored_encodings(table, side) for side in SIDES if side not in self.tokenizers}
        usable, encodings, reasons = assemble.encode_sides(self.tokenizers, documents.rows, self.edits, stay)
        tick(table.num_rows, 0)
        dropped = [
            Rejected(row, item[1].file, row + 1, reason, documents.rows[row].text[:RAW_LIMIT], documents.rows[row].id)
            for row, reason in reasons.items()
        ]
        stats = {"rows_in": table.num_rows, "rejected": {}, "dropped": Counter(row.reason.kind for row in dropped)}
        return assemble.shard(
            documents.take(usable), encodings, self.tokenizers, stats=stats, left_out=dropped, edits=self.edits
        )


@dataclass(frozen=True)
class RealignPlan:
    """What a run will do, known before its first row (protocol: `pipeline.dataset.seal.Plan`)."""

    source: Path
    before: Manifest
    config: ParseConfig
    tokenizers: dict[str, dict[str, Any]]  # identities of both sides
    changed: tuple[Side, ...]
    vocabularies: dict[Side, SideVocabulary]
    quiet: bool  # whether no progress is shown

    @property
    def files(self) -> tuple[InputFile, ...]:
        """The inputs of the run that parsed."""
        return self.before.inputs

    @property
    def shards(self) -> int:
        """As many as before."""
        return len(self.before.shards)

    def record(self) -> dict[str, Any]:
        """What makes two runs the same run (`shards.LAYOUT.recorded`)."""
        old = self.before.model_dump(mode="json")
        return {name: old[name] for name in shards.LAYOUT.recorded} | {
            "config": self.config.model_dump(mode="json"),
            "tokenizers": self.tokenizers,
        }

    @property
    def reads(self) -> dict[str, str]:
        """What the stage opens."""
        return reads_of(self.config, self.changed) | {"dataset": str(self.source)}

    def rows_in(self, index: int) -> int:
        """Rows of a shard as it was."""
        return self.before.shards[index].rows

    @property
    def texts(self) -> dict[str, str]:
        """None: nothing is parsed."""
        return {}

    def carried(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Counts, and rows left out, of the run that parsed."""
        path = self.source / shards.REJECTED
        lines = (
            path.read_bytes().splitlines() if path.exists() else []
        )  # of text, also at line ends that JSON lets stand
        stats = {
            "rows_in": self.before.rows_in - self.before.rows_out,
            "rejected": self.before.rejected,
            "dropped": self.before.dropped,
            "fields": self.before.counts["fields"],
            "sentences": self.before.counts["sentences"],
            "offsets": {side: self.before.counts["offsets"][side] for side in SIDES if side not in self.changed},
        }
        return stats, [json.loads(line) for line in lines]

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, tuple[Path, ShardFile]]]:
        """(index, folder and shard of the dataset as it was) of the wanted shards."""
        for index, shard in enumerate(self.before.shards):
            if wanted(index):
                yield index, (self.source, shard)


def default_out(dataset: Path, sides: Mapping[Side, Mapping[str, Any]]) -> Path:
    """`prepared` with student `org/name` -> `prepared--name`, without any side -> `prepared--mined`.

    Raises `UsageError` where nothing gives the folder a name.
    """
    if not sides:
        return dataset.with_name(f"{dataset.resolve().name}--mined")
    names = "-".join(
        Path(str(name)).name.split(":")[-1]
        for side in sides.values()
        for name in (side.get("tokenizer"), side.get("template"))
        if name
    )
    if not names:
        raise UsageError("Neither a tokenizer nor a template is new, to name the new dataset by: pass --out.")
    return dataset.with_name(f"{dataset.resolve().name}--{names}")


def _changed(before: Mapping[str, Any], sides: Mapping[Side, Mapping[str, Any]]) -> dict[str, Any]:
    """The sides' configs, with what stays of them: a template, and with a tokenizer that stays all that is not given.

    What is given as None is the default, which of a template is as it was.
    """
    changed: dict[str, Any] = {}
    for side, values in sides.items():
        template = values.get("template") or before[side].get("template")
        stays = {} if "tokenizer" in values else before[side]
        changed[side] = {}
        for key, value in {**stays, **values, "template": template}.items():
            assign(changed[side], key, value)
    return changed


def _vocabulary_before(dataset: Path, before: Manifest, side: Side) -> SideVocabulary:
    """The tokens of a side that stays: as they were stored, or of an older dataset its tokenizer's.

    Raises `UserError` if that tokenizer is needed and is not there, or is another one by now.
    """
    if before.vocabulary is not None:
        if (problem := before.vocabulary_problem(dataset)) is not None:
            raise damaged(dataset, problem)
        try:
            return read_side(dataset, side)
        except OlderVocabularyError:
            pass
        except ValueError as error:
            raise damaged(dataset, str(error)) from None
    config = ParseConfig.parse(before.config, str(dataset))
    tokenizer = load_tokenizers(config, (side,))[side]
    if tokenizer.identity()["sha256"] != before.tokenizers[side]["sha256"]:
        raise UserError(
            f"{dataset} does not say what the {side}'s tokens spell, and the tokenizer at {getattr(config, side).tokenizer} "
            f"is another one than the dataset's (its hash differs). Name the dataset's own with --{side}."
        )
    return SideVocabulary.of(tokenizer)


def realign(
    dataset: Path,
    out: Path,
    sides: Mapping[Side, dict[str, Any]],
    overflow: str | None,
    *,
    mined: Mined | Literal["before"] | None = "before",
    workers: int,
    overwrite: bool,
    quiet: bool,
    rank: Rank = ALONE,
    cluster: "Cluster | None" = None,
) -> Outcome:
    """Write `dataset` to `out` with other tokenizers or chat templates; `sides` maps a side to its `SideConfig` values.

    Of tokenizer and template what is not given stays as it was, and with `mined: before` so does whether tokens are aligned by
    edit distance. Raises `StateError` if `dataset` is not finished, `UserError` for a tokenizer that cannot be used,
    `UsageError` for a template where texts are rendered already.
    """
    before = read_manifest(dataset)
    others: dict[str, Any] = {"overflow": overflow} if overflow else {}
    others |= {"mined": mined} if mined != "before" else {}
    values = before.config | _changed(before.config, sides) | others
    config = ParseConfig.parse(values, f"align {dataset}")
    rendered = not ParseConfig.parse(before.config, str(dataset)).of_conversations
    if rendered and any(values.get("template") for values in sides.values()):
        again = shlex.join(["mta-prep", "parse", "--config", str(dataset / CONFIG), "-o", "OTHER"])
        raise UsageError(
            f"The texts of {dataset} are rendered, so no template can be changed. `{again} --student-template NAME` makes a "
            "dataset of conversations."
        )
    changed = tuple(side for side in SIDES if side in sides)
    for settings in (getattr(config, side) for side in changed if not rendered):
        require_known(settings.template)
        require_no_prompt_limit(settings)
    stay = {side: _vocabulary_before(dataset, before, side) for side in SIDES if side not in changed}
    stage = RealignStage(config, changed, stay)
    pool.settle_torch()
    sample = open_shard(dataset, before.shards[0], ROW_COLUMNS, content=True).slice(0, AUDIT_ROWS)
    for tokenizer in stage.tokenizers.values():
        tokenizer.audit(stored_rows(sample))
    for note in assemble.notes_on(stage.tokenizers) if rank.number == 0 else ():
        console.stderr.print(Text(note, "yellow"))
    identities = before.tokenizers | {side: tokenizer.identity() for side, tokenizer in stage.tokenizers.items()}
    plan = RealignPlan(dataset, before, config, identities, changed, stage.vocabularies, quiet)
    make = pool.Made(stage, partial(RealignStage, config, changed, stay))
    return publish(
        DATASET, plan, make, out, workers=workers, overwrite=overwrite, quiet=quiet, rank=rank, cluster=cluster
    )
