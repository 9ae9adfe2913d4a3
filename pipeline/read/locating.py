"""Which characters each token of a text stands for, from what the tokens spell; checked, or refused.

Where the spelling equals the text byte for byte, ranges follow by counting bytes, for many texts at once. Otherwise the
tokenizer normalises: what the tokens spell is matched with the normalised text, character by character, and each of
those knows its place in the text (see `normalization`). Either result passes a check that shares no step with it.
"""

from collections.abc import Sequence
from itertools import chain, groupby

import numpy as np
from jaxtyping import Bool, Int64
from tokenizers import Encoding

from pipeline.read.normalization import NormalizationMap, Written
from pipeline.read.offsets import (
    TokenRanges,
    character_ranges,
    locate,
    match_visible,
    misplaced,
    misspelled,
    next_visible,
    without_leading_space,
)
from pipeline.read.spelling import Spelling
from trainer.maths.characters import code_points, is_space, utf8_widths


class Locator:
    """Finds token ranges for one tokenizer, given what its tokens spell and how it normalises."""

    def __init__(self, spelling: Spelling, normalization: NormalizationMap) -> None:
        self._spelling = spelling
        self._normalization = normalization

    def locate(self, texts: Sequence[str], encodings: Sequence[Encoding]) -> list[TokenRanges | None]:
        """Verified ranges of each text's tokens; None where there are none. No text bears on another's."""
        marker, dummy = self._spelling.marker, (self._spelling.marker or " ").encode("utf-8")
        table = self._spelling.spelled
        ids = [encoding.ids for encoding in encodings]
        spelled = [b"".join([table[index] for index in row]) for row in ids]
        written = [(text.replace(" ", marker) if marker else text).encode("utf-8") for text in texts]
        exact = [i for i, (s, w) in enumerate(zip(spelled, written, strict=True)) if s in (w, dummy + w)]
        ranges = self._locate_exact(
            [texts[i] for i in exact], [written[i] for i in exact], [spelled[i] for i in exact], [ids[i] for i in exact]
        )
        found = dict(zip(exact, ranges, strict=True))
        return [
            found[i] if i in found else self._locate_normalized(text, encoding)
            for i, (text, encoding) in enumerate(zip(texts, encodings, strict=True))
        ]

    def _locate_exact(
        self, texts: list[str], written: list[bytes], spelled: list[bytes], ids: list[list[int]]
    ) -> list[TokenRanges | None]:
        """Ranges where tokens spell the text byte for byte, save a dummy prefix; all texts at once."""
        if not texts:
            return []
        points = code_points("".join(texts))
        space = is_space(points)
        if self._spelling.marker:
            space |= points == ord(self._spelling.marker)  # which its tokens cannot tell from a space
            points = np.where(points == ord(" "), np.uint32(ord(self._spelling.marker)), points)
        widths = utf8_widths(points)
        tokens = np.array([len(row) for row in ids], dtype=np.int64)
        bounds = np.append(0, np.cumsum(tokens))
        token_bytes = self._spelling.lengths[np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=bounds[-1])]
        surplus = np.array([len(s) - len(w) for s, w in zip(spelled, written, strict=True)], dtype=np.int64)
        own_bytes = token_bytes.copy()
        own_bytes[bounds[:-1][surplus > 0]] -= surplus[surplus > 0]
        ranges = locate(space, widths, own_bytes)
        pieces = np.append(0, np.cumsum([len(text) for text in texts])).astype(np.int64)
        bad = misplaced(ranges, space, pieces, bounds) | misspelled(
            ranges,
            widths,
            np.frombuffer(b"".join(written), dtype=np.uint8),
            np.frombuffer(b"".join(spelled), dtype=np.uint8),
            token_bytes,
            bounds,
            surplus > 0,
        )
        return [
            None if bad[i] else ranges.piece(int(bounds[i]), int(bounds[i + 1]), int(pieces[i]))
            for i in range(len(texts))
        ]

    def _locate_normalized(self, text: str, encoding: Encoding) -> TokenRanges | None:
        """Ranges where the tokenizer normalises, drops white space, adds spaces, or knows no token for something."""
        ids, hints = encoding.ids, encoding.offsets
        written = self._normalization.write(text, self._literals(text, ids, hints))
        if written is None:
            return None
        tokens = self._named(ids, hints, written)
        shown = None if tokens is None else _decoded(b"".join(tokens))
        if (
            tokens is None
            or shown is None
            or self._normalization.visible(shown) != self._normalization.visible(written.text)
        ):
            return None
        points = code_points(shown)
        origins = match_visible(self._blank(shown), self._blank(written.text), written.origins, len(text))
        token_bytes = np.array([len(token) for token in tokens], dtype=np.int64)
        first, last = character_ranges(utf8_widths(points), token_bytes)
        sentinel = np.vstack([origins, [[len(text), len(text)]]])
        reach = sentinel[first, 0]
        ends = np.where(last > first, sentinel[np.maximum(last - 1, 0), 1], reach)
        space = is_space(code_points(text)) | self._unspelled(written, len(text))
        ranges = TokenRanges(reach, without_leading_space(reach, ends, next_visible(space)), ends)
        whole = np.array([0, len(text)], dtype=np.int64), np.array([0, len(ids)], dtype=np.int64)
        if misplaced(ranges, space, *whole)[0] or not self._spelled_alike(text, ranges, shown, first, last):
            return None
        return ranges

    def _named(self, ids: list[int], hints: list[tuple[int, int]], written: Written) -> list[bytes] | None:
        """What each token spells, unknown tokens included: these take the gap that the known ones leave.

        The library's offsets (`hints`) only bound a gap, and part several unknown tokens in one. None where nothing is
        left for one; otherwise the result is still to be compared with the text.
        """
        tokens = [self._spelling.spelled[index] for index in ids]
        if self._spelling.unknown not in ids:
            return tokens
        shown = self._normalization.visible(written.text)
        begins = written.origins[~self._blank(written.text), 0]
        runs = [
            (unknown, list(run))
            for unknown, run in groupby(range(len(ids)), lambda i: ids[i] == self._spelling.unknown)
        ]
        said = [
            "" if unknown else self._normalization.visible(_decoded(b"".join(tokens[i] for i in run)) or "")
            for unknown, run in runs
        ]
        position = 0
        for (unknown, run), own, following in zip(runs, said, [*said[1:], ""], strict=True):
            position += len(own)
            for i in run if unknown else ():
                end = int(np.searchsorted(begins, hints[i][1]))
                if i == run[-1]:
                    end = shown.rfind(following, position + 1, end + len(following))
                if end > position:
                    tokens[i], position = shown[position:end].encode("utf-8"), end
                    continue
                first, last = np.searchsorted(written.origins[:, 0], hints[i])
                blank = written.text[first:last]  # a line break, say, can be unknown too
                if not blank or self._normalization.visible(blank):
                    return None
                tokens[i] = blank.encode("utf-8")
        return tokens

    def _literals(self, text: str, ids: list[int], hints: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where added tokens stand in the text word for word."""
        found = []
        for index, (first, last) in zip(ids, hints, strict=True):
            content = self._spelling.literals.get(index)
            if content is not None and (at := text.find(content, first, last)) >= 0:
                found.append((at, at + len(content)))
        return found

    def _blank(self, shown: str) -> Bool[np.ndarray, " characters"]:
        """White space in the tokenizer's writing, the space marker included."""
        points = code_points(shown)
        blank = is_space(points)
        return blank if self._spelling.marker is None else blank | (points == ord(self._spelling.marker))

    def _unspelled(self, written: Written, length: int) -> Bool[np.ndarray, " characters"]:
        """Characters of the text of which the tokenizer sees nothing, or white space."""
        shown = written.origins[~self._blank(written.text)]
        opened = np.bincount(shown[:, 0], minlength=length + 1) - np.bincount(shown[:, 1], minlength=length + 1)
        unspelled: Bool[np.ndarray, " characters"] = np.cumsum(opened)[:length] == 0
        return unspelled

    def _spelled_alike(
        self,
        text: str,
        ranges: TokenRanges,
        shown: str,
        first: Int64[np.ndarray, " tokens"],
        last: Int64[np.ndarray, " tokens"],
    ) -> bool:
        """Whether each range, normalised by itself, is what its tokens spell, and what lies between ranges is nothing.

        Ranges that share a character are one.
        """
        heads = np.flatnonzero(ranges.separable()[:-1])
        tails = np.append(heads[1:], len(first))[: len(heads)] - 1
        visible, visible_alone = self._normalization.visible, self._normalization.visible_alone
        spans = zip(ranges.starts[heads].tolist(), ranges.ends[tails].tolist(), strict=True)
        shows = zip(first[heads].tolist(), last[tails].tolist(), strict=True)
        reached = 0
        for (start, end), (shown_start, shown_end) in zip(spans, shows, strict=True):
            said, held = visible(shown[shown_start:shown_end]), text[start:end]
            if said not in (held, visible_alone(held)) or visible_alone(text[reached:start]):
                return False
            reached = end
        return not visible_alone(text[reached:])


def _decoded(spelled: bytes) -> str | None:
    """The text, or None if the bytes are no UTF-8, as when a tokenizer drops bytes that it has no token for."""
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return None
