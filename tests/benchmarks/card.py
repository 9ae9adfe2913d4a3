"""What a GPU gives, each thing over the same thing done otherwise, in one run on one machine.

    python tests/benchmarks/card.py [--only parser,teacher,steps,head] [--rounds 7] [--json FILE]

`parser`: the embedded parser's sentences a second on the card, in float32 and bfloat16, over those on all of this machine's
cores. `teacher`: tokens a second through a Llama of 1.1 B random weights in bfloat16, with relations and states of two layers
over the forward pass alone. `steps`: a training step of several methods over one of plain cross-entropy, of a student of
GPT-2's smallest size with weights in bfloat16, 8 documents of 512 tokens, signals as out of caches of a teacher with 2,048
features; ways take turns, and ratios are medians over turns with their quartiles. `head`: the memory that the last of these
documents' logits take beside what was there before, some positions at a time over all at once.

A part that fails is told in `errors` and costs no other. Without a GPU everything runs on the CPU and is tiny: no figure of
that means anything. FILE is written anew after every part.
"""

import copy
import json
import re
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from pipeline.bench import machine
from pipeline.text import Words
from schemas import embedded
from schemas.training import DEFAULT_DATA, PairConfig, StudentConfig
from trainer.batches.batch import Batch, LayerTargets, SpanLayer, SpanTargets, TeacherTokens
from trainer.maths import ragged
from trainer.maths.layer_signals import layer_signals
from trainer.maths.spans import LearntSpans
from trainer.models.embeddings import Embeddings
from trainer.models.head import Head

ON_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if ON_CARD else "cpu")
HALF = torch.bfloat16 if ON_CARD else torch.float32


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    sentences: int = 6000
    teacher_hidden: int = 2048
    teacher_layers: int = 22
    teacher_vocabulary: int = 32_000
    hidden: int = 768
    layers: int = 12
    vocabulary: int = 50_257
    documents: int = 8
    tokens: int = 512
    learnt: int = 384  # of each document's


SIZES = Sizes() if ON_CARD else Sizes(48, 64, 4, 300, 48, 3, 500, 2, 64, 48)
#: Student and teacher layers that are compared.
PAIRS = (
    PairConfig(student=SIZES.layers // 3, teacher=SIZES.teacher_layers // 2, granularity="words"),
    PairConfig(student=SIZES.layers, teacher=SIZES.teacher_layers, granularity="chunks"),
)
UNIT_TOKENS = {"words": 2, "chunks": 4}
#: Terms of each way, beside cross-entropy; whether student and teacher have the same tokens.
WAYS: dict[str, tuple[dict[str, dict[str, Any]], bool]] = {
    "ce": ({}, True),
    "srkl": ({"srkl": {}}, True),
    "mta": ({"dsa": {"weight": 2.0}, "hidden": {"weight": 0.2}}, True),
    "mta_srkl": ({"srkl": {}, "dsa": {"weight": 2.0}, "hidden": {"weight": 0.2}}, True),
    "dskd": ({"dskd": {}}, False),
    "soft_dtw": ({"dskd": {}, "soft_dtw": {"weight": 0.2}}, False),
    "sra": ({"span_cos": {}, "span_geometry": {}, "span_kl": {}}, False),
}


def now() -> float:
    """Seconds, when all that was begun is done."""
    if ON_CARD:
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; one round more is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            began = now()
            work()
            if number:
                seconds[name].append(now() - began)
    return seconds


def over(mine: list[float], theirs: list[float]) -> list[float]:
    """Quartiles of the ratios of the same round's times."""
    return [round(each, 3) for each in statistics.quantiles([a / b for a, b in zip(mine, theirs, strict=True)], n=4)]


def sentences() -> list[Words]:
    """The embedded sample's, each as often as it takes with another number before it: equal ones are parsed once."""
    rows = map(json.loads, Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines())
    texts = [text for row in rows for text in re.split(r"(?<=[.!?])\s+", row["output"])]
    plain = [words for text in texts if 3 <= len(words := re.findall(r"\w+|[^\w\s]", text)) <= 60]
    numbered = [[str(number // len(plain)), *plain[number % len(plain)]] for number in range(SIZES.sentences)]
    return [Words(tuple(words), (True,) * len(words)) for words in numbered]


def parser(rounds: int) -> dict[str, Any]:
    """Sentences a second."""
    from pipeline.parse import model
    from pipeline.parse.engine import Engine

    network = model.load_for_inference("embedded").network
    cores = int(machine.describe()["cores"])
    every = sentences()
    few = every[: max(len(every) // 8, 24)]  # enough for a CPU
    result: dict[str, Any] = {"parser_threads": cores}
    engines = {"cpu": Engine(copy.deepcopy(network), threads=cores)}
    for precision in ("float32", "bf16"):
        engines[precision] = Engine(copy.deepcopy(network), 16_384 if ON_CARD else 2048, str(DEVICE), precision)
    turns = min(rounds, 3)
    ways = {
        name: lambda engine=engine, own=few if name == "cpu" else every: engine.constituents(own)
        for name, engine in engines.items()
    }
    seconds = in_turns(ways, turns)
    speeds = {
        name: [(len(few) if name == "cpu" else len(every)) / each for each in times] for name, times in seconds.items()
    }
    for name, values in speeds.items():
        result[f"parser_{name}_sentences_per_s"] = round(statistics.median(values), 1)
    for name in ("float32", "bf16"):
        result[f"parser_{name}_over_cpu"] = over(speeds[name], speeds["cpu"])
    return result


def teacher(rounds: int) -> dict[str, Any]:
    """Tokens a second."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.models.hidden_states import Forward, Request
    from trainer.models.loading import LanguageModel, decoder

    config = LlamaConfig(
        vocab_size=SIZES.teacher_vocabulary,
        hidden_size=SIZES.teacher_hidden,
        intermediate_size=SIZES.teacher_hidden * 11 // 4,
        num_hidden_layers=SIZES.teacher_layers,
        num_attention_heads=SIZES.teacher_hidden // 64 or 1,
        num_key_value_heads=max(SIZES.teacher_hidden // 512, 1),
    )
    torch.manual_seed(0)
    with DEVICE:
        model = LlamaForCausalLM(config).to(HALF).eval()
    body, layers = decoder(model, SIZES.teacher_layers, "teacher")
    language_model = LanguageModel(
        model=model,
        body=body,
        layers=body.get_submodule(layers),
        depth=SIZES.teacher_layers,
        hidden_size=SIZES.teacher_hidden,
        vocab_size=SIZES.teacher_vocabulary,
        architecture=type(model).__name__,
        dtype=model.dtype,
        device=DEVICE,
    )
    forward = Forward(language_model, Request(layers=tuple(pair.teacher for pair in PAIRS)))
    documents = [each.numpy() for each in torch.randint(SIZES.teacher_vocabulary, (4 * SIZES.documents, SIZES.tokens))]
    rows = ragged.pointers([SIZES.tokens] * len(documents))
    units = {pair.teacher: units_of(pair.granularity, len(documents)) for pair in PAIRS}

    def signals() -> None:
        captured = forward(documents)
        for layer, states in captured.states.items():
            layer_signals(states, rows, *units[layer], {"relations", "states"}, "covered", "centrality")

    with torch.inference_mode():
        seconds = in_turns({"forward": lambda: forward(documents), "signals": signals}, rounds)
    return {
        "teacher_parameters": sum(each.numel() for each in model.parameters()),
        "teacher_packed": forward.packed,
        "teacher_tokens_per_s": round(int(rows[-1]) / statistics.median(seconds["signals"]), 1),
        "teacher_signals_over_forward": over(seconds["signals"], seconds["forward"]),
    }


def units_of(granularity: str, documents: int) -> tuple[Tensor, Tensor]:
    """Spans of units that cover the documents, and pointers of each document's."""
    width = UNIT_TOKENS[granularity]
    count = SIZES.tokens // width
    firsts = (torch.arange(documents)[:, None] * SIZES.tokens + torch.arange(count) * width).flatten()
    return torch.stack([firsts, firsts + width], 1), ragged.pointers([count] * documents)


def targets_of(granularity: str) -> LayerTargets:
    """One layer's, random."""
    spans, rows = units_of(granularity, SIZES.documents)
    count = int(rows[1])
    tokens = SIZES.documents * SIZES.tokens
    return LayerTargets(
        spans=spans,
        rows=rows,
        weights=torch.full((len(spans),), 1 / count),
        relations=torch.rand(SIZES.documents * count * (count - 1) // 2),
        states=torch.randn(tokens, SIZES.teacher_hidden, dtype=HALF),
        state_index=torch.arange(tokens),
        state_weights=torch.full((tokens,), 1 / SIZES.tokens),
    )


def side_of(vocabulary: int) -> tuple[Tensor, ...]:
    """Ids, pointers, positions, their pointers, and targets, of documents whose ends are learnt."""
    ids = torch.randint(vocabulary, (SIZES.documents * SIZES.tokens,))
    rows, position_rows = (ragged.pointers([each] * SIZES.documents) for each in (SIZES.tokens, SIZES.learnt))
    last = torch.arange(SIZES.tokens - SIZES.learnt, SIZES.tokens) - 1
    positions = (rows[:-1, None] + last).flatten()
    return ids, rows, positions, position_rows, ids[positions + 1]


def synthetic_batch() -> Batch:
    """What every way takes, out of a cache as it would be."""
    ids, rows, positions, position_rows, targets = side_of(SIZES.vocabulary)
    final = torch.randn(len(positions), SIZES.teacher_hidden, dtype=HALF)
    spans = (positions[:, None] + torch.tensor([1, 5]))[::4]
    spans = spans[(spans[:, 1] - 1) // SIZES.tokens == spans[:, 0] // SIZES.tokens]
    learnt = torch.zeros(len(ids), dtype=torch.bool)
    learnt[positions + 1] = True
    span_rows = ragged.pointers(torch.bincount(spans[:, 0] // SIZES.tokens, minlength=SIZES.documents).tolist())
    count = int(span_rows[1])
    vectors = torch.randn(len(spans), SIZES.teacher_hidden, dtype=HALF)
    return Batch(
        torch.arange(SIZES.documents),
        ids,
        rows,
        positions,
        position_rows,
        targets,
        layers={pair.teacher: targets_of(pair.granularity) for pair in PAIRS},
        final=final,
        teacher=TeacherTokens(*side_of(SIZES.teacher_vocabulary), final=final),
        spans=SpanTargets(
            LearntSpans.of(learnt, rows, spans),
            span_rows,
            {SIZES.teacher_layers: SpanLayer(vectors, torch.full((len(spans),), 1 / count))},
        ),
    )


def one_step(way: str, student: Any, batch: Batch, embeddings: Embeddings) -> Callable[[], float]:
    """A training step of a way; gives its loss."""
    from trainer.objectives import build
    from trainer.objectives.base import Beginning, Setting
    from trainer.student.distiller import Distiller

    terms, same = WAYS[way]
    student = copy.deepcopy(student)
    teacher_vocabulary = SIZES.vocabulary if same else SIZES.teacher_vocabulary
    matrix = torch.randn(teacher_vocabulary, SIZES.teacher_hidden, dtype=HALF) / SIZES.teacher_hidden**0.5
    setting = Setting(
        PAIRS,
        SIZES.hidden,
        SIZES.teacher_hidden,
        student_last=(SIZES.layers, SIZES.hidden),
        teacher_last=(SIZES.teacher_layers, SIZES.teacher_hidden),
        same_tokens=same,
        student_embedding=SIZES.hidden,
        shared=None if same else torch.arange(min(teacher_vocabulary, SIZES.vocabulary))[:, None].expand(-1, 2).clone(),
    )
    built = build({"ce": {}, **terms}, setting, "objectives")
    head = Head(student.head.weight, student.head.bias, student.head.soft_cap, student.head.scale)
    for term in built.values():
        term.begin(Beginning(lambda _: iter([batch]), head, Head(matrix), embeddings, str))
    distiller = Distiller(student, built, None).to(DEVICE, HALF)
    distiller.set_teacher(Head(matrix).to(DEVICE), {DEFAULT_DATA: embeddings.to(DEVICE)})
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-4, fused=ON_CARD)
    weights = {name: term.config.weight_at(0.0) for name, term in built.items()}

    def step() -> float:
        denominators = distiller.denominators(batch)
        loss, _ = distiller(batch.to(DEVICE), denominators, weights)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def steps(rounds: int) -> dict[str, Any]:
    """A step of each way over one of cross-entropy."""
    from trainer.student.model import load_student

    torch.manual_seed(0)
    config = {
        "model_type": "gpt2",
        "vocab_size": SIZES.vocabulary,
        "n_embd": SIZES.hidden,
        "n_layer": SIZES.layers,
        "n_head": max(SIZES.hidden // 64, 2),
    }
    student = load_student(StudentConfig.parse({"init": "config", "config": config}, "benchmark"), seed=0)
    batch = synthetic_batch()
    embeddings = Embeddings(torch.randn(SIZES.teacher_vocabulary, SIZES.teacher_hidden, dtype=HALF))
    ways: dict[str, Callable[[], Any]] = {}
    result: dict[str, Any] = {"student_parameters": sum(each.numel() for each in student.parameters())}
    failed = {}
    for name in WAYS:
        try:
            step = one_step(name, student, batch, embeddings)
            result[f"step_{name}_loss"] = round(step(), 4)
        except Exception as error:  # the others are worth having
            failed[name] = f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc()
        else:
            ways[name] = step
    seconds = in_turns(ways, rounds)
    for name, times in seconds.items():
        result[f"step_{name}_ms"] = round(1000 * statistics.median(times), 2)
        if name != "ce" and "ce" in seconds:
            result[f"step_{name}_over_ce"] = over(times, seconds["ce"])
    return result | ({"steps_failed": failed} if failed else {})


def head(rounds: int) -> dict[str, Any]:
    """Memory of cross-entropy and its gradient, in MiB, beside what was there before."""
    if not ON_CARD:
        return {}
    from trainer.objectives import build
    from trainer.objectives.base import Setting
    from trainer.student.output_head import LogitWork, OutputHead

    ids, rows, positions, position_rows, targets = side_of(SIZES.vocabulary)
    batch = Batch(torch.arange(SIZES.documents), ids, rows, positions, position_rows, targets).to(DEVICE)
    linear = nn.Linear(SIZES.hidden, SIZES.vocabulary, bias=False, device=DEVICE, dtype=HALF)
    chunked = OutputHead.around(linear, None, None)
    hidden = torch.randn(len(ids), SIZES.hidden, device=DEVICE, dtype=HALF, requires_grad=True)
    (term,) = build({"ce": {}}, Setting((), SIZES.hidden, SIZES.hidden), "objectives").values()

    def in_portions() -> None:
        work = LogitWork.of(batch, {1: hidden}, [term], [1 / len(targets)], None)
        loss, _ = chunked(hidden[batch.positions], work)
        loss.backward()

    def at_once() -> None:
        logits = F.linear(hidden[batch.positions], linear.weight)
        F.cross_entropy(logits.float(), batch.targets).backward()

    peaks = {}
    for name, work in {"in_portions": in_portions, "at_once": at_once}.items():
        hidden.grad = linear.weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    seconds = in_turns({"in_portions": in_portions, "at_once": at_once}, rounds)
    return {
        **{f"head_{name}_mib": round(peak, 1) for name, peak in peaks.items()},
        "head_memory_ratio": round(peaks["in_portions"] / peaks["at_once"], 4),
        "head_time_in_portions_over_at_once": over(seconds["in_portions"], seconds["at_once"]),
    }


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "parser": parser,
    "teacher": teacher,
    "steps": steps,
    "head": head,
}


def results(only: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """All that is measured so far, after every part."""
    result: dict[str, Any] = {"card": torch.cuda.get_device_name() if ON_CARD else "none"}
    for name in only:
        began = time.perf_counter()
        try:
            result |= PARTS[name](rounds)
        except Exception as error:  # the others are worth having
            result.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc()
        result[f"{name}_took_s"] = round(time.perf_counter() - began, 1)
        if ON_CARD:
            torch.cuda.empty_cache()
        yield result


def main(
    only: str = ",".join(PARTS),
    rounds: Annotated[int, typer.Option(min=2)] = 7,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure."""
    result: dict[str, Any] = {}
    for result in results(only.split(","), rounds):
        if json_file is not None:
            json_file.write_text(json.dumps({**result, "machine": machine.describe()}, indent=1), encoding="utf-8")
    machine.report(result, False)


if __name__ == "__main__":
    typer.run(main)
