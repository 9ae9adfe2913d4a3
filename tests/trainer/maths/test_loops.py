"""Loops are interpreted while there is little work, and compiled from then on."""

import pytest
from numba.core.caching import CompileResultCacheImpl

from trainer.maths.loops import Loops, machine_code


def test_loops_are_compiled_once_they_have_had_their_work():
    def loop(values):
        values[0] = 1

    loops = Loops(loop, patience=10)
    assert loops.for_work(6) == loops.for_work(4) == loops.interpreted == (loop,)
    assert loops.for_work(1) == loops.compiled != loops.interpreted
    early = Loops(loop, patience=10)
    assert early.compiled == early.for_work(1)  # what is loaded is used


def test_where_nothing_can_be_kept_loops_are_compiled_all_the_same(monkeypatch):
    """A package and a home that nobody can write, as in many containers."""
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])

    def doubled(value):
        return 2 * value

    with pytest.raises(RuntimeError, match="cannot cache"):
        CompileResultCacheImpl(doubled)
    assert machine_code(doubled)(4) == 8
