"""Processor time until one row is prepared, and until what is wrong is refused: what a person waits for at the start.

python tests/benchmarks/start.py [--against CHECKOUT] [--rounds N] [--json]

Every run is a process of its own. With `--against` a second checkout takes turns with this one, in the same environment.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from pipeline.bench import machine

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]
ROW = {"prompt": "What do cats do all day?", "response": "The small cat has been sleeping on the old sofa."}


def cases(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Command lines of `mta-prep`, and the exit code that each ends with."""
    row, out = str(folder / "row.jsonl"), str(folder / "out")
    unknown = ["--teacher", "no-such-tokenizer", "--student", "embedded:bytelevel-bpe"]
    return {
        "one row prepared": (["parse", row, *TOKENIZERS, "-o", out], 0),
        "wrong flag refused": (["parse", row, *TOKENIZERS, "-o", out, "--max-lenght", "5"], 2),
        "wrong path refused": (["parse", str(folder / "rows.jsonl"), *TOKENIZERS, "-o", out], 3),
        "wrong tokenizer refused": (["parse", row, *unknown, "-o", out], 5),
        "wrong dataset refused": (["info", str(folder / "prepared")], 4),
        "wrong dataset of a cache refused": (
            ["cache-teacher", str(folder), "--teacher", "embedded:teacher", "-o", out],
            4,
        ),
    }


def seconds(checkout: Path, arguments: list[str], expected: int, folder: Path) -> float:
    """Processor time of one run, its child processes included."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=folder, env=environment, capture_output=True
    ).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code != expected:
        raise SystemExit(f"{' '.join(arguments)} in {checkout} ended with {code}, not {expected}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(
    against: Annotated[Path | None, typer.Option(help="Another checkout of the project, to compare with.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Medians are over so many runs of each, after one to warm up.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print seconds of processor time, and with --against the ratio."""
    checkouts = {"": ROOT} | ({", before": against.resolve()} if against is not None else {})
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "row.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
        for case, (arguments, expected) in cases(folder).items():
            times: dict[str, list[float]] = {label: [] for label in checkouts}
            for number in range(rounds + 1):
                for label, checkout in checkouts.items():
                    spent = seconds(checkout, arguments, expected, folder)
                    if number:
                        times[label].append(spent)
            for label, runs in times.items():
                result[f"{case}{label}, s"] = median(runs)
            if against is not None:
                result[f"{case}, times as fast"] = median(times[", before"]) / median(times[""])
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
