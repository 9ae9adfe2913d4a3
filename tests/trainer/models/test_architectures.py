"""docs/architectures.md says what is made of every causal architecture of the transformers at hand."""

import re
from pathlib import Path

import pytest
import transformers

import architectures
import zoo

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "architectures.md").read_text(encoding="utf-8")
KINDS = re.findall(r"^\| \w+ \| `([^`]+)` \|", PAGE, re.MULTILINE)
#: Of hidden states and logits, relative to the largest: sums in another order.
ROUNDING = 2e-5

pytestmark = pytest.mark.slow


def test_the_page_has_every_architecture_of_this_version():
    assert f"transformers {transformers.__version__}" in PAGE
    assert list(zoo.kinds()) == KINDS


@pytest.mark.parametrize("kind", zoo.kinds())
def test_hidden_states_and_logits_are_the_plain_models_and_the_page_says_so(kind):
    """Wherever a model is accepted: for documents of a batch, and for one alone that is as long as it can take."""
    outcome = architectures.outcome(kind)
    assert outcome.error <= ROUNDING
    assert str(outcome) in PAGE.splitlines()
