"""DSKD and DWA-KD against plain loops in float64, written from the equations; and what learns from what."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from schemas.errors import UsageError
from trainer.models.embeddings import Embeddings
from trainer.objectives import build
from trainer.objectives.cross_space import teacher_space
from trainer.objectives.dskd import Spread, WeightedDualSpace
from two_tokenizers import DOCUMENTS, TEACHER_VOCABULARY, TOP, TwoTokenizers, after, divergence

CAPPED = {"soft_cap": 3.0, "scale": 0.7}
WEIGHTS = ("student_weight", "teacher_weight")


def term_of(problem, name, same_tokens=False, **options):
    torch.manual_seed(1)
    term = build({name: options}, problem.setting(same_tokens=same_tokens), "objectives")[name]
    return problem.begun(term)


def plain(problem, term, weighted=False):
    """The term by its equations, document by document and position by position, and its parts."""
    config, batch, teacher = term.config, problem.batch, problem.batch.teacher
    tau, embed, other = config.temperature, problem.embedding.weight, problem.teacher_embeddings.weight
    inputs, following = other[teacher.ids[teacher.positions]], other[teacher.targets]
    sigma_k = torch.cat([inputs, following]).std()
    sigma_h, sigma_e = teacher.final.std(), following.std()
    parts = {"ce": 0.0, "student": 0.0, "teacher": 0.0}
    bounds = zip(pairwise(batch.position_rows.tolist()), pairwise(teacher.position_rows.tolist()), strict=True)
    for (a, b), (c, d) in bounds:
        if a == b or c == d:
            continue
        if config.scale == "document":
            sigma_k = torch.cat([inputs[c:d], following[c:d]]).std()
            sigma_h, sigma_e = teacher.final[c:d].std(), following[c:d].std()
        x, y = batch.ids[batch.positions[a:b]], batch.targets[a:b]
        q = term.query(torch.cat([embed[x], embed[y]], 1).detach())
        k = torch.cat([inputs[c:d], following[c:d]], 1) / sigma_k
        scores = q @ k.t() / math.sqrt(2 * other.shape[1])
        v = term.to_student(teacher.final[c:d] / sigma_h + following[c:d] / sigma_e)
        hidden = problem.hidden[batch.positions[a:b]]
        z_ts = after(scores.softmax(1) @ v @ problem.head.weight.detach().t(), problem.head)
        z_st = scores.t().softmax(1) @ term.to_teacher(hidden) @ problem.teacher_head.weight.t()
        z_st = after(z_st, problem.teacher_head)
        z_s = after(hidden @ problem.head.weight.t() + problem.head.bias, problem.head)
        z_t = problem.teacher_head.logits(teacher.final[c:d])
        entropy = torch.stack([-(row.softmax(0) * row.log_softmax(0)).sum() for row in z_s.detach()])
        certainty = (1 - teacher.entropy[c:d].double() / math.log(len(other))).clamp(0, 1)
        weighs_student, weighs_teacher = (weighted and getattr(config, side) != "none" for side in WEIGHTS)
        h = entropy * len(entropy) / entropy.sum() if weighs_student else torch.ones(b - a)
        confidence = torch.stack([row.softmax(0).max() for row in z_ts.detach()])
        if weighted and config.normalise == "product":
            h = entropy * confidence * len(entropy) / (entropy * confidence).sum() / confidence
        g = certainty * len(certainty) / certainty.sum() if weighs_teacher else torch.ones(d - c)
        for i in range(b - a):
            parts["ce"] += F.cross_entropy(z_ts[i], y[i])
            gate = {"none": 1.0, "correct": float(z_ts[i].argmax() == y[i]), "confidence": confidence[i]}[config.gate]
            parts["student"] += h[i] * gate * divergence(config.divergence, z_ts[i] / tau, z_s[i] / tau)
        for j in range(d - c):
            compared = z_t[j], z_st[j]
            if config.top:
                own = z_t[j].argsort(descending=True)
                others = z_t[j][own[config.top :]].logsumexp(0)
                compared = [torch.cat([each[own[: config.top]], others[None]]) for each in compared]
            parts["teacher"] += g[j] * divergence("fkl", *(each / tau for each in compared))
    return {name: part / len(batch.targets) for name, part in parts.items()}


CASES = [
    ("dskd", {}),
    ("dskd", {"divergence": "srkl", "gate": "none", "temperature": 1.5}),
    ("dskd", {"divergence": "rkl", "gate": "confidence", "scale": "document"}),
    ("dwa", {}),
    ("dwa", {"divergence": "sfkl", "normalise": "product"}),
    ("dwa", {"student_weight": "none"}),
    ("dskd", {"divergence": "js"}),
    ("dskd", {"divergence": "tvd", "gate": "none"}),
    ("dwa", {"divergence": "akl"}),
    ("dskd", {"top": TOP}),
    ("dwa", {"top": TOP - 2}),
    ("dwa", {"teacher_weight": "none", "gate": "none"}),
]


@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
@pytest.mark.parametrize(("name", "values"), CASES)
def test_against_a_plain_loop(name, values, options):
    problem = TwoTokenizers(**options)
    term = term_of(problem, name, **values)
    parts = plain(problem, term, weighted=name == "dwa")
    expected = sum(parts.values())
    loss = problem.value(term)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)  # σ and cached entropies are of float32 steps
    problem.assert_same_gradients(loss, expected, term, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("name", "gate"), [("dskd", "none"), ("dwa", "confidence")])
def test_what_learns_from_what(name, gate):
    """L_ce: W_q and W_v alone; L_stu: the student alone; L_tea: the student, W_o and W_q, not W_v."""
    problem = TwoTokenizers()
    term = term_of(problem, name, gate=gate)
    parts = plain(problem, term, weighted=name == "dwa")
    learning = {
        name: {
            leaf for leaf, gradient in problem.gradients(part, term).items() if gradient is not None and gradient.any()
        }
        for name, part in parts.items()
    }
    w_q, w_v = {"query.weight", "query.bias"}, {"to_student.weight", "to_student.bias"}
    assert learning["ce"] == w_q | w_v
    assert learning["student"] == {"hidden", "head", "bias"}
    assert learning["teacher"] == {"hidden", "to_teacher.weight", "to_teacher.bias", *w_q}


def test_no_attention_where_tokens_are_the_same():
    """Oracle: the same model, and projectors that change nothing."""
    documents = (((2, 4), (2, 4)), ((1, 3), (1, 3)))
    problem = TwoTokenizers(documents)
    term = term_of(problem, "dskd", same_tokens=True)
    assert not hasattr(term, "query")
    teacher = problem.batch.teacher
    projected = term.to_student(teacher.final)
    z_ts, z_s = projected @ problem.head.weight.t(), problem.head(problem.hidden[problem.batch.positions])
    z_st = after(
        term.to_teacher(problem.hidden[problem.batch.positions]) @ problem.teacher_head.weight.t(), problem.teacher_head
    )
    expected = F.cross_entropy(z_ts, problem.batch.targets)
    for p, q in ((z_ts, z_s), (problem.teacher_head.logits(teacher.final), z_st)):
        expected = expected + torch.stack([divergence("fkl", a / 2, b / 2) for a, b in zip(p, q, strict=True)]).mean()
    torch.testing.assert_close(problem.value(term), expected, rtol=1e-9, atol=0)


def test_the_teacher_alone_is_where_it_is_without_its_space():
    problem = TwoTokenizers()
    both, one = (term_of(problem, "dskd", teacher_space=wanted) for wanted in (True, False))
    one.load_state_dict({name: value for name, value in both.state_dict().items() if "to_teacher" not in name})
    parts = plain(problem, both)
    torch.testing.assert_close(problem.value(one), parts["ce"] + parts["student"], rtol=2e-6, atol=0)
    assert not hasattr(one, "to_teacher")


@pytest.mark.parametrize("name", ["dskd", "dwa"])
@pytest.mark.parametrize("documents", [(((2, 3), (1, 0)),), (((2, 0), (1, 3)),), (((1, 1), (1, 1)),)])
def test_a_side_without_anything_to_learn(name, documents):
    """Adds nothing; and everything has a gradient."""
    problem = TwoTokenizers((*DOCUMENTS, *documents))
    term = term_of(problem, name, scale="document")
    loss = problem.value(term)
    parts = plain(problem, term, weighted=name == "dwa") if documents[0][0][1] != 1 else None
    if parts is not None:
        torch.testing.assert_close(loss, sum(parts.values()), rtol=2e-6, atol=0)
    assert all(gradient.isfinite().all() for gradient in problem.gradients(loss, term).values() if gradient is not None)


def test_the_likeliest_tokens_are_all_there_is_where_all_are_kept():
    problem = TwoTokenizers()
    whole = problem.value(term_of(problem, "dskd", gate="none"))
    logprobs = problem.teacher_head.logits(problem.batch.teacher.final).log_softmax(1)
    every = logprobs.topk(TEACHER_VOCABULARY)
    problem.batch = replace(
        problem.batch,
        teacher=replace(problem.batch.teacher, likeliest=every.indices, likeliest_logprobs=every.values.float()),
    )
    term = term_of(problem, "dskd", gate="none", top=TEACHER_VOCABULARY)
    torch.testing.assert_close(problem.value(term), whole, rtol=1e-5, atol=0)


def test_the_likeliest_tokens_take_their_own_rows_of_the_output_matrix():
    """And the term falls to 0 where the student's projected states give them what the teacher's give."""
    problem = TwoTokenizers((((2, 4), (2, 4)),))
    teacher = problem.batch.teacher
    term = term_of(problem, "dskd", top=3)
    asked = []
    rows = term.matrices.teacher_rows
    term.matrices = replace(
        term.matrices, teacher_head=None, teacher_rows=lambda tokens: asked.extend(tokens.tolist()) or rows(tokens)
    )
    problem.value(term)
    assert sorted(asked) == sorted({*teacher.likeliest[:, :3].flatten().tolist()})
    space = term._in_teacher_space(teacher, teacher.final, torch.ones(4, dtype=torch.float64))
    unbiased = replace(space, head=replace(space.head, bias=None))
    assert float(teacher_space(unbiased)) == pytest.approx(0, abs=1e-12)
    assert float(teacher_space(replace(unbiased, rows=-teacher.final))) > 0.1


def test_weights_of_the_oracle():
    """H = [0.2, 0.6], g = [0.9, 0.4]: weights of the loss 0.45 and 0.6; of the product 0.857 and 1.143."""
    from trainer.maths.ragged import pointers
    from trainer.objectives.dskd import _to_length

    entropy, confidence = torch.tensor([0.2, 0.6]), torch.tensor([0.9, 0.4])
    rows = pointers([2])
    torch.testing.assert_close(_to_length(entropy, rows) * confidence, torch.tensor([0.45, 0.60]))
    torch.testing.assert_close(_to_length(entropy * confidence, rows), torch.tensor([0.857143, 1.142857]))


def test_attention_of_no_query_is_a_mean():
    """Oracle: W_q = 0 and b_q = 0 make A V the mean of V's rows, and B the mean of the student's."""
    problem = TwoTokenizers((((2, 4), (1, 6)),))
    term = term_of(problem, "dskd")
    with torch.no_grad():
        term.query.weight.zero_()
        term.query.bias.zero_()
    teacher = problem.batch.teacher
    _, sigma_h, sigma_e = term.scales
    following = problem.teacher_embeddings(teacher.targets)
    values = term.to_student(teacher.final / sigma_h + following / sigma_e)
    aside = term.aside({1: problem.hidden}, problem.batch)
    torch.testing.assert_close(aside.projected, values.mean(0).expand(4, -1), rtol=1e-9, atol=1e-12)


def test_scales_are_those_of_all_numbers():
    parts = [torch.randn(n, 3, dtype=torch.float64) * 5 + 2 for n in (4, 1, 0, 7)]
    spread = Spread()
    for part in parts:
        spread.add(part)
    assert spread.deviation == pytest.approx(float(torch.cat(parts).std()), rel=1e-12)
    assert Spread().deviation == 1


def test_a_run_that_goes_on_has_the_scales_it_began_with():
    problem = TwoTokenizers()
    begun = term_of(problem, "dskd")
    problem.batch = TwoTokenizers(seed=3).batch
    later = term_of(problem, "dskd")
    assert not torch.equal(later.scales, begun.scales)
    later.load_state_dict(begun.state_dict())
    assert torch.equal(later.scales, begun.scales)


@pytest.mark.parametrize("options", [{"student_weight": "none"}, {"gate": "none"}])
def test_a_product_of_what_is_left_out_is_refused(options):
    with pytest.raises(UsageError, match="`normalise: product` is of entropy and gate"):
        term_of(TwoTokenizers(), "dwa", normalise="product", **options)


def test_a_mixture_is_of_divergences_that_have_one():
    with pytest.raises(UsageError, match="`skew` belongs to `divergence: sfkl`, `srkl` and `js`, not to `tvd`"):
        term_of(TwoTokenizers(), "dskd", divergence="tvd", skew=0.2)
    assert term_of(TwoTokenizers(), "dskd", divergence="js", skew=0.2).config.rule.keywords == {"skew": 0.2}


def test_embeddings_that_are_not_as_wide_as_states_are_refused():
    problem = TwoTokenizers()
    problem.teacher_embeddings = Embeddings(torch.randn(31, 3, dtype=torch.float64))
    with pytest.raises(UsageError, match=r"3 features and its last states 7; .*`cache-teacher --recipe dskd-eta`"):
        term_of(problem, "dskd")


def test_a_weighted_term_asks_for_entropies():
    problem = TwoTokenizers()
    assert term_of(problem, "dwa").needs().entropy
    assert not term_of(problem, "dskd").needs().entropy
    assert not term_of(problem, "dwa", teacher_weight="none").needs().entropy


def test_no_whole_output_matrix_is_asked_for_where_none_is_used():
    problem = TwoTokenizers()
    assert term_of(problem, "dskd").needs().output_matrix
    assert not term_of(problem, "dskd", teacher_space=False).needs().output_matrix
    needs = term_of(problem, "dwa", top=3).needs()
    assert (needs.output_matrix, needs.likeliest) == (False, 3)
    with pytest.raises(UsageError, match="`top` is of the teacher's space, and `teacher_space` is false"):
        term_of(problem, "dskd", top=3, teacher_space=False)
    assert WeightedDualSpace.options.parse({}, "test").divergence == "srkl"
