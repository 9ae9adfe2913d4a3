"""A Ray cluster on this machine, in processes of its own: those of the tests fork, and know nothing of Ray.

As a script it says the cluster's address, and does what it reads: `add NAME KEY=VALUE …` (a node of one CPU with that
environment), `kill NAME`, each answered with a line; it ends with its input, and the cluster with it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

#: Bytes for objects of a node; there are hardly any.
ROOM = 80_000_000
#: Seconds for a node to come up, and how often that is tried.
PATIENCE = 40
TRIES = 4


class Nodes:
    """The cluster, as tests use it."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (0, 1))
        environment = os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
        self.home = folder / "home"  # of all nodes
        self.home.mkdir()
        environment["HOME"] = str(self.home)
        environment["RAY_raylet_start_wait_time_s"] = f"{PATIENCE}"
        self._log = folder / "nodes.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        self.address = self._answer()

    def _answer(self) -> str:
        answer = self._process.stdout.readline().decode().strip()
        if not answer:
            self.end()
        assert answer, self._log.read_text(encoding="utf-8", errors="replace")[-4000:]
        return answer

    def _ask(self, *words: str) -> None:
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def add(self, name: str, **environment: str) -> None:
        self._ask("add", name, *(f"{key}={value}" for key, value in environment.items()))

    def kill(self, name: str) -> None:
        self._ask("kill", name)

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def tried(start: Callable[[], Any]) -> Any:
    """A node gives its own agents a few seconds to come up, which on a busy machine do not suffice: it is tried again."""
    for _ in range(TRIES - 1):
        try:
            return start()
        except Exception as error:
            print(f"Once more: {error}", file=sys.stderr)
    return start()


def main() -> None:
    from ray.cluster_utils import Cluster

    said = os.dup(1)  # Ray has its own to say
    os.dup2(2, 1)
    cluster = Cluster()
    head = {"num_cpus": 1, "object_store_memory": ROOM, "include_dashboard": False, "node_name": "head"}
    nodes = {}
    try:
        tried(lambda: cluster.add_node(**head))
        os.write(said, f"{cluster.address}\n".encode())
        for line in sys.stdin:
            what, name, *settings = line.split()
            if what == "add":
                environment = dict(setting.split("=", 1) for setting in settings)
                node = {"num_cpus": 1, "object_store_memory": ROOM, "node_name": name, "env_vars": environment}
                nodes[name] = tried(partial(cluster.add_node, **node))
            else:
                cluster.remove_node(nodes.pop(name), allow_graceful=False)
            os.write(said, b"done\n")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
