"""What a character of a conversation costs `mta-prep parse`, against one of a single turn: the same rows, both ways by turns.

    python tests/benchmarks/conversations.py [INPUT.jsonl] [--rows N] [--rounds N] [--json]

Single turns are rendered plain, so that both ways parse the same words; conversations are read by chat templates of their
own on both sides. One process, one thread. The goal: at most 1.1 times as much.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from pipeline.bench import machine
from pipeline.dataset import prepare
from pipeline.shards import pool
from schemas.config import FieldsConfig, ParseConfig, SideConfig

TOKENIZERS = {"teacher": "embedded:sentencepiece-bpe", "student": "embedded:bytelevel-bpe"}


def main(
    source: Annotated[str, typer.Argument()] = "embedded:sample",
    rows: int = 120,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Seconds for a thousand characters of text, both ways, and their ratio."""
    pool.settle_torch()
    fields = FieldsConfig(prompt="instruction", response="output") if source.startswith("embedded:") else FieldsConfig()
    with tempfile.TemporaryDirectory() as folder:
        plans = {}
        for name, template in (("single turns", "plain"), ("conversations", "chatml")):
            sides = {side: SideConfig(tokenizer=tokenizer) for side, tokenizer in TOKENIZERS.items()}
            config = ParseConfig(inputs=(source,), limit=rows, fields=fields, template=template, **sides)
            plans[name] = prepare.plan(config, Path(folder))
        items = {name: list(plan.read(0, plan.rows)) for name, plan in plans.items()}
        costs: dict[str, list[float]] = {name: [] for name in plans}
        for number in range(rounds + 1):
            for name, plan in plans.items():
                began = time.perf_counter()
                output = plan.stage.run(items[name])
                seconds = time.perf_counter() - began
                characters = sum(map(len, output.table.column("text").to_pylist()))
                if number:  # the first compiles and fills caches
                    costs[name].append(1000 * seconds / characters)
    result = {f"{name}, s for 1,000 characters": round(median(values), 4) for name, values in costs.items()}
    ratios = [one / other for one, other in zip(costs["conversations"], costs["single turns"], strict=True)]
    machine.report(
        {**result, "ratio": round(median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}, as_json
    )


if __name__ == "__main__":
    typer.run(main)
