"""Which precision of a parser's linear layers is the fastest here, measured with the whole engine.

What is chosen takes the place of `auto` before anything is made: a dataset depends on the precision alone, and two
machines that choose otherwise make other datasets. What was measured is kept beside the dataset, not in its manifest.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final, cast

from pydantic_core import from_json

from pipeline.parse.chart import load_compiled
from pipeline.parse.engine import Engine
from pipeline.parse.int8 import slowdown
from pipeline.parse.model import load_for_inference
from pipeline.parse.threads import torch_threads
from pipeline.processor import instructions, processor
from pipeline.shards.workspace import RUN, WORK
from pipeline.text import Words
from schemas.config import ParserConfig, Precision
from schemas.manifest import MANIFEST

#: Seconds that each precision is timed, and sentences of a batch.
PROBE_S: Final = 0.6
BATCH: Final = 8
#: What is parsed in that time.
SENTENCE: Final = "The small cat that I saw has been sleeping quietly on the old sofa and wants to stay ."


@dataclass(frozen=True)
class Choice:
    """A precision in place of `auto`, and why it is that one."""

    precision: Precision
    why: str
    sentences_per_second: Mapping[str, float]  # of one core, or of the device
    device: str
    processor: str
    instructions: tuple[str, ...]

    def told(self) -> str:
        """One sentence for a person."""
        return f"Parser precision {self.precision}: {self.why} ({told(self.sentences_per_second)})."

    def to_json(self) -> str:
        """What is kept beside a dataset."""
        return json.dumps(asdict(self), indent=2) + "\n"


def told(rates: Mapping[str, float]) -> str:
    """`int8 310, float32 160 sentences/s`, the fastest first."""
    ordered = sorted(rates.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {rate:.3g}" for name, rate in ordered) + " sentences/s"


def chosen(config: ParserConfig, out: Path | None = None) -> Choice:
    """The fastest precision here, or that of the run that was begun at `out`; raises `UserError` for a wrong model."""
    rates = measured(config.model, config.device)
    begun = None if out is None else _begun(out)
    precision = begun or max(rates, key=lambda name: rates[name])
    why = "the fastest here" if begun is None else "what the run in this folder was begun with"
    return Choice(cast(Precision, precision), why, rates, config.device, processor(), tuple(instructions()))


def settled(config: ParserConfig) -> ParserConfig:
    """A config with a precision in place of `auto`."""
    return config if config.precision != "auto" else with_precision(config, chosen(config).precision)


def with_precision(config: ParserConfig, precision: Precision) -> ParserConfig:
    """The same in another precision."""
    return config.model_copy(update={"precision": precision})


def _begun(out: Path) -> str | None:
    """Of the finished or unfinished run in a folder; None where there is none that can be read, which a run will tell."""
    for path in (out / MANIFEST, out / WORK / RUN):
        try:
            precision = from_json(path.read_bytes())["config"]["parser"]["precision"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return str(precision) if precision in ("float32", "bf16", "int8") else None
    return None


@cache
def measured(model: str, device: str) -> Mapping[str, float]:
    """Sentences a second in each precision that `device` may be fast in; on a processor, of one core.

    They take turns, and of each its shortest time counts: what else a machine does makes times longer, never shorter.
    """
    network = load_for_inference(model).network
    load_compiled()
    on_processor = device.partition(":")[0] == "cpu"
    precisions = ["float32", "bf16", *(["int8"] if on_processor and slowdown() <= 1 else [])]
    engines = {precision: Engine(network, device=device, precision=precision) for precision in precisions}
    seconds = dict.fromkeys(engines, float("inf"))
    # one thread, as workers have it: threads that wait for each other measure what else the machine does
    with torch_threads(1):
        for engine in engines.values():
            engine.constituents(_sentences(0))  # fills caches
        began, number = time.perf_counter(), 0
        while not number or time.perf_counter() - began < PROBE_S * len(engines):
            number += 1
            for precision, engine in engines.items():
                start = time.perf_counter()
                engine.constituents(_sentences(number))
                seconds[precision] = min(seconds[precision], time.perf_counter() - start)
    return {precision: round(BATCH / shortest, 1) for precision, shortest in seconds.items()}


def _sentences(number: int) -> list[Words]:
    """A batch that was not seen before: what is the same is parsed once."""
    words = SENTENCE.split()
    return [Words((*words, str(number), str(place)), (True,) * (len(words) + 2)) for place in range(BATCH)]
