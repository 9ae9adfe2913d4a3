"""What `mta-prep generate` shows a person, and what it would take, before it runs."""

import shlex
import time
from pathlib import Path
from typing import Any, Final

from pipeline.generate.exchange import FINISHED
from pipeline.generate.place import make_stage
from pipeline.generate.plan import GeneratePlan
from pipeline.generate.stage import json_line
from pipeline.shards import pool
from pipeline.shards.publish import Outcome
from schemas import console
from schemas.config import GenerateConfig
from schemas.console import Text, counted
from schemas.responses import ResponsesManifest, rejected_of
from schemas.rows import listed

#: Names of fields that a summary tells.
_FIELDS: Final = 20


def estimate(plan: GeneratePlan, *, workers: int) -> dict[str, Any]:
    """Rows, and seconds and bytes from some responses that are really generated and thrown away; nothing is written."""
    workers = min(workers, plan.shards)
    pool.settle_torch()
    stage = make_stage(plan, 0, pool.threads_of(workers))
    probe = list(plan.corpus.read(0, min(plan.corpus.rows, stage.threads * plan.config.batch_size)))
    stage.run(probe[:1])  # libraries choose and compile on first use
    began = time.perf_counter()
    output = stage.run(probe)
    seconds = time.perf_counter() - began
    scale = plan.corpus.rows / len(probe)
    return {
        "inputs": [file.model_dump() for file in plan.corpus.files],
        "notes": list(plan.notes),
        "model": plan.model,
        "template": plan.template,
        "rows": plan.corpus.rows,
        "shards": plan.shards,
        "shard_rows": plan.shard_rows,
        "workers": workers,
        "threads": stage.threads,
        "sample_rows": len(probe),
        "sample_answered": output.rows,
        "sample_finished": output.stats[FINISHED],
        "estimated_bytes": round(sum(map(len, map(json_line, output.answered))) * scale),
        "estimated_seconds": round(seconds * scale / workers, 1),
    }


def show_estimate(estimated: dict[str, Any], config: GenerateConfig, out: Path) -> None:
    """What a run would do."""
    rows = [[file["name"], str(file["rows"]), console.size(file["bytes"])] for file in estimated["inputs"]]
    console.table("Inputs", ["file", "rows", "size"], rows)
    for note in estimated["notes"]:
        console.stdout.print(note)
    console.stdout.print(_asked(estimated["model"], estimated["template"], config))
    console.stdout.print(
        f"Would answer {counted(estimated['rows'], 'row')} in {counted(estimated['shards'], 'shard')} for {out}: about "
        f"{console.size(estimated['estimated_bytes'])}, {console.duration(estimated['estimated_seconds'])} with "
        f"{counted(estimated['workers'], 'worker')} of {counted(estimated['threads'], 'thread')} (from "
        f"{counted(estimated['sample_rows'], 'row')}, of which {estimated['sample_answered']} were answered, "
        f"{estimated['sample_finished']} to the end; thrown away)."
    )


def show_outcome(outcome: Outcome[ResponsesManifest], out: Path) -> None:
    """The end of a run: rows, what was left out and why, and what to do next."""
    manifest = outcome.manifest
    assert manifest is not None
    if outcome.already_finished:
        console.stdout.print(f"{out} is already finished: this very run was done before. Nothing to do.")
        return
    config = GenerateConfig.parse(manifest.config, str(out))
    console.stdout.print(_asked(manifest.model, manifest.template, config))
    console.stdout.print(f"{counted(manifest.rows_in, 'row')} in, {counted(manifest.rows_out, 'row')} out.")
    for what, reasons in (("rejected", manifest.rejected), ("dropped", manifest.dropped)):
        for reason, count in reasons.items():
            console.stdout.print(f"  {count} {what}: {reason}")
    unused = list(manifest.counts["not_carried"])
    if unused:
        more = f" and {len(unused) - _FIELDS} more" if len(unused) > _FIELDS else ""
        console.stdout.print(f"Not carried over: {listed(unused[:_FIELDS])}{more}.")
    console.stdout.print(
        f"Written to {out}: {counted(manifest.rows_out, 'row')}, {console.size(manifest.bytes)}; "
        f"{counted(manifest.counts['tokens'], 'token')} generated, {manifest.counts[FINISHED]} responses ended by themselves."
    )
    console.stdout.print(f"Prepare it: {shlex.join(['mta-prep', 'parse', str(out), *_learn(config)])} …")
    lost = manifest.rows_in - manifest.rows_out
    if lost:
        console.stderr.print(
            Text(f"{counted(lost, 'row')} left out; see {rejected_of(out)} for place and reason.", "yellow")
        )
    endless = manifest.rows_out - manifest.counts[FINISHED]
    if endless:
        console.stderr.print(
            Text(
                f"{counted(endless, 'response')} did not end, and `mta-prep parse` ends every response that it does not cut: "
                "a student would learn to stop there.",
                "yellow",
            )
        )


def _learn(config: GenerateConfig) -> list[str]:
    """What keeps the turns before the response out of what is learnt."""
    return ["--learn", "last"] if config.conversations else []


def _asked(model: dict[str, Any], template: dict[str, Any] | None, config: GenerateConfig) -> str:
    drawn = config.sampling
    how = (
        "greedy"
        if drawn.greedy
        else f"temperature {drawn.temperature:g}, top-p {drawn.top_p:g}, top-k {drawn.top_k or 'all'}, seed {drawn.seed}"
    )
    through = "ready-made and Alpaca prompts" if template is None else f"chat template {template['source']}"
    by = ", by vLLM with random numbers of its own" if config.backend == "vllm" else ""
    return (
        f"{model['name']} ({model['sha256'][:16]}), {through}{by}; {how}; at most "
        f"{counted(config.max_new_tokens, 'new token')}."
    )
