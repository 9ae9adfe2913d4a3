"""The output head gives losses and gradients of plain autograd on materialised logits, with no such matrix in memory."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from schemas.training import PairConfig
from trainer.batches.batch import Batch, LayerTargets
from trainer.maths.ragged import pointers
from trainer.models import head, row_losses
from trainer.models.final_norm import FinalNorm
from trainer.models.head import Head
from trainer.objectives import REGISTRY
from trainer.objectives.base import Logits, Setting
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.divergence import ForwardKL, ReverseKL, SkewedForwardKL, SkewedReverseKL
from trainer.objectives.fdd import FeatureDynamics
from trainer.student.output_head import LogitWork, OutputHead

POSITIONS, HIDDEN, TEACHER_HIDDEN, VOCABULARY = 11, 6, 5, 23
PAIRS = tuple(PairConfig(student=s, teacher=t, granularity="chunks") for s, t in ((2, 4), (3, 6), (4, 8)))
INNER, LAST, TEACHER_LAYERS = (2, 3), 4, (4, 6, 8)
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def term(kind, **options):
    return kind(kind.options.parse(options, "test"), Setting(PAIRS, HIDDEN, TEACHER_HIDDEN))


def every_term():
    """One of each, and their factors: floats and tensors."""
    terms = [
        term(CrossEntropy),
        term(ForwardKL, source="topk"),
        term(ReverseKL),
        term(SkewedForwardKL, temperature=2),
        term(SkewedReverseKL),
        term(FeatureDynamics),
    ]
    return terms, [0.5, torch.tensor(0.25), 0.125, 1.0, torch.tensor(2.0), 0.75]


class Problem:
    """A head, student states and a teacher, all random; parameters and states require gradients."""

    def __init__(self, positions=POSITIONS, dtype=torch.float64, soft_cap=None, scale=None, bias=True, **sizes):
        vocabulary = sizes.get("vocabulary", VOCABULARY)
        teacher_vocabulary = sizes.get("teacher_vocabulary", VOCABULARY)
        generator = torch.Generator().manual_seed(positions)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        linear = nn.Linear(HIDDEN, vocabulary, bias=bias, dtype=dtype)
        linear.weight = nn.Parameter(normal(vocabulary, HIDDEN))
        if bias:
            linear.bias = nn.Parameter(normal(vocabulary))
        self.head = OutputHead.around(linear, soft_cap, scale)
        self.hidden = normal(positions, HIDDEN).requires_grad_()
        self.inner = {layer: normal(positions, HIDDEN).requires_grad_() for layer in INNER}
        self.teacher = Head(normal(teacher_vocabulary, TEACHER_HIDDEN), normal(teacher_vocabulary), 3.0, 0.5)
        self.final = normal(positions, TEACHER_HIDDEN)
        self.position_states = {layer: normal(positions, TEACHER_HIDDEN) for layer in TEACHER_LAYERS}
        self.targets = torch.randint(vocabulary, (positions,), generator=generator)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        likeliest = self.teacher.logits(self.final).to(exact).log_softmax(1).topk(4, dim=1)
        self.topk_logprobs, self.topk_indices = likeliest
        self.terms, self.factors = every_term()

    @property
    def leaves(self):
        return [each for each in (*self.head.parameters(), self.hidden, *self.inner.values()) if each.requires_grad]

    def work(self, rows=slice(None)):
        return LogitWork(
            objectives=self.terms,
            factors=self.factors,
            targets=self.targets[rows],
            inner={layer: each[rows] for layer, each in self.inner.items()},
            last=LAST,
            teacher=self.teacher,
            final=self.final[rows],
            position_states={layer: each[rows] for layer, each in self.position_states.items()},
            topk_indices=self.topk_indices[rows],
            topk_logprobs=self.topk_logprobs[rows],
        )

    def run(self, rows=slice(None)):
        return self.head(self.hidden[rows], self.work(rows))

    def plain(self):
        """The same from materialised logits, all at once, by plain autograd."""
        student = Head(self.head.weight, self.head.bias, self.head.soft_cap, self.head.scale)
        exact = torch.float64 if self.head.weight.dtype == torch.float64 else torch.float32
        last = student.logits(self.hidden).to(exact)
        whole = Logits(
            student=last,
            targets=self.targets,
            inner={layer: student.logits(each).to(exact) for layer, each in self.inner.items()} | {LAST: last},
            teacher=self.teacher.logits(self.final).to(exact),
            teacher_inner={layer: self.teacher.logits(each).to(exact) for layer, each in self.position_states.items()},
            topk_indices=self.topk_indices,
            topk_logprobs=self.topk_logprobs,
        )
        values = torch.stack([each.per_token(whole).sum() for each in self.terms])
        return sum(float(factor) * value for factor, value in zip(self.factors, values, strict=True)), values.detach()


@pytest.fixture(params=[(1, 1), (5, 2), (4, 100), (100, 3)], ids=lambda sizes: f"{sizes[0]}x{sizes[1]}")
def portions(request, monkeypatch):
    """Positions whose logits, and positions whose losses, are computed at once."""
    use_portions(monkeypatch, *request.param)


def use_portions(monkeypatch, together, in_cache, vocabulary=VOCABULARY):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", together * vocabulary * (1 + len(INNER)))
    monkeypatch.setattr(row_losses, "IN_CACHE", in_cache * vocabulary)


def assert_same(found, expected, tolerance=1e-11):
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=tolerance * float(other.abs().max() if len(other.shape) else abs(other)) + 1e-300
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("soft_cap", "scale"), [(None, None), (2.0, None), (None, 0.3), (2.0, 1.7)])
@pytest.mark.usefixtures("portions")
def test_losses_and_gradients_are_those_of_plain_autograd(soft_cap, scale, bias):
    problem = Problem(soft_cap=soft_cap, scale=scale, bias=bias)
    (loss, values), (expected, expected_values) = problem.run(), problem.plain()
    assert not values.requires_grad
    assert_same((loss.detach(), values), (expected.detach(), expected_values))
    assert_same(torch.autograd.grad(3 * loss, problem.leaves), torch.autograd.grad(3 * expected, problem.leaves))


@pytest.mark.parametrize("teacher_vocabulary", [VOCABULARY - 4, VOCABULARY + 4])
@pytest.mark.usefixtures("portions")
def test_vocabularies_of_different_sizes(teacher_vocabulary):
    problem = Problem(teacher_vocabulary=teacher_vocabulary)
    (loss, _), (expected, _) = problem.run(), problem.plain()
    assert_same(torch.autograd.grad(loss, problem.leaves), torch.autograd.grad(expected, problem.leaves))


@pytest.mark.usefixtures("portions")
def test_gradients_are_finite_differences():
    """Along random directions through everything at once, in float64."""
    problem = Problem(positions=5, soft_cap=2.0, scale=1.7)
    gradients = torch.autograd.grad(problem.run()[0], problem.leaves)
    starts = [each.detach().clone() for each in problem.leaves]
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in starts]
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                for leaf, start, along in zip(problem.leaves, starts, direction, strict=True):
                    leaf.copy_(start + step * along)
                losses.append(float(problem.run()[0]))
        slope = sum(float((gradient * along).sum()) for gradient, along in zip(gradients, direction, strict=True))
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("frozen", ["states", "parameters", "hidden", "bias", "all"])
@pytest.mark.usefixtures("portions")
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    """Parameters are, with LoRA; states, when only the head is trained."""
    problem, whole = Problem(), Problem()
    for name, parts in {
        "states": [problem.hidden, *problem.inner.values()],
        "hidden": [problem.hidden],
        "parameters": [*problem.head.parameters()],
        "bias": [problem.head.bias],
        "all": [problem.hidden, *problem.inner.values(), *problem.head.parameters()],
    }.items():
        for each in parts:
            each.requires_grad_(frozen != name and each.requires_grad)
    loss, values = problem.run()
    expected, expected_values = whole.plain()
    assert_same((loss.detach(), values), (expected.detach(), expected_values))
    assert loss.requires_grad == (frozen != "all")
    if frozen != "all":
        loss.backward()
    expected.backward()
    for one, other in (
        (problem.hidden, whole.hidden),
        (problem.inner[2], whole.inner[2]),
        *zip(problem.head.parameters(), whole.head.parameters(), strict=True),
    ):
        assert (one.grad is None) == (not one.requires_grad)
        if one.requires_grad:
            assert_same(one.grad, other.grad)


def test_tied_weights_add_up_both_gradients():
    embedding = nn.Embedding(VOCABULARY, HIDDEN, dtype=torch.float64)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64)
    linear.weight = embedding.weight
    head, ids = OutputHead.around(linear, None, None), torch.arange(9) % 4
    assert head.weight is embedding.weight
    gradients = []
    for ours in (True, False):
        hidden = embedding(ids).tanh()
        work = LogitWork([term(CrossEntropy)], [0.5], targets=ids + 1)
        loss = head(hidden, work)[0] if ours else 0.5 * F.cross_entropy(linear(hidden), ids + 1, reduction="sum")
        gradients.append(torch.autograd.grad(loss, embedding.weight))
    assert_same(*gradients)


def test_portions_change_only_last_bits(monkeypatch):
    found = []
    for portion in ((1, 1), (3, 2), (4, 100), (100, 100)):
        use_portions(monkeypatch, *portion)
        problem = Problem(dtype=torch.float32)
        loss, values = problem.run()
        found.append([loss.detach(), values, *torch.autograd.grad(loss, problem.leaves)])
    for each in found[1:]:
        # sums of `POSITIONS` numbers, or of a vocabulary, of either sign
        assert_same(each, found[0], tolerance=VOCABULARY * ROUNDING[torch.float32])


@pytest.mark.usefixtures("portions")
def test_the_loss_of_a_batch_is_that_of_its_rows():
    problem = Problem()
    whole, values = problem.run()
    parts = [problem.run(slice(*edge)) for edge in ((0, 1), (1, 1), (1, 8), (8, POSITIONS))]
    together = sum(loss for loss, _ in parts)
    assert_same((together.detach(), sum(values for _, values in parts)), (whole.detach(), values))
    assert_same(torch.autograd.grad(together, problem.leaves), torch.autograd.grad(whole, problem.leaves))


def test_no_position_gives_nothing_with_gradients():
    problem = Problem(positions=0)
    loss, values = problem.run()
    assert float(loss.detach()) == 0
    assert values.tolist() == [0.0] * len(problem.terms)
    for leaf, gradient in zip(problem.leaves, torch.autograd.grad(loss, problem.leaves), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


def test_one_position():
    problem = Problem(positions=1)
    (loss, _), (expected, _) = problem.run(), problem.plain()
    assert_same(torch.autograd.grad(loss, problem.leaves), torch.autograd.grad(expected, problem.leaves))


@pytest.mark.usefixtures("portions")
def test_without_gradients_values_are_the_same_and_nothing_is_differentiated(monkeypatch):
    problem = Problem()
    loss, values = problem.run()
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a gradient that nobody wants"))
    with torch.no_grad():
        quiet, quiet_values = problem.run()
    assert not quiet.requires_grad
    assert_same((quiet, quiet_values), (loss.detach(), values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("portions")
def test_half_precision(dtype):
    """Gradients are the float64 ones of the same numbers, off by the rounding of logits and of derivatives."""
    problem, exact = Problem(dtype=dtype), Problem()
    with torch.no_grad():
        for one, other in zip(exact.leaves, problem.leaves, strict=True):
            one.copy_(other)
        exact.teacher = Head(problem.teacher.weight.double(), problem.teacher.bias.double(), 3.0, 0.5)
        exact.final = problem.final.double()
        exact.position_states = {layer: each.double() for layer, each in problem.position_states.items()}
        exact.topk_indices, exact.topk_logprobs = problem.topk_indices, problem.topk_logprobs.double()
    (loss, values), (expected, expected_values) = problem.run(), exact.run()
    assert loss.dtype == values.dtype == torch.float32
    found, true = torch.autograd.grad(loss, problem.leaves), torch.autograd.grad(expected, exact.leaves)
    assert all(each.dtype == dtype for each in found)
    # logits of up to 16, each rounded; a loss or derivative changes by about as much as its logits
    tolerance = 16 * ROUNDING[dtype]
    assert_same([each.double() for each in found], true, tolerance)
    assert_same(values.double(), expected_values, tolerance)


def test_float16_keeps_small_gradients_for_the_loss_to_be_scaled():
    """A factor of 2^-40, as of a small weight over many tokens, is below what float16 holds; scaled by 2^36 it is not."""
    gradients = []
    for factor, scaling in ((1.0, 1.0), (2.0**-40, 2.0**40)):
        problem = Problem(dtype=torch.float16)
        problem.factors = [factor * float(each) for each in problem.factors]
        loss, _ = problem.run()
        gradients.append([each.float() for each in torch.autograd.grad(loss * scaling, problem.leaves)])
    assert_same(gradients[1], gradients[0], ROUNDING[torch.float16])


def test_factors_of_nothing():
    """As where the weight of the only loss starts from 0."""
    problem = Problem(dtype=torch.float16)
    problem.factors = [0.0] * len(problem.terms)
    loss, values = problem.run()
    assert float(loss.detach()) == 0
    assert values.isfinite().all()
    assert not any(each.any() for each in torch.autograd.grad(loss, problem.leaves))


def test_autocast_changes_nothing():
    problem = Problem(dtype=torch.float32)
    expected_loss, expected_values = problem.run()
    expected = torch.autograd.grad(expected_loss, problem.leaves)
    with torch.autocast("cpu", torch.bfloat16):
        loss, values = problem.run()
    assert_same((loss.detach(), values), (expected_loss.detach(), expected_values), 0)
    assert_same(torch.autograd.grad(loss, problem.leaves), expected, 0)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return found


def test_no_matrix_of_all_logits_ever_exists(monkeypatch):
    positions, together = 400, 5
    use_portions(monkeypatch, together, 2, vocabulary=101)
    problem = Problem(positions=positions, vocabulary=101, teacher_vocabulary=101, dtype=torch.float32)
    with Largest() as ours:
        problem.run()[0].backward()
    with Largest() as plain:
        problem.plain()[0].backward()
    assert plain.elements >= positions * 101  # it does see them
    # hidden states and their gradients are the largest
    assert ours.elements == max(together * 101, positions * HIDDEN, 101 * HIDDEN)


def test_gradients_are_handed_out_once_and_are_constants():
    problem = Problem()
    loss, _ = problem.run()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the losses again"):
        loss.backward()
    loss, _ = problem.run()
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(loss, problem.hidden, create_graph=True)


def test_extreme_logits_are_finite():
    problem = Problem(dtype=torch.float32)
    with torch.no_grad():
        problem.head.weight.mul_(1e4)
    loss, values = problem.run()
    assert values.isfinite().all()
    assert all(each.isfinite().all() for each in torch.autograd.grad(loss, problem.leaves))


def small_batch(dtype=torch.float32):
    """Two documents with three positions, states of a student, and a teacher's head."""
    rows = pointers([4, 3])
    positions = torch.tensor([1, 2, 5])
    states = {layer: torch.randn(7, HIDDEN, dtype=dtype, requires_grad=True) for layer in (1, 2, 3, LAST)}
    teacher = Head(torch.randn(VOCABULARY, TEACHER_HIDDEN, dtype=dtype))
    layers = {
        layer: LayerTargets(
            spans=torch.zeros(0, 2, dtype=torch.int64),
            rows=torch.zeros(3, dtype=torch.int64),
            weights=torch.zeros(0),
            position_states=torch.randn(3, TEACHER_HIDDEN, dtype=dtype),
        )
        for layer in (*TEACHER_LAYERS, 9)
    }
    batch = Batch(
        documents=torch.arange(2),
        ids=torch.arange(7),
        rows=rows,
        positions=positions,
        position_rows=pointers([2, 1]),
        targets=torch.tensor([2, 3, 6]),
        layers=layers,
        final=torch.randn(3, TEACHER_HIDDEN, dtype=dtype),
    )
    return batch, states, teacher


def test_a_batch_brings_what_its_objectives_need():
    batch, states, teacher = small_batch()
    layers, positions = batch.layers, batch.positions
    only = LogitWork.of(batch, states, [term(CrossEntropy)], [1.0], teacher)
    assert not only.inner
    assert not only.position_states
    assert only.final is None
    work = LogitWork.of(batch, states, [term(FeatureDynamics), term(SkewedReverseKL)], [0.5, 0.25], teacher)
    assert set(work.inner) == {2, 3}
    assert work.last == LAST
    assert set(work.position_states) == set(TEACHER_LAYERS)
    head = OutputHead.around(nn.Linear(HIDDEN, VOCABULARY), None, None)
    loss, _ = head(states[LAST][positions], work)
    last = head(states[LAST][positions])
    whole = Logits(
        student=last,
        targets=batch.targets,
        inner={layer: head(states[layer][positions]) for layer in (2, 3)} | {LAST: last},
        teacher=teacher.logits(batch.final),
        teacher_inner={layer: teacher.logits(layers[layer].position_states) for layer in TEACHER_LAYERS},
    )
    expected = sum(
        factor * each.per_token(whole).sum() for factor, each in zip((0.5, 0.25), work.objectives, strict=True)
    )
    leaves = [states[2], states[3], states[LAST], head.weight]
    assert_same(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), 1e-5)


def test_inner_states_behind_the_final_norm(monkeypatch):
    """Of a term that asks for it, beside one that does not, some positions at a time: each model's own norm, which learns."""
    torch.manual_seed(2)
    use_portions(monkeypatch, 2, 1)
    batch, states, teacher = small_batch(torch.float64)
    weight, bias = torch.randn(2, TEACHER_HIDDEN, dtype=torch.float64)
    teacher = replace(teacher, norm=FinalNorm("1+layer", 1e-3, weight, bias))
    norm = nn.RMSNorm(HIDDEN, eps=1e-3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    last = {"student_last": (LAST, HIDDEN), "teacher_last": (max(TEACHER_LAYERS), TEACHER_HIDDEN)}
    setting = Setting(PAIRS, HIDDEN, TEACHER_HIDDEN, **last)
    normed = FeatureDynamics(FeatureDynamics.options.parse({"norm": True}, "test"), setting)
    work = LogitWork.of(batch, states, [term(FeatureDynamics), normed], [0.5, 0.25], teacher, norm=norm)
    assert set(work.normed) == set(work.inner) == {2, 3}
    assert set(work.states_to_norm) == {4, 6}
    assert set(work.position_states) == {4, 6, 8}
    alone = LogitWork.of(batch, states, [normed], [0.25], teacher, norm=norm)
    assert not alone.inner
    assert set(alone.position_states) == {8}  # logits that nobody looks at are not computed
    head = OutputHead.around(nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64), None, None)

    def loss(*_):
        again = LogitWork.of(batch, states, [term(FeatureDynamics), normed], [0.5, 0.25], teacher, norm=norm)
        return head(states[LAST][batch.positions], again)[0]

    mine = {layer: states[layer][batch.positions] for layer in (2, 3, LAST)}
    theirs = {layer: batch.layers[layer].position_states for layer in TEACHER_LAYERS}
    whole = Logits(
        student=head(mine[LAST]),
        targets=batch.targets,
        inner={layer: head(each) for layer, each in mine.items()},
        normed={layer: head(norm(mine[layer])) for layer in (2, 3)},
        teacher_inner={layer: each @ teacher.weight.T for layer, each in theirs.items()},
        teacher_normed={
            layer: (F.layer_norm(theirs[layer], (TEACHER_HIDDEN,), eps=1e-3) * (1 + weight) + bias) @ teacher.weight.T
            for layer in (4, 6)
        },
    )
    expected = sum(
        factor * each.per_token(whole).sum() for factor, each in zip((0.5, 0.25), work.objectives, strict=True)
    )
    leaves = [states[2], states[3], states[LAST], head.weight, norm.weight]
    assert_same(loss().detach(), expected.detach())
    assert_same(torch.autograd.grad(loss(), leaves), torch.autograd.grad(expected, leaves))
    gradients, step = torch.autograd.grad(loss(), leaves), 1e-6
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction, ends = torch.randn_like(leaf), []
        for way in (step, -step):
            with torch.no_grad():
                leaf += way * direction
                ends.append(loss().item())
                leaf -= way * direction
        assert float((gradient * direction).sum()) == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8
        )


@pytest.mark.parametrize("tied", [True, False])
def test_it_takes_the_place_of_a_models_output_matrix(tied, tmp_path):
    """Generating, saving and loading know no difference."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    names, ids = sorted(model.state_dict()), torch.tensor([[1, 5, 7]])
    before = model(ids).logits
    generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    model.set_output_embeddings(OutputHead.around(model.get_output_embeddings(), None, None))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert sorted(model.state_dict()) == names
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), generated)
    model.save_pretrained(tmp_path)
    assert torch.equal(transformers.LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, before)


def test_losses_of_a_head_match_a_loop():
    """Cross-entropy once more, from the equation, so that not only autograd vouches for the head."""
    problem = Problem(soft_cap=2.0, scale=1.7)
    problem.terms, problem.factors = [term(CrossEntropy)], [0.5]
    loss, values = problem.run()
    expected = 0.0
    weight, bias = problem.head.weight.tolist(), problem.head.bias.tolist()
    for state, target in zip(problem.hidden.tolist(), problem.targets.tolist(), strict=True):
        row = [
            2.0 * math.tanh(1.7 * (math.fsum(x * w for x, w in zip(state, column, strict=True)) + b) / 2.0)
            for column, b in zip(weight, bias, strict=True)
        ]
        expected += math.log(math.fsum(map(math.exp, row))) - row[target]
    assert float(values[0]) == pytest.approx(expected, rel=1e-12)
    assert float(loss.detach()) == pytest.approx(expected / 2, rel=1e-12)


@pytest.mark.parametrize("name", ["fkl", "srkl", "akl", "tvd"])
@pytest.mark.parametrize("source", ["final", "topk"])
def test_documents_count_alike_whatever_micro_batches_they_are_in(name, source):
    """`reduce: document`: the mean over documents of their tokens' means; one without a response is none."""
    problem, sizes = Problem(), [6, 1, 0, 4]
    objective = term(REGISTRY[name], source=source, reduce="document")

    def value(documents, divided_by):
        bounds = pointers(sizes).tolist()
        rows = slice(bounds[documents.start], bounds[documents.stop])
        counts = pointers(sizes[documents])
        batch = Batch(
            documents=torch.arange(len(counts) - 1),
            ids=problem.targets[rows],
            rows=counts,
            positions=torch.arange(rows.stop - rows.start),
            position_rows=counts,
            targets=problem.targets[rows],
            final=problem.final[rows],
            topk_indices=problem.topk_indices[rows],
            topk_logprobs=problem.topk_logprobs[rows].float(),
        )
        counted.append(float(objective.denominators(batch)))
        states = {LAST: problem.hidden[rows]}
        asides = {objective: objective.aside(states, batch)}
        work = LogitWork.of(batch, states, [objective], [1 / divided_by], problem.teacher, asides)
        return problem.head(problem.hidden[rows], work)[0]

    counted = []
    whole = value(slice(0, 4), 3)
    parts = value(slice(0, 1), 3) + value(slice(1, 4), 3)
    assert counted == [3, 1, 2]
    alone = term(REGISTRY[name], source=source)
    logits = Logits(
        problem.head(problem.hidden),
        problem.targets,
        {},
        problem.teacher.logits(problem.final),
        topk_indices=problem.topk_indices,
        topk_logprobs=problem.topk_logprobs.float(),
    )
    means = [each.mean() for each in alone.per_token(logits).split(sizes) if len(each)]
    expected = sum(means) / len(means)
    for found in (whole, parts):
        assert_same(found.detach(), expected.detach())
        gradients = (torch.autograd.grad(each, problem.leaves[:3], retain_graph=True) for each in (found, expected))
        assert_same(*gradients)
