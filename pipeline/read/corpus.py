"""All rows of a run's inputs: found, counted and hashed before the first of them is used, and read in order from any on."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.read.inputs import STDIN, open_inputs
from pipeline.read.records import Record, Rejected
from pipeline.read.sources import Source, read_rows
from schemas import embedded
from schemas.config import CorpusConfig
from schemas.errors import UserError
from schemas.files import make_folder
from schemas.manifest import InputFile


@dataclass(frozen=True)
class Corpus:
    """The inputs, and how many of their rows are read."""

    sources: list[Source]
    files: tuple[InputFile, ...]
    rows: int
    notes: tuple[str, ...]  # what was not read, in words

    def read(self, start: int, stop: int) -> Iterator[Record | Rejected]:
        """Rows [start, stop) over all files."""
        return read_rows(self.sources, [file.rows for file in self.files], start, stop)

    def items(self, shard_rows: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Record | Rejected]]]:
        """(index, rows) of the wanted shards of so many rows, in order."""
        shards = -(-self.rows // shard_rows)
        first = next((index for index in range(shards) if wanted(index)), shards)
        rows = self.read(first * shard_rows, self.rows)  # one pass, whatever the number of shards
        for index in range(first, shards):
            item = list(islice(rows, min(shard_rows, self.rows)))
            if wanted(index):
                yield index, item

    def sample(self, count: int) -> tuple[list[Record | Rejected], list[Record]]:
        """The first rows, and those of them that can be read. Raises `UserError` where none can."""
        rows = list(islice(self.read(0, self.rows), count))
        records = [row for row in rows if isinstance(row, Record)]
        if not records:
            first = next((row for row in rows if isinstance(row, Rejected)), None)
            where = f" The first problem: {first.file}, line {first.line}: {first.reason}." if first else ""
            names = ", ".join(dict.fromkeys(file.name for file in self.files))
            raise UserError(f"No usable row in {names}.{where}")
        return rows, records


def open_corpus(config: CorpusConfig, spool: Path) -> Corpus:
    """The rows of all inputs, at most `limit`; standard input is copied into `spool`. Raises as `open_inputs` does."""
    paths = {embedded.resolve(name): name for name in config.inputs}
    opened = open_inputs(list(paths), split=config.split, revision=config.input_revision, spool=spool, csv=config.csv)
    described = [source.describe() for source in opened.sources]
    # embedded files keep their short names, so that no path of this machine gets into a manifest
    files = tuple(file.model_copy(update={"name": paths.get(file.name, file.name)}) for file in described)
    total = sum(file.rows for file in files)
    return Corpus(opened.sources, files, min(total, config.limit or total), opened.notes())


@contextmanager
def spool_beside(out: Path, inputs: Sequence[str]) -> Iterator[Path]:
    """A folder beside `out` for standard input, if that is asked for, for as long as it is used."""
    if STDIN not in inputs:
        yield out
        return
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-stdin-") as folder:
        yield Path(folder)
