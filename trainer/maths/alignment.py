"""Two tokenizations of one learnt text, aligned: spans between common boundaries, and tokens of the same characters.

A learnt text is what a turn says (`responses` of a dataset, characters); several documents' are worked on at once. Both
sides' tokens belong to it by their characters, whatever else the sides have or lack: one may have lost later turns to its
limit, or part of one, and chat templates may give a turn's texts in another order. Only such tokens are aligned. Tokens of
a template inside of a turn (markup between a thought and an answer) spell nothing of a text: no span begins, ends or reaches
over them, and they are in no pair. The one exception is the token that ends a turn, which has no text but a role: it is
aligned with the other side's, as a span and a pair of its own, where both sides have one for the same turn. Which turn is
the same is told by text as well: by the last text that a turn holds, and of turns without any token of a text, by the text
before them.

Common boundaries (Wu et al. 2026, "SRA", and TRL's GOLD): tokens' ends, in a measure of the text up to there, are gone through
on both sides, and where both have the same end, a span closes. A token that holds part of a character has the end of those
that hold the rest; a boundary stands behind the last of them. What follows a text's last common boundary is in no span.

Exact tokens (Zhang et al. 2025, "DSKDv2"): a token of each side that cover the same characters [a, b), white space not counted.
Tokens that share a character cover none by themselves, and white space is nothing to cover: such tokens are in no pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Int, Int64

from schemas.columns import MISSING
from trainer.maths.characters import code_points, is_space, utf8_widths

#: More turns than a document can have; as bits.
_TURNS: Final = 20

#: Of each token, of either side.
Counts = Int64[np.ndarray, " _"]
Pointers = Int64[np.ndarray, " pointers"]


@dataclass(frozen=True)
class LearntTexts:
    """What is learnt of some documents, whose texts lie one after the other with a line feed between them."""

    whole: str
    characters: Pointers  # where each document's text begins in `whole`
    spans: Int64[np.ndarray, "texts 2"]  # of the learnt texts, characters of `whole`, rising
    rows: Int64[np.ndarray, " _"]  # how many of them each document has

    @classmethod
    def of(
        cls, texts: Sequence[str], spans: Int[np.ndarray, "texts 2"], rows: Int64[np.ndarray, " _"]
    ) -> "LearntTexts":
        """`spans`: learnt texts, characters of their own document's text; `rows`: pointers of them."""
        characters = np.cumsum([0, *(len(text) + 1 for text in texts)], dtype=np.int64)
        return cls("\n".join(texts), characters, spans + np.repeat(characters[:-1], np.diff(rows))[:, None], rows)

    @cached_property
    def _points(self) -> np.ndarray:
        return code_points(self.whole)

    @cached_property
    def visible(self) -> Int64[np.ndarray, " positions"]:
        """Characters before each position of the whole that are no white space."""
        return np.append(0, np.cumsum(~is_space(self._points)))

    @cached_property
    def bytes(self) -> Int64[np.ndarray, " positions"]:
        """UTF-8 bytes before each position of the whole."""
        return np.append(0, np.cumsum(utf8_widths(self._points)))


@dataclass(frozen=True)
class LearntTokens:
    """One side's tokens of learnt texts, text by text and in the order of its characters; and those that end turns."""

    places: Counts  # which of the batch's tokens
    texts: Counts  # which of the learnt texts each is of, never falling
    ranges: Int64[np.ndarray, "tokens 2"]  # their characters, of the whole
    end_places: Int64[np.ndarray, " ends"]  # tokens that end a turn, rising
    end_turns: Int64[np.ndarray, " ends"]  # rising; the same number is the same turn on the other side

    @property
    def without_ends(self) -> "LearntTokens":
        """What spells the texts alone."""
        return replace(self, end_places=self.end_places[:0], end_turns=self.end_turns[:0])

    @classmethod
    def of(
        cls,
        texts: LearntTexts,
        offsets: Int[np.ndarray, "all_tokens 2"],
        token_rows: Pointers,
        turns: Int[np.ndarray, "turns 2"],
        turn_rows: Int64[np.ndarray, " pointers"],
        may_end: Bool[np.ndarray, " all_tokens"],
    ) -> "LearntTokens":
        """From a dataset's columns of one side.

        `offsets`: characters of each token, in its own document's text, or [-1, -1); `token_rows`: pointers of the
        documents' tokens; `turns`: what is learnt, [start, end) tokens, counted from their document's first; `turn_rows`:
        pointers of those; `may_end`: tokens whose id is one that ends a turn.
        """
        document = np.repeat(np.arange(len(turn_rows) - 1), np.diff(turn_rows))
        first, last = turns.T + token_rows[document]
        counts = last - first
        turn = np.repeat(np.arange(len(turns)), counts)
        places = np.arange(int(counts.sum())) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        spelling = offsets[places, 0] != MISSING
        end_places = last - 1
        ends = (counts > 0) & (offsets[end_places, 0] == MISSING) & may_end[end_places]
        places, turn = places[spelling], turn[spelling]
        ranges = offsets[places] + texts.characters[document[turn]][:, None]
        text = np.searchsorted(texts.spans[:, 0], ranges[:, 0], side="right") - 1
        inside = (text >= 0) & (ranges[:, 1] <= texts.spans[np.maximum(text, 0), 1])
        places, turn, ranges, text = places[inside], turn[inside], ranges[inside], text[inside]
        keys = _turn_keys(document, turn, text, texts.rows)
        if (np.diff(text) < 0).any():  # a template gives them in another order
            order = np.argsort(text, kind="stable")
            places, ranges, text = places[order], ranges[order], text[order]
        return cls(places, text, ranges, end_places[ends], keys[ends])


def before_learnt(turns: Int[np.ndarray, "turns 2"]) -> Counts:
    """A document's tokens before each learnt one, rising; `turns`: what is learnt, disjoint. Nothing is before its first."""
    places = [np.arange(max(first - 1, 0), last - 1) for first, last in turns.tolist()]
    return np.concatenate([np.zeros(0, dtype=np.int64), *places])


def _turn_keys(
    document: Int64[np.ndarray, " turns"],
    turn: Counts,
    text: Counts,
    text_rows: Pointers,
) -> Int64[np.ndarray, " turns"]:
    """A number for every turn, rising, the same on both sides for turns that belong together.

    It says what is the last learnt text up to the turn's end, or that there is none yet, and how many turns there have been
    since the one that held it. `document` of every turn; `turn` and `text` of every token.
    """
    slots = _slots_without_text(text_rows)[document]
    np.maximum.at(slots, turn, text + document[turn] + 1)
    np.maximum.accumulate(slots, out=slots)
    numbers = np.arange(len(slots))
    opens = np.append(True, slots[1:] != slots[:-1])[: len(slots)]
    opened = np.maximum.accumulate(np.where(opens, numbers, 0))
    keys: Int64[np.ndarray, " turns"] = (slots << _TURNS) + numbers - opened
    return keys


def _slots_without_text(text_rows: Pointers) -> Int64[np.ndarray, " documents"]:
    """Texts and documents numbered together: of each document the number before those of its texts."""
    return text_rows[:-1] + np.arange(len(text_rows) - 1)


def visible_ends(texts: LearntTexts, tokens: LearntTokens) -> Counts:
    """Characters of the whole up to each token's end, white space not counted: never falling."""
    ends: Counts = texts.visible[tokens.ranges[:, 1]]
    return ends


def byte_ends(
    texts: LearntTexts, student: LearntTokens, teacher: LearntTokens, student_bytes: Counts, teacher_bytes: Counts
) -> tuple[Counts, Counts, Bool[np.ndarray, " texts"]]:
    """UTF-8 bytes of the whole up to each token's end on both sides, and of which texts they are that: never falling.

    `…_bytes`: what each token spells. What its first token has of the characters before a text (a dummy prefix, a
    template's space) is not counted. In a text whose tokens do not spell it byte for byte on both sides (a tokenizer that
    normalises), visible characters are counted on both.
    """
    ends = [_spelled_ends(texts, *side) for side in ((student, student_bytes), (teacher, teacher_bytes))]
    exact = np.ones(len(texts.spans), dtype=bool)
    for tokens, spelled in zip((student, teacher), ends, strict=True):
        exact[tokens.texts[~_in_last_character(texts, tokens, spelled)]] = False
    starts = texts.spans[:, 0]
    for number, tokens in enumerate((student, teacher)):
        counted = (visible_ends(texts, tokens) - texts.visible[starts[tokens.texts]]) + texts.bytes[
            starts[tokens.texts]
        ]
        ends[number] = np.where(exact[tokens.texts], ends[number], counted)
    return ends[0], ends[1], exact


def _spelled_ends(texts: LearntTexts, tokens: LearntTokens, token_bytes: Counts) -> Counts:
    """Bytes of the whole up to each token's end if the tokens spell their texts."""
    opens = np.flatnonzero(np.append(True, tokens.texts[1:] != tokens.texts[:-1])[: len(tokens.texts)])
    begins = texts.bytes[texts.spans[tokens.texts[opens], 0]]
    own = token_bytes.copy()
    own[opens] = np.minimum(own[opens], texts.bytes[tokens.ranges[opens, 1]] - begins)
    spelled = np.cumsum(own)
    counts = np.diff(np.append(opens, len(own)))
    ends: Counts = spelled + np.repeat(begins - (spelled - own)[opens], counts)
    return ends


def _in_last_character(texts: LearntTexts, tokens: LearntTokens, ends: Counts) -> Bool[np.ndarray, " tokens"]:
    """Whether these ends, in bytes, are in or behind the last character of each token's range."""
    first, last = tokens.ranges.T
    inside = ends > texts.bytes[np.maximum(last - 1, first)]
    within: Bool[np.ndarray, " tokens"] = (ends <= texts.bytes[last]) & (
        inside | (first == last) & (ends == texts.bytes[last])
    )
    return within


def common_spans(
    texts: LearntTexts,
    student: LearntTokens,
    teacher: LearntTokens,
    student_ends: Counts,
    teacher_ends: Counts,
    max_spans: int,
) -> tuple[Int64[np.ndarray, "spans 2"], Int64[np.ndarray, "spans 2"], Pointers]:
    """Spans between common boundaries, [start, end) tokens of each side's batch, and row pointers, by the student's order.

    `…_ends`: of each token, in one measure, never falling (`visible_ends`, `byte_ends`). Of a document with more than
    `max_spans`, every so-manieth boundary stands. The last one of a text, and the end of a turn, stand before others, so
    that no tokens are lost; where these alone are too many, every so-manieth of them.
    """
    ours, theirs = _boundaries(student, student_ends), _boundaries(teacher, teacher_ends)
    keys = [
        ends[at] + side.texts[at] for side, ends, at in ((student, student_ends, ours), (teacher, teacher_ends, theirs))
    ]
    in_ours, in_theirs = _matches(*keys)
    ours, theirs = ours[in_ours], theirs[in_theirs]
    of_student, of_teacher = _matches(student.end_turns, teacher.end_turns)
    text = student.texts[ours]
    closing = np.append(text[1:] != text[:-1], True)[: len(text)]
    slots = student.end_turns[of_student] >> _TURNS
    documents = np.concatenate(
        [
            np.repeat(np.arange(len(texts.rows) - 1), np.diff(texts.rows))[text],
            np.searchsorted(_slots_without_text(texts.rows), slots, side="right") - 1,
        ]
    )
    closing = np.append(closing, np.ones(len(slots), dtype=bool))
    order = np.argsort(np.append(student.places[ours], student.end_places[of_student]), kind="stable")
    stands = np.empty(len(order), dtype=bool)
    stands[order] = _standing(documents[order], closing[order], max_spans)
    inner, outer = stands[: len(ours)], stands[len(ours) :]
    spans = [
        np.concatenate([_spans_up_to(side, at[inner]), side.end_places[ends[outer], None] + np.array([0, 1])])
        for side, at, ends in ((student, ours, of_student), (teacher, theirs, of_teacher))
    ]
    order = np.argsort(spans[0][:, 0], kind="stable")
    counts = np.bincount(documents[stands], minlength=len(texts.rows) - 1)
    return spans[0][order], spans[1][order], np.append(0, np.cumsum(counts))


def _boundaries(tokens: LearntTokens, ends: Counts) -> Int64[np.ndarray, " boundaries"]:
    """The last of the tokens of a text that have the same end."""
    last = np.append((ends[1:] != ends[:-1]) | (tokens.texts[1:] != tokens.texts[:-1]), True)
    return np.flatnonzero(last[: len(ends)])


def _matches(
    one: Int64[np.ndarray, " ones"], other: Int64[np.ndarray, " others"]
) -> tuple[Int64[np.ndarray, " both"], Int64[np.ndarray, " both"]]:
    """Where the numbers that both have are in the one and in the other; both rise."""
    at = np.searchsorted(other, one)
    there = np.flatnonzero(np.append(other, MISSING)[at] == one)
    return there, at[there]


def _spans_up_to(tokens: LearntTokens, at: Int64[np.ndarray, " spans"]) -> Int64[np.ndarray, "spans 2"]:
    """The tokens up to each of these, from behind the one before it in its text, else from the text's first."""
    text = tokens.texts[at]
    first = np.searchsorted(tokens.texts, text)
    follows = np.append(False, text[1:] == text[:-1])[: len(at)]
    first[follows] = at[:-1][follows[1:]] + 1
    return np.stack([tokens.places[first], tokens.places[at] + 1], axis=1)


def _standing(
    documents: Int64[np.ndarray, " spans"], closing: Bool[np.ndarray, " spans"], most: int
) -> Bool[np.ndarray, " spans"]:
    """Which boundaries stand if a document may have `most`, those that close something before others."""
    stands = np.zeros(len(documents), dtype=bool)
    closings = np.bincount(documents[closing], minlength=int(documents.max(initial=-1)) + 1)
    for kind, room in ((closing, np.full(len(closings), most)), (~closing, np.maximum(most - closings, 0))):
        own = documents[kind]
        counts = np.bincount(own, minlength=len(closings))
        number = np.arange(len(own)) - (np.cumsum(counts) - counts)[own]
        share, count = np.minimum(room, counts)[own], counts[own]
        stands[kind] = (number + 1) * share // count > number * share // count
    return stands


def prefix_keys(texts: LearntTexts, tokens: LearntTokens, ends: Counts, count: int) -> Int64[np.ndarray, " all_tokens"]:
    """What is read of the learnt texts before each of a side's `count` tokens, as a number; -1: not known.

    Both sides' numbers are the same where they have read the same: of a text as much, or all of a turn before its end token.
    `ends`: of each token, in one measure on both sides, never falling (`byte_ends`). Before a token that has the end of the
    one before it, as where the two share a character, it is not known; nor before one that a cut text begins with.
    """
    keys = np.full(count, MISSING, dtype=np.int64)
    first = np.append(True, tokens.texts[1:] != tokens.texts[:-1])[: len(ends)]
    starts = texts.spans[tokens.texts, 0]
    whole = texts.visible[starts] == texts.visible[tokens.ranges[:, 0]]
    before = np.append(MISSING, ends[:-1])[: len(ends)]
    read = np.where(first, texts.bytes[starts], before)
    known = np.where(first, whole, ends > before)
    keys[tokens.places] = np.where(known, read + tokens.texts, MISSING)
    keys[tokens.end_places] = MISSING - 1 - tokens.end_turns
    return keys


def exact_pairs(texts: LearntTexts, student: LearntTokens, teacher: LearntTokens) -> Int64[np.ndarray, "pairs 2"]:
    """Tokens that cover the same visible characters: the student's and the teacher's in their batches, by the student's."""
    ours, theirs = _covering(texts, student), _covering(texts, teacher)
    our_ranges, their_ranges = (texts.visible[side.ranges[at]] for side, at in ((student, ours), (teacher, theirs)))
    one, other = _matches(our_ranges[:, 0], their_ranges[:, 0])
    alike = our_ranges[one, 1] == their_ranges[other, 1]
    ours, theirs = ours[one[alike]], theirs[other[alike]]
    of_student, of_teacher = _matches(student.end_turns, teacher.end_turns)
    pairs = np.stack(
        [
            np.append(student.places[ours], student.end_places[of_student]),
            np.append(teacher.places[theirs], teacher.end_places[of_teacher]),
        ],
        axis=1,
    )
    return pairs[np.argsort(pairs[:, 0], kind="stable")]


def _covering(texts: LearntTexts, tokens: LearntTokens) -> Int64[np.ndarray, " covering"]:
    """Tokens that hold some visible character and share none; the visible characters before them rise."""
    first, last = tokens.ranges.T
    parted = first[1:] < last[:-1]
    alone = ~(np.append(False, parted) | np.append(parted, False))[: len(first)]
    return np.flatnonzero(alone & (texts.visible[last] > texts.visible[first]))
