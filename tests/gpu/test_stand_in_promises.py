"""Every test of `test_cuda` once more, with a card in place of the stand-in: same values, same waits."""

import pytest

import test_cuda
from a_card import NEEDS_A_CARD, Card
from test_cuda import *  # noqa: F403  # the tests and their fixtures

pytestmark = NEEDS_A_CARD


@pytest.fixture(autouse=True)
def card_in_its_place(monkeypatch):
    monkeypatch.setattr(test_cuda, "StandInCuda", Card)
