"""Batches of the prepared sample out of caches, as several tests of the trainer take them."""

import re

import torch

from schemas.training import PairConfig
from trainer.batches.batch import tensors
from trainer.batches.documents import Documents
from trainer.models.head import Head
from trainer.objectives import build
from trainer.objectives.base import Beginning, Needs, Setting, SpanNeed
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.needs import teacher_needs

TEACHER_SIZE = 48
ROWS = [5, 0, 23, 11, 11, 2]
WORDS = PairConfig(student=1, teacher=2, granularity="words")
CHUNKS = PairConfig(student=3, teacher=4, granularity="chunks")
#: A cache of the upper layer alone.
TOP = {"signals": ["relations"], "layers": [{"layer": 4, "granularity": "chunks"}]}

#: Every term, with options that have it take other ways: its name, and for some what is asked of it.
TERMS = {
    "ce": {},
    "fkl": {"temperature": 2.0},
    "rkl": {},
    "sfkl": {"source": "topk"},
    "srkl": {},
    "fdd": {},
    "fdd norm": {"norm": True},
    "dsa": {},
    "dsa distance": {"metric": "distance"},
    "dsa angle": {"metric": "angle"},
    "dsa row_kl": {"metric": "row_kl", "reduce": "sum"},
    "hidden": {},
    "hidden unit": {"level": "unit"},
    "span_cos": {
        "layers": [{"student": 1, "teacher": 2}, {"student": 3, "teacher": 4}],
        "delta": True,
    },
    "span_geometry": {},
    "span_kl": {"reduce": "mean"},
}


def needing(documents, *pairs, needs=("relations",), weights="centrality", **term):
    layers = {pair.teacher: frozenset(needs) for pair in pairs}
    return teacher_needs({"dsa": Needs(layers, **term)}, pairs, weights, documents)


def source_of(folder, caches, *pairs, limit=None, **wanted):
    documents = Documents(folder, limit)
    return CachedTeacher(Caches(caches, documents), needing(documents, *pairs, **wanted))


def source_of_everything(make_cache, same):
    """What every one of `TERMS` needs, of both layers."""
    cache = make_cache(signals=["relations", "units", "states", "final", "topk", "attention"], state_tokens="all")
    needs = ("relations", "units", "states", "position_states")
    spans = SpanNeed(frozenset({2, 4}), "attention", 1024)
    return source_of(same, [cache], WORDS, CHUNKS, needs=needs, final=True, norm=True, topk=True, spans=spans)


def term_of(name, student):
    """One of `TERMS`, built for a student and the sample's teacher."""
    last = {"student_last": (student.depth, student.hidden_size), "teacher_last": (CHUNKS.teacher, TEACHER_SIZE)}
    setting = Setting((WORDS, CHUNKS), student.hidden_size, TEACHER_SIZE, same_tokens=True, **last)
    terms = build({name.split()[0]: TERMS[name]}, setting, "objectives")
    head = Head(student.head.weight)  # of as many tokens as the teacher's
    for term in terms.values():
        term.begin(Beginning(lambda _: iter(()), head, head, None, str))
    return terms


def assert_same_batch(one, two):
    mine, other = tensors(one), tensors(two)
    assert mine.keys() == other.keys()
    for path, tensor in mine.items():
        assert tensor.dtype == other[path].dtype
        assert torch.equal(tensor, other[path]), path


def command_in(error):
    """The one command that a message tells to run."""
    (command,) = re.findall(r"`(mta-prep [^`]*)`", str(error.value))
    return command
