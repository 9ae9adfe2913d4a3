"""Shards of letters, made as those of datasets are: a run whose pace and faults a test decides.

A stage writes its letters large, and leaves a note of each shard that it begins, with the node that it is on. A shard of `!`
ends its process, one of `?` cannot be used, one of letters in `held` waits for the file `gate`, and on a node called `lost`
none is ever finished.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.shards.publish import Product, publish
from pipeline.shards.workspace import Layout
from schemas.errors import UserError

#: The environment variable with a node's name.
NODE = "LETTERS_NODE"


def shard_name(index, total):
    return f"{index:05d}.letters"


def seal(plan, space):
    space.seal({}, "{}")
    return SimpleNamespace(shards=plan.shards)


LAYOUT = Layout(name="letters", recorded=(), shard=shard_name, shards="*.letters", files=frozenset())
LETTERS = Product(LAYOUT, "Writing", seal, lambda out: None)


@dataclass(frozen=True)
class Letters:
    """A shard (protocol: `pipeline.shards.workspace.Output`)."""

    letters: str
    stats: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self):
        return len(self.letters)

    def write(self, stream):
        stream.write(self.letters.encode())


@dataclass(frozen=True)
class LetterStage:
    notes: Path
    held: str
    gate: Path

    def run(self, item, tick):
        node = os.environ.get(NODE, "head")
        (self.notes / f"{item}.{node}.{time.time_ns()}").touch()
        if item == "!":
            os._exit(1)
        if item == "?":
            raise UserError("A question is no letter; leave it out.")
        while node == "lost" or (item in self.held and not self.gate.exists()):
            time.sleep(0.05)
        tick(len(item), 0)
        return Letters(item.upper())


@dataclass(frozen=True)
class LetterPlan:
    """Protocol: `pipeline.shards.publish.Plan`."""

    letters: str
    reads: Mapping[str, str] = field(default_factory=dict)

    @property
    def shards(self):
        return len(self.letters)

    def record(self):
        return {"letters": self.letters}

    def rows_in(self, index):
        return 1

    def items(self, wanted):
        return ((index, letter) for index, letter in enumerate(self.letters) if wanted(index))


def write(letters, out, notes, *, held="", address=None, workers=1):
    """The whole run: in this process, or with as many actors on a cluster."""
    from pipeline.shards.cluster import connected

    gate = notes / "gate"
    run = partial(
        publish,
        LETTERS,
        LetterPlan(letters),
        partial(LetterStage, notes, held, gate),
        out,
        workers=workers,
        overwrite=False,
        quiet=True,
    )
    if address is None:
        return run()
    with connected(address, {"CPU": 1.0}) as cluster:
        return run(cluster=cluster)


def begun(notes):
    """(letter, node) of all notes, in order of time."""
    parts = [path.name.split(".") for path in notes.iterdir() if path.name != "gate"]
    return [(letter, node) for letter, node, when in sorted(parts, key=lambda note: int(note[2]))]
