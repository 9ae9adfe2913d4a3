"""The term `soft_dtw` against plain float64 loops over its equations, on documents of two tokenizers; and what learns from it."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from dtw import by_loops
from schemas.errors import UsageError
from trainer.batches.batch import Batch, TeacherTokens
from trainer.models.embeddings import Embeddings
from trainer.objectives import build
from trainer.student.distiller import Distiller
from trainer.student.model import Student
from two_tokenizers import DOCUMENTS, STUDENT, TEACHER, TwoTokenizers

#: Narrow enough for short responses to leave it.
BAND = {"width": 0.3, "entropy": 0.4, "mix": 0.7, "penalty": 0.8}
#: With documents of which one side, or either, has nothing to learn.
WITH_EMPTY = (*DOCUMENTS, ((2, 3), (1, 0)), ((2, 0), (1, 3)), ((1, 0), (1, 0)))


def terms_of(problem, dual="dskd", same_tokens=False, **options):
    """The term and that of DSKD."""
    torch.manual_seed(1)
    built = build({"soft_dtw": options, dual: {}}, problem.setting(same_tokens=same_tokens), "objectives")
    return [problem.begun(built[name]) for name in ("soft_dtw", dual)]


def distances(x, y):
    return torch.tensor(
        [[1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in y] for a in x], dtype=torch.float64
    )


def penalties(attention, band):
    n, m = attention.shape
    table = torch.zeros(n, m, dtype=torch.float64)
    for i, line in enumerate(attention.tolist()):
        centre = band["mix"] * sum(j * share for j, share in enumerate(line)) + (1 - band["mix"]) * i * m / n
        half_width = band["width"] - band["entropy"] * sum(share * math.log(share) for share in line if share)
        for j in range(m):
            table[i, j] = band["penalty"] * (abs(j - centre) > half_width)
    return table


@torch.no_grad()
def plain(problem, term, dual, gamma, band, on=("hidden", "embeddings"), normalised=True):
    batch, teacher = problem.batch, problem.batch.teacher
    embed, other = problem.embedding.weight, problem.teacher_embeddings.weight
    total = 0.0
    for (a, b), (c, d) in zip(
        pairwise(batch.position_rows.tolist()), pairwise(teacher.position_rows.tolist()), strict=True
    ):
        if a == b or c == d:
            continue
        positions, others = batch.positions[a:b], teacher.positions[c:d]
        spaces = {}
        if "hidden" in on:
            spaces["hidden"] = problem.hidden[positions], dual.to_student(teacher.final[c:d])
        if "embeddings" in on:
            spaces["embeddings"] = embed[batch.targets[a:b]], term.embedding_to_student(other[teacher.targets[c:d]])
        raised = torch.zeros(b - a, d - c, dtype=torch.float64)
        if band:
            queries = dual.query(torch.cat([embed[batch.ids[positions]], embed[batch.targets[a:b]]], 1))
            keys = torch.cat([other[teacher.ids[others]], other[teacher.targets[c:d]]], 1) / dual.scales[0]
            raised = penalties((queries @ keys.t() / math.sqrt(2 * TEACHER)).softmax(1), band)
        for x, y in spaces.values():
            total += by_loops(distances(x, y) + raised, gamma)[0]
            if normalised:
                total -= (by_loops(distances(x, x), gamma)[0] + by_loops(distances(y, y), gamma)[0]) / 2
    return total / len(batch.targets)


@pytest.mark.parametrize("dual", ["dskd", "dwa"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"band": BAND},
        {"band": BAND, "gamma": 0.8, "on": ["hidden"]},
        {"band": BAND, "on": ["embeddings"], "normalised": False},
        {"band": None},
    ],
)
def test_against_plain_loops(dual, options):
    problem = TwoTokenizers(WITH_EMPTY)
    term, of_dual = terms_of(problem, dual, **options)
    published = {"width": 5, "entropy": 2, "mix": 0.7, "penalty": 1}
    expected = plain(problem, term, of_dual, **{"gamma": 2.0, "band": published} | options)
    assert problem.value(term).item() == pytest.approx(expected, rel=1e-9)
    if options.get("band") == BAND:
        assert expected != pytest.approx(plain(problem, term, of_dual, **{"gamma": 2.0} | options | {"band": None}))


def whole(problem):
    """The problem with the teacher's states of all its tokens, and the same as if all but first tokens were learnt."""
    teacher = problem.batch.teacher
    states = torch.randn(len(teacher.ids), TEACHER, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    problem.batch = replace(problem.batch, teacher=replace(teacher, whole_final=states))

    def all_of(side):
        tokens = list(pairwise(side.rows.tolist()))
        before = torch.tensor([token for start, end in tokens for token in range(start, end - 1)])
        rows = torch.tensor([0, *(max(end - start - 1, 0) for start, end in tokens)]).cumsum(0)
        return side.ids, side.rows, before, rows, side.ids[before + 1]

    other = copy.copy(problem)
    places = all_of(teacher)
    tokens = TeacherTokens(*places, final=states[places[2]])
    other.batch = Batch(problem.batch.documents, *all_of(problem.batch), teacher=tokens)
    return other


@pytest.mark.parametrize("band", [BAND, None])
def test_all_positions_are_those_of_whole_documents(band):
    """The band with them; the denominator stays what is learnt, and with responses alone nothing of prompts counts."""
    problem = TwoTokenizers(WITH_EMPTY)
    of_all = whole(problem)
    term, dual = terms_of(problem, positions="all", band=band)
    expected = plain(of_all, term, dual, 2.0, band) * len(of_all.batch.targets) / len(problem.batch.targets)
    assert problem.value(term).item() == pytest.approx(expected, rel=1e-9)
    assert term.needs().whole_final
    of_responses, dual = terms_of(problem, band=band)
    assert problem.value(of_responses).item() == pytest.approx(plain(problem, of_responses, dual, 2.0, band), rel=1e-9)
    assert not of_responses.needs().whole_final


def test_finite_differences():
    problem = TwoTokenizers((((2, 3), (1, 2)), ((1, 1), (2, 4))))
    term, dual = terms_of(problem, band=BAND)
    leaves = [problem.hidden, dual.to_student.bias, term.embedding_to_student.weight]
    assert torch.autograd.gradcheck(lambda *_: problem.value(term), leaves, eps=1e-6, atol=1e-7, rtol=1e-6)
    # of embeddings DSKD's attention depends on, too, but not the gradient
    free, _ = terms_of(problem, band=None)
    assert torch.autograd.gradcheck(
        lambda _: problem.value(free), [problem.embedding.weight], eps=1e-6, atol=1e-7, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("on", "learning"),
    [
        (["hidden"], {"hidden", "to_student.weight", "to_student.bias"}),
        (["embeddings"], {"embedding", "embedding_to_student.weight", "embedding_to_student.bias"}),
    ],
)
def test_what_learns_from_what(on, learning):
    """The student, its embeddings included, W_v and W_e; nothing through the attention, nor an output matrix."""
    problem = TwoTokenizers()
    term, dual = terms_of(problem, on=on, band=BAND)
    both = nn.ModuleList([term, dual])
    gradients = problem.gradients(problem.value(term), both)
    learnt = {leaf for leaf, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert {leaf.removeprefix("0.").removeprefix("1.") for leaf in learnt} == learning


def test_dskd_computes_its_attention_once_for_both(monkeypatch):
    """And anew of another batch, though it has the same documents."""
    problem = TwoTokenizers()
    term, dual = terms_of(problem)
    batches = []
    compare = dual._compare
    monkeypatch.setattr(dual, "_compare", lambda batch, teacher: batches.append(batch) or compare(batch, teacher))
    alone = problem.value(dual)
    problem.value(term)
    both = problem.value(dual)
    assert len(batches) == 2
    assert both.item() == alone.item()
    problem.assert_same_gradients(both, alone, dual)
    problem.value(term)
    assert problem.value(dual, replace(problem.batch)).item() == alone.item()
    assert len(batches) == 4


def test_projectors_belong_to_one_term():
    term, dual = terms_of(TwoTokenizers())
    assert {name for name, _ in term.named_parameters()} == {
        "embedding_to_student.weight",
        "embedding_to_student.bias",
    }
    assert not {*map(id, term.parameters())} & {*map(id, dual.parameters())}
    assert not [*terms_of(TwoTokenizers(), on=["hidden"])[0].parameters()]


def test_a_batch_is_the_sum_of_its_documents():
    problem = TwoTokenizers(WITH_EMPTY)
    term, _ = terms_of(problem, band=BAND)
    together = term({4: problem.hidden}, problem.batch)
    parts = [problem.alone(document) for document in range(len(WITH_EMPTY))]
    torch.testing.assert_close(together, sum(term({4: hidden}, batch) for batch, hidden in parts))
    counts = [term.denominators(batch) for batch, _ in parts]
    assert sum(counts) == term.denominators(problem.batch)


@pytest.mark.parametrize("documents", [(((2, 3), (1, 0)),), (((2, 0), (1, 3)),), ()])
def test_where_there_is_nothing_to_warp(documents):
    """0, and every parameter has a gradient, as partitioned weights need it."""
    problem = TwoTokenizers(documents)
    term, dual = terms_of(problem, band=BAND)
    total = term({4: problem.hidden}, problem.batch)
    assert total.tolist() == [0]
    leaves = [problem.hidden, *dual.to_student.parameters(), *term.parameters()]
    assert not any(gradient.any() for gradient in torch.autograd.grad(total.sum(), leaves))


def test_the_same_tokens_attend_to_themselves():
    """The centre of the band is the diagonal, and its width what the config says."""
    problem = TwoTokenizers((((1, 6), (1, 6)), ((2, 3), (2, 3))))
    term, dual = terms_of(problem, same_tokens=True, band={"width": 1, "penalty": 7})
    assert term.config.band is not None
    attention = dual.attention(problem.batch)
    expected = [torch.eye(6), torch.eye(3)]
    assert attention.tolist() == torch.cat([each.flatten() for each in expected]).tolist()
    raised = term.config.band.penalties(attention, torch.tensor([[6, 6], [3, 3]]))
    off = [(torch.arange(n)[:, None] - torch.arange(n)).abs() > 1 for n in (6, 3)]
    assert raised.tolist() == (7.0 * torch.cat([each.flatten() for each in off])).tolist()
    assert problem.value(term).isfinite()


def test_gamma_follows_the_run():
    problem = TwoTokenizers()
    ramp, dual = terms_of(problem, gamma={"start": 2.0, "end": 0.8, "over": 0.5})
    student = Student.__new__(Student)  # which is not asked
    nn.Module.__init__(student)
    distiller = Distiller(student, {"soft_dtw": ramp, "dskd": dual}, None)
    ramp, dual = problem.begun(ramp), problem.begun(dual)
    values = []
    for progress, gamma in ((0.0, 2.0), (0.25, 1.4), (0.5, 0.8), (None, 0.8)):
        if progress is None:
            distiller.begin_validation()
        else:
            distiller.begin_step(3, progress)
        expected = plain(problem, ramp, dual, gamma, {"width": 5, "entropy": 2, "mix": 0.7, "penalty": 1})
        values.append(problem.value(ramp).item())
        assert values[-1] == pytest.approx(expected, rel=1e-9)
        assert problem.value(ramp).item() == values[-1]  # however often it is asked
    assert values[0] != values[2] == values[3]


@pytest.mark.parametrize("others", [{}, {"ce": {}}])
def test_without_dskd_it_is_refused(others):
    setting = TwoTokenizers().setting()
    with pytest.raises(UsageError, match=r"objectives\.soft_dtw: .* add the term `dskd` or `dwa`"):
        build({"soft_dtw": {}, **others}, setting, "objectives")


def test_embeddings_that_are_not_as_wide_as_states_are_refused():
    problem = TwoTokenizers()
    term, _ = terms_of(problem)
    problem.teacher_embeddings = Embeddings(torch.randn(31, 3, dtype=torch.float64))
    with pytest.raises(UsageError, match=r"3 features and its last states 7; set `on: \[hidden\]`"):
        problem.begun(term)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "gamma"),
        ({"gamma": {"start": 2.0, "end": 0.0}}, "greater than 0, at both ends"),
        ({"on": []}, "on"),
        ({"on": ["hidden", "hidden"]}, "names a space twice"),
        ({"on": ["logits"]}, "on"),
        ({"band": {"mix": 2}}, "mix"),
        ({"band": {"breadth": 2}}, "breadth"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        terms_of(TwoTokenizers(), **options)


def test_it_needs_what_it_reads():
    problem = TwoTokenizers()
    needs = terms_of(problem)[0].needs()
    assert (needs.teacher_final, needs.embeddings, needs.same_tokens) == (True, True, False)
    assert not terms_of(problem, on=["hidden"])[0].needs().embeddings
    assert terms_of(problem)[0].embedding_to_student.weight.shape == (STUDENT, TEACHER)
