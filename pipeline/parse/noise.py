"""Noise for a parser's training: misspelt and missing words, so that it learns to read on.

The words keep their number and their spaces, so the tree, and a teacher's scores of its spans, stay as they are. Case
is no noise to an uncased encoder and is left alone.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from pipeline.text import Words

#: Shortest word that is misspelt; in shorter ones a letter is most of the word.
SHORTEST_MISSPELT = 4
#: Share of the altered words that are left out.
LEFT_OUT = 1 / 3
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _swapped(word: str, at: int, shuffle: random.Random) -> str:
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _missing(word: str, at: int, shuffle: random.Random) -> str:
    return word[:at] + word[at + 1 :]


def _doubled(word: str, at: int, shuffle: random.Random) -> str:
    return word[: at + 1] + word[at:]


def _replaced(word: str, at: int, shuffle: random.Random) -> str:
    return word[:at] + shuffle.choice(LETTERS) + word[at + 1 :]


#: A slip at a letter of a word that has another one behind it.
SLIPS: tuple[Callable[[str, int, random.Random], str], ...] = (_swapped, _missing, _doubled, _replaced)


def misspelt(word: str, shuffle: random.Random) -> str:
    """`word` with one slip of the keyboard; short words and those with anything but letters stay."""
    if len(word) < SHORTEST_MISSPELT or not word.isalpha():
        return word
    slip = shuffle.choice(SLIPS)
    return slip(word, shuffle.randrange(len(word) - 1), shuffle)


def noisy(words: Words, share: float, unknown: str, shuffle: random.Random) -> Words:
    """`words` with about `share` of them altered: a third read `unknown`, the others are misspelt."""

    def altered(word: str) -> str:
        if shuffle.random() >= share:
            return word
        return unknown if shuffle.random() < LEFT_OUT else misspelt(word, shuffle)

    return replace(words, words=tuple(map(altered, words.words)))
