"""Where tokens stand in a text: byte and character arithmetic, and the check that its results must pass.

A token's range is the smallest range of code points that holds its bytes, leading white space excluded; a token of
white space alone keeps its own range. Tokens inside one multi-byte character therefore share that character's range.
Characters that the tokenizer drops, or takes for white space, are white space here and may be in no token's range.
What a tokenizer library reports as offsets plays no part here: ranges follow from what the tokens spell.

`text` is the row's own text, `written` the same text as the tokenizer sees it (spaces marked, normalised), and
`spelled` what its tokens spell. Several pieces of text are worked on at once, laid end to end.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8


@dataclass(frozen=True)
class TokenRanges:
    """Character ranges [starts, ends) of consecutive tokens; `reach` is `starts` with leading white space included."""

    reach: Int64[np.ndarray, " tokens"]
    starts: Int64[np.ndarray, " tokens"]
    ends: Int64[np.ndarray, " tokens"]

    def separable(self) -> Bool[np.ndarray, " gaps"]:
        """True at i where the text may be cut before token i; also at both ends. False inside a character."""
        gaps = np.ones(len(self.reach) + 1, dtype=bool)
        gaps[1:-1] = self.reach[1:] >= self.ends[:-1]
        return gaps

    def piece(self, first: int, last: int, origin: int) -> "TokenRanges":
        """Tokens [first, last), counted in characters from `origin`."""
        return TokenRanges(
            self.reach[first:last] - origin, self.starts[first:last] - origin, self.ends[first:last] - origin
        )


def next_visible(space: Bool[np.ndarray, " characters"]) -> Int64[np.ndarray, " positions"]:
    """At every position, the end included, the first character from there on that is no white space."""
    own = np.append(np.where(space, len(space), np.arange(len(space))), len(space)).astype(np.int64)
    return np.minimum.accumulate(own[::-1])[::-1]


def without_leading_space(
    starts: Int64[np.ndarray, " tokens"], ends: Int64[np.ndarray, " tokens"], visible: Int64[np.ndarray, " positions"]
) -> Int64[np.ndarray, " tokens"]:
    """Starts moved past white space, save where a token holds nothing else. `visible` is `next_visible`'s."""
    return np.where(visible[starts] < ends, visible[starts], starts)


def character_ranges(
    widths: Int64[np.ndarray, " characters"], token_bytes: Int64[np.ndarray, " tokens"]
) -> tuple[Int64[np.ndarray, " tokens"], Int64[np.ndarray, " tokens"]]:
    """Characters touched by each of the consecutive tokens that together hold exactly these characters.

    `widths` are bytes a character, `token_bytes` bytes a token. A token without bytes gets an empty range at its place.
    """
    character = np.append(np.repeat(np.arange(len(widths)), widths), len(widths))
    last = np.cumsum(token_bytes)
    starts = character[last - token_bytes]
    ends = np.where(token_bytes > 0, character[last - 1] + 1, starts)
    return starts, ends


def locate(
    space: Bool[np.ndarray, " characters"],
    widths: Int64[np.ndarray, " characters"],
    token_bytes: Int64[np.ndarray, " tokens"],
) -> TokenRanges:
    """Ranges of tokens that spell the text byte for byte."""
    reach, ends = character_ranges(widths, token_bytes)
    return TokenRanges(reach, without_leading_space(reach, ends, next_visible(space)), ends)


def match_visible(
    spelled_space: Bool[np.ndarray, " spelled"],
    written_space: Bool[np.ndarray, " written"],
    origins: Int64[np.ndarray, "written 2"],
    text_length: int,
) -> Int64[np.ndarray, "spelled 2"]:
    """Text range of every spelled character, given that both sides show the same characters but for white space.

    White space is matched backwards from the character it stands before. Where the tokens spell more of it than was
    written (a dummy prefix), the surplus gets an empty range. `origins` holds the text range of each written character.
    """
    shown = np.append(np.flatnonzero(~written_space), len(written_space))
    before = np.cumsum(~spelled_space)  # visible characters up to and including this one
    stop = np.append(np.flatnonzero(~spelled_space), len(spelled_space))  # where each run of white space ends
    gap = before - ~spelled_space
    place = shown[gap] - (stop[gap] - np.arange(len(spelled_space)))
    first = np.append(0, shown + 1)[gap]  # of the run of written white space
    bounds = np.vstack([origins, [[text_length, text_length]]])
    return np.where((place >= first)[:, None], bounds[np.maximum(place, 0)], bounds[first, :1])


def _covered(ranges: TokenRanges, length: int) -> Bool[np.ndarray, " characters"]:
    opened = np.bincount(ranges.starts, minlength=length + 1) - np.bincount(ranges.ends, minlength=length + 1)
    covered: Bool[np.ndarray, " characters"] = np.cumsum(opened)[:length] > 0
    return covered


def misplaced(
    ranges: TokenRanges,
    space: Bool[np.ndarray, " characters"],
    pieces: Int64[np.ndarray, " bounds"],
    piece_tokens: Int64[np.ndarray, " bounds"],
) -> Bool[np.ndarray, " pieces"]:
    """Pieces whose ranges leave the piece, step back, run backwards, or leave a visible character uncovered.

    `space` is what need not be covered. `pieces` and `piece_tokens` bound the pieces in characters and in tokens: piece
    i is [bounds[i], bounds[i + 1]).
    """
    count = len(pieces) - 1
    owner = np.repeat(np.arange(count), np.diff(piece_tokens))
    bad = (ranges.starts < pieces[owner]) | (ranges.ends > pieces[owner + 1]) | (ranges.ends < ranges.starts)
    stepped = (owner[1:] == owner[:-1]) & ((np.diff(ranges.starts) < 0) | (np.diff(ranges.ends) < 0))
    bad[1:] |= stepped
    faults = np.bincount(owner[bad], minlength=count)
    clipped = TokenRanges(ranges.reach, *(np.clip(ends, 0, len(space)) for ends in (ranges.starts, ranges.ends)))
    uncovered = np.flatnonzero(~_covered(clipped, len(space)) & ~space)
    faults += np.bincount(np.searchsorted(pieces, uncovered, side="right") - 1, minlength=count)[:count]
    return faults > 0


def misspelled(
    ranges: TokenRanges,
    widths: Int64[np.ndarray, " characters"],
    written: UInt8[np.ndarray, " written_bytes"],
    spelled: UInt8[np.ndarray, " spelled_bytes"],
    token_bytes: Int64[np.ndarray, " tokens"],
    piece_tokens: Int64[np.ndarray, " bounds"],
    prefixed: Bool[np.ndarray, " pieces"],
) -> Bool[np.ndarray, " pieces"]:
    """Pieces where the bytes in some range are not the bytes that its tokens spell, leading white space aside.

    Tokens whose bytes part a character are compared together, and each must reach over as many characters as its bytes
    touch. In `prefixed` pieces the first token spells one character more, a dummy prefix.
    """
    count = len(piece_tokens) - 1
    owner = np.repeat(np.arange(count), np.diff(piece_tokens))
    if not len(owner):
        return np.zeros(count, dtype=bool)
    spelled_last = np.cumsum(token_bytes)
    inner = np.append((spelled & 0xC0) == 0x80, False)  # bytes that do not begin a character
    parted = inner[spelled_last - token_bytes] & (token_bytes > 0)
    begun = np.append(0, np.cumsum(~inner))
    touched = begun[spelled_last] - begun[spelled_last - token_bytes] + parted
    opens = np.append(True, owner[1:] != owner[:-1])
    wide = touched - (ranges.ends - ranges.reach) != (opens & prefixed[owner])
    faults: Int64[np.ndarray, " pieces"] = np.bincount(owner[wide], minlength=count)
    heads = np.flatnonzero(opens | ~parted)
    tails = np.append(heads[1:], len(owner)) - 1
    byte_at = np.append(0, np.cumsum(widths))
    first = byte_at[ranges.starts[heads]]
    length = byte_at[ranges.ends[tails]] - first
    wrong = (length > np.add.reduceat(token_bytes, heads)) | (length < 0)
    faults += np.bincount(owner[heads[wrong]], minlength=count)
    length = np.where(wrong, 0, length)
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    said = spelled[np.repeat(spelled_last[tails] - length, length) + within]
    differs = written[np.repeat(first, length) + within] != said
    group = np.repeat(np.arange(len(heads)), length)
    faults += np.bincount(owner[heads[group[differs]]], minlength=count)
    return faults > 0
