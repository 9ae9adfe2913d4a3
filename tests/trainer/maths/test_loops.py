"""Loops are interpreted while there is little work, and compiled from then on."""

from trainer.maths.loops import Loops


def test_loops_are_compiled_once_they_have_had_their_work():
    def loop(values):
        values[0] = 1

    loops = Loops(loop, patience=10)
    assert loops.for_work(6) == loops.for_work(4) == loops.interpreted == (loop,)
    assert loops.for_work(1) == loops.compiled != loops.interpreted
    early = Loops(loop, patience=10)
    assert early.compiled == early.for_work(1)  # what is loaded is used
