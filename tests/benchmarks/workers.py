"""Rows per second and core of `mta-prep parse` and `align` with one worker and with two, and what that means for many.

    python tests/benchmarks/workers.py [data.jsonl] [--rows 250] [--shard-rows 25] [--json]

Each is run with a tenth of the rows and with all: the difference is the work, what is left the start. `rows_per_s` is by the
clock, `rows_per_processor_s` by the processor time of all processes, which other load on the machine hardly changes.
`speedup` is the clock's, two workers over one. `hours_for_a_million`: rows of this kind on so many cores, at the processor's
rate and as many shards as cores at least: an extrapolation, not a measurement.
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


def measured(rows: int, short: tuple[float, float], long: tuple[float, float]) -> dict[str, float]:
    """Rates of what the long run does more than the short one, of a tenth of its rows."""
    more = rows - rows // 10
    return {
        "rows_per_s": round(more / (long[0] - short[0]), 1),
        "rows_per_processor_s": round(more / (long[1] - short[1]), 1),
        "start_s": round(short[0] - (long[0] - short[0]) * (rows // 10) / more, 1),
        "start_processor_s": round(short[1] - (long[1] - short[1]) * (rows // 10) / more, 1),
    }


def main(
    data: Annotated[str, typer.Argument()] = "embedded:sample",
    rows: int = 250,
    shard_rows: int = 25,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Both commands, one worker and two."""
    given = Path(embedded.resolve(data)).read_text(encoding="utf-8").splitlines(keepends=True)
    result: dict[str, Any] = {"rows": min(rows, len(given)), "shard_rows": shard_rows}
    rows = result["rows"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (rows // 10, rows):
            (folder / f"{count}.jsonl").write_text("".join(given[:count]), encoding="utf-8")
        for workers in (1, 2):
            parse, align = {}, {}
            for count in (rows // 10, rows):
                out = folder / f"{count}"
                source = [folder / f"{count}.jsonl", *SIDES, "--set", f"shard_rows={shard_rows}", "--allow-rejected"]
                parse[count] = seconds("parse", *source, "-o", out, workers=workers)
                other = ["--student", "embedded:sentencepiece-bpe", "--allow-rejected"]
                align[count] = seconds("align", out, *other, "-o", folder / "aligned", workers=workers)
            for command, times in (("parse", parse), ("align", align)):
                for figure, value in measured(rows, times[rows // 10], times[rows]).items():
                    result[f"{command}_{workers}_{figure}"] = value
    for command in ("parse", "align"):
        result[f"{command}_speedup"] = round(result[f"{command}_2_rows_per_s"] / result[f"{command}_1_rows_per_s"], 2)
    rate = result["parse_2_rows_per_processor_s"]
    result["parse_hours_for_a_million"] = {cores: round(1e6 / rate / cores / 3600, 2) for cores in CORES}
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
