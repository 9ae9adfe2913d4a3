"""What folders of very many shards cost to open: time of commands on a dataset and a cache with a row a shard.

    python tests/benchmarks/many_shards.py [--shards 1000] [--json]

Short rows, a shard each, through `parse` and `cache-teacher` themselves; the parser's network is stood in for, and the teacher
is a random Llama of 2 layers, since what is looked at is the number of files. `goes on`: a run that was ended when all of its
shards were finished and nothing was sealed. Each command is a process of its own, its start included; `nothing` is what
that takes (imports), and `trains` two steps beside one on a dataset and a cache of one shard each. `info, 20 times as many`
reads a manifest that names so many shards, which are not there. Wall time, and processor time, which other work on the machine
changes less.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer
import yaml

from pipeline.bench import machine
from pipeline.cache import plan as planning
from pipeline.dataset.prepare import prepare
from pipeline.parse.engine import Engine
from pipeline.shards.workspace import Workspace
from pipeline.text import Constituents, Words
from schemas.config import CacheConfig, ParseConfig
from schemas.manifest import CONFIG, MANIFEST
from schemas.vocabulary import VOCABULARY
from trainer.teacher.shape import shape_of

TOKENIZER = "embedded:sentencepiece-bpe"
TIMES = 20


def stand_in(_: Engine, sentences: Sequence[Words]) -> list[Constituents | None]:
    """A tree of two nodes for every sentence."""
    return [
        Constituents(np.array([[0, len(each.words)], [0, 1]], dtype=np.int32), ("S", "NP"), None) for each in sentences
    ]


def write_rows(path: Path, count: int) -> None:
    """Rows that differ."""
    rows = ({"id": f"row-{row}", "text": f"The owl number {row} sings to {row % 97} wrens."} for row in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path) -> None:
    """A random teacher, and student, with the tokenizer's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from schemas import embedded

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    for file in Path(embedded.resolve(TOKENIZER)).glob("tokenizer*.json"):
        shutil.copy(file, folder)


def make(folder: Path, rows: int, shard_rows: int, shard_tokens: int, model: Path) -> None:
    """A dataset, its unsealed twin, a cache, and the config of a training run."""
    folder.mkdir()
    write_rows(folder / "rows.jsonl", rows)
    sides = {"teacher": {"tokenizer": TOKENIZER}, "student": {"tokenizer": TOKENIZER}}
    config = ParseConfig.parse({"inputs": [str(folder / "rows.jsonl")], "shard_rows": shard_rows, **sides}, "here")
    with patch.object(Engine, "constituents", stand_in):
        prepare(config, folder / "dataset", workers=1, quiet=True)
        with patch.object(Workspace, "seal", side_effect=KeyboardInterrupt), suppress(KeyboardInterrupt):
            prepare(config, folder / "unsealed", workers=1, quiet=True)
    layers = [{"layer": 1, "granularity": "words"}]
    values = {"dataset": str(folder / "dataset"), "teacher": {"model": str(model)}, "layers": layers}
    cache = CacheConfig.parse(values | {"signals": ["relations"], "shard_tokens": shard_tokens}, "here")
    planned = planning.plan_cache(cache, [], shape_of(cache.teacher))
    planning.cache(planned, folder / "cache", workers=1, quiet=True)
    training = {
        "student": {"model": str(model)},
        "data": {"dataset": str(folder / "dataset"), "caches": [str(folder / "cache")], "batch_size": 8, "workers": 0},
        "objectives": {"ce": {}, "dsa": {"layers": [{"student": 1, "teacher": 1, "granularity": "words"}]}},
        "steps": 2,
        "log": {"every": 1, "tensorboard": False},
        "out": str(folder / "run"),
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(training), encoding="utf-8")


def multiply(dataset: Path, out: Path, times: int) -> None:
    """A manifest of so many times as many shards, and what `info` reads beside it."""
    out.mkdir()
    shutil.copy(dataset / VOCABULARY, out)
    manifest = json.loads((dataset / MANIFEST).read_bytes())
    manifest["shards"] = [
        {**shard, "file": f"{time}-{shard['file']}"} for time in range(times) for shard in manifest["shards"]
    ]
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def measured(command: list[str]) -> str:
    """Wall and processor time of a process and its children."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {ended.stderr[-2000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{wall:.1f} s, processor {processor:.1f} s"


def main(
    shards: Annotated[int, typer.Option(min=2, help="Of the dataset, and of the cache.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure."""
    result: dict[str, Any] = {"shards": shards}
    ours, trainer = [sys.executable, "-m", "pipeline"], [sys.executable, "trainer/train.py", "--config"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        make(folder / "many", shards, 1, 1, folder / "model")
        make(folder / "one", shards, shards, 10**9, folder / "model")
        multiply(folder / "many/dataset", folder / "more", TIMES)
        dataset, cache, last = str(folder / "many/dataset"), str(folder / "many/cache"), f"row-{shards - 1}"
        unsealed = str(folder / "many/unsealed")
        again = ["parse", "--config", str(folder / "many/dataset" / CONFIG), "-o", unsealed, "--workers", "1"]
        commands = {
            "nothing": [*ours, "--version"],
            "info": [*ours, "info", dataset],
            f"info, {TIMES} times as many": [*ours, "info", str(folder / "more")],
            "info of a cache": [*ours, "info", cache],
            "verify --quick": [*ours, "verify", "--quick", dataset],
            "verify --quick of a cache": [*ours, "verify", "--quick", cache],
            "inspect --id": [*ours, "inspect", dataset, "--id", last],
            "inspect --id of a cache": [*ours, "inspect", cache, "--id", last],
            "goes on": [*ours, *again],
            "trains, many shards": [*trainer, str(folder / "many/train.yaml")],
            "trains, one shard": [*trainer, str(folder / "one/train.yaml")],
        }
        for case, command in commands.items():
            result[case] = measured(command)
            print(f"{case}: {result[case]}", flush=True)
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
