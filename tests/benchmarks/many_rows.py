"""A corpus of very many rows out of a few thousand, whose texts repeat only inside a shard; and the log of a run over it.

    python tests/benchmarks/many_rows.py write dolly.jsonl alpaca.json -o rows.jsonl [--rows 1000000] [--shard-rows 1000]
    python tests/benchmarks/many_rows.py watch OUT --log LOG -- mta-prep parse rows.jsonl … --set shard_rows=1000 -o OUT

`write`: short rows of instructions, as prompts and responses. Shard by shard a few texts take turns row by row, each with a
sentence of its own behind the response, so that no text is in two shards; ids and numbers differ in every row. Equal
sentences of rows that go through the stages together are parsed once, so that a million rows end in hours and not in a day.

`watch`: starts the command and writes a JSON line a minute, and one at its end: rows done (input rows of finished shards),
rows a second since the command was started, seconds of processor time of the command and all of its processes, resident
memory of the first and of each of the others.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from pipeline.read.inputs import open_inputs
from pipeline.read.records import Record
from pipeline.shards.workspace import RUN, WORK

app = typer.Typer(add_completion=False)
SUBJECTS = ("The old farmer", "My younger sister", "A tired engineer", "Every third visitor", "The whole committee")
VERBS = ("has carefully counted", "will never sell", "wanted to repaint", "is still looking for", "could not remember")
PLACES = ("near the river", "behind the station", "in the quiet valley", "on the third floor", "before winter")


def short_rows(inputs: Sequence[str], longest: int) -> list[tuple[str, str]]:
    """Prompt and response of the rows whose characters are at most so many together."""
    opened = open_inputs(inputs, split=None, revision=None, spool=Path())
    rows = [row.fields for source in opened.sources for row in source.read() if isinstance(row, Record)]
    texts = [("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in rows]
    return [text for text in texts if all(text) and sum(map(len, text)) <= longest]


def varied(text: tuple[str, str], number: int) -> dict[str, str]:
    """The text with a sentence behind its response that no other number has."""
    prompt, response = text
    words = SUBJECTS[number % 5], VERBS[number // 5 % 5], f"box {number}", PLACES[number // 25 % 5]
    return {"prompt": f"{prompt}\n\n", "response": f"{response.rstrip()} {' '.join(words)}."}


def rows_of(texts: Sequence[tuple[str, str]], rows: int, shard_rows: int, per_shard: int) -> Iterator[dict[str, Any]]:
    """The rows, in order; those of a shard have `per_shard` texts in turn."""
    for row in range(rows):
        shard, place = divmod(row, shard_rows)
        number = shard * per_shard + place % per_shard
        yield {"id": f"row-{row:07d}", "number": row, **varied(texts[number % len(texts)], number)}


@app.command()
def write(
    inputs: Annotated[list[str], typer.Argument(help="Files of rows with `instruction`, `input` and `output`.")],
    out: Annotated[Path, typer.Option("--out", "-o")],
    rows: Annotated[int, typer.Option(min=1)] = 1_000_000,
    shard_rows: Annotated[int, typer.Option(min=1)] = 1000,
    texts: Annotated[int, typer.Option(min=1, help="Different ones in a shard.")] = 8,
    longest: Annotated[int, typer.Option(help="Characters of a row that is taken.")] = 500,
) -> None:
    """Write the rows as JSON lines."""
    taken = short_rows(inputs, longest)
    with out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows_of(taken, rows, shard_rows, texts))
    print(json.dumps({"texts": len(taken), "rows": rows, "bytes": out.stat().st_size}))


def rows_done(out: Path) -> int:
    """Input rows of the shards that are finished, which a run of this size must say: `shard_rows` each."""
    manifest, work = out / "manifest.json", out / WORK
    if manifest.is_file():
        return int(json.loads(manifest.read_bytes())["rows_in"])
    if not (work / RUN).is_file():
        return 0
    finished = sum(1 for _ in work.glob("[0-9]*.json"))
    return finished * int(json.loads((work / RUN).read_bytes())["config"]["shard_rows"])


class Watched:
    """A command's processes: their memory now, and the processor time of all there have been."""

    def __init__(self, process: int) -> None:
        self.first = psutil.Process(process)
        self.spent: dict[int, float] = {}

    def line(self) -> dict[str, Any]:
        """What is to be told of them."""
        memory = []
        for process in [self.first, *self.first.children(recursive=True)]:
            try:
                times = process.cpu_times()
                memory.append(round(process.memory_info().rss / 2**20))
            except psutil.Error:  # it has just ended
                continue
            self.spent[process.pid] = times.user + times.system
        return {"processor_s": round(sum(self.spent.values())), "rss_mib": memory[:1], "others_rss_mib": memory[1:]}


@app.command()
def watch(
    out: Annotated[Path, typer.Argument(help="Folder that the command fills.")],
    command: Annotated[list[str], typer.Argument()],
    log: Annotated[Path, typer.Option()],
    every: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
) -> None:
    """Run a command that prepares shards, and note how it gets on."""
    before, began = rows_done(out), time.time()
    started = subprocess.Popen(command)
    watched, code = Watched(started.pid), None
    with log.open("a", encoding="utf-8") as file:
        while code is None:
            told = watched.line()
            try:
                code = started.wait(every)
            except subprocess.TimeoutExpired:
                told = watched.line()
            done, seconds = rows_done(out), time.time() - began
            rate = {"rows": done, "seconds": round(seconds), "rows_per_s": round((done - before) / seconds, 1)}
            entry = {"at": time.strftime("%F %T")} | rate | told | ({} if code is None else {"exit": code})
            print(json.dumps(entry), file=file, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    app()
