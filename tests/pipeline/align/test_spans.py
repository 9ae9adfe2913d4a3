"""Characters to tokens, on random texts cut into random tokens, against a plain double loop."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from one_document import token_spans
from pipeline.align.spans import Ragged, Reason, Texts, Tokens, audit
from pipeline.shards.counts import added
from schemas.columns import GRANULARITIES, SIDES

Span = tuple[int, int]

PIECES = [
    *("The cat, ", "don't", "x=1", "\n\n", "\r\n", " ", "\u00a0", "\u3000", "\t", "\u200b", "\x1c"),
    *("猫が好き。", "안녕 하세요", "שלום עולם", "مرحبا بك", "ไทย", "नमस्ते", "e\u0301a\u0308", "Ω≈ç", "ﬁ", "𝔘𝔫𝔦"),
    *("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "\U0001f3f3\ufe0f\u200d\U0001f308"),
]

SETTINGS = settings(max_examples=75)


@dataclass(frozen=True)
class Case:
    """A text, token ranges as a tokenizer reports them, and units."""

    text: str
    tokens: tuple[Span, ...]
    units: tuple[Span, ...]

    def align(self, tokens: tuple[Span, ...] | None = None) -> tuple[list[Span], list[int]]:
        spans, reasons = token_spans(pairs(self.units), pairs(self.tokens if tokens is None else tokens), self.text)
        return list(map(tuple, spans.tolist())), reasons.tolist()

    def solid(self, span: Span) -> set[int]:
        """Positions of a span's characters that are not white space."""
        return {i for i in range(*span) if not self.text[i].isspace()}

    def dropped(self, tokens: tuple[Span, ...]) -> set[int]:
        """Positions between two neighbouring tokens; where a special one stands between, they are in none and not dropped."""
        own = [(left, right) for left, right in pairwise(tokens) if (-1, -1) not in (left, right)]
        return set().union(*(range(left[1], right[0]) for left, right in own))


def pairs(spans: tuple[Span, ...] | list[Span]) -> np.ndarray:
    return np.array(spans, dtype=np.int32).reshape(-1, 2)


@st.composite
def tokenizations(draw: st.DrawFn, text: str) -> list[Span]:
    """A partition of the text with what real tokenizers do to it.

    Leading space left out of a token's range or made a token; a character split over tokens, or shared by two that hold
    more than it; zero-width tokens; special tokens anywhere.
    """
    tokens: list[Span] = []
    at = 0
    while at < len(text):
        end = min(len(text), at + draw(st.integers(1, 5)))
        start = at
        while start < end - 1 and text[start].isspace():
            start += 1
        habit = draw(st.sampled_from(["plain", "plain", "plain", "split", "shared", "empty", "special"]))
        if habit == "empty" and (not tokens or tokens[-1][1] <= start):  # ends never decrease
            tokens.append((start, start))
        elif habit == "special":
            tokens.append((-1, -1))
        if habit == "split":
            tokens.extend([(start, start + 1)] * draw(st.integers(1, 3)))
        tokens.append((start, end))
        at = end - 1 if habit == "shared" and end - start > 1 else end
    return tokens + [(-1, -1)] * draw(st.integers(0, 1))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    text = draw(st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(st.characters(codec="utf-8")))
    tokens = draw(tokenizations(text))
    solid = [i for i, char in enumerate(text) if not char.isspace()]
    units: list[Span] = []
    if solid:
        edge = st.sampled_from(solid)
        cut = sorted({start for start, _ in tokens} & set(solid)) or solid
        for a, b in draw(st.lists(st.tuples(edge, edge) | st.tuples(st.sampled_from(cut), edge), max_size=8)):
            units.append((min(a, b), max(a, b) + 1))
        whole = [(s, e) for s, e in tokens if s >= 0 and e > s and not text[s].isspace() and not text[e - 1].isspace()]
        units += whole[: draw(st.integers(0, 4))]
    return Case(text, tuple(tokens), tuple(units))


@st.composite
def stretches(draw: st.DrawFn) -> tuple[Case, tuple[Span, ...]]:
    """A case and two stretches of its tokens, one after the other."""
    case = draw(cases())
    edges = sorted(draw(st.lists(st.integers(0, len(case.tokens)), min_size=4, max_size=4)))
    return case, case.tokens[edges[0] : edges[1]] + case.tokens[edges[2] : edges[3]]


BESIDE_A_SPECIAL_TOKEN = Case(
    text="The cat, ",
    tokens=((0, 1), (0, 1), (1, 2), (2, 3), (-1, -1), (3, 4), (4, 5), (5, 9)),
    units=((0, 2),),
)


def double_loop(case: Case, tokens: tuple[Span, ...]) -> tuple[list[Span], list[int]]:
    """What `token_spans` must give: every token held against every unit, character by character."""
    spans, reasons = [], []
    dropped = case.dropped(tokens)
    for unit in case.units:
        wanted, spelled, mine = case.solid(unit) - dropped, set[int](), []
        for index, token in enumerate(tokens):
            characters = case.solid(token) if token != (-1, -1) else set()
            if characters & wanted:
                mine.append(index)
                spelled |= characters
        reason = Reason.OK if spelled == wanted else Reason.INSIDE if spelled >= wanted else Reason.CUT
        reason = reason if wanted else Reason.INSIDE
        spans.append((mine[0], mine[-1] + 1) if reason == Reason.OK else (-1, -1))
        reasons.append(int(reason))
    return spans, reasons


@SETTINGS
@given(cases())
def test_same_as_a_double_loop(case: Case) -> None:
    assert case.align() == double_loop(case, case.tokens)


@SETTINGS
@given(stretches())
@example((BESIDE_A_SPECIAL_TOKEN, (*BESIDE_A_SPECIAL_TOKEN.tokens[:1], *BESIDE_A_SPECIAL_TOKEN.tokens[4:6])))
def test_same_as_a_double_loop_where_stretches_are_cut_or_dropped(drawn: tuple[Case, tuple[Span, ...]]) -> None:
    case, tokens = drawn
    assert case.align(tokens) == double_loop(case, tokens)


@SETTINGS
@given(cases())
def test_a_span_spells_its_unit_and_nothing_else(case: Case) -> None:
    for unit, (first, last), reason in zip(case.units, *case.align(), strict=True):
        assert ((first, last) == (-1, -1)) == (reason != Reason.OK)
        if reason == Reason.OK:
            ranges = [token for token in case.tokens[first:last] if token != (-1, -1)]
            start, end = ranges[0][0], ranges[-1][1]
            assert start <= unit[0]
            assert unit[1] <= end
            assert not case.text[start : unit[0]].strip()
            assert not case.text[unit[1] : end].strip()


@SETTINGS
@given(cases())
def test_nested_units_have_nested_spans(case: Case) -> None:
    spans, _ = case.align()
    for outer, (first, last) in zip(case.units, spans, strict=True):
        for inner, (a, b) in zip(case.units, spans, strict=True):
            if outer[0] <= inner[0] and inner[1] <= outer[1] and first >= 0 and a >= 0:
                assert first <= a < b <= last


@SETTINGS
@given(cases(), st.data())
def test_truncation_drops_a_unit_whole_or_leaves_it(case: Case, data: st.DataObject) -> None:
    front = data.draw(st.integers(0, len(case.tokens)))
    back = data.draw(st.integers(front, len(case.tokens)))
    before, why_before = case.align()
    after, why_after = case.align(case.tokens[front:back])
    for unit, old, was, new, now in zip(case.units, before, why_before, after, why_after, strict=True):
        if was == Reason.OK and front <= old[0] and old[1] <= back:
            assert (new, now) == ((old[0] - front, old[1] - front), Reason.OK)
        covered = set().union(*(case.solid(token) for token in case.tokens[front:back] if token != (-1, -1)))
        assert (now == Reason.CUT) == (not case.solid(unit) <= covered)


@SETTINGS
@given(st.lists(cases(), max_size=5))
def test_a_shard_is_the_same_as_its_documents(documents: list[Case]) -> None:
    texts = Texts.of([case.text for case in documents])
    tokens = Tokens.of(Ragged.join([pairs(case.tokens) for case in documents]), texts)
    spans, reasons = tokens.spans_of(Ragged.join([pairs(case.units) for case in documents]))
    alone = [case.align() for case in documents]
    assert [list(map(tuple, part.tolist())) for part in spans.split()] == [found for found, _ in alone]
    assert reasons.tolist() == [reason for _, why in alone for reason in why]


@SETTINGS
@given(st.lists(st.lists(st.tuples(*[st.sampled_from(Reason)] * 6), max_size=6), min_size=1, max_size=4))
def test_the_audit_counts_every_unit_once_and_adds_up(shards: list[list[tuple[Reason, ...]]]) -> None:
    places = [(side, granularity) for side in SIDES for granularity in GRANULARITIES]

    def counted(rows: list[tuple[Reason, ...]]) -> dict[str, dict[str, dict[str, int]]]:
        columns = np.array(rows, dtype=np.int8).reshape(-1, 6).T
        table = {side: {g: columns[places.index((side, g))].copy() for g in GRANULARITIES} for side in SIDES}
        return audit(table)

    whole = [row for shard in shards for row in shard]
    total = added(counted(shard) for shard in shards)
    assert total == counted(whole)
    for index, (side, granularity) in enumerate(places):
        found = total[side][granularity]
        for name, reason in (("kept", Reason.OK), ("cut", Reason.CUT), ("inside", Reason.INSIDE)):
            assert found[name] == sum(row[index] == reason for row in whole)
    for index, granularity in enumerate(GRANULARITIES):
        both = total["both"][granularity]
        couples = [(row[index], row[index + 3]) for row in whole]
        assert both["units"] == len(whole) == both["kept"] + both["cut"] + both["inside"]
        assert both["kept"] == couples.count((Reason.OK, Reason.OK))
        assert both["cut"] == sum(Reason.CUT in couple for couple in couples)
