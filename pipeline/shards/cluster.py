"""An existing Ray cluster: connected to, its room counted, and every node asked whether it sees what a run needs.

Of what a run needs, the output folder, and models, tokenizers and datasets that are named by a path, must be where they are
on the machine of the command. Input rows need not: they are read there, and sent.
"""

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pipeline.shards.workspace import Workspace
from schemas import embedded, errors, files
from schemas.errors import ResourceError, UsageError, UserError, quoted

#: Seconds that a node may take to answer: its first process starts, and imports.
PATIENCE: Final = 300.0
#: Seconds for a head to take a connection.
REACHED_WITHIN: Final = 10.0
#: What Ray itself knows of, as its options are called; everything else is a cluster's own resource.
_OPTIONS: Final = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


@dataclass(frozen=True)
class Cluster:
    """The cluster that this process is connected to, and what each actor takes of it."""

    address: str
    resources: Mapping[str, float]  # CPU, GPU, memory in bytes, a cluster's own; all above 0

    @property
    def cores(self) -> int:
        """Of an actor."""
        return max(1, int(self.resources.get("CPU", 1)))

    @property
    def described(self) -> str:
        """What an actor takes, in words."""
        return _listed(self.resources)

    def options(self) -> dict[str, Any]:
        """Of an actor, as Ray takes them."""
        options: dict[str, Any] = {"num_cpus": 0}
        options |= {_OPTIONS[name]: amount for name, amount in self.resources.items() if name in _OPTIONS}
        if "memory" in options:
            options["memory"] = int(options["memory"])
        return options | {
            "resources": {name: amount for name, amount in self.resources.items() if name not in _OPTIONS}
        }

    def nodes(self) -> list[dict[str, Any]]:
        """Living nodes that have room for an actor when nobody else uses them."""
        return [node for node in _living() if self._room(node)]

    def slots(self) -> int:
        """Actors that its nodes have room for. Raises `UserError` if that is none."""
        slots = sum(map(self._room, self.nodes()))
        if not slots:
            has = [_listed({name: node["Resources"].get(name, 0) for name in self.resources}) for node in _living()]
            raise UserError(
                f"No node of the Ray cluster {self.address} has room for an actor of {self.described}; they have "
                f"{'; '.join(sorted(set(has)))}. Say what an actor takes with --ray-resources, or, where the cluster grows "
                "when it is asked to, how many there shall be with --workers."
            )
        return slots

    def _room(self, node: Mapping[str, Any]) -> int:
        return min(int(node["Resources"].get(name, 0) // amount) for name, amount in self.resources.items())


def _living() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items())


def resources_of(text: str | None, device: str = "cpu") -> dict[str, float]:
    """`CPU=4,GPU=1` -> what an actor takes; a CPU, and a GPU for a device of cuda, where it does not say.

    Raises `UsageError` for what is no list of such amounts.
    """
    resources = {"CPU": 1.0} | ({"GPU": 1.0} if device.startswith("cuda") else {})
    for part in text.split(",") if text else ():
        name, _, amount = part.strip().partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            resources[name] = -1
        if not name or not 0 <= resources[name] < float("inf"):
            raise UsageError(f"--ray-resources {quoted(text)}: as CPU=4,GPU=1, with numbers of at least 0.")
    resources = {name: amount for name, amount in resources.items() if amount}
    if not resources:
        raise UsageError(f"--ray-resources {quoted(text)}: an actor takes something, or there would be no end of them.")
    return resources


@contextmanager
def connected(address: str, resources: Mapping[str, float]) -> Iterator[Cluster]:
    """While it lasts, this process belongs to the cluster at `address`, and Ray's own words go to stderr.

    Raises `UsageError` where Ray is not installed, `ResourceError` where there is no such cluster.
    """
    if find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray, which is not installed here: pip install 'mta-prep[ray]'.")
    with redirect_stdout(sys.stderr):  # it prints what it has to say of its nodes
        try:
            _require_somebody(address)
            import ray

            # what workers print stays in the cluster's logs
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ResourceError(
                f"There is no Ray cluster to be reached at {address!r} ({first_line(error)}). Start one with `ray start`, or "
                "name one with --address HOST:PORT, on a machine that belongs to it."
            ) from None
        try:
            yield Cluster(address, resources)
        finally:
            ray.shutdown()


def _require_somebody(address: str) -> None:
    """Raises `OSError` where nobody listens: Ray itself would try for many minutes. `UsageError` for what is no address."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not int(port) < 1 << 16:
        raise UsageError(f"--address {quoted(address)}: `auto`, or the HOST:PORT of a cluster's head.")
    socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()


@dataclass(frozen=True)
class SharedFile:
    """A file or folder that a stage opens by its name."""

    what: str  # as a person calls it
    name: str  # as in the config: relative to the folder of the command, or below a home
    sizes: Mapping[str, int]  # bytes of the files in it, or of itself under ""

    @classmethod
    def of(cls, what: str, name: str) -> "SharedFile | None":
        """None for what is no path here: a hub id, an embedded one, a built-in name."""
        path = Path(name).expanduser()
        if name == "embedded" or name.startswith(embedded.PREFIX) or not path.exists():
            return None
        inner = path.iterdir() if path.is_dir() else ()
        sizes = {entry.name: entry.stat().st_size for entry in inner if entry.is_file()}
        return cls(what, name, sizes if path.is_dir() else {"": path.stat().st_size})

    def problem(self, folder: Path) -> str | None:
        """What a node lacks of it, after `the node X`."""
        path = folder / Path(self.name).expanduser()
        if not path.exists():
            return f"has no {path}, where the {self.what} is. Put it there, on every node, or name a hub id."
        for file, size in self.sizes.items():
            if lacking := files.problem(path / file, size, None):
                return f"has another {self.what} at {path} than this machine: {file or path.name} {lacking}."
        return None


@dataclass(frozen=True)
class Shared:
    """What every node must see as the machine of the command does."""

    space: Workspace
    marker: Path  # a file in the run's working folder
    word: str  # which it holds
    folder: Path  # of the command
    files: tuple[SharedFile, ...]
    version: str

    def problem(self) -> str | None:
        """What is wrong with the node that asks this, after `the node X`; None if it can make shards."""
        own = version("mta-prep")
        if own != self.version:
            return f"has mta-prep {own}, and this machine {self.version}. Install the same on both."
        try:
            seen = self.marker.read_text(encoding="ascii")
        except OSError:
            seen = None
        if seen != self.word:
            return (
                f"does not see the output folder {self.space.out} of this machine. Choose a folder that every node sees under "
                "the same path."
            )
        try:
            with tempfile.TemporaryFile(dir=self.space.work, suffix=files.PARTIAL):
                pass
        except OSError as error:
            return f"cannot write to the output folder {self.space.out} ({error.strerror})."
        return next(filter(None, (file.problem(self.folder) for file in self.files)), None)

    def enter(self) -> None:
        """Go where the command was called, if this node has that folder: names of files are relative to it."""
        if self.folder.is_dir():
            os.chdir(self.folder)


@contextmanager
def shared(space: Workspace, reads: Mapping[str, str]) -> Iterator[Shared]:
    """What nodes are asked for; `reads`: what a stage opens, by what a person calls it, as the config names it."""
    word = secrets.token_hex(16)
    absolute = Workspace(space.out.absolute(), space.layout, space.shards)
    marker = absolute.work / f"cluster-{word[:8]}"
    named = tuple(file for what, name in reads.items() if (file := SharedFile.of(what, name)) is not None)
    files.write_text(marker, word)
    try:
        yield Shared(absolute, marker, word, Path.cwd(), named, version("mta-prep"))
    finally:
        marker.unlink(missing_ok=True)


def require_shared(cluster: Cluster, needed: Shared) -> None:
    """Raises `UserError`, which names the node, unless all nodes see what a run needs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(Shared.problem)
    nodes = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(needed): node
        for node in cluster.nodes()
    }
    for answer, node in nodes.items():
        try:
            problem = ray.get(answer, timeout=PATIENCE)
        except ray.exceptions.RayError as error:
            if all(other["NodeID"] != node["NodeID"] for other in _living()):
                continue  # gone in the meantime
            problem = (
                f"cannot run mta-prep {needed.version} ({first_line(error)}). Install it there, the same version, with the same "
                "Python."
            )
        if problem is not None:
            raise UserError(f"The node {name_of(node)} of the Ray cluster {problem}")


def first_line(error: BaseException) -> str:
    """Of what Ray says, the part that tells."""
    return errors.first_line(getattr(error, "cause", None) or error)


def name_of(node: Mapping[str, Any]) -> str:
    """Its own name, or its machine's, and its address."""
    own = node["NodeName"] if node["NodeName"] != node["NodeManagerAddress"] else node["NodeManagerHostname"]
    return f"{own} ({node['NodeManagerAddress']})"


def name_of_this() -> str:
    """Of the node that this worker is on."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((name_of(node) for node in ray.nodes() if node["NodeID"] == own), own)
