"""The loss over two datasets against a plain float64 model: terms on their own dataset's documents, or on both as on one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cached_batches import CHUNKS, TEACHER_SIZE, WORDS, source_of
from schemas.errors import UsageError
from schemas.training import StudentConfig
from trainer.objectives import build
from trainer.objectives.base import Setting
from trainer.student.distiller import Distiller
from trainer.student.model import load_student

SKEW = 0.1
#: DistiLLM-2, and terms on one dataset and on both.
OBJECTIVES = {
    "sfkl": {"reduce": "document"},
    "srkl": {"data": "student", "reduce": "document", "detach_mixture": True, "weight": 0.5},
    "ce": {"data": ["default", "student"], "weight": 0.25},
    "ce_student": {"term": "ce", "data": "student", "weight": 2.0},
}
#: Of a float32 student.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def source(make_cache, same):
    cache = make_cache(signals=["relations", "states", "final"], storage={"final": "fp32"})
    return source_of(same, [cache], WORDS, CHUNKS, needs=("relations", "states"), final=True)


@pytest.fixture(scope="module")
def student(tiny_teacher):
    config = {"model": str(tiny_teacher), "init": {"layers": [0, 1, 3]}}
    return load_student(StudentConfig.parse(config, "test"), seed=0)


@pytest.fixture(scope="module")
def rows(source):
    """Short ones of different lengths, by dataset."""
    short = source.documents.lengths("student").argsort()
    return {"default": short[[0, 5, 2]].tolist(), "student": short[[3, 1, 7]].tolist()}


def distiller_of(student, source, objectives):
    torch.manual_seed(0)
    last = {"student_last": (student.depth, student.hidden_size), "teacher_last": (CHUNKS.teacher, TEACHER_SIZE)}
    setting = Setting((WORDS, CHUNKS), student.hidden_size, TEACHER_SIZE, same_tokens=True, **last)
    return Distiller(student, build(objectives, setting, "objectives", {"student": setting}), source.head)


def batches_of(source, rows, parts):
    """Micro-batches: each dataset's rows in so many parts."""
    return [
        replace(source.fetch(part.tolist()), data=name)
        for name, mine in rows.items()
        for part in np.array_split(np.array(mine), parts)
    ]


def step_of(distiller, batches):
    """A step's loss, its terms, and the gradient of every parameter."""
    total = {}
    for batch in batches:
        for name, own in distiller.denominators(batch).items():
            total[name] = total.get(name, 0) + own
    weights = {name: term.config.weight_at(0.0) for name, term in distiller.terms.items()}
    distiller.zero_grad()
    shares = [distiller(batch, total, weights) for batch in batches]
    for loss, _ in shares:
        loss.backward()
    gradients = {name: each.grad.clone() for name, each in distiller.named_parameters()}
    terms = dict(zip(weights, sum(values for _, values in shares).tolist(), strict=True))
    return float(sum(loss.detach() for loss, _ in shares)), terms, gradients


def in_float64(model):
    plain = LlamaForCausalLM(LlamaConfig.from_dict(model.config.to_dict()))
    plain.load_state_dict(model.state_dict())
    return plain.double().eval()


def expected_terms(source, rows, mine, theirs):
    """Each term of `OBJECTIVES` by loops over documents and their learnt tokens."""
    per_token = {"sfkl": [], "srkl": [], "ce": [], "ce_student": []}
    for name, chosen in rows.items():
        for row in chosen:
            ids = source.documents.tokens("student", np.array([row]))[0].tolist()
            ((first, end),) = source.documents.responses("student", np.array([row]))[0].tolist()
            at = range(first - 1, end - 1)
            log_q = mine(torch.tensor([ids])).logits[0][at].log_softmax(1)
            with torch.no_grad():
                p = theirs(torch.tensor([ids])).logits[0][at].softmax(1)
            q = log_q.exp()
            negative = -log_q.gather(1, torch.tensor(ids[first:end])[:, None])[:, 0]
            per_token["ce"] += negative
            if name == "default":
                mixture = SKEW * p + (1 - SKEW) * q
                per_token["sfkl"].append((p * (p.log() - mixture.log())).sum(1).mean())
            else:
                mixture = (1 - SKEW) * p + SKEW * q.detach()
                per_token["srkl"].append((q * (log_q - mixture.log())).sum(1).mean())
                per_token["ce_student"] += negative
    return {name: torch.stack([*values]).mean() for name, values in per_token.items()}


def test_every_term_sees_its_own_datasets_documents(source, student, rows, tiny_teacher):
    distiller = distiller_of(student, source, OBJECTIVES)
    loss, terms, gradients = step_of(distiller, batches_of(source, rows, 1))
    mine, theirs = in_float64(student.model), LlamaForCausalLM.from_pretrained(tiny_teacher).double().eval()
    expected = expected_terms(source, rows, mine, theirs)
    assert terms == pytest.approx({name: float(value.detach()) for name, value in expected.items()}, rel=TOLERANCE)
    total = sum(OBJECTIVES[name].get("weight", 1.0) * value for name, value in expected.items())
    assert loss == pytest.approx(float(total.detach()), rel=TOLERANCE)
    total.backward()
    for name, parameter in mine.named_parameters():
        difference = gradients[f"student.model.{name}"].double() - parameter.grad
        assert float(difference.norm()) <= 10 * TOLERANCE * float(parameter.grad.norm()), name


#: Terms of every kind, with parameters of their own on one dataset and on both.
EVERY_KIND = {
    "srkl": {},
    "dsa": {"data": ["student", "default"], "weight": 2.0},
    "hidden": {"data": ["default", "student"], "level": "token"},
    "hidden_student": {"term": "hidden", "data": "student", "layers": [CHUNKS.model_dump()]},
}


def test_micro_batches_change_nothing(source, student, rows):
    distiller = distiller_of(student, source, EVERY_KIND)
    loss, terms, gradients = step_of(distiller, batches_of(source, rows, 1))
    for batches in (batches_of(source, rows, 3), batches_of(source, rows, 3)[::-1]):
        cut_loss, cut_terms, cut_gradients = step_of(distiller, batches)
        assert cut_loss == pytest.approx(loss, rel=TOLERANCE)
        assert cut_terms == pytest.approx(terms, rel=TOLERANCE)
        for name, gradient in gradients.items():
            assert float((cut_gradients[name] - gradient).norm()) <= 10 * TOLERANCE * float(gradient.norm()), name


def test_a_backward_pass_of_one_dataset_reaches_every_parameter(source, student, rows):
    """As DeepSpeed expects it of every micro-batch, also where no term of its dataset looks at logits or at a projector."""
    distiller = distiller_of(student, source, EVERY_KIND)
    for batch in batches_of(source, rows, 1):
        _, _, gradients = step_of(distiller, [batch])  # fails where a parameter has none
        idle = [name for name in gradients if name.startswith("objectives.hidden_student")]
        assert idle
        if batch.data == "default":
            assert all(not gradients[name].any() for name in idle)
        else:
            assert all(gradients[name].any() for name in idle if name.endswith("weight"))
            distiller.zero_grad()


def test_a_term_on_both_is_what_it_is_on_one_with_all_documents(source, student, rows):
    terms = {name: EVERY_KIND[name] for name in ("dsa", "hidden")} | {"ce": {"data": ["default", "student"]}}
    _, both, _ = step_of(distiller_of(student, source, terms), batches_of(source, rows, 1))
    alone = {name: {key: value for key, value in options.items() if key != "data"} for name, options in terms.items()}
    batch = source.fetch([*rows["default"], *rows["student"]])
    _, one, _ = step_of(distiller_of(student, source, alone), [batch])
    assert both == pytest.approx(one, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"dsa_student": {"term": "dsaa"}}, r"^objectives: unknown term `dsaa`; did you mean `dsa`\?$"),
        (
            {"dsa_student": {}},
            r"unknown term `dsa_student`; a further `dsa` is told by `dsa_student: \{term: dsa\}`\.$",
        ),
        ({"dskd_eta_more": {}}, "a further `dskd_eta` is told by"),
        ({"student_dsa": {"term": "dsa"}}, r"^objectives\.student_dsa: the key of a further `dsa` is dsa_ and more"),
        ({"dskd_eta": {"term": "dskd"}}, r"^objectives\.dskd_eta: the key of a further `dskd`"),
        ({"dsa": {"data": []}}, r"^objectives\.dsa: `data"),
        ({"soft_dtw": {}, "dskd": {"data": "student"}}, r"^objectives\.soft_dtw: .*add the term `dskd`"),
    ],
)
def test_what_does_not_fit_is_refused(objectives, message):
    setting = Setting((WORDS, CHUNKS), 48, TEACHER_SIZE, student_last=(3, 48), teacher_last=(4, 48))
    with pytest.raises(UsageError, match=message):
        build(objectives, setting, "objectives", {"student": setting})


def test_one_term_is_not_for_datasets_in_which_it_would_be_another():
    setting = Setting((WORDS, CHUNKS), 48, TEACHER_SIZE, same_tokens=True)
    other = {"student": replace(setting, same_tokens=False)}
    assert [*build({"ce": {}, "ce_student": {"term": "ce", "data": "student"}}, setting, "objectives", other)]
    with pytest.raises(UsageError, match=r"^objectives\.ce: in one of its datasets .* give each a term of its own\.$"):
        build({"ce": {"data": ["default", "student"]}}, setting, "objectives", other)
