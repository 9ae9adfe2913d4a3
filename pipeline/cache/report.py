"""What `mta-prep cache-teacher` and its kin show a person: estimates, finished runs, what a cache is."""

import shlex
from pathlib import Path
from typing import Any

from pipeline.cache import sizes
from pipeline.shards.publish import Outcome
from schemas import console
from schemas.config import CacheConfig
from schemas.console import counted
from schemas.manifest import CacheManifest


def show_estimate(found: dict[str, Any], out: Path) -> None:
    """What a run would cost."""
    for note in found["notes"]:
        console.stdout.print(note)
    _show_parts(
        found["parts"], found["rows"], {name: size for name, size in found["files"].items() if name != "shards"}
    )
    _show_learnt(found["learnt_tokens"], found["tokens"])
    share = found["estimated_bytes"] / found["plain_bf16_bytes"]
    console.stdout.print(
        f"Would write {counted(found['rows'], 'row')} ({counted(found['tokens'], 'token')}) in "
        f"{counted(found['shards'], 'shard')} to {out}: about "
        f"{console.size(found['estimated_bytes'])} ({share_of(share)} of bf16 hidden states of as many layers), "
        f"{console.duration(found['estimated_seconds'])} with "
        f"{counted(found['workers'], 'worker')} of {counted(found['threads'], 'thread')} (from "
        f"{counted(found['sample_tokens'], 'token')}, computed and thrown away)."
    )
    room = "room for" if found["estimated_bytes"] <= found["free_bytes"] else "room for only"
    console.stdout.print(f"The disk has {room} {console.size(found['free_bytes'])}.")


def show_outcome(outcome: Outcome[CacheManifest], out: Path) -> None:
    """The end of a run."""
    manifest = outcome.manifest
    assert manifest is not None
    if outcome.already_finished:
        console.stdout.print(f"{out} is already finished: this very run was done before. Nothing to do.")
        return
    _show_sizes(manifest, CacheConfig.parse(manifest.config, str(out)))
    console.stdout.print(f"Written to {out}: {_contents(manifest)}.")
    console.stdout.print(f"Look at it: {shlex.join(['mta-prep', 'inspect', str(out)])}")


def show_info(manifest: CacheManifest, folder: Path) -> None:
    """What a cache is."""
    config = CacheConfig.parse(manifest.config, str(folder))
    teacher = manifest.teacher
    console.stdout.print(f"{folder}: teacher cache, mta-prep {manifest.versions['mta-prep']}.")
    revision = f", revision {teacher['revision']}" if teacher["revision"] else ""
    console.stdout.print(
        f"Teacher {teacher['name']}{revision} ({teacher['sha256'][:16]}): {teacher['architecture']}, "
        f"{counted(teacher['depth'], 'layer')}, {teacher['hidden_size']} features, {teacher['vocabulary']} tokens; "
        f"run in {config.teacher.dtype} on {config.teacher.device}."
    )
    console.stdout.print(f"{_contents(manifest)}; signals {', '.join(config.signals)}.")
    _show_sizes(manifest, config)
    console.stdout.print(
        f"Of the dataset {config.dataset} as it was with teacher fingerprint {manifest.teacher_fingerprint}"
    )


def _show_sizes(manifest: CacheManifest, config: CacheConfig) -> None:
    shape, counts = sizes.told(manifest)
    for layer in config.layers:
        of = counts.layers[layer.layer]
        without = manifest.counts["layers"][str(layer.layer)]["units_without_span"]
        console.stdout.print(
            f"Layer {layer.layer}: {of.units} {layer.granularity} ({without} more without a teacher span), "
            f"{counted(of.pairs, 'pair')}."
        )
    if config.window is not None and "relations" in config.signals:
        console.stdout.print(
            f"Of more than {2 * config.window} units of a document, pairs less than {config.window} units apart count."
        )
    _show_learnt(counts.learnt, counts.tokens)
    matrices = (manifest.index, manifest.head, manifest.embeddings)
    others = {each.file: each.bytes for each in matrices if each is not None}
    _show_parts(sizes.parts(config, shape, counts), counts.rows, others)
    if manifest.tied_embeddings:
        console.stdout.print("The teacher's input embeddings are its output matrix, which is kept once.")
    share = _bytes(manifest) / sizes.plain_bytes(config, shape, counts)
    console.stdout.print(f"All files: {share_of(share)} of bf16 hidden states of as many layers.")


def share_of(part: float) -> str:
    """`0.5361`, `15.9` -> `53.6%`, `1,590%`: three digits, or all that stand before the point."""
    percent = 100 * part
    return f"{percent:,.0f}%" if percent >= 100 else f"{percent:.3g}%"


def _show_learnt(learnt: int, tokens: int) -> None:
    if learnt < tokens:
        console.stdout.print(
            f"States, `final` and what is of the next token: of {learnt} tokens that are learnt or just before one, "
            f"{share_of(learnt / tokens)} of all."
        )


def _show_parts(parts: list[dict[str, Any]], rows: int, others: dict[str, int]) -> None:
    lines = [
        [
            part["signal"],
            "" if part["layer"] is None else f"{part['layer']} ({part['granularity']})",
            console.size(part["bytes"]),
            f"{part['bytes'] / rows:,.0f}",
        ]
        for part in parts
    ]
    lines += [[name, "", console.size(size), f"{size / rows:,.0f}"] for name, size in others.items()]
    console.table("Size", ["signal", "layer", "size", "bytes/document"], lines)


def _contents(manifest: CacheManifest) -> str:
    counts = {"row": manifest.rows, "token": manifest.tokens, "shard": len(manifest.shards)}
    return ", ".join([counted(count, noun) for noun, count in counts.items()] + [console.size(_bytes(manifest))])


def _bytes(manifest: CacheManifest) -> int:
    return sum(file.bytes for file in manifest.files.values())
