"""Responses by `mta-prep generate` against a plain loop over `model.generate`, a prompt at a time in file order.

    python tests/benchmarks/generate.py [--model embedded:teacher] [--rows 64] [--max-new-tokens 64] [--batch-size 16] [--json]

Both decode greedily, in float32; loading is left out. Ours has a batch in each core, the loop `--plain-threads` of torch, which
for a model as small as the embedded one are best left at 1 (and on a busy machine for any).
`same` counts the rows that both answer alike.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.bench import machine
from pipeline.generate import place
from pipeline.generate.plan import planned
from pipeline.shards import pool
from schemas.config import GenerateConfig
from trainer.evaluation.answers import Decoder
from trainer.evaluation.prompts import Prompter
from trainer.evaluation.questions import Reading, asked_by
from trainer.evaluation.responses import load


def plain_loop(config: GenerateConfig, rows: list[dict[str, str]], threads: int) -> tuple[list[str], float]:
    """What a careful script does: the texts, and seconds."""
    torch.set_num_threads(threads)
    loaded = load(config.model)
    prompter, text_of = Prompter(loaded.tokenizer, None, 1 << 20), Decoder(loaded.tokenizer)
    prompts = [prompter.asked(asked_by(row, Reading())).ids for row in rows]
    texts = []
    began = time.perf_counter()
    for ids in prompts:
        given = torch.tensor([ids])
        with torch.no_grad():
            whole = loaded.teacher.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                max_new_tokens=config.max_new_tokens,
                eos_token_id=list(loaded.stop),
                pad_token_id=loaded.stop[0],
            )
        new = whole[0, len(ids) :].tolist()
        texts.append(text_of(new[:-1] if new[-1] in loaded.stop else new))
    return texts, time.perf_counter() - began


def main(
    model: str = "embedded:teacher",
    prompts: str = "embedded:sample",
    rows: int = 64,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    plain_threads: int = 1,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time both, and print their ratio."""
    values = {
        "inputs": [prompts],
        "model": {"model": model},
        "limit": rows,
        "sampling": {"greedy": True},
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "unfinished": "keep",
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        planned(GenerateConfig.parse(values, "benchmark"), Path(folder) / "out.jsonl") as plan,
    ):
        items = [item for _, item in plan.items(lambda index: True)]
        texts, plain = plain_loop(plan.config, [row.fields for item in items for row in item], plain_threads)
        pool.settle_torch()
        stage = place.make_stage(plan, 0, pool.threads_of(1))
        began = time.perf_counter()
        shards = [stage.run(item) for item in items]
        ours = time.perf_counter() - began
    answers = {row["id"]: row["output"] for shard in shards for row in shard.answered}
    ids = [row.fields["id"] for item in items for row in item]
    machine.report(
        {
            "rows": plan.corpus.rows,
            "tokens": sum(shard.stats["tokens"] for shard in shards),
            "plain, rows/s": round(len(texts) / plain, 2),
            "ours, rows/s": round(len(texts) / ours, 2),
            "ratio": round(plain / ours, 2),
            "same": sum(answers.get(name) == text for name, text in zip(ids, texts, strict=True)),
            "threads": stage.threads,
        },
        as_json,
    )


if __name__ == "__main__":
    typer.run(main)
