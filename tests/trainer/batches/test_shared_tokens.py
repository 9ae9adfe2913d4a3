"""Spans and pairs of real datasets (several scripts, emoji, a side that was cut, chat templates) against their columns."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_from_disk

from schemas.errors import StateError
from trainer.batches.documents import Documents
from turns import conversations


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Two templates, two tokenizers, and a student that loses the ends of long rows."""
    student = {"tokenizer": "embedded:bytelevel-bpe", "template": "native", "max_length": 40}
    return conversations(tmp_path_factory.mktemp("chats") / "out", student=student)


DATASETS = ["prepared", "aligned", "same", "chats"]


def solid(text):
    return "".join(text.split())


def tokens_of(row, side):
    """A row's learnt tokens by text, (place, start, end), and the tokens that end turns by the turn's last text."""
    texts, ends = {}, {}
    for turn, (first, last) in enumerate(row[f"{side}_responses"]):
        latest = None
        for place in range(first, last):
            start, end = row[f"{side}_offsets"][place]
            inside = [n for n, (a, b) in enumerate(row["responses"]) if a <= start and end <= b]
            if start >= 0 and inside:
                latest = inside[-1]
                texts.setdefault(latest, []).append((place, start, end))
        if row[f"{side}_offsets"][last - 1][0] < 0:
            ends["none", turn] = last - 1
            if latest is not None:
                ends.pop(("none", turn))
                ends[latest] = last - 1
    return texts, ends


def counted(row, number):
    return len(solid(row["text"][:number]))


@pytest.mark.parametrize("dataset", DATASETS)
def test_spans_are_those_that_end_on_both_sides(request, dataset):
    folder = request.getfixturevalue(dataset)
    documents, table = Documents(folder), load_from_disk(str(folder))
    rows = np.array([row for row in (5, 0, 2, 1) if row < len(documents)])
    spans = documents.common_spans(rows, 1024)
    sizes = {side: np.append(0, np.cumsum(documents.lengths(side)[rows])) for side in ("student", "teacher")}
    wanted, counts = [], []
    for number, row in enumerate(rows.tolist()):
        of_row = spans_of(table[row])
        counts.append(len(of_row))
        wanted += [
            [sizes[side][number] + span[n][edge] for n, side in enumerate(sizes) for edge in (0, 1)] for span in of_row
        ]
    assert np.concatenate([spans.student, spans.teacher], axis=1).tolist() == wanted
    assert spans.rows.diff().tolist() == counts
    assert min(counts) > 0


def spans_of(row):
    """Common boundaries of one row by sets of ends."""
    (ours, our_ends), (theirs, their_ends) = (tokens_of(row, side) for side in ("student", "teacher"))
    spans = [
        ([our_ends[key], our_ends[key] + 1], [their_ends[key], their_ends[key] + 1])
        for key in our_ends
        if key in their_ends
    ]
    for text in ours.keys() & theirs.keys():
        last = [{counted(row, end): place for place, _, end in side[text]} for side in (ours, theirs)]
        firsts = [side[text][0][0] for side in (ours, theirs)]
        for end in sorted(last[0].keys() & last[1].keys()):
            lasts = [places[end] + 1 for places in last]
            spans.append(tuple([a, b] for a, b in zip(firsts, lasts, strict=True)))
            firsts = lasts
    return sorted(spans)


@pytest.mark.parametrize("dataset", DATASETS)
def test_pairs_cover_the_same_text(request, dataset):
    """All of them, and no other; as places in `positions` of both sides."""
    folder = request.getfixturevalue(dataset)
    documents, table = Documents(folder), load_from_disk(str(folder))
    rows = np.arange(len(documents))
    found = documents.exact_pairs(rows)
    batch, teacher = documents.batch(rows), documents.teacher_tokens(rows)
    targets = [(batch.positions + 1)[found[:, 0]].tolist(), (teacher.positions + 1)[found[:, 1]].tolist()]
    wanted, at = [], [0, 0]
    for row in table:
        (ours, our_ends), (theirs, their_ends) = (tokens_of(row, side) for side in ("student", "teacher"))
        pairs = [(our_ends[key], their_ends[key]) for key in our_ends if key in their_ends]
        for text in ours.keys() & theirs.keys():
            covers = [
                {cover: token[0] for token in alone(side[text]) if (cover := covered(row, token))[0] < cover[1]}
                for side in (ours, theirs)
            ]
            pairs += [(covers[0][cover], covers[1][cover]) for cover in covers[0].keys() & covers[1].keys()]
        wanted += [[at[0] + a, at[1] + b] for a, b in sorted(pairs) if a and b]
        at = [at[0] + len(row["student_input_ids"]), at[1] + len(row["teacher_input_ids"])]
    assert np.array(targets).T.tolist() == wanted
    if dataset == "same":
        assert len(found) > 0.7 * len(batch.positions)


def covered(row, token):
    return counted(row, token[1]), counted(row, token[2])


def alone(tokens):
    edges = [(0, 0, 0), *tokens, (0, 10**9, 10**9)]
    return [
        token
        for before, token, behind in zip(edges, tokens, edges[2:], strict=False)
        if before[2] <= token[1] and token[2] <= behind[1]
    ]


def test_at_most_so_many_spans(prepared):
    documents, rows = Documents(prepared), np.array([3, 1])
    whole, few = documents.common_spans(rows, 1024), documents.common_spans(rows, 3)
    assert few.rows.diff().tolist() == [3, 3]
    for part in ("student", "teacher"):
        assert getattr(few, part)[[0, 3], 0].tolist() == getattr(whole, part)[whole.rows[:-1], 0].tolist()
        assert getattr(few, part)[[2, 5], 1].tolist() == getattr(whole, part)[whole.rows[1:] - 1, 1].tolist()


@pytest.mark.parametrize("offsets", [[[0, 10**6]], [[-1, 3]], [[5, 2]], []])
def test_offsets_that_a_row_cannot_have(prepared, monkeypatch, offsets):
    documents = Documents(prepared)
    table = documents._table
    index = table.schema.get_field_index("teacher_offsets")
    values = table.column(index).to_pylist()
    values[1] = offsets + values[1][1:]
    column = pa.chunked_array([pa.array(values, table.schema.field(index).type)])
    monkeypatch.setitem(documents.__dict__, "_table", table.set_column(index, table.schema.field(index), column))
    documents.common_spans(np.array([0]), 9)
    with pytest.raises(StateError, match="its column `teacher_offsets` is not that of its tokens"):
        documents.common_spans(np.array([0, 1]), 9)


@pytest.mark.parametrize("dataset", DATASETS)
def test_chunks_are_made_of_the_same_bytes(request, dataset):
    """Of both sides' tokens, but for a space before a response; and as many as there are common boundaries."""
    folder = request.getfixturevalue(dataset)
    documents, table = Documents(folder), load_from_disk(str(folder))
    rows = np.array([row for row in (5, 0, 2, 1) if row < len(documents)])
    chunks = documents.chunks(rows)
    batch, teacher = documents.batch(rows), documents.teacher_tokens(rows)
    texts = sum(len(table[int(row)]["responses"]) for row in rows)
    assert documents.spelled(rows) == (texts, texts)
    sides = (("student", batch, chunks.student), ("teacher", teacher, chunks.teacher))
    spelled = {}
    for side, tokens, spans in sides:
        sizes = documents.vocabulary.lengths[side][tokens.targets.numpy()]
        spelled[side] = [int(sizes[a:b].sum()) for a, b in spans.tolist()]
        starts = tokens.rows[torch.searchsorted(tokens.rows, tokens.positions, right=True) - 1]
        places = (tokens.positions + 1 - starts).tolist()
        document = np.repeat(rows, chunks.rows.diff().numpy())
        for row, (a, b) in zip(document.tolist(), spans.tolist(), strict=True):
            offsets = np.array(table[row][f"{side}_offsets"])[places[a:b]]
            assert (offsets >= 0).all(), "an end of a turn spells nothing"
    differ = [place for place, (a, b) in enumerate(zip(*spelled.values(), strict=True)) if a != b]
    first = {int(place) for place in chunks.rows[:-1]}
    assert len(differ) <= texts
    assert dataset == "chats" or set(differ) <= first
    assert min(chunks.rows.diff().tolist()) > 2


def test_where_it_is_not_known_what_tokens_spell_visible_characters_are_counted(prepared, monkeypatch):
    documents, rows = Documents(prepared), np.array([3, 1])
    known = documents.chunks(rows)
    monkeypatch.setitem(documents.__dict__, "vocabulary", None)
    assert documents.spelled(rows)[0] == 0 < documents.spelled(rows)[1]
    chunks = documents.chunks(rows)
    assert torch.isin(chunks.student[:, 1], known.student[:, 1]).float().mean() > 0.9


def test_ids_beyond_the_vocabulary_are_damage(prepared, monkeypatch):
    documents = Documents(prepared)
    lengths = {side: sizes[:5] for side, sizes in documents.vocabulary.lengths.items()}
    monkeypatch.setitem(documents.__dict__, "vocabulary", replace(documents.vocabulary, lengths=lengths))
    with pytest.raises(StateError, match="its column `student_input_ids` has ids beyond its vocabulary"):
        documents.chunks(np.array([0]))
