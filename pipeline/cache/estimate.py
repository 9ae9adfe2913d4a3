"""What a cache will cost before it is made: bytes per signal and layer, time from a short probe, and room on the disk."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import sizes
from pipeline.cache.plan import CachePlan, free_bytes, make_stage
from pipeline.shards import pool
from schemas.columns import side_column


def estimate(plan: CachePlan, out: Path, *, workers: int) -> dict[str, Any]:
    """Bytes, seconds and room; nothing is written. Seconds are from as many tokens as all threads take at once."""
    files, counts = plan.sizes(), plan.measured.counts
    pool.settle_torch()
    stage = make_stage(plan, 0, pool.threads_of(min(workers, plan.shards)))
    probe = _probe(plan, stage.threads * plan.config.token_budget)
    stage.run((0, 1))  # libraries choose and compile on first use
    began = time.perf_counter()
    output = stage.run((0, probe))
    seconds = (time.perf_counter() - began) * counts.tokens / output.stats["tokens"]
    return {
        "rows": counts.rows,
        "tokens": counts.tokens,
        "learnt_tokens": counts.learnt,
        "shards": plan.shards,
        "layers": {each.layer: each.granularity for each in plan.config.layers},
        "parts": sizes.parts(plan.config, plan.shape, counts),
        "files": files,
        "estimated_bytes": sum(files.values()),
        "plain_bf16_bytes": sizes.plain_bytes(plan.config, plan.shape, counts),
        "free_bytes": free_bytes(out),
        "workers": workers,
        "threads": stage.threads,
        "sample_rows": probe,
        "sample_tokens": output.stats["tokens"],
        "estimated_seconds": round(seconds / min(workers, plan.shards), 1),
        "notes": list(plan.notes),
    }


def _probe(plan: CachePlan, tokens: int) -> int:
    """How many of the first rows hold so many tokens."""
    total = 0
    rows = 0
    for table in plan.documents.tables([side_column("teacher", "input_ids")]):
        sums = total + np.cumsum(table.column(0).combine_chunks().value_lengths().to_numpy(zero_copy_only=False))
        rows += int(np.searchsorted(sums, tokens))
        if sums[-1] >= tokens:
            return min(rows + 1, plan.documents.rows)
        total = int(sums[-1])
    return rows
