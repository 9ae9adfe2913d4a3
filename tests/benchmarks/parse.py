"""Rows per second of each stage of `mta-prep parse` and of the whole, in one process with one thread, in one run.

    python tests/benchmarks/parse.py [INPUT.jsonl] [--rows N] [--json]

`share_outside_parser`: the part of the whole's time that is not spent in the parser. The limit is the parser alone.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.bench import machine
from pipeline.dataset import assemble, prepare, shards
from pipeline.read.records import Reason
from pipeline.shards import pool
from pipeline.shards.workspace import workspace
from schemas.config import ParseConfig, SideConfig

Timed = tuple[Any, float]


def timed(work: Callable[[], Any]) -> Timed:
    """Result and seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def main(
    source: Annotated[str, typer.Argument()] = "embedded:sample",
    rows: int = 200,
    teacher: str = "embedded:sentencepiece-bpe",
    student: str = "embedded:bytelevel-bpe",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time the stages apart, then the whole."""
    config = ParseConfig(
        inputs=(source,), limit=rows, teacher=SideConfig(tokenizer=teacher), student=SideConfig(tokenizer=student)
    )
    pool.settle_torch()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with prepare.planned(config, out) as plan:
            stage = prepare.PrepareStage(plan.config)
            stage.parser.load()
            stage.run(list(plan.read(0, 4)))  # fills caches
            seconds: dict[str, float] = {}
            items, seconds["read"] = timed(lambda: list(plan.read(0, plan.rows)))
            (usable, _), seconds["template"] = timed(lambda: stage.render(items))
            rendered = [row for _, row in usable]
            texts, borders = [row.text for row in rendered], [row.borders for row in rendered]
            encodings = {}
            for side, tokenizer in stage.tokenizers.items():
                encodings[side], seconds[f"{side} tokens"] = timed(lambda t=tokenizer: t.encode(rendered))
            documents, seconds["sentences and words"] = timed(lambda: stage.segmenter.segment(texts, borders))
            units, seconds["parser"] = timed(lambda: stage.parser.extract(documents))
            columns = assemble.DocumentColumns.of(rendered, documents, units, keep_trees=False)
            kept = [
                row
                for row in range(len(texts))
                if not any(isinstance(side[row], Reason) for side in encodings.values())
            ]
            fitting = {side: [items[row] for row in kept] for side, items in encodings.items()}
            output, seconds["align and assemble"] = timed(
                lambda: assemble.shard(columns.take(kept), fitting, stage.tokenizers, stats={}, left_out=[])
            )
            with workspace(out, shards.LAYOUT, {}, 1, overwrite=False) as space:
                assert space is not None
                _, seconds["write"] = timed(lambda: space.publish(0, output))
            _, whole = timed(lambda: stage.run(items))
    whole += seconds["read"] + seconds["write"]
    result = {
        "rows": len(items),
        "sentences": sum(len(document.sentences) for document in documents),
        "rows_per_second": {name: round(len(items) / value, 1) for name, value in seconds.items()},
        "whole_rows_per_second": round(len(items) / whole, 2),
        "share_outside_parser": round(1 - seconds["parser"] / whole, 4),
    }
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
