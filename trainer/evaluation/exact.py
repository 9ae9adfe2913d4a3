"""Exact match for short answers, normalised as SQuAD's evaluation does (Rajpurkar et al. 2016, section 6.1)."""

import re
import unicodedata
from collections.abc import Sequence
from string import punctuation
from typing import Final

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")


def exact_match(text: str, references: Sequence[str]) -> bool:
    """Whether a text is one of the references once all are normalised. A text that says nothing is none of them."""
    return bool(text.strip()) and normalized(text) in {normalized(reference) for reference in references}


def normalized(text: str) -> str:
    """Lower case, without punctuation, English articles, and more than one space between words."""
    bare = "".join(char for char in text.lower() if char not in punctuation and unicodedata.category(char)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", bare).split())
