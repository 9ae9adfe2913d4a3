"""The loader: the same steps on any number of ranks and from any process, and errors of a worker as they are."""

import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from cached_batches import CHUNKS, ROWS, WORDS, assert_same_batch, source_of
from schemas.errors import StateError, UsageError
from schemas.training import DEFAULT_DATA, DataConfig
from trainer.batches.batch import Batch, Chunks, SpanLayer, SpanTargets, mapped
from trainer.batches.loader import StepLoader
from trainer.batches.order import stream
from trainer.batches.transfer import pack
from trainer.maths.spans import LearntSpans


def loader_of(source, rank=0, ranks=1, **data):
    config = DataConfig.parse({"dataset": "d", "batch_size": 4, "micro_batches": 2, "workers": 0} | data, "test")
    return StepLoader({DEFAULT_DATA: source}, config, rank=rank, ranks=ranks, pinned=False)


@pytest.fixture(scope="module")
def source(make_cache, prepared):
    return source_of(prepared, [make_cache()], WORDS, CHUNKS)


def rows_of(step):
    return [row for batch in step for row in batch.documents.tolist()]


def test_steps_are_the_same_on_any_number_of_ranks(source):
    expected = [sorted(rows_of(step)) for step in loader_of(source).training(0, 9)]
    for ranks, micro_batches in ((1, 1), (2, 2), (4, 1)):
        found = [[] for _ in expected]
        for rank in range(ranks):
            loader = loader_of(source, rank, ranks, micro_batches=micro_batches)
            for step, batches in enumerate(loader.training(0, 9)):
                assert len(batches) == micro_batches
                found[step] += rows_of(batches)
        assert [sorted(rows) for rows in found] == expected
    places = stream(24, 42, 0, 36).reshape(9, 4)
    assert expected == [sorted(step) for step in places.tolist()]


def test_held_out_rows_are_never_trained_on(source):
    loader = loader_of(source, held_out=5)
    assert loader.rows == {DEFAULT_DATA: 19}
    trained = {row for step in loader.training(0, 10) for row in rows_of(step)}
    validated = [row for step in loader.validation() for row in rows_of(step)]
    assert sorted([*trained, *validated]) == list(range(24))
    assert [rows_of(step) for step in loader.validation()] == [rows_of(step) for step in loader.validation()]
    assert list(loader_of(source).validation()) == []


@pytest.mark.parametrize(("count", "number"), [(2, 2), (3, 2), (5, 2), (9, 2), (23, 2), (5, 4), (9, 4)])
def test_validation_has_as_many_steps_on_every_rank(source, count, number):
    loaders = [loader_of(source, rank, number, held_out=count, micro_batches=4 // number) for rank in range(number)]
    ranks = [list(loader.validation()) for loader in loaders]
    assert len({len(steps) for steps in ranks}) == 1
    for steps in zip(*ranks, strict=True):
        assert len({len(step) for step in steps}) == 1  # micro-batches
        assert all(batch.documents.numel() for step in steps for batch in step)
        assert sum(map(len, map(rows_of, steps))) < 4 + number
    rows = [row for steps in ranks for step in steps for row in rows_of(step)]
    assert len(rows) == len(set(rows)) == count


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed as Linux does")
def test_validation_keeps_its_workers(source):
    loader = loader_of(source, held_out=9, workers=1)
    first = list(loader.validation())
    processes = descendants(os.getpid())
    assert processes
    for one, two in zip(first, loader.validation(), strict=True):
        for mine, other in zip(one, two, strict=True):
            assert_same_batch(mine, other)
    assert descendants(os.getpid()) == processes


def test_a_step_that_does_not_go_round(source):
    with pytest.raises(UsageError, match=r"step of 4 documents .* 3 ranks of 2 micro-batches .* at least 6"):
        loader_of(source, ranks=3)
    with pytest.raises(UsageError, match="does not go round 4 ranks; hold out at least 4"):
        loader_of(source, ranks=4, micro_batches=1, held_out=3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on machines of one core
def test_workers_give_the_same_and_begin_anywhere(source):
    expected = list(loader_of(source, held_out=4).training(0, 7))
    loader = loader_of(source, workers=2, held_out=4)
    before = torch.get_rng_state()
    for start in (0, 5):
        found = list(loader.training(start, 7))
        assert len(found) == 7 - start
        for one, two in zip(found, expected[start:], strict=True):
            assert len(one) == len(two) == 2
            for a, b in zip(one, two, strict=True):
                assert_same_batch(a, b)
    assert torch.equal(torch.get_rng_state(), before)  # dropout does not depend on when reading began


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_an_error_in_a_worker_is_told_as_it_is(make_cache, prepared, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(make_cache(), folder)
    source = source_of(prepared, [folder], CHUNKS)
    for shard in (folder / "shards").iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(StateError, match=r"^[^\n]* is damaged: shards/[^\n]*$"):
        list(loader_of(source, workers=1).training(0, 2))


def test_a_parcel_brings_every_tensor(make_cache, same):
    cache = make_cache(signals=["relations", "units", "states", "final", "topk"], state_tokens="all")
    needs = ("relations", "units", "states", "position_states")
    found = source_of(same, [cache], WORDS, CHUNKS, needs=needs, final=True, topk=True)
    batches = [with_every_part(found, rows) for rows in (ROWS, [1])]
    batches.append(mapped(batches[1], lambda _path, tensor: tensor[:0]))
    parcel = pickle.loads(pickle.dumps(pack(batches)))
    for one, two in zip(batches, parcel.unpack(), strict=True):
        assert_same_batch(one, two)
        assert all(getattr(two, each.name) is not None for each in fields(Batch))


def with_every_part(source, rows):
    batch = source.fetch(rows)
    pairs = torch.arange(2 * len(batch.positions)).reshape(-1, 2)
    layers = {layer: SpanLayer(torch.randn(len(rows), 5), torch.ones(len(rows))) for layer in (2, 4)}
    whole = torch.stack([batch.rows[:-1], batch.rows[1:]], dim=1)
    student = LearntSpans.of(torch.ones(len(batch.ids), dtype=torch.bool), batch.rows, whole)
    spans = SpanTargets(student, torch.arange(len(rows) + 1), layers)
    teacher = source.documents.teacher_tokens(batch.documents.numpy())
    count = len(teacher.positions)
    teacher = replace(teacher, final=torch.randn(count, 5), argmax=torch.arange(count), entropy=torch.ones(count))
    chunks = Chunks(pairs, pairs + 1, torch.arange(len(rows) + 1))
    return replace(batch, teacher=teacher, pairs=pairs, mined=pairs, spans=spans, chunks=chunks)


SCRIPT = """
import sys, time, pickle
from trainer.batches.loader import StepLoader
from schemas.training import DEFAULT_DATA, DataConfig
if __name__ == "__main__":
    source, config = pickle.load(open(sys.argv[1], "rb"))
    steps = StepLoader({DEFAULT_DATA: source}, config, rank=0, ranks=1, pinned=False).training(0, 10**6)
    next(steps)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed as Linux does")
def test_workers_that_stay_end_when_the_loader_is_closed(source):
    """Told by nobody, they would be waited for at the end of this process, whose signals they ignore."""
    before = set(multiprocessing.active_children())
    loader = loader_of(source, workers=1, held_out=4)
    steps = loader.validation()
    next(steps)  # as where an error ends an iteration in its middle
    assert set(multiprocessing.active_children()) - before
    loader.close()
    assert set(multiprocessing.active_children()) == before
    loader.close()


@pytest.mark.parametrize("lasting", [False, True])
def test_workers_end_with_an_iteration_that_is_part_of_a_cycle(source, lasting):
    """Collected in any order, its queues may be closed before it can tell the workers to end."""
    before = set(multiprocessing.active_children())
    loader = loader_of(source, workers=1, held_out=4)
    steps = loader.validation() if lasting else loader.training(0, 10)
    next(steps)
    cycle = [loader, steps]
    cycle.append(cycle)
    assert set(multiprocessing.active_children()) - before
    del loader, steps, cycle
    gc.collect()
    deadline = time.monotonic() + 30
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) <= before


def test_a_process_ends_whose_iteration_an_error_holds(source, tmp_path):
    config = DataConfig.parse({"dataset": "d", "batch_size": 4, "workers": 1}, "test")
    (tmp_path / "source.pickle").write_bytes(pickle.dumps((source, config)))
    (tmp_path / "script.py").write_text(SCRIPT.replace("time.sleep(600)", "raise SystemExit(3)"), encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "source.pickle")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == 3


def test_workers_ignore_sigterm_and_end_with_the_process_that_started_them(source, tmp_path):
    config = DataConfig.parse({"dataset": "d", "batch_size": 4, "workers": 1}, "test")
    (tmp_path / "source.pickle").write_bytes(pickle.dumps((source, config)))
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "source.pickle")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        below = descendants(process.pid)
        workers = [pid for child in children(process.pid) for pid in children(child)]
        for pid in workers:  # as when a whole job is told to save itself and end
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        assert len(workers) == 1
        assert all(map(alive, workers))
        process.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not [pid for pid in below if alive(pid)]


def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(each) for task in tasks for each in (task / "children").read_text(encoding="utf-8").split()]


def descendants(pid):
    return [each for child in children(pid) for each in (child, *descendants(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_rows_at_all_are_told(source, monkeypatch):
    monkeypatch.setattr(source, "rows", 0)
    with pytest.raises(UsageError, match=f"{source.documents.folder} has no rows to train on"):
        loader_of(source)
