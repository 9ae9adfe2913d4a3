"""SRA's terms against plain float64 loops over their equations, on documents of two tokenizers; what learns from what."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from schemas.errors import UsageError
from trainer.batches.batch import SpanLayer, SpanTargets
from trainer.maths.ragged import pointers
from trainer.maths.spans import LearntSpans
from trainer.models import head, row_losses
from trainer.objectives import build
from trainer.objectives.base import StateObjective
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.span_positions import AmongPositions
from trainer.student.output_head import LogitWork
from two_tokenizers import DOCUMENTS, STUDENT, STUDENT_VOCABULARY, TEACHER, TEACHER_VOCABULARY, TwoTokenizers, after

#: The student's id and the teacher's of tokens that both have.
SHARED = torch.stack([torch.arange(1, 21), torch.arange(24, 4, -1)], 1)
INNER, LAST, TEACHER_INNER, TEACHER_LAST = 2, 4, 3, 6
BOTH = [{"student": INNER, "teacher": TEACHER_INNER}, {"student": LAST, "teacher": TEACHER_LAST}]
CAPPED = {"soft_cap": 3.0, "scale": 0.7}
#: With documents that have one span, and none.
WITH_FEW = (((3, 9), (2, 7)), *DOCUMENTS, ((2, 0), (1, 3)), ((1, 4), (1, 4)), ((2, 1), (1, 1)))


class Spanned(TwoTokenizers):
    """With spans of the learnt tokens, states and attention of two layers of each side."""

    def __init__(self, documents=WITH_FEW, seed=0, **options):
        super().__init__(documents, seed, **options)
        random = torch.Generator().manual_seed(seed + 100)

        def normal(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        def paid(tokens):
            return torch.rand(tokens, generator=random, dtype=torch.float64) ** 3

        mine, theirs = len(self.batch.ids), len(self.batch.teacher.ids)
        self.inner = normal(mine, STUDENT).requires_grad_()
        self.paid = {layer: paid(mine) for layer in (INNER, LAST)}
        self.teacher_states = {layer: normal(theirs, TEACHER) for layer in (TEACHER_INNER, TEACHER_LAST)}
        self.teacher_paid = {layer: paid(theirs) for layer in (TEACHER_INNER, TEACHER_LAST)}
        self.spans = [spans_of(mine, theirs) for (_, mine), (_, theirs) in documents]
        if documents == WITH_FEW:  # what a sliding window leaves out: a span on either side, and a whole document
            self.paid[LAST][3:5] = 0
            self.teacher_paid[TEACHER_LAST][3] = 0
            self.teacher_paid[TEACHER_LAST][-2:] = 0
        self.shared = SHARED
        self.uniform = False
        self.fill()

    @property
    def states(self):
        return {INNER: self.inner, LAST: self.hidden}

    def fill(self):
        """The batch's part of spans, from states and attention as they are."""
        rows = pointers([len(spans) for spans in self.spans])
        student, teacher = (self._learnt(side) for side in (0, 1))
        layers = {}
        for layer, states in self.teacher_states.items():
            attention = None if self.uniform else self.teacher_paid[layer][teacher.tokens]
            weights = teacher.weights(attention, states.device)
            layers[layer] = SpanLayer(teacher.pool(states[teacher.tokens], weights), teacher.shares(weights, rows))
        self.batch = replace(self.batch, spans=SpanTargets(student, rows, layers), attention=self.paid)

    def _learnt(self, side):
        counts = [document[side] for document in self.documents]
        rows = pointers([sum(of_document) for of_document in counts])
        mask, spans = torch.zeros(int(rows[-1]), dtype=torch.bool), []
        for (before, learnt), first, own in zip(counts, rows.tolist(), self.spans, strict=False):
            mask[first + before : first + before + learnt] = True
            spans += [[first + before + edge for edge in span[side]] for span in own]
        return LearntSpans.of(mask, rows, torch.tensor(spans, dtype=torch.int64).reshape(-1, 2))

    def term(self, name, same_tokens=False, **options):
        torch.manual_seed(1)
        width = self.teacher_head.weight.shape[1]
        layers = {"student_last": (LAST, STUDENT), "teacher_last": (TEACHER_LAST, width)}
        setting = replace(self.setting(shared=self.shared, same_tokens=same_tokens, **layers), teacher_size=width)
        return self.begun(build({name: options}, setting, "objectives")[name])

    def value(self, term, batch=None, hidden=None):
        batch = self.batch if batch is None else batch
        states = self.states if hidden is None else hidden
        denominators = term.denominators(batch)
        if isinstance(term, StateObjective):
            return term.combined(term(states, batch) / denominators)
        work = term.work(states, batch, 1 / float(denominators))
        return self.head(states[LAST][:0], None, [work])[0]

    def leaves(self, term):
        return super().leaves(term) | {"inner": self.inner}


def spans_of(mine, theirs):
    """Of learnt tokens of both sides: one of each is a span, the last ones longer, and a token of longer sides is in none."""
    count = min(mine, theirs)
    if count == 0:
        return []
    ends = [range(1, count), range(1, count)]
    last = [max(count, tokens - 1) for tokens in (mine, theirs)]
    edges = [[0, *end, final] for end, final in zip(ends, last, strict=True)]
    return list(zip(*(list(pairwise(edge)) for edge in edges), strict=True))


def pooled(states, attention, spans, first, learnt):
    """C and ω of one document's spans: token by token."""
    paid = {token: 1.0 if attention is None else float(attention[first + token]) for token in range(learnt)}
    total = sum(paid.values())
    weights = {token: each / total if total else 1 / learnt for token, each in paid.items()}
    vectors, shares = [], []
    for begin, end in spans:
        share = sum(weights[token] for token in range(begin, end))
        equal = 1 / (end - begin)
        vectors.append(
            sum((weights[token] / share if share else equal) * states[first + token] for token in range(begin, end))
        )
        shares.append(share)
    return vectors, [share / sum(shares) if sum(shares) else 1 / len(shares) for share in shares]


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def per_document(problem, term):
    """C^S, C^T and ω of each layer, of each document that has spans."""
    uniform = term.config.weights == "uniform"
    layers = [(pair.student, pair.teacher) for pair in term.layers]
    starts = [side.rows.tolist() for side in (problem.batch, problem.batch.teacher)]
    for number, ((mine, theirs), spans) in enumerate(zip(problem.documents, problem.spans, strict=True)):
        if not spans:
            continue
        told = []
        for student, teacher in layers:
            states = problem.states[student], problem.teacher_states[teacher]
            paid = (None, None) if uniform else (problem.paid[student], problem.teacher_paid[teacher])
            of_sides = [
                pooled(states[side], paid[side], [span[side] for span in spans], starts[side][number] + before, learnt)
                for side, (before, learnt) in enumerate((mine, theirs))
            ]
            told.append((of_sides[0][0], *of_sides[1]))
        yield told


def plain_cos(problem, term):
    losses = []
    for told in per_document(problem, term):
        maps = [projector.weight for projector in term.projectors]
        mine = [[p @ c for c in of[0]] for p, of in zip(maps, told, strict=True)]
        layers = [
            sum(w * (1 - cosine(a, b)) for a, b, w in zip(own, of[1], of[2], strict=True))
            for own, of in zip(mine, told, strict=True)
        ]
        loss = sum(layers) / len(layers)
        if term.config.delta:
            changes = [
                sum(
                    told[low][2][k]
                    * (1 - cosine(mine[low + 1][k] - mine[low][k], told[low + 1][1][k] - told[low][1][k]))
                    for k in range(len(mine[low]))
                )
                for low in range(len(told) - 1)
            ]
            loss = loss + sum(changes) / len(changes)
        losses.append(loss)
    return sum(losses) / len(losses)


def plain_geometry(problem, term):
    losses = []
    for ((mine, theirs, omega),) in per_document(problem, term):
        above, below = 0.0, 0.0
        for k in range(len(mine)):
            for other in range(len(mine)):
                if k != other:
                    weight = omega[k] * omega[other]
                    above += weight * (cosine(mine[k], mine[other]) - cosine(theirs[k], theirs[other])) ** 2
                    below += weight
        losses.append(above / max(below, 1e-5))
    return sum(losses) / len(losses)


def plain_kl(problem, term):
    ours, theirs = problem.shared.unbind(1)
    losses = []
    for ((mine, others, _),) in per_document(problem, term):
        divergences = []
        for c_s, c_t in zip(mine, others, strict=True):
            z_s = after(c_s @ problem.head.weight[ours].t() + problem.head.bias[ours], problem.head)
            bias = 0 if problem.teacher_head.bias is None else problem.teacher_head.bias[theirs]
            z_t = after(c_t @ problem.teacher_head.weight[theirs].t() + bias, problem.teacher_head)
            p, q = (z / term.config.temperature for z in (z_t, z_s))
            divergences.append((p.softmax(0) * (p.log_softmax(0) - q.log_softmax(0))).sum())
        losses.append(sum(divergences) / (len(divergences) if term.config.reduce == "mean" else 1))
    return sum(losses) / len(losses)


PLAIN = {"span_cos": plain_cos, "span_geometry": plain_geometry, "span_kl": plain_kl}
CASES = [
    ("span_cos", {}),
    ("span_cos", {"layers": BOTH, "weights": "uniform"}),
    ("span_cos", {"layers": BOTH, "delta": True}),
    ("span_geometry", {}),
    ("span_geometry", {"weights": "uniform"}),
    ("span_kl", {}),
    ("span_kl", {"reduce": "mean", "temperature": 1.5, "weights": "uniform"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("capped", [{}, CAPPED], ids=["plain", "capped"])
def test_against_a_plain_loop(name, options, capped):
    problem = Spanned(**capped)
    problem.uniform = options.get("weights") == "uniform"
    problem.fill()
    term = problem.term(name, **options)
    loss, expected = problem.value(term), PLAIN[name](problem, term)
    # weights of tokens and spans that are equal ones are float32
    rounding = 1e-6 if problem.uniform else 1e-9
    torch.testing.assert_close(loss, expected, rtol=rounding, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=10 * rounding, atol=rounding * 1e-3)


def beside(problem, *terms):
    """`span_kl` with cross-entropy at the batch's positions: one pass through the student's output matrix."""
    batch, states = problem.batch, problem.states
    parts = [term.work_beside(states, batch, 0.5 + number) for number, term in enumerate(terms)]
    ce = CrossEntropy(CrossEntropy.options(), problem.setting())
    riders = [rider for rider, _ in parts]
    work = LogitWork.of(batch, states, [ce], [0.25], None, riders=riders)
    loss, values = problem.head(states[LAST][batch.positions], work, [rest for _, rest in parts])
    assert len(values) == 1 + 2 * len(terms)
    return loss, parts


@pytest.mark.parametrize(("together", "in_cache"), [(1, 1), (4, 2), (5, 3), (100, 100)])
@pytest.mark.parametrize("capped", [{}, CAPPED], ids=["plain", "capped"])
@pytest.mark.parametrize("options", [{}, {"reduce": "mean", "temperature": 1.5}, {"weights": "uniform"}], ids=str)
def test_beside_cross_entropy_spans_take_its_logits(monkeypatch, options, capped, together, in_cache):
    """The same loss and gradients as a plain loop, however few logits are in memory at once."""
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", together * STUDENT_VOCABULARY)
    monkeypatch.setattr(row_losses, "IN_CACHE", in_cache * STUDENT_VOCABULARY)
    problem = Spanned(**capped)
    problem.uniform = "weights" in options
    problem.fill()
    term = problem.term("span_kl", **options)
    loss, ((rider, rest),) = beside(problem, term)
    lengths = rider.spans.spans.diff(dim=1)
    assert (lengths.max() == 1) == bool(capped), "a mean of capped logits is not that of a mean"
    assert len(lengths) > len(rest.rows) > 0
    logits = after(problem.hidden @ problem.head.weight.t() + problem.head.bias, problem.head)[problem.batch.positions]
    plain = 0.5 * float(term.denominators(problem.batch)) * PLAIN["span_kl"](problem, term)
    expected = plain - 0.25 * logits.log_softmax(1).gather(1, problem.batch.targets[:, None]).sum()
    rounding = 1e-6 if problem.uniform else 1e-9
    torch.testing.assert_close(loss, expected, rtol=rounding, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=10 * rounding, atol=rounding * 1e-3)


def test_two_such_terms_at_once(monkeypatch):
    """And without gradients, as in validation; of a batch of nothing to compare nothing."""
    monkeypatch.setattr(row_losses, "IN_CACHE", 3 * STUDENT_VOCABULARY)
    problem = Spanned()
    terms = [problem.term("span_kl"), problem.term("span_kl", temperature=1.0)]
    loss, _ = beside(problem, *terms)
    counted = float(terms[0].denominators(problem.batch))
    alone = [0.5 * counted * problem.value(terms[0]), 1.5 * counted * problem.value(terms[1])]
    ce = beside(problem)[0]
    torch.testing.assert_close(loss, sum(alone) + ce, rtol=1e-12, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(beside(problem, *terms)[0], loss.detach(), rtol=1e-12, atol=0)
    empty = Spanned((((2, 0), (1, 3)), ((1, 0), (1, 0))))
    assert beside(empty, empty.term("span_kl"))[0].item() == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 4), max_size=5)), max_size=4), st.integers(1, 4))
def test_spans_that_are_positions(documents, most):
    """Of documents with so many tokens before what is learnt, which is cut into spans of such lengths: against a plain loop."""
    learnt, rows, spans = [], [0], []
    for before, lengths in documents:
        first = rows[-1] + before
        for length in lengths:
            spans.append([first, first + length])
            first += length
        learnt += range(rows[-1] + before, first)
        rows.append(first)
    mask = torch.zeros(rows[-1], dtype=torch.bool)
    mask[learnt] = True
    positions = [token - 1 for token in learnt if token not in rows[:-1]]
    of_batch = torch.tensor(spans, dtype=torch.int64).reshape(-1, 2)
    found = AmongPositions.of(LearntSpans.of(mask, torch.tensor(rows), of_batch), torch.tensor(rows), most)
    expected = {
        number: [positions.index(token) for token in range(*span)]
        for number, span in enumerate(spans)
        if span[1] - span[0] <= most and {*range(*span)} <= {*positions}
    }
    assert found.index.tolist() == list(expected)
    assert sorted([*found.index.tolist(), *found.others.tolist()]) == list(range(len(spans)))
    assert [list(range(*span)) for span in found.spans.tolist()] == list(expected.values())
    weights = torch.rand(len(learnt))
    at_positions = found.at_positions(weights, len(positions)).tolist()
    for place, token in enumerate(positions):
        assert at_positions[place] == (weights[learnt.index(token)].item() if token in learnt else 0)


@pytest.mark.parametrize(
    ("name", "options", "learning"),
    [
        ("span_cos", {"layers": BOTH}, {"hidden", "inner", "projectors.0.weight", "projectors.1.weight"}),
        ("span_cos", {}, {"hidden", "projectors.0.weight"}),
        ("span_geometry", {}, {"hidden"}),
        ("span_kl", {}, {"hidden", "head", "bias"}),
    ],
)
def test_what_learns_from_what(name, options, learning):
    """P, the student's states and its output matrix; never what weighs, nor anything of the teacher."""
    problem = Spanned()
    constants = [*problem.paid.values(), *problem.teacher_paid.values(), *problem.teacher_states.values()]
    for constant in constants:
        constant.requires_grad_()
    problem.fill()
    term = problem.term(name, **options)
    loss = problem.value(term)
    gradients = problem.gradients(loss, term)
    assert {leaf for leaf, gradient in gradients.items() if gradient is not None and gradient.any()} == learning
    of_weights = torch.autograd.grad(loss, constants[:4], allow_unused=True)
    assert not any(gradient is not None and gradient.any() for gradient in of_weights)


@pytest.mark.parametrize(("name", "options"), [("span_cos", {"layers": BOTH, "delta": True}), *CASES[3:6:2]])
def test_finite_differences(name, options):
    problem = Spanned((((2, 4), (1, 3)), ((1, 2), (2, 2))), **CAPPED)
    term = problem.term(name, **options)
    gradients = problem.gradients(problem.value(term), term)
    step = 1e-6
    for leaf, values in problem.leaves(term).items():
        direction = torch.randn(values.shape, dtype=torch.float64)
        ends = []
        for way in (step, -step):
            values.data += way * direction
            ends.append(problem.value(term).item())
            values.data -= way * direction
        expected = (ends[0] - ends[1]) / (2 * step)
        slope = 0.0 if gradients[leaf] is None else float((gradients[leaf] * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-8), leaf


def same_model(documents):
    """The problem in which the student is the teacher: of the same tokens, states and attention."""
    problem = Spanned(documents)
    for mine, theirs in ((INNER, TEACHER_INNER), (LAST, TEACHER_LAST)):
        problem.teacher_states[theirs] = problem.states[mine].detach()
        problem.teacher_paid[theirs] = problem.paid[mine]
    problem.fill()
    own = {"weight": problem.head.weight.detach(), "bias": problem.head.bias.detach()}
    problem.teacher_head = replace(problem.teacher_head, **own, soft_cap=None, scale=None)
    return problem


def test_the_same_model_twice_is_a_loss_of_nothing():
    """Oracle: student = teacher and P = I."""
    problem = same_model((((2, 4), (2, 4)), ((1, 3), (1, 3))))
    for name, options in CASES:
        if options.get("weights") == "uniform":
            continue
        term = problem.term(name, same_tokens=True, **options)
        for projector in getattr(term, "projectors", ()):
            projector.weight = nn.Parameter(torch.eye(STUDENT, dtype=torch.float64))
        torch.testing.assert_close(problem.value(term).item(), 0.0, rtol=0, atol=1e-12)


def test_geometry_of_few_spans():
    """Oracle: of two spans (cos^S − cos^T)², whatever their weights; of one, and of documents of one, nothing."""
    two = Spanned((((1, 2), (2, 2)),))
    term = two.term("span_geometry")
    spans, vectors = two.hidden[1:3], two.teacher_states[TEACHER_LAST][2:4]
    expected = (cosine(*spans) - cosine(*vectors)) ** 2
    torch.testing.assert_close(two.value(term), expected, rtol=1e-12, atol=0)
    one = Spanned((((1, 1), (2, 3)),))
    assert one.value(term).item() == 0
    assert one.term("span_geometry").denominators(one.batch).tolist() == [1]


def alone(problem, number):
    """The problem of one of its documents."""
    single = Spanned((problem.documents[number],))
    mine, theirs = (slice(*side.rows[number : number + 2].tolist()) for side in (problem.batch, problem.batch.teacher))
    single.hidden, single.inner = problem.hidden[mine], problem.inner[mine]
    single.paid = {layer: paid[mine] for layer, paid in problem.paid.items()}
    single.teacher_states = {layer: states[theirs] for layer, states in problem.teacher_states.items()}
    single.teacher_paid = {layer: paid[theirs] for layer, paid in problem.teacher_paid.items()}
    single.fill()
    return single


@pytest.mark.parametrize(("name", "options"), CASES)
def test_documents_count_alike_whatever_stands_beside_them(name, options):
    problem = Spanned()
    term = problem.term(name, **options)
    batches = [alone(problem, number) for number in range(len(problem.documents))]
    counts = torch.stack([term.denominators(single.batch) for single in batches])
    assert counts.amax() == 1
    assert torch.equal(counts.sum(0), term.denominators(problem.batch))
    singles = [problem.value(term, single.batch, single.states) for single in batches if single.spans[0]]
    torch.testing.assert_close(problem.value(term), sum(singles) / len(singles), rtol=1e-6, atol=1e-12)


def test_ids_do_not_matter():
    """Both vocabularies in another order, and `shared` along with them."""
    problem = Spanned(**CAPPED)
    value = problem.value(problem.term("span_kl"))
    orders = [torch.randperm(count) for count in (STUDENT_VOCABULARY, TEACHER_VOCABULARY)]
    for parameter in (problem.head.weight, problem.head.bias):
        parameter.data = parameter.data[orders[0]]
    problem.teacher_head = problem.teacher_head.of(orders[1])
    places = [order.argsort() for order in orders]
    problem.shared = torch.stack([places[0][SHARED[:, 0]], places[1][SHARED[:, 1]]], 1)
    torch.testing.assert_close(problem.value(problem.term("span_kl")), value, rtol=1e-12, atol=0)


def test_some_spans_at_a_time_are_all_of_them(monkeypatch):
    problem = Spanned(**CAPPED)
    term = problem.term("span_kl", reduce="mean")
    whole = problem.value(term)
    expected = problem.gradients(whole, term)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 3 * len(SHARED))
    monkeypatch.setattr(row_losses, "IN_CACHE", 2 * len(SHARED))
    parted = problem.value(term)
    torch.testing.assert_close(parted, whole, rtol=1e-12, atol=0)
    for leaf, gradient in problem.gradients(parted, term).items():
        torch.testing.assert_close(gradient, expected[leaf], rtol=1e-10, atol=1e-14, msg=leaf)


@pytest.mark.parametrize("documents", [(((2, 0), (1, 3)),), ()])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_where_there_is_no_span(name, options, documents):
    """0, and every parameter has a gradient, as partitioned weights need it."""
    problem = Spanned(documents)
    term = problem.term(name, **options)
    assert not term.denominators(problem.batch).any()
    if name == "span_kl":
        total, values = problem.head(problem.hidden[:0], None, [term.work(problem.states, problem.batch, 1.0)])
        assert values.tolist() == [0]
    else:
        total = term(problem.states, problem.batch).sum()
    assert total.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(total, [problem.hidden, *term.parameters()]))


def test_the_teachers_matrix_is_cut_once():
    problem = Spanned()
    term = problem.term("span_kl")
    first, second = (term.work(problem.states, problem.batch, 1.0).head for _ in range(2))
    assert first is second
    assert first.weight.shape == (len(SHARED), TEACHER)


def test_it_needs_what_it_reads():
    problem = Spanned()
    cos = problem.term("span_cos", layers=BOTH, max_spans=9)
    assert (cos.needs().spans.layers, cos.needs().spans.weights, cos.needs().spans.most) == ({3, 6}, "attention", 9)
    assert (cos.student_layers(), cos.attention_layers()) == ((INNER, LAST), (INNER, LAST))
    uniform = problem.term("span_geometry", weights="uniform")
    assert (uniform.needs().spans.weights, uniform.attention_layers()) == ("uniform", ())
    assert not uniform.needs().head
    of_logits = problem.term("span_kl").needs()
    assert of_logits.head
    assert of_logits.shared
    assert not problem.term("span_kl", same_tokens=True).needs().shared
    assert not of_logits.same_tokens
    assert not of_logits.teacher_final


NOT_THERE = {"student": 0, "teacher": 6}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("span_cos", {"layers": [NOT_THERE]}, r"span_cos: layer 0 is the embeddings.*of the student, or set `weights: uniform`"),
        ("span_cos", {"layers": [{"student": 5, "teacher": 6}]}, r"the student has layers 0 .embeddings. to 4, not 5"),
        ("span_cos", {"layers": [{"student": 4, "teacher": 7}]}, r"the teacher has layers 0 .embeddings. to 6, not 7"),
        ("span_cos", {"delta": True}, r"`delta` is of the change between layers; set at least two in `layers`"),
        ("span_cos", {"layers": [{**BOTH[0], "granularity": "words"}]}, "granularity"),
        ("span_kl", {"temperature": 0}, "temperature"),
        ("span_kl", {"max_spans": 0}, "max_spans"),
        ("span_geometry", {"max_spans": 1}, r"span_geometry: `max_spans`: .*at least 2 of them are wanted; leave the term out"),
        ("span_kl", {"layers": BOTH}, "layers"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        Spanned().term(name, **options)
    if options.get("layers") == [NOT_THERE]:
        assert Spanned().term(name, weights="uniform", **options).attention_layers() == ()


def test_layers_of_another_width_have_no_difference():
    problem = Spanned()
    setting = problem.setting(student_last=(LAST, STUDENT), teacher_last=(TEACHER_LAST, TEACHER - 1))
    assert build({"span_cos": {"layers": BOTH}}, setting, "objectives")["span_cos"].projectors[1].out_features == 6
    with pytest.raises(UsageError, match=r"not have as many features in all of `layers`.*leave out its last layer"):
        build({"span_cos": {"layers": BOTH, "delta": True}}, setting, "objectives")


@pytest.mark.parametrize("name", PLAIN)
def test_without_a_teacher_nobody_knows_its_last_layer(name):
    setting = TwoTokenizers().setting(student_last=(LAST, STUDENT))
    with pytest.raises(UsageError, match=rf"objectives\.{name}: .*mta-prep cache-teacher .*--recipe sra"):
        build({name: {}}, setting, "objectives")


@pytest.mark.parametrize(("last", "count"), [([], "no token"), ([[1, 1]], "1 token")])
def test_vocabularies_that_share_nothing_to_compare_are_refused(last, count):
    problem = Spanned()
    problem.shared = torch.tensor([[STUDENT_VOCABULARY, 1], [1, TEACHER_VOCABULARY], *last])
    with pytest.raises(UsageError, match=f"have {count} in common"):
        problem.term("span_kl")
