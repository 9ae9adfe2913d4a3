"""`mta-prep parse`: rows in, prepared dataset out.

`PrepareStage` is the shard function: a list of input rows to one shard, a pure function of the rows and the config.
`prepare` plans the shards, resumes, runs them, and seals the folder with its manifest.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.dataset import assemble, shards
from pipeline.dataset.seal import DATASET, Outcome
from pipeline.read.fields import resolve_fields
from pipeline.read.inputs import open_inputs
from pipeline.read.records import RAW_LIMIT, Record, Rejected, RowError
from pipeline.read.segment import Segmenter
from pipeline.read.sources import Source, read_rows
from pipeline.read.template import Rendered, Renderer, resolve_template
from pipeline.read.tokenizers import OffsetTokenizer
from pipeline.shards import pool
from pipeline.shards.publish import publish
from pipeline.text import Parser
from schemas import console, embedded
from schemas.columns import SIDES, Side
from schemas.config import ParseConfig, ParserConfig
from schemas.errors import UserError
from schemas.manifest import InputFile

#: Rows from which fields are detected and tokenizers are audited before the run.
SAMPLE_ROWS = 200
#: Rows that go through the stages together: bounds memory whatever the size of a shard.
GROUP_ROWS = 128
#: Rows a dry run really prepares, to estimate time and bytes.
PROBE_ROWS = 48


def raw_of(row: Record) -> str:
    """A row as it goes to `rejected.jsonl`."""
    return json.dumps(row.fields, ensure_ascii=True, default=str)[:RAW_LIMIT]


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
        self.renderer = Renderer(config.fields, config.template)
        self.tokenizers = load_tokenizers(config, SIDES)
        self.segmenter = Segmenter(config.segment)
        self.parser = load_parser(config.parser)

    def identities(self) -> dict[str, Any]:
        """The parts of a manifest that say what this stage is."""
        return {
            "template": self.renderer.identity(),
            "tokenizers": {side: tokenizer.identity() for side, tokenizer in self.tokenizers.items()},
            "segmenter": self.segmenter.identity(),
            "parser": self.parser.identity(),
        }

    def render(self, rows: Sequence[Record | Rejected]) -> tuple[list[Rendered], list[dict[str, Any]]]:
        """Texts of the usable rows, and the rejected ones as they go to `rejected.jsonl`."""
        rendered, rejected = [], []
        for row in rows:
            if isinstance(row, Rejected):
                rejected.append({"file": row.file, "line": row.line, "reason": row.reason, "raw": row.raw})
                continue
            try:
                rendered.append(self.renderer.render(row))
            except RowError as error:
                rejected.append({"file": row.file, "line": row.line, "reason": str(error), "raw": raw_of(row)})
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
        texts = [row.text for row in rendered]
        starts = [row.response_start for row in rendered]
        kept, encodings, dropped = assemble.encode_sides(self.tokenizers, texts, starts)
        documents = self.segmenter.segment([texts[row] for row in kept], [starts[row] for row in kept])
        units = self.parser.extract(documents)
        columns = assemble.DocumentColumns.of(
            [rendered[row] for row in kept], documents, units, keep_trees=self.config.parser.keep_trees
        )
        return assemble.shard(
            columns,
            encodings,
            self.tokenizers,
            stats={
                "rows_in": len(rows),
                # the kind of problem; its details are in rejected.jsonl
                "rejected": Counter(entry["reason"].split(":")[0] for entry in rejected),
                "dropped": dropped,
                "sentences": sum((unit.counts for unit in units), Counter[str]()),
            },
            rejected=rejected,
        )


def load_tokenizers(config: ParseConfig, sides: Sequence[Side]) -> dict[Side, OffsetTokenizer]:
    """The tokenizers of these sides, ready."""
    return {side: OffsetTokenizer(side, embedded.side(getattr(config, side)), config.overflow) for side in sides}


@dataclass(frozen=True)
class PreparePlan:
    """What a run will do, known before its first row is prepared."""

    config: ParseConfig  # resolved: fields and template as detected
    inputs: list[Source]
    files: tuple[InputFile, ...]
    rows: int
    shard_rows: int
    identities: dict[str, Any]
    notes: tuple[str, ...]  # what a person should know before the run

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
            **self.identities,
        }

    def rows_in(self, index: int) -> int:
        """Input rows of a shard."""
        return min(self.shard_rows, self.rows - index * self.shard_rows)

    def read(self, start: int, stop: int) -> Iterator[Record | Rejected]:
        """Input rows [start, stop) over all files."""
        return read_rows(self.inputs, [file.rows for file in self.files], start, stop)

    def carried(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Nothing came before."""
        return {}, []

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Record | Rejected]]]:
        """(index, input rows) of the wanted shards, in order."""
        first = next((index for index in range(self.shards) if wanted(index)), self.shards)
        rows = self.read(first * self.shard_rows, self.rows)  # one pass, whatever the number of shards
        for index in range(first, self.shards):
            item = list(islice(rows, self.shard_rows))
            if wanted(index):
                yield index, item


def package_versions() -> dict[str, str]:
    """Versions of what decides the content of a dataset."""
    return {name: version(name) for name in ("mta-prep", "tokenizers", "spacy", "benepar")}


def plan(config: ParseConfig, spool: Path) -> PreparePlan:
    """Find and count the inputs, settle fields and template, load and audit what the run needs.

    Raises `UserError` and its kin for anything that would make the run fail later.
    """
    paths = {embedded.resolve(name): name for name in config.inputs}
    opened = open_inputs(list(paths), split=config.split, revision=config.input_revision, spool=spool, csv=config.csv)
    inputs = opened.sources
    described = [source.describe() for source in inputs]
    # embedded files keep their short names, so that no path of this machine gets into a manifest
    files = tuple(file.model_copy(update={"name": paths.get(file.name, file.name)}) for file in described)
    total = sum(file.rows for file in files)
    rows = min(total, config.limit or total)
    sample = list(islice(read_rows(inputs, [file.rows for file in files], 0, rows), SAMPLE_ROWS))
    records = [row for row in sample if isinstance(row, Record)]
    if not records:
        first = next((row for row in sample if isinstance(row, Rejected)), None)
        where = f" The first problem: {first.file}, line {first.line}: {first.reason}." if first else ""
        raise UserError(f"No usable row in {', '.join(config.inputs)}.{where}")
    fields = resolve_fields(config.fields, records)
    config = config.model_copy(update={"fields": fields, "template": resolve_template(config.template, fields)})
    pool.settle_torch()
    stage = PrepareStage(config)
    rendered, rejected = stage.render(sample)
    if not rendered:
        raise UserError(
            f"None of the first {len(sample)} rows can be used. The first problem: {rejected[0]['file']}, "
            f"line {rejected[0]['line']}: {rejected[0]['reason']}."
        )
    for tokenizer in stage.tokenizers.values():
        tokenizer.audit([row.text for row in rendered], [row.response_start for row in rendered])
    return PreparePlan(
        config,
        inputs,
        files,
        rows,
        config.shard_rows or shards.automatic_shard_rows(rows),
        stage.identities(),
        (*opened.notes(), *assemble.notes_on(stage.tokenizers)),
    )


@contextmanager
def planned(config: ParseConfig, out: Path) -> Iterator[PreparePlan]:
    """A plan for `out`; standard input, if asked for, is kept beside `out` for as long as the plan is used."""
    with ExitStack() as stack:
        spool = out
        if "-" in config.inputs:
            out.parent.mkdir(parents=True, exist_ok=True)
            spool = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-stdin-")))
        yield plan(config, spool)


def prepare(config: ParseConfig, out: Path, *, workers: int, overwrite: bool = False, quiet: bool = False) -> Outcome:
    """Prepare a dataset at `out`; goes on from an interrupted run of the same config.

    Raises `UserError` for inputs, tokenizers or parsers that cannot be used, `StateError` for a folder that is in use or
    holds something else.
    """
    with planned(config, out) as ready:
        stage = partial(PrepareStage, ready.config)
        for note in ready.notes:
            console.stderr.print(Text(note, "yellow"))
        return publish(DATASET, ready, stage, out, workers=workers, overwrite=overwrite, quiet=quiet)


def estimate(config: ParseConfig, out: Path, *, workers: int) -> dict[str, Any]:
    """What `prepare` would do: inputs, rows, shards, and bytes and seconds from a sample that is really prepared."""
    with planned(config, out) as ready:
        stage = PrepareStage(ready.config)
        probe = list(islice(ready.read(0, ready.rows), PROBE_ROWS))
        stage.run(probe[:2])  # compiles the decoder
        began = time.perf_counter()
        output = stage.run(probe)
        seconds = time.perf_counter() - began
        scale = ready.rows / len(probe)
        return {
            "inputs": [file.model_dump() for file in ready.files],
            "notes": list(ready.notes),
            "template": ready.config.template,
            "fields": ready.config.fields.model_dump(exclude_none=True),
            "rows": ready.rows,
            "shards": ready.shards,
            "shard_rows": ready.shard_rows,
            "workers": workers,
            "sample_rows": len(probe),
            "estimated_bytes": round(output.table.nbytes * scale),
            "estimated_seconds": round(seconds * scale / min(workers, ready.shards), 1),
        }
