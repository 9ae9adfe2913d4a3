"""Writing a teacher cache beside a bare forward pass and beside the usual way, in one run.

    python tests/benchmarks/cache.py DATASET --teacher MODEL [--rows 96] [--layers 8:words,16:chunks,24:chunks] [--json]

`over_forward`: wall time of our stage, files written, over that of transformers' model cut at the same depth on the same
tokens, documents sorted by length and padded, in the best of several batch sizes. `speedup_over_usual`: the usual way,
batches in file order, padded, `output_hidden_states=True` at full depth, everything saved by `torch.save`, over ours.
`relations_over_states`: bytes of relations over those of bf16 hidden states of the same layers. Loading is left out.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers.utils.logging import disable_progress_bar

from pipeline.bench import machine
from pipeline.cache import plan as planning
from pipeline.cache.choice import Choice, resolved, stated
from pipeline.shards.pool import settle_torch, threads_of
from schemas.config import ModelConfig
from schemas.manifest import read_manifest, same_tokens
from trainer.models.hidden_states import batches_of
from trainer.models.loading import load_model
from trainer.teacher.shape import shape_of

USUAL_BATCH = 8


def padded(documents: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, padded on the right."""
    width = max(map(len, documents))
    ids = torch.zeros(len(documents), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(np.asarray(document, dtype=np.int64))
        mask[row, : len(document)] = 1
    return ids, mask


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(
    dataset: Path,
    teacher: Annotated[str, typer.Option()],
    rows: int = 96,
    layers: str = "auto",
    dtype: str = "auto",
    rounds: int = 2,
    budgets: Annotated[str, typer.Option(help="Tokens of a padded batch of the bare forward: the best counts.")] = (
        "1024,2048,4096,8192"
    ),
    token_budget: Annotated[
        int | None, typer.Option(help="Of our batches; few rows need a small one for all cores.")
    ] = None,
    usual: Annotated[bool, typer.Option(help="Also the usual way, once.")] = True,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure."""
    disable_progress_bar()
    values: dict[str, Any] = {
        "dataset": str(dataset),
        "teacher": {"model": teacher, "dtype": dtype},
        "limit": rows,
        **({} if token_budget is None else {"token_budget": token_budget}),
    }
    shape = shape_of(ModelConfig.parse(values["teacher"], "benchmark"))
    choice = Choice("mta-dsa", None, layers, None, None)
    same = same_tokens(read_manifest(dataset))
    wanted, notes = stated(values, "benchmark", choice, same)
    config = resolved(wanted, choice, shape)
    plan = planning.plan_cache(config, notes, shape)
    deepest = max(each.layer for each in config.layers)
    cores = threads_of(1)
    stage = planning.make_stage(plan, 0, cores)
    cut = load_model(config.teacher, deepest)
    tables = plan.documents.tables(["teacher_input_ids"])
    documents = [np.asarray(ids) for table in tables for ids in table.column(0).to_pylist()]
    lengths = [len(document) for document in documents]

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():

        def ours() -> None:
            settle_torch()
            for index, item in plan.items(lambda _: True):
                with (Path(folder) / f"{index}.safetensors").open("wb") as stream:
                    stage.run(item).write(stream)

        def bare(budget: int) -> None:
            for members in batches_of(lengths, budget):
                ids, mask = padded([documents[row] for row in members])
                cut.body(input_ids=ids, attention_mask=mask, use_cache=False)

        def the_usual_way() -> None:
            kept = []
            for first in range(0, len(documents), USUAL_BATCH):
                ids, mask = padded(documents[first : first + USUAL_BATCH])
                out = whole.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
                kept.append((out.hidden_states, mask))
            torch.save(kept, Path(folder) / "usual.pt")

        settle_torch()
        stage.run((0, 1))  # libraries choose and compile on first use
        ratios, ours_s, forward_s, best = [], [], [], 0
        for number in range(rounds):  # the best batch size of the first round serves the others
            ours_s.append(seconds(ours))
            torch.set_num_threads(cores)
            tried = list(map(int, budgets.split(","))) if number == 0 else [best]
            found = {budget: seconds(lambda budget=budget: bare(budget)) for budget in tried}
            best = min(found, key=found.__getitem__)
            forward_s.append(found[best])
            ratios.append(ours_s[-1] / forward_s[-1])
            print(f"round {number + 1}: ours {ours_s[-1]:.1f} s, bare forward {found}", flush=True)
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
        states = 2 * sum(lengths) * shape.hidden_size * len(config.layers)
        result = {
            "rows": len(documents),
            "tokens": sum(lengths),
            "layers": ",".join(f"{each.layer}:{each.granularity}" for each in config.layers),
            "ours_s": round(median(ours_s), 2),
            "bare_forward_s": round(median(forward_s), 2),
            "bare_forward_budget": best,
            "over_forward": round(median(ratios), 3),
            "bytes": written,
            "bf16_states_bytes": states,
            "relations_over_states": round(written / states, 4),
        }
        if usual:
            del cut
            torch.set_num_threads(cores)
            whole = load_model(config.teacher, None)
            took = seconds(the_usual_way)
            result["usual_s"] = round(took, 1)
            result["usual_bytes"] = (Path(folder) / "usual.pt").stat().st_size
            result["speedup_over_usual"] = round(took / median(ours_s), 2)
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
