"""What long documents cost: bytes of a cache by length, and what rounding does to cosines.

    python tests/benchmarks/long_documents.py [--hidden 2048] [--window 256] [--units CACHE] [--json]

`… of states`: bytes a token of one layer's `relations`, with the weights and places of its units, over those of bf16 hidden
states, for documents of 512 to 32,768 tokens, with as many units a token as English prose has (7,310 tokens: 4,818 words,
3,100 phrases, 2,449 chunks). As a shard would hold them; nothing is run. `all pairs` is without a window.

`error …`: largest and root mean square difference between cosines of pooled units in float64 and the same out of what is
stored: int16 relations, or the units themselves in each type. Units are those of a cache that has them as fp32 (`--units`),
or random ones with a few large features, as hidden states have.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipeline.bench import machine
from pipeline.cache.specs import Counts, LayerCounts, specs
from schemas.config import StorageConfig
from schemas.signals import WINDOW, Signal, Storage
from trainer.cache import TeacherCache
from trainer.maths.geometry import relations
from trainer.maths.quantization import decode, encode
from trainer.maths.ragged import pointers
from trainer.maths.triangle import from_fixed_point, pair_rows, to_fixed_point

#: Of a text of so many tokens, how many there are.
TEXT = 7310
UNITS = {"words": 4818, "phrases": 3100, "chunks": 2449}
LENGTHS = (512, 2048, 8192, 32_768)
TYPES: tuple[Storage, ...] = ("fp16", "bf16", "int8")


def layer_bytes(units: int, window: int | None, signal: Signal, storage: Storage, hidden: int) -> int:
    """Of one layer of one document, pointers left out."""
    counts = LayerCounts(units, int(pair_rows(pointers([units]), window)[-1]), 0)
    tensors = specs(
        Counts(1, 1, 1, {1: counts}), [signal], StorageConfig(units=storage), "all", lambda _: hidden, topk=1
    )
    return sum(spec.bytes for spec in tensors.values() if spec.part.along in ("units", "pairs"))


def errors(units: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Largest and root mean square error of the cosines of one document's units, by how they are stored."""
    rows = pointers([len(units)])
    exact = relations(units.double(), rows)
    found = {"int16 relations": from_fixed_point(to_fixed_point(relations(units, rows))).double()}
    for kind in TYPES:
        encoded = encode(units / units.norm(dim=1, keepdim=True), kind)
        found[f"{kind} units"] = relations(decode(encoded.stored, encoded.scale), rows).double()
    apart = {name: (cosines - exact).abs() for name, cosines in found.items()}
    return {name: (float(gap.max()), float(gap.square().mean())) for name, gap in apart.items()}


def documents(cache: Path | None, hidden: int) -> list[torch.Tensor]:
    """Pooled units, a document each."""
    if cache is None:
        generator = torch.Generator().manual_seed(0)
        scales = torch.ones(hidden)
        scales[:: hidden // 4] = 30.0
        return [torch.randn(400, hidden, generator=generator) * scales for _ in range(4)]
    stored = TeacherCache(cache)
    return [stored.units(row, layer) for layer in stored.layers for row in range(len(stored))]


def main(
    hidden: int = 2048,
    window: int = WINDOW,
    units: Annotated[Path | None, typer.Option(help="A cache with the signal `units`, fp32.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure."""
    result: dict[str, Any] = {"hidden": hidden, "window": window}
    for name, of_text in UNITS.items():
        for length in LENGTHS:
            count = length * of_text // TEXT
            plain = 2 * hidden * length
            ways: list[tuple[str, int | None, Signal, Storage]] = [
                ("within the window", window, "relations", "fp16"),
                ("all pairs", None, "relations", "fp16"),
                ("fp16 units", None, "units", "fp16"),
                ("int8 units", None, "units", "int8"),
            ]
            told = {way: layer_bytes(count, *how, hidden) for way, *how in ways}
            result[f"{name} of {length} tokens"] = ", ".join(
                f"{way} {size / length:.0f} B/token ({100 * size / plain:.1f} %)" for way, size in told.items()
            )
    found = [errors(each) for each in documents(units, hidden) if len(each) > 1]
    for name in found[0]:
        largest = max(each[name][0] for each in found)
        mean = (sum(each[name][1] for each in found) / len(found)) ** 0.5
        result[f"error of {name}"] = f"{largest:.1e} at most, {mean:.1e} rms"
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
