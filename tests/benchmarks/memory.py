"""Peak memory of `mta-prep parse` on a long corpus over that on a short one: it must not grow with the corpus.

    python tests/benchmarks/memory.py [--rows 50000] [--json]

Each run is a process of its own with one worker; its peak resident set, workers included, comes from the kernel.
`rss_ratio`: the long corpus (default 50,000 rows) over a tenth of it. Rows are short and all different.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline import machine

SUBJECTS = ["The old farmer", "My younger sister", "A tired engineer", "Every third visitor", "The committee", "Nobody"]
VERBS = ["has carefully counted", "will never sell", "wanted to repaint", "is still looking for", "could not remember"]
PLACES = ["near the river", "behind the station", "in the quiet valley", "on the third floor", "before winter"]


def write_rows(path: Path, rows: int) -> None:
    """Rows of one short sentence each, no two alike."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            subject, verb, place = SUBJECTS[row % 6], VERBS[row // 6 % 5], PLACES[row // 30 % 5]
            file.write(
                json.dumps(
                    {
                        "instruction": f"Say what happened to number {row}.",
                        "output": f"{subject} {verb} box {row} {place}.",
                    }
                )
            )
            file.write("\n")


def peak_mib(path: Path, out: Path) -> float:
    """Peak resident set of one run, in MiB."""
    command = [sys.executable, "-m", "pipeline", "parse", str(path), "--out", str(out)]
    command += [
        "--teacher",
        "embedded:sentencepiece-bpe",
        "--student",
        "embedded:bytelevel-bpe",
        "--workers",
        "1",
        "--json",
    ]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024  # the kernel counts bytes there, KiB elsewhere
    return int(done.stdout.split()[-1]) * unit / 2**20


def main(rows: int = 50_000, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Run the short corpus, then the long one."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (rows // 10, rows):
            path = Path(folder) / f"{count}.jsonl"
            write_rows(path, count)
            peaks[count] = peak_mib(path, Path(folder) / f"out-{count}")
    result = {
        "peak_mib": {str(count): round(peak, 1) for count, peak in peaks.items()},
        "rss_ratio": round(peaks[rows] / peaks[rows // 10], 3),
    }
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
