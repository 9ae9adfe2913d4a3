"""The trainer as tests start it, and what it leaves.

`launch` and `start` give a run its ranks as forks of one process that has imported everything once, as users' processes
have it: without run-time checks, and without what tests have done before. `command` is the command line itself.
"""

import atexit
import functools
import importlib
import json
import multiprocessing
import os
import socket
import sys
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "trainer" / "train.py"
STEPS = 8
#: Name of the config whose last rank cannot read one of its batches.
FAILS = "fails"
#: Name of the run whose curves are drawn: that takes as long as many a step.
DRAWN = "learns"
#: What a run imports when it comes to it; DeepSpeed's takes torch's compiler, which nothing here compiles with.
IMPORTED_LATE = (
    "deepspeed.runtime.zero.muon.original_muon",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
NOT_COMPARED = {"tokens_per_second", "memory_gb", "lr", "grad_norm"}
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
PATIENCE = 1200  # seconds, of a machine that has much else to do


def environment():
    return os.environ | ENVIRONMENT


def command(ranks, *arguments):
    """The command line that trains on some ranks."""
    arguments = [str(TRAIN), *map(str, arguments)]
    if ranks == 1:
        return [sys.executable, *arguments]
    launcher = Path(sys.executable).with_name("deepspeed")
    return [str(launcher), "--num_gpus", str(ranks), "--master_port", str(free_port()), *arguments]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(connection):
    """Forks ranks and tells how they ended, for as long as anybody asks; in a process of its own."""
    os.environ.update(ENVIRONMENT)
    warnings.simplefilter("ignore")
    import torch

    import trainer.run  # noqa: F401  # what takes long to import

    for module in IMPORTED_LATE:
        importlib.import_module(module)
    draw_few_curves()
    torch.set_num_threads(1)
    ranks = {}
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        if request == "start":
            rank = multiprocessing.get_context("fork").Process(target=be_a_rank, args=arguments)
            rank.start()
            ranks[rank.pid] = rank
            connection.send(rank.pid)
        else:
            ranks[arguments[0]].join(PATIENCE)
            connection.send(ranks[arguments[0]].exitcode)


def draw_few_curves():
    """From here on this process, and its forks, draw those of `DRAWN` alone."""
    from trainer.engine import monitor

    draw = monitor.draw_curves
    monitor.draw_curves = lambda metrics, picture: metrics.parent.name == DRAWN and draw(metrics, picture)


def be_a_rank(work, arguments, own, log):
    """`work` as a rank whose environment has `own`; what is said goes to a file."""
    os.environ.update(own)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*arguments)


@functools.cache
def server():
    """The other end of `serve`."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=serve, args=(theirs,)).start()
    theirs.close()
    atexit.register(ours.close)
    return ours


def start(log, ranks, work, *arguments):
    """Ranks in the background: their process ids."""
    port, pids = str(free_port()), []
    for rank in range(ranks):
        own = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "MASTER_ADDR": "127.0.0.1"}
        server().send(("start", work, arguments, own | {"MASTER_PORT": port}, log))
        pids.append(server().recv())
    return pids


def ended(pids):
    """Exit codes of ranks, when they have ended."""
    codes = []
    for pid in pids:
        server().send(("ended", pid))
        codes.append(server().recv())
    return codes


def launch(ranks, work, *arguments):
    """`work` by some ranks, from its beginning to its end; what they say goes beside the first file that is named."""
    log = next(argument for argument in arguments if isinstance(argument, Path)).with_suffix(".log")
    assert ended(start(log, ranks, work, *arguments)) == [0] * ranks, log.read_text()[-6000:]


def train_command(*arguments):
    """`trainer/train.py` in this process."""
    from trainer import train

    sys.argv = ["train.py", *map(str, arguments)]
    train.main()


def tell(*files):
    """The command once for each config; keeps its exit code, and what it says, beside the file."""
    for file in files:
        code = 0
        with file.with_suffix(".err").open("w", encoding="utf-8") as said, redirect_stderr(said):
            try:
                train_command("--config", file)
            except SystemExit as ended_with:
                code = ended_with.code
        file.with_suffix(".code").write_text(json.dumps(code))


def told(*files):
    """Exit code and standard error of the command for each config, one after the other in one process."""
    launch(1, tell, *files)
    return [(json.loads(file.with_suffix(".code").read_text()), file.with_suffix(".err").read_text()) for file in files]


def finish(*files):
    """Runs, from first step to exported student."""
    from trainer.config import load_config
    from trainer.run import train
    from trainer.train import start_ranks

    start_ranks(0)
    for file in files:
        if file.stem == FAILS:
            fail(file)
        else:
            train(load_config(file, []), overwrite=False)


def fail(file):
    """A run whose last rank cannot read its third batch; what each rank raises is kept beside its file."""
    import torch.distributed as dist

    from schemas.errors import UserError
    from trainer.config import load_config
    from trainer.run import train
    from trainer.teacher.cached import CachedTeacher

    whole, rank, fetched = CachedTeacher.fetch, dist.get_rank(), []

    def fetch(self, rows):
        fetched.append(rows)
        if rank == dist.get_world_size() - 1 and len(fetched) == 3:
            raise UserError(f"rank {rank} cannot read its third batch")
        return whole(self, rows)

    CachedTeacher.fetch = fetch
    try:
        train(load_config(file, []), overwrite=False)
    except UserError as error:
        file.with_suffix(f".{rank}.err").write_text(str(error), encoding="utf-8")
    finally:
        CachedTeacher.fetch = whole


def train_without(folder, step, *arguments):
    """`train_command`, under which a folder is removed when a step is done."""
    from trainer.engine.monitor import Monitor

    log = Monitor.log

    def removing(self, record):
        log(self, record)
        if record["step"] == step:
            folder.rename(folder.with_name("removed"))

    Monitor.log = removing
    train_command(*arguments)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def compared(record):
    return {name: value for name, value in record.items() if name not in NOT_COMPARED}


def assert_same(found, expected, tolerance, absolute=None):
    """`tolerance`: relative; `absolute`: of some terms, by name, absolute ones instead."""
    absolute = absolute or {}
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for mine, theirs in zip(map(compared, found), map(compared, expected), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            bound = absolute.get(name.removeprefix("held_out_"))
            within = {"rel": tolerance} if bound is None else {"rel": 0, "abs": bound}
            assert value == pytest.approx(theirs[name], **within), (name, mine["step"])
