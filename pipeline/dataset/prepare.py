"""`mta-prep parse`: rows in, prepared dataset out.

`PrepareStage` is the shard function: a list of input rows to one shard, a pure function of the rows and the config.
`prepare` plans the shards, resumes, runs them, and seals the folder with its manifest.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.align.edit_distance import EditAlignment
from pipeline.align.vocabulary import SideVocabulary
from pipeline.dataset import assemble, shards
from pipeline.dataset.seal import DATASET, Outcome
from pipeline.parse.places import locate
from pipeline.read.chat_tokenizer import open_tokenizer
from pipeline.read.contents import ContentsRenderer
from pipeline.read.corpus import Corpus, open_corpus, spool_beside
from pipeline.read.fields import resolve_fields
from pipeline.read.records import Record, Rejected
from pipeline.read.template import Renderer, resolve_templates, templates_of
from pipeline.read.tokenizers import OffsetTokenizer
from pipeline.shards import pool
from pipeline.shards.publish import publish
from pipeline.shards.ranks import ALONE, Rank
from pipeline.text import Parser, Rendered
from schemas import console
from schemas.columns import SIDES, Side
from schemas.config import ParseConfig, ParserConfig
from schemas.console import counted
from schemas.errors import UsageError, UserError
from schemas.manifest import InputFile
from schemas.part_names import names_of
from schemas.rows import RowError

if TYPE_CHECKING:
    from pipeline.parse.precision import Choice
    from pipeline.shards.cluster import Cluster

#: Rows from which fields are detected and tokenizers are audited before the run.
SAMPLE_ROWS = 200
#: Rows that go through the stages together: bounds memory whatever the size of a shard.
GROUP_ROWS = 128
#: Rows a dry run really prepares, to estimate time and bytes.
PROBE_ROWS = 48


def load_parser(config: ParserConfig) -> Parser:
    """The parser of that kind; each is imported only if used."""
    if config.kind == "spacy":
        from pipeline.parse.spacy import SpacyParser

        return SpacyParser(config)
    from pipeline.parse.benepar import BeneparParser

    return BeneparParser(config)


class PrepareStage:
    """Rows to a shard: template, tokenizers, sentences and words, constituents, alignment."""

    def __init__(self, config: ParseConfig) -> None:
        self.config = config
        self.renderer: Renderer | ContentsRenderer = (
            ContentsRenderer(config.fields, config.conversations)
            if config.of_conversations
            else Renderer(config.fields, config.template)
        )
        self.tokenizers = load_tokenizers(config, SIDES)
        self.edits = EditAlignment.of(self.vocabularies) if config.mined is not None else None
        # what takes seconds to import comes after all that a wrong name would be refused for
        pool.settle_torch()
        from pipeline.read.segment import Segmenter

        self.segmenter = Segmenter(config.segment)
        self.parser = load_parser(config.parser)

    @property
    def vocabularies(self) -> dict[Side, SideVocabulary]:
        """Those of its tokenizers."""
        return {side: SideVocabulary.of(tokenizer) for side, tokenizer in self.tokenizers.items()}

    def identities(self) -> dict[str, Any]:
        """The parts of a manifest that say what this stage is."""
        return {
            "template": self.renderer.identity(),
            "tokenizers": {side: tokenizer.identity() for side, tokenizer in self.tokenizers.items()},
            "segmenter": self.segmenter.identity(),
            "parser": self.parser.identity(),
        }

    def render(self, rows: Sequence[Record | Rejected]) -> tuple[list[tuple[Record, Rendered]], list[Rejected]]:
        """The usable rows with their texts, and the others with their reasons."""
        rendered: list[tuple[Record, Rendered]] = []
        rejected: list[Rejected] = []
        for row in rows:
            if isinstance(row, Rejected):
                rejected.append(row)
                continue
            try:
                rendered.append((row, self.renderer.render(row)))
            except RowError as error:
                rejected.append(row.left_out(error.reason, self.renderer.id_of(row)))
        return rendered, rejected

    def run(self, item: Sequence[Record | Rejected], tick: pool.Tick = pool.untold) -> shards.ShardOutput:
        """One shard of input rows to one shard of the dataset."""
        parts = []
        for start in range(0, len(item), GROUP_ROWS):
            group = item[start : start + GROUP_ROWS]
            parts.append(self._group(group))
            tick(len(group), 0)
        return assemble.merged(parts)

    def _group(self, rows: Sequence[Record | Rejected]) -> shards.ShardOutput:
        rendered, rejected = self.render(rows)
        documents = [row for _, row in rendered]
        usable, encodings, reasons = assemble.encode_sides(self.tokenizers, documents, self.edits)
        documents = [documents[row] for row in usable]
        dropped = [rendered[row][0].left_out(reason, rendered[row][1].id) for row, reason in reasons.items()]
        segmented = self.segmenter.segment([row.text for row in documents], [row.borders for row in documents])
        units = self.parser.extract(segmented)
        columns = assemble.DocumentColumns.of(documents, segmented, units, keep_trees=self.config.parser.keep_trees)
        return assemble.shard(
            columns,
            encodings,
            self.tokenizers,
            stats={
                "rows_in": len(rows),
                "rejected": Counter(row.reason.kind for row in rejected),
                "dropped": Counter(row.reason.kind for row in dropped),
                "fields": {
                    "used": Counter(name for _, row in rendered for name in row.used),
                    "unused": Counter(name for _, row in rendered for name in row.unused),
                },
                "sentences": sum((unit.counts for unit in units), Counter[str]()),
            },
            left_out=sorted([*rejected, *dropped], key=lambda row: row.number),
            edits=self.edits,
        )


def load_tokenizers(config: ParseConfig, sides: Sequence[Side]) -> dict[Side, OffsetTokenizer]:
    """The tokenizers of these sides, ready."""
    return {side: open_tokenizer(side, getattr(config, side), config) for side in sides}


@dataclass(frozen=True)
class PreparePlan:
    """What a run will do, known before its first row is prepared."""

    config: ParseConfig  # resolved: fields and template as detected
    corpus: Corpus
    shard_rows: int
    stage: PrepareStage  # as this process has made it
    notes: tuple[str, ...]  # what a person should know before the run
    quiet: bool = False  # whether no progress is shown
    choice: "Choice | None" = None  # of the parser's precision, where it was to be chosen

    @property
    def texts(self) -> dict[str, str]:
        """What was measured to choose the parser's precision."""
        return {} if self.choice is None else {shards.PRECISION: self.choice.to_json()}

    @property
    def files(self) -> tuple[InputFile, ...]:
        """The inputs as read."""
        return self.corpus.files

    @property
    def rows(self) -> int:
        """Input rows over all files."""
        return self.corpus.rows

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def record(self) -> dict[str, Any]:
        """What makes two runs the same run (`shards.LAYOUT.recorded`)."""
        return {
            "versions": package_versions(),
            "config": self.config.model_dump(mode="json"),
            "inputs": [file.model_dump() for file in self.files],
            **self.stage.identities(),
        }

    def rows_in(self, index: int) -> int:
        """Input rows of a shard."""
        return min(self.shard_rows, self.rows - index * self.shard_rows)

    def read(self, start: int, stop: int) -> Iterator[Record | Rejected]:
        """Input rows [start, stop) over all files."""
        return self.corpus.read(start, stop)

    @property
    def reads(self) -> dict[str, str]:
        """What the stage opens; rows come to it."""
        return reads_of(self.config, SIDES) | {"parser model": self.config.parser.model}

    @property
    def vocabularies(self) -> dict[Side, SideVocabulary]:
        """Those of the stage's tokenizers."""
        return self.stage.vocabularies

    def carried(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Nothing came before."""
        return {}, []

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Record | Rejected]]]:
        """(index, input rows) of the wanted shards, in order."""
        return self.corpus.items(self.shard_rows, wanted)


def reads_of(config: ParseConfig, sides: Sequence[Side]) -> dict[str, str]:
    """Tokenizers and templates of sides, by what a person calls them."""
    reads = {"template": config.template}
    for side in sides:
        own = getattr(config, side)
        reads |= {f"{side}'s tokenizer": own.tokenizer} | ({f"{side}'s template": own.template} if own.template else {})
    return reads


def package_versions() -> dict[str, str]:
    """Versions of what decides the content of a dataset."""
    return {name: version(name) for name in ("mta-prep", "tokenizers", "spacy", "benepar")}


def plan(config: ParseConfig, spool: Path, out: Path | None = None) -> PreparePlan:
    """Find and count the inputs, settle fields, template and precision, load and audit what the run needs.

    `out`: where a run that was begun says in which precision.

    Raises `UserError` and its kin for anything that would make the run fail later.
    """
    corpus = open_corpus(config, spool)
    sample, records = corpus.sample(SAMPLE_ROWS)
    fields = resolve_fields(config.fields, records)
    config = resolve_templates(config.model_copy(update={"fields": fields}))
    if config.parser.kind == "benepar":
        locate(config.parser.model)  # a wrong name is refused before seconds go into imports
    config, choice = choose_precision(config, out)
    stage = PrepareStage(config)
    rendered, rejected = stage.render(sample)
    if not rendered:
        raise UserError(
            f"None of the first {counted(len(sample), 'row')} can be used. The first problem: {rejected[0].file}, "
            f"line {rejected[0].line}: {rejected[0].reason}."
        )
    for tokenizer in stage.tokenizers.values():
        tokenizer.audit([row for _, row in rendered])
    return PreparePlan(
        config,
        corpus,
        config.shard_rows or shards.automatic_shard_rows(corpus.rows),
        stage,
        (*corpus.notes, *assemble.notes_on(stage.tokenizers), *([] if choice is None else [choice.told()])),
        choice=choice,
    )


def choose_precision(config: ParseConfig, out: Path | None) -> tuple[ParseConfig, "Choice | None"]:
    """The config with a precision in place of `auto`, and why it is that one."""
    if config.parser.precision != "auto":
        return config, None
    if config.parser.kind == "spacy":  # has no such layers
        return config.model_copy(update={"parser": config.parser.model_copy(update={"precision": "float32"})}), None
    from pipeline.parse.precision import chosen, with_precision

    choice = chosen(config.parser, out)
    return config.model_copy(update={"parser": with_precision(config.parser, choice.precision)}), choice


@contextmanager
def planned(config: ParseConfig, out: Path, overwrite: bool = False) -> Iterator[PreparePlan]:
    """A plan for `out`; standard input, if asked for, is kept beside `out` for as long as the plan is used."""
    with spool_beside(out, config.inputs) as spool:
        yield plan(config, spool, None if overwrite else out)


def prepare(
    config: ParseConfig,
    out: Path,
    *,
    workers: int,
    overwrite: bool = False,
    quiet: bool = False,
    rank: Rank = ALONE,
    cluster: "Cluster | None" = None,
) -> Outcome:
    """Prepare a dataset at `out`; goes on from an interrupted run of the same config.

    Raises `UserError` for inputs, tokenizers or parsers that cannot be used, `StateError` for a folder that is in use or
    holds something else.
    """
    if rank.count > 1 and config.parser.precision == "auto":
        raise UsageError(
            f"Parser precision auto is for one process, and this is rank {rank.number} of {rank.count}: each would measure for "
            "itself. Pass --parser-precision int8, bf16 or float32; `mta-prep doctor` says which is the fastest on a machine."
        )
    with planned(config, out, overwrite) as ready:
        ready = replace(ready, quiet=quiet)
        stage = pool.Made(ready.stage, partial(PrepareStage, ready.config))
        for note in ready.notes if rank.number == 0 else ():
            console.stderr.print(console.Text(note, "yellow"))
        return publish(
            DATASET, ready, stage, out, workers=workers, overwrite=overwrite, quiet=quiet, rank=rank, cluster=cluster
        )


def estimate(config: ParseConfig, out: Path, *, workers: int) -> dict[str, Any]:
    """What `prepare` would do: inputs, rows, shards, and bytes and seconds from a sample that is really prepared."""
    with planned(config, out) as ready:
        stage = ready.stage
        probe = list(islice(ready.read(0, ready.rows), PROBE_ROWS))
        stage.parser.load()
        stage.run(probe[:2])  # fills caches
        began = time.perf_counter()
        output = stage.run(probe)
        seconds = time.perf_counter() - began
        scale = ready.rows / len(probe)
        return {
            "inputs": [file.model_dump() for file in ready.files],
            "notes": list(ready.notes),
            "template": templates_of(ready.config),
            "fields": {part: list(names) for part, names in names_of(ready.config.fields).items()},
            "rows": ready.rows,
            "shards": ready.shards,
            "shard_rows": ready.shard_rows,
            "workers": workers,
            "sample_rows": len(probe),
            "estimated_bytes": round(output.table.nbytes * scale),
            "estimated_seconds": round(seconds * scale / min(workers, ready.shards), 1),
        }
