"""A text as its tokenizer normalises it, with the way back: the text range behind every normalised character.

Normalisers tell only their result. The way back is found by normalising small parts by themselves, and is believed
where the parts together give what the whole gives.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Int64
from tokenizers.normalizers import Normalizer

from pipeline.read.characters import CLUSTER

_WORD: Final = re.compile(r"\S+|\s+")
#: Normalised characters, and the range of the word behind each; None where each stands for one, in order.
_Mapped = tuple[str, tuple[tuple[int, int], ...] | None]
_Unit = tuple[str, tuple[tuple[int, int], ...]]


def _one_to_one(first: int, last: int) -> Int64[np.ndarray, "characters 2"]:
    """[i, i + 1) for each i."""
    each = np.arange(first, last, dtype=np.int64)
    return np.stack([each, each + 1], axis=1)


@dataclass(frozen=True)
class Written:
    """Normalised text and the text range behind each of its characters."""

    text: str
    origins: Int64[np.ndarray, "written 2"]


class NormalizationMap:
    """Maps texts through one normaliser. `marker` stands for a space in what it gives."""

    def __init__(self, normalizer: Normalizer | None, marker: str | None) -> None:
        self._normalizer = normalizer
        self._marker = marker
        # A speed-up only: what is kept depends on the word alone.
        self._word = lru_cache(maxsize=1 << 16)(self._map_word)
        self.visible_alone = lru_cache(maxsize=1 << 16)(self._visible_alone)

    def normalize(self, text: str) -> str:
        """The normaliser's own answer."""
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))

    def visible(self, normalized: str) -> str:
        """Without white space, marked spaces included."""
        if self._marker is not None:
            normalized = normalized.replace(self._marker, " ")
        return "".join(normalized.split())

    def _visible_alone(self, text: str) -> str:
        return self.visible(self.normalize(text))

    def write(self, text: str, literals: list[tuple[int, int]]) -> Written | None:
        """The normalised text with its way back, or None where none can be verified.

        `literals` are ranges of `text`, in order, that the tokenizer takes out before it normalises (added tokens).
        """
        parts: list[str] = []
        origins: list[Int64[np.ndarray, "characters 2"]] = []
        position = 0
        for first, last in [*literals, (len(text), len(text))]:
            normalized, ranges = self._map_segment(text[position:first])
            if self.visible(normalized) != self._visible_alone(text[position:first]):
                return None
            parts += [normalized, text[first:last]]
            origins += [ranges + position, _one_to_one(first, last)]
            position = last
        return Written("".join(parts), np.concatenate(origins))

    def _map_segment(self, text: str) -> tuple[str, Int64[np.ndarray, "characters 2"]]:
        parts: list[str] = []
        origins: list[Int64[np.ndarray, "characters 2"]] = []
        plain = 0  # where the characters that stand for themselves began
        for word in _WORD.finditer(text):
            normalized, ranges = self._word(word[0])
            parts.append(normalized)
            if ranges is not None:
                origins.append(_one_to_one(plain, word.start()))
                origins.append(np.array(ranges, dtype=np.int64).reshape(-1, 2) + word.start())
                plain = word.end()
        origins.append(_one_to_one(plain, len(text)))
        return "".join(parts), np.concatenate(origins)

    def _map_word(self, word: str) -> _Mapped:
        normalized = self.normalize(word)
        if normalized == word:
            return normalized, None
        bounds = [match.start() for match in CLUSTER.finditer(word)] + [len(word)]
        units = [self._unit(word, a, b) for a, b in pairwise(bounds)]
        if "".join(unit for unit, _ in units) != normalized:
            units = self._split(word, bounds)
        ranges = tuple(span for _, spans in units for span in spans)
        plain = len(ranges) == len(word) and all(span == (i, i + 1) for i, span in enumerate(ranges))
        return "".join(unit for unit, _ in units), None if plain else ranges

    def _unit(self, word: str, first: int, last: int) -> _Unit:
        """A part whose characters count apart if they do so normalised; else its normalised ones all stand for it.

        What is dropped of a cluster, such as an accent, goes with the character before it; what is dropped at the edges of
        a part whose characters do not count apart stands for nothing.
        """
        normalized = self.normalize(word[first:last])
        single = [self.normalize(character) for character in word[first:last]]
        if "".join(single) == normalized:
            kept = [i for i, part in enumerate(single) if part]
            spans = {i: (first + i, first + after) for i, after in pairwise([*kept, len(single)])}
            return normalized, tuple(span for i, span in spans.items() for _ in single[i])
        while last - first > 1 and self._is_dropped(word[first:last], word[first : last - 1], word[last - 1]):
            last -= 1
        while last - first > 1 and self._is_dropped(word[first:last], word[first + 1 : last], word[first]):
            first += 1
        return normalized, ((first, last),) * len(normalized)

    def _is_dropped(self, whole: str, rest: str, character: str) -> bool:
        """Whether of a character nothing shows, neither alone nor with the rest."""
        return not self.visible_alone(character) and self.visible_alone(rest) == self.visible_alone(whole)

    def _split(self, word: str, bounds: list[int]) -> list[_Unit]:
        """Cut where the halves give what the whole gives, as near the middle as possible; else keep whole."""
        first, last = bounds[0], bounds[-1]
        whole = self.normalize(word[first:last])
        for i in sorted(range(1, len(bounds) - 1), key=lambda i: abs(2 * i - len(bounds) + 1)):
            if self.normalize(word[first : bounds[i]]) + self.normalize(word[bounds[i] : last]) == whole:
                return self._split(word, bounds[: i + 1]) + self._split(word, bounds[i:])
        return [self._unit(word, first, last)]
