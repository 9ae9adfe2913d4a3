"""Rows per second and core of `mta-prep parse` with one worker and with two, and what that means for many.

    python tests/benchmarks/workers.py [data.jsonl] [--rows 250] [--shard-rows 25] [--json]

Each is run with a fifth of the rows and with all: the difference is the work, what is left the start. `rows_per_s` is by the
clock, `rows_per_processor_s` by the processor time of all processes, which other load on the machine changes less. `speedup`
is the clock's, two workers over one. `hours_for_a_million`: rows of this kind on so many cores, at two workers' rate by
processor time: an extrapolation, not a measurement.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.bench import machine
from schemas import embedded

CORES = (2, 16, 64, 512)
SIDES = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]
#: Runs a command; seconds by the clock and of the processor, its children's included.
CLOCKED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - began, used.ru_utime + used.ru_stime]))
"""


def seconds(*arguments: str | Path, workers: int) -> tuple[float, float]:
    """Of one run of `mta-prep`: by the clock, and of the processor."""
    command = [
        sys.executable,
        "-m",
        "pipeline",
        *map(str, arguments),
        "--workers",
        f"{workers}",
        "--json",
        "--overwrite",
    ]
    done = subprocess.run([sys.executable, "-c", CLOCKED, *command], check=True, capture_output=True, text=True)
    clock, processor = json.loads(done.stdout.splitlines()[-1])
    return clock, processor


def measured(rows: int, fewer: int, short: tuple[float, float], long: tuple[float, float]) -> dict[str, float]:
    """Rates of what the run of all rows does more than the one of fewer."""
    more = rows - fewer
    return {
        "rows_per_s": round(more / (long[0] - short[0]), 1),
        "rows_per_processor_s": round(more / (long[1] - short[1]), 1),
        "start_s": round(short[0] - (long[0] - short[0]) * fewer / more, 1),
        "start_processor_s": round(short[1] - (long[1] - short[1]) * fewer / more, 1),
    }


def main(
    data: Annotated[str, typer.Argument()] = "embedded:sample",
    rows: int = 250,
    shard_rows: int = 25,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """One worker, and two, each of which has a shard in the short run already."""
    given = Path(embedded.resolve(data)).read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
    fewer = max(len(given) // 5, 2 * shard_rows)
    result: dict[str, Any] = {"rows": len(given), "shard_rows": shard_rows}
    settings = [*SIDES, "--set", f"shard_rows={shard_rows}", "--allow-rejected"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for workers in (1, 2):
            times = []
            for count in (fewer, len(given)):
                source = folder / f"{count}.jsonl"
                source.write_text("".join(given[:count]), encoding="utf-8")
                times.append(seconds("parse", source, *settings, "-o", folder / f"{count}", workers=workers))
            for figure, value in measured(len(given), fewer, *times).items():
                result[f"{workers}_{figure}"] = value
    result["speedup"] = round(result["2_rows_per_s"] / result["1_rows_per_s"], 2)
    rate = result["2_rows_per_processor_s"]
    result["hours_for_a_million"] = {cores: round(1e6 / rate / cores / 3600, 2) for cores in CORES}
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
