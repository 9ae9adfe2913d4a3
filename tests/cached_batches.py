"""Batches of the prepared sample out of caches, as several tests of the trainer take them."""

import re
from dataclasses import fields

import torch

from schemas.training import PairConfig
from trainer.batches.documents import Documents
from trainer.objectives.base import Needs
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.needs import teacher_needs

ROWS = [5, 0, 23, 11, 11, 2]
WORDS = PairConfig(student=1, teacher=2, granularity="words")
CHUNKS = PairConfig(student=3, teacher=4, granularity="chunks")
#: a cache of the upper layer alone
TOP = {"signals": ["relations"], "layers": [{"layer": 4, "granularity": "chunks"}]}


def needing(documents, *pairs, needs=("relations",), weights="centrality", **term):
    layers = {pair.teacher: frozenset(needs) for pair in pairs}
    return teacher_needs({"dsa": Needs(layers, **term)}, pairs, weights, documents)


def source_of(folder, caches, *pairs, limit=None, **wanted):
    documents = Documents(folder, limit)
    return CachedTeacher(Caches(caches, documents), needing(documents, *pairs, **wanted))


def assert_same_batch(one, two):
    assert one.layers.keys() == two.layers.keys()
    for mine, other in [(one, two), *((one.layers[layer], two.layers[layer]) for layer in one.layers)]:
        for field in fields(mine):
            a, b = getattr(mine, field.name), getattr(other, field.name)
            if isinstance(a, torch.Tensor):
                assert a.dtype == b.dtype
                assert torch.equal(a, b), field.name
            elif field.name != "layers":
                assert a is None
                assert b is None


def command_in(error):
    """The one command that a message tells to run."""
    (command,) = re.findall(r"`(mta-prep [^`]*)`", str(error.value))
    return command
