"""Every method for two tokenizers on one dataset and one cache: how its terms fall, how fast it is, what it needs.

    python tests/benchmarks/methods.py DATASET CACHE... --student STUDENT.yaml [--steps 100] [--methods sft,dskd]

Each method is the config of its name in `trainer/configs`, whose terms, weights and options are taken as they are; student,
data, number of steps and learning rates are this run's. STUDENT.yaml is the `student` of a config. The CACHEs hold the
signals of all, one or more together. A method whose run is finished is not run again, one that was cut off goes on; each is
a process of its own, one after the other. Of each: its terms in training, as the mean of what was logged in the first tenth
of all steps and in the last fifth, and held out at the end; student tokens a second (the median of what was logged); the
peak memory of the process; the bytes of its signals a document, without output matrix and input embeddings. The table is
Markdown.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.bench import machine
from pipeline.cache import sizes
from schemas.config import CacheConfig
from schemas.signals import RECIPES
from trainer.cache import TeacherCache
from trainer.engine.monitor import METRICS, read_metrics

ROOT = Path(__file__).resolve().parents[2]
METHODS = (
    "sft",
    "uld",
    "gold",
    "mined",
    "dskd",
    "dskd-eta",
    "dwa-kd",
    "sra",
    "mta-dsa-cross-tokenizer",
    "dskd-eta-dsa",
)
BATCH_SIZE = 2
HELD_OUT = 8  # documents
SIGNALS = re.compile(r"^#.*cache-teacher .*--(recipe|signals) ([a-z,-]+)", re.MULTILINE)


def config_of(
    published: Mapping[str, Any],
    dataset: Path,
    caches: list[Path],
    student: Mapping[str, Any],
    steps: int,
    optim: Mapping[str, float],
    out: Path,
) -> dict[str, Any]:
    """The training config of one method, of that which is published."""
    objectives = published["objectives"]
    weight_decay = {key: value for key, value in published["optim"].items() if key == "projector_weight_decay"}
    return {
        "student": dict(student),
        "data": {
            "dataset": str(dataset),
            "caches": [str(cache) for cache in caches],
            "batch_size": BATCH_SIZE,
            "held_out": HELD_OUT,
            "workers": 0,
        },
        "objectives": objectives,
        "optim": {**optim, **weight_decay, "warmup": 0.1},
        "steps": steps,
        "checkpoint": {"every": max(1, steps // 4), "keep": 1},
        "log": {"every": max(1, steps // 50), "tensorboard": False},
        "out": str(out),
    }


def signals_of(config: str) -> set[str]:
    """What a config's own command caches, by the comment that it opens with; none for cross-entropy alone."""
    told = SIGNALS.search(config)
    if told is None:
        return set()
    return {*(RECIPES[told[2]] if told[1] == "recipe" else told[2].split(","))}


def serving(caches: list[Path], signals: set[str]) -> tuple[list[Path], float]:
    """The caches that hold these signals, and what they take there, in bytes a document; matrices of the vocabulary left out."""
    wanted, chosen, size = signals - {"embeddings"}, [], 0.0
    for cache in caches:
        manifest = TeacherCache(cache).manifest
        parts = sizes.parts(CacheConfig.parse(manifest.config, str(cache)), *sizes.told(manifest))
        here = wanted & {part["signal"] for part in parts}
        if here:
            chosen.append(cache)
            size += sum(part["bytes"] for part in parts if part["signal"] in here | {"structure"}) / manifest.rows
        wanted -= here
    if wanted:
        raise SystemExit(f"No cache holds {', '.join(sorted(wanted))}.")
    return chosen, size


def row_of(method: str, objectives: Mapping[str, Any], folder: Path, steps: int, size: float) -> list[str]:
    """One method's line of the table."""
    records = read_metrics(folder / METRICS)
    logged = [record for record in records if "tokens_per_second" in record]
    held_out = [record for record in records if "held_out_ce" in record][-1]
    first = [record for record in logged if record["step"] <= steps / 10]
    last = [record for record in logged if record["step"] > steps * 4 / 5]
    terms = [
        f"`{term}` {statistics.mean(record[term] for record in first):.4g} → "
        f"{statistics.mean(record[term] for record in last):.4g} ({held_out[f'held_out_{term}']:.4g})"
        for term in objectives
        if term != "ce"
    ]
    return [
        method,
        "; ".join(terms),
        f"{statistics.mean(record['ce'] for record in first):.2f} → {statistics.mean(record['ce'] for record in last):.2f} "
        f"({held_out['held_out_ce']:.2f})",
        f"{statistics.median(record['tokens_per_second'] for record in logged):.0f}",
        f"{max(record['memory_gb'] for record in logged):.2f}",
        f"{size:,.0f}",
    ]


HEADINGS = ["method", "terms: first → last (held out)", "cross-entropy", "tokens/s", "peak GB", "bytes/document"]


def main(
    dataset: Path,
    caches: list[Path],
    student: Annotated[Path, typer.Option(help="YAML: the `student` of a training config.")],
    steps: int = 100,
    methods: str = ",".join(METHODS),
    lr: float = 5e-4,
    projector_lr: float = 1e-3,
    out: Path = Path("runs/methods"),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Train each, and print the table."""
    described = yaml.safe_load(student.read_text(encoding="utf-8"))
    rows = []
    for method in methods.split(","):
        text = (ROOT / "trainer/configs" / f"{method}.yaml").read_text(encoding="utf-8")
        chosen, size = serving(caches, signals_of(text))
        folder = out / method
        published = yaml.safe_load(text)
        optim = {"lr": lr, "projector_lr": projector_lr}
        config = config_of(published, dataset, chosen, described, steps, optim, folder)
        written = out / f"{method}.yaml"
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        command = [sys.executable, str(ROOT / "trainer/train.py"), "--config", str(written)]
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        rows.append(row_of(method, config["objectives"], folder, steps, size))
    if as_json:
        print(
            json.dumps({"rows": [dict(zip(HEADINGS, row, strict=True)) for row in rows], "machine": machine.describe()})
        )
        return
    for line in (HEADINGS, ["---"] * len(HEADINGS), *rows):
        print(f"| {' | '.join(line)} |")
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))


if __name__ == "__main__":
    typer.run(main)
