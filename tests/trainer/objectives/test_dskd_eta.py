"""DSKDv2 on aligned tokens against a plain loop in float64; its projectors; what learns from what."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from schemas.errors import UsageError
from trainer.objectives import build
from two_tokenizers import (
    SHARED,
    STUDENT,
    STUDENT_VOCABULARY,
    TEACHER,
    TEACHER_VOCABULARY,
    TwoTokenizers,
    after,
    aligned,
    divergence,
)


def term_of(problem, **options):
    torch.manual_seed(1)
    setting = problem.setting(shared=problem.shared)
    return problem.begun(build({"dskd_eta": options}, setting, "objectives")["dskd_eta"])


def plain(problem, term):
    config, batch, teacher = term.config, problem.batch, problem.batch.teacher
    student_id = dict(problem.shared.flip(1).tolist())
    w_s, w_t = problem.head.weight, problem.teacher_head.weight
    pinv = torch.linalg.pinv(w_t[problem.shared[:, 1]].t())
    p_st = w_s.detach()[problem.shared[:, 0]].t() @ pinv
    parts = {"ce": 0.0, "student": 0.0, "teacher": 0.0}
    count = kept = 0
    for i, j in batch.pairs.tolist():
        label = student_id.get(int(teacher.argmax[j]))
        if label is None:
            continue
        count += 1
        hidden = problem.hidden[batch.positions[i]]
        z_ts = after(term.to_student(teacher.final[j]) @ w_s.detach().t(), problem.head)
        z_s = after(hidden @ w_s.t() + problem.head.bias, problem.head)
        z_st = after(hidden @ p_st @ w_t.t() + problem.teacher_head.bias, problem.teacher_head)
        z_t = problem.teacher_head.logits(teacher.final[j : j + 1])[0]
        parts["ce"] += F.cross_entropy(z_ts, torch.tensor(label))
        gate = 1.0 if config.gate == "none" else float(z_ts.argmax() == label)
        kept += int(gate)
        tau = config.temperature
        parts["student"] += gate * divergence(config.divergence, z_ts / tau, z_s / tau)
        parts["teacher"] += divergence(config.divergence, z_t / tau, z_st / tau)
    assert 0 < count < len(batch.pairs)
    if config.count == "kept":
        assert 0 < kept < count
        parts["student"] = parts["student"] * count / kept
    return {name: part / count for name, part in parts.items()}


@pytest.mark.parametrize("capped", [{}, {"soft_cap": 3.0, "scale": 0.7}], ids=["plain", "capped"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"divergence": "srkl", "gate": "none", "temperature": 1.5},
        {"divergence": "akl", "gate": "none"},
        {"divergence": "tvd", "gate": "none"},
        {"count": "kept"},
    ],
)
def test_against_a_plain_loop(options, capped):
    problem = aligned(TwoTokenizers(**capped))
    term = term_of(problem, **options)
    expected = sum(plain(problem, term).values())
    loss = problem.value(term)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    problem.assert_same_gradients(loss, expected, term, rtol=1e-8, atol=1e-12)


def test_what_learns_from_what():
    """L_ce: P_ts alone; L_stu: the student alone; L_tea: its states alone."""
    problem = aligned(TwoTokenizers())
    term = term_of(problem, gate="none")
    learning = {
        name: {leaf for leaf, each in problem.gradients(part, term).items() if each is not None and each.any()}
        for name, part in plain(problem, term).items()
    }
    assert learning == {
        "ce": {"to_student.weight"},
        "student": {"hidden", "head", "bias"},
        "teacher": {"hidden"},
    }


def test_the_map_between_output_matrices_is_found():
    """Oracle: W_t = W_s Rᵀ makes P_ts R, and projected logits the teacher's."""
    problem = aligned(TwoTokenizers())
    r = torch.randn(TEACHER, STUDENT, dtype=torch.float64)
    weight = problem.teacher_head.weight.clone()
    weight[SHARED[:, 1]] = problem.head.weight.detach()[SHARED[:, 0]] @ r.t()
    problem.teacher_head = replace(problem.teacher_head, weight=weight)
    # of too low a rank for an inverse of the Gram matrix: a pseudo-inverse it is
    term = term_of(problem)
    torch.testing.assert_close(term.to_student.weight, r.t(), rtol=1e-8, atol=1e-10)


def test_the_same_model_twice_is_a_loss_of_nothing_but_its_labels():
    """Oracle: student = teacher, the same tokens: L_stu = L_tea = 0."""
    problem = TwoTokenizers((((2, 4), (2, 4)), ((1, 3), (1, 3))))
    problem.head.weight.data = torch.randn(STUDENT_VOCABULARY, STUDENT, dtype=torch.float64)
    problem.head.bias.data.zero_()
    problem.teacher_head = replace(
        problem.teacher_head, weight=problem.head.weight.detach(), bias=None, soft_cap=None, scale=None
    )
    final = problem.hidden.detach()[problem.batch.positions]
    argmax = problem.teacher_head.logits(final).argmax(1)
    pairs = torch.arange(len(final)).repeat(2, 1).t()
    problem.batch = replace(
        problem.batch, pairs=pairs, teacher=replace(problem.batch.teacher, final=final, argmax=argmax)
    )
    setting = replace(problem.setting(same_tokens=True), teacher_size=STUDENT)
    term = problem.begun(build({"dskd_eta": {"gate": "none"}}, setting, "objectives")["dskd_eta"])
    torch.testing.assert_close(term.to_student.weight, torch.eye(STUDENT, dtype=torch.float64), rtol=0, atol=1e-9)
    labels = F.cross_entropy(problem.teacher_head.logits(final), argmax)
    torch.testing.assert_close(problem.value(term), labels, rtol=1e-9, atol=0)


def test_the_map_back_follows_the_student_when_it_is_due():
    problem = aligned(TwoTokenizers())
    term = term_of(problem, refresh=3)
    maps = []
    for step in range(5):
        term.step = step
        problem.value(term)
        maps.append(term.to_teacher.clone())
        problem.head.weight.data += 1
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[1], maps[2])
    assert not torch.equal(maps[2], maps[3])
    # a run that goes on at step 4 has the map of step 3, from its checkpoint
    later = term_of(problem, refresh=3)
    later.load_state_dict(term.state_dict())
    later.step = 5
    problem.value(later)
    assert torch.equal(later.to_teacher, maps[3])


def test_too_few_tokens_in_common_are_refused_unless_maps_are_learned():
    few = aligned(TwoTokenizers(), SHARED[:TEACHER])
    few.shared = SHARED[: TEACHER - 1]
    with pytest.raises(UsageError, match=r"7 features of the teacher from the 6 tokens .*`init: xavier`"):
        term_of(few)
    few.shared = torch.cat([SHARED[: TEACHER - 2], torch.tensor([[3, 7]])])
    term = term_of(few, init="xavier")
    loss = few.value(term)
    assert few.gradients(loss, term)["learned.weight"].any()
    few.shared = torch.tensor([[STUDENT_VOCABULARY, 1], [1, TEACHER_VOCABULARY]])
    with pytest.raises(UsageError, match=r"no token in common.*`cache-teacher --recipe dskd`"):
        term_of(few)


@pytest.mark.parametrize("count", ["pairs", "kept"])
def test_no_pair_is_a_term_of_nothing(count):
    """And everything has a gradient."""
    problem = aligned(TwoTokenizers())
    term = term_of(problem, count=count)
    batch = replace(problem.batch, pairs=problem.batch.pairs[:0])
    assert not term.denominators(batch).any()
    aside = term.aside({1: problem.hidden}, batch)
    assert float(aside.numerator.detach()) == 0
    assert not aside.projected.any()
    (aside.projected.sum() + aside.numerator).backward()
    assert not term.to_student.weight.grad.any()


def test_the_map_back_of_a_matrix_that_does_not_learn_is_computed_once():
    problem = aligned(TwoTokenizers())
    problem.head.weight.requires_grad_(False)
    term = term_of(problem)
    maps = []
    for step in range(2):
        term.step = step
        problem.value(term)
        maps.append(term.to_teacher.clone())
        problem.head.weight += 1
    assert torch.equal(*maps)


def test_what_is_kept_is_counted_only_where_something_is_left_out():
    with pytest.raises(UsageError, match="`count: kept` counts what the gate lets through"):
        term_of(aligned(TwoTokenizers()), count="kept", gate="none")
