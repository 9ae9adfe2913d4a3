"""Memory is bounded by the size of a shard, not of the corpus (invariant 6). At full size: `tests/benchmarks/memory.py`.

What Python, numpy and Arrow have in memory at most, counted by themselves: the same for a corpus of many shards as for one
of a few. Reading of files alone: `tests/pipeline/read/test_sources.py`.
"""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cache.plan import cache
from pipeline.dataset import prepare as preparing
from pipeline.dataset.realign import realign
from pipeline.text import Units
from schemas.config import ParseConfig

SHARD_ROWS = 20
FEW, MANY = 2, 8
#: What is held of every row would make it several times as much.
MARGIN = 1.25
SIDES = {side: {"tokenizer": "embedded:sentencepiece-bpe"} for side in ("teacher", "student")}
TEXT = "The quiet river ran behind the mill, and nobody in the village had ever counted its bridges or its boats. " * 5


class NoParser:
    """Finds a few units without a network, whose own memory depends on a batch alone."""

    def identity(self):
        return {"kind": "none", "name": "none", "sha256": "0" * 64}

    def load(self):
        pass

    def extract(self, documents):
        chunks = np.array([[0, 9], [10, 15]], dtype=np.int32)
        return [Units(chunks, ("NP", "NP"), chunks, ("NP", "NP")) for _ in documents]


@pytest.fixture(scope="module")
def prepared_of(tmp_path_factory):
    """Work that prepares a corpus of some shards, and where; the stage is loaded before."""
    base, make, stages = tmp_path_factory.mktemp("corpora"), preparing.PrepareStage, []

    def stage(config):
        stages[:] = stages or [make(config)]
        return stages[0]

    def work(shards):
        path = base / f"{shards}.jsonl"
        with path.open("w", encoding="utf-8") as file:  # row by row, since this is measured as well
            file.writelines(json.dumps({"text": f"{TEXT} {row}."}) + "\n" for row in range(shards * SHARD_ROWS))
        config = ParseConfig.parse({"inputs": [str(path)], "shard_rows": SHARD_ROWS, **SIDES}, "test")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preparing, "load_parser", lambda _: NoParser())
            patch.setattr(preparing, "PrepareStage", stage)
            patch.setattr(preparing, "SAMPLE_ROWS", SHARD_ROWS)
            preparing.prepare(config, base / f"dataset-{shards}", workers=1, quiet=True)
        return base / f"dataset-{shards}"

    work(1)
    return work


def peaks(work):
    """The most bytes of Python and numpy, and of Arrow, at once while `work` was done."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1], pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def assert_bounded(work, arrow=True):
    """`arrow`: whether any of the memory is Arrow's own."""
    few, many = peaks(lambda: work(FEW)), peaks(lambda: work(MANY))
    assert few[0] > 0
    assert (few[1] > 0) == arrow
    assert many[0] < MARGIN * few[0]
    assert many[1] <= MARGIN * few[1]


def test_of_parsing(prepared_of):
    assert_bounded(prepared_of, arrow=False)  # columns are made of numpy's memory and Python's


def test_of_aligning(prepared_of, tmp_path):
    other = {"student": {"tokenizer": "embedded:bytelevel-bpe"}}
    datasets = {shards: prepared_of(shards) for shards in (1, FEW, MANY)}

    def align(shards):
        realign(datasets[shards], tmp_path / f"{shards}", other, None, workers=1, overwrite=False, quiet=True)

    align(1)
    assert_bounded(align)


def test_of_caching(prepared_of, cache_plan, tmp_path):
    """Of rows of one dataset: a cache has shards of its own, of few rows here."""
    values = {"signals": ["relations", "units", "states", "final"], "shard_tokens": 600}
    dataset = str(prepared_of(MANY))
    plans = {shards: cache_plan(dataset=dataset, limit=shards * SHARD_ROWS // 2, **values) for shards in (1, FEW, MANY)}
    assert plans[MANY].shards > 3 * plans[FEW].shards > 3

    def written(shards):
        cache(plans[shards], tmp_path / f"{shards}", workers=1, quiet=True)

    written(1)
    assert_bounded(written)
