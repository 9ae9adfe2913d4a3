"""One long document through every stage: wall time, processor time and peak memory by its length.

    python tests/benchmarks/one_document.py [--tokens 4096 --tokens 32768] [--growth] [--json]

A text of sentences from the embedded sample in some order, about so many tokens. `parse`, `cache-teacher` of relations and
states, `verify` of both, `inspect` of the cache, and two training steps of DSA with cross-entropy, each a process of its own
with one worker. The teacher and student is a random Llama of 4 layers of 48 features with room for the positions, so that
what is seen is ours and not the model's. What a process takes to start is in all figures (the row `nothing`).

`--growth`: does time grow faster than the model's own? Only `parse`, `cache-teacher` and training, and beside them what a
bare forward pass of the teacher and two steps of cross-entropy alone take of the same document.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipeline.bench import machine
from schemas import embedded

#: Characters a token, about, of the sample's text in the embedded tokenizer.
CHARACTERS = 3.6
TOKENIZER = "embedded:sentencepiece-bpe"
LAYERS = "2:words,4:chunks"
FORWARD_ALONE, CE_ALONE = "the teacher's forward pass alone", "train, cross-entropy alone"
GROWTH = {"nothing", "parse", "cache-teacher", "train", FORWARD_ALONE, CE_ALONE}


def write_row(path: Path, tokens: int) -> None:
    """One row of text."""
    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines()
    prose = [row["output"] for row in map(json.loads, lines) if row["id"].startswith("prose")]
    order = random.Random(0)
    text = ""
    while len(text) < tokens * CHARACTERS:
        text += order.choice(prose) + ("\n\n" if order.random() < 0.2 else " ")
    path.write_text(json.dumps({"id": "long", "text": text}) + "\n", encoding="utf-8")


def write_model(folder: Path, positions: int) -> None:
    """A random teacher with the tokenizer's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=4096, max_position_embeddings=positions, initializer_range=0.2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in Path(embedded.resolve(TOKENIZER)).glob("tokenizer*.json"):
        shutil.copy(file, folder)


#: The teacher alone on the document, as deep as its cache goes.
FORWARD = """
import sys
from datasets import load_from_disk
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.tensor(load_from_disk(sys.argv[2])["teacher_input_ids"][:])
with torch.inference_mode():
    model(ids, use_cache=False)
"""
OBJECTIVES = {"ce": {}, "dsa": {"weight": 2.0}, "hidden": {"weight": 0.2}}


def write_config(path: Path, folder: Path, caches: list[str], objectives: dict[str, Any]) -> None:
    """Two steps of training."""
    values = {
        "student": {"model": str(folder / "model"), "init": {"layers": [0, 3]}},
        "data": {"dataset": str(folder / "dataset"), "caches": caches, "batch_size": 1, "workers": 0},
        "objectives": objectives,
        "steps": 2,
        "log": {"every": 1, "tensorboard": False},
        "out": str(path.with_suffix("")),
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def measured(command: list[str]) -> dict[str, float]:
    """Of one process and its children."""
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.returncode, used.ru_maxrss, used.ru_utime + used.ru_stime]))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True)
    code_of, peak, seconds = json.loads(done.stdout)
    if code_of:
        raise SystemExit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # the kernel counts bytes there, KiB elsewhere
    return {"wall_s": time.perf_counter() - began, "processor_s": seconds, "peak_mib": peak * unit / 2**20}


def stages(folder: Path, row: Path) -> dict[str, list[str]]:
    """Commands by name, in order."""
    ours = [sys.executable, "-m", "pipeline"]
    dataset, cache = str(folder / "dataset"), str(folder / "cache")
    sides = ["--teacher", TOKENIZER, "--student", TOKENIZER]
    teacher = ["--teacher", str(folder / "model"), "--layers", LAYERS, "--signals", "relations,states"]
    return {
        "nothing": [sys.executable, "-c", "import torch, transformers, datasets, spacy, pyarrow"],
        "parse": [*ours, "parse", str(row), *sides, "--workers", "1", "-o", dataset],
        "verify dataset": [*ours, "verify", dataset],
        "cache-teacher": [*ours, "cache-teacher", dataset, *teacher, "-o", cache],
        "verify cache": [*ours, "verify", cache, "--dataset", dataset],
        "inspect cache": [*ours, "inspect", cache],
        "train": [sys.executable, "trainer/train.py", "--config", str(folder / "train.yaml")],
        FORWARD_ALONE: [sys.executable, "-c", FORWARD, str(folder / "model"), dataset],
        CE_ALONE: [sys.executable, "trainer/train.py", "--config", str(folder / "ce.yaml")],
    }


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="Lengths; several.")] = None,
    growth: Annotated[bool, typer.Option("--growth", help="Beside what the models take alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure."""
    result: dict[str, Any] = {}
    for length in tokens or [4096, 8192, 16_384, 32_768]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_row(folder / "row.jsonl", length)
            write_model(folder / "model", 4 * length)
            write_config(folder / "train.yaml", folder, [str(folder / "cache")], OBJECTIVES)
            write_config(folder / "ce.yaml", folder, [], {"ce": {}})
            for stage, command in stages(folder, folder / "row.jsonl").items():
                if (stage not in GROWTH) if growth else (stage in (FORWARD_ALONE, CE_ALONE)):
                    continue
                used = measured(command)
                told = f"{used['wall_s']:.1f} s, processor {used['processor_s']:.1f} s, peak {used['peak_mib']:.0f} MiB"
                print(f"{length} {stage}: {told}", flush=True)
                result[f"{length} {stage}"] = told
            sizes = json.loads((folder / "cache" / "manifest.json").read_text(encoding="utf-8"))
            result[f"{length} tokens"] = sizes["tokens"]
            result[f"{length} units"] = {layer: of["units"] for layer, of in sizes["counts"]["layers"].items()}
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
