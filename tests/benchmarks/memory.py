"""Peak memory of `mta-prep parse` and `cache-teacher` on a long corpus over that on a short one: it must not grow.

    python tests/benchmarks/memory.py [--rows 50000] [--json]

Each run is a process of its own with one worker; its peak resident set, workers included, comes from the kernel.
`rss_ratio`, `cache_rss_ratio`: the long corpus (default 50,000 rows) over a tenth of it. Rows are short and all
different. The embedded teacher's relations, states and last states are cached, about 1 KiB a token, in shards of so few
tokens that the short corpus has several too.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.bench import machine

SUBJECTS = ["The old farmer", "My younger sister", "A tired engineer", "Every third visitor", "The committee", "Nobody"]
VERBS = ["has carefully counted", "will never sell", "wanted to repaint", "is still looking for", "could not remember"]
TEACHER = "embedded:teacher"
SHARD_TOKENS = 16_384
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


def parse(path: Path, out: Path) -> list[str]:
    """Arguments of `mta-prep` for a dataset of these rows."""
    tokenizers = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]
    return ["parse", str(path), "--out", str(out), *tokenizers]


def cache_teacher(dataset: Path, out: Path) -> list[str]:
    """Arguments of `mta-prep` for a cache of this dataset."""
    kept = ["--signals", "relations,states,final", "--set", f"shard_tokens={SHARD_TOKENS}"]
    return ["cache-teacher", str(dataset), "--teacher", TEACHER, "--out", str(out), *kept]


def peak_mib(arguments: list[str]) -> float:
    """Peak resident set of one run, in MiB."""
    command = [sys.executable, "-m", "pipeline", *arguments, "--workers", "1", "--json"]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024  # the kernel counts bytes there, KiB elsewhere
    return int(done.stdout.split()[-1]) * unit / 2**20


def main(rows: int = 50_000, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Run both on the short corpus, then on the long one."""
    peaks: dict[int, float] = {}
    cache_peaks: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (rows // 10, rows):
            path, dataset = Path(folder) / f"{count}.jsonl", Path(folder) / f"dataset-{count}"
            write_rows(path, count)
            peaks[count] = peak_mib(parse(path, dataset))
            cache_peaks[count] = peak_mib(cache_teacher(dataset, Path(folder) / f"cache-{count}"))
    result = {
        "peak_mib": {str(count): round(peak, 1) for count, peak in peaks.items()},
        "rss_ratio": round(peaks[rows] / peaks[rows // 10], 3),
        "cache_peak_mib": {str(count): round(peak, 1) for count, peak in cache_peaks.items()},
        "cache_rss_ratio": round(cache_peaks[rows] / cache_peaks[rows // 10], 3),
    }
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
