"""Workers of a pool: none is left when the process that they work for is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

#: Each prints the numbers of its workers, which then wait for work, and is killed.
SHARDS = """
import os, sys, time
from pathlib import Path
from pipeline.shards import pool

class Stage:
    def run(self, item, tick):
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(600)

class Nowhere:
    def publish(self, index, output):
        pass

if __name__ == "__main__":
    pool.run_shards(Stage, [(0, "a"), (1, "b")], Nowhere(), 2, pool.untold)
"""
PLAIN = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from schemas.processes import end_with_parent

def told(_):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(0.2)

if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[1]), end_with_parent) as pool:
        list(pool.map(told, range(4)))
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [(SHARDS, []), *((PLAIN, [way]) for way in ("fork", "spawn", "forkserver"))],
    ids=["shards", "fork", "spawn", "forkserver"],
)
def test_workers_end_with_the_process_that_started_them(tmp_path, script, arguments):
    file = tmp_path / "started.py"
    file.write_text(script, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, str(file), *arguments]
    workers: set[int] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}) as process:
        assert process.stdout is not None
        while len(workers) < 2:
            workers.add(int(process.stdout.readline()))
        process.kill()
    ends = time.monotonic() + 20
    while left := [worker for worker in workers if psutil.pid_exists(worker)]:
        assert time.monotonic() < ends, f"{left} are still there"
        time.sleep(0.05)
