"""Exact match for short answers, normalised as SQuAD's evaluation does (Rajpurkar et al. 2016, section 6.1).

Of some references that would leave nothing (`A`, `+`); they are compared without the step that empties them, or else
whatever says nothing, `...` or `The`, would be right.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from string import punctuation
from typing import Final

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")

Step = Callable[[str], str]


def exact_match(text: str, references: Sequence[str]) -> bool:
    """Whether a text is one of the references once both are normalised. A text that says nothing is none of them."""
    return any(_is_same(text, reference) for reference in references)


def normalized(text: str) -> str:
    """Lower case, without punctuation, English articles, and more than one space between words."""
    return _after(_STEPS, text)


def _is_same(text: str, reference: str) -> bool:
    steps: list[Step] = []
    for step in _STEPS:
        if _after([*steps, step], reference):
            steps.append(step)
    normal = _after(steps, text)
    return bool(normal) and normal == _after(steps, reference)


def _after(steps: Sequence[Step], text: str) -> str:
    """The text after these steps, with single spaces between words."""
    for step in steps:
        text = step(text)
    return " ".join(text.split())


def _without_punctuation(text: str) -> str:
    return "".join(char for char in text if char not in punctuation and unicodedata.category(char)[0] != "P")


def _without_articles(text: str) -> str:
    return _ARTICLES.sub(" ", text)


_STEPS: Final[tuple[Step, ...]] = (str.lower, _without_punctuation, _without_articles)
