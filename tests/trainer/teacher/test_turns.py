"""Rows of several turns: cached equals live, also where a cache holds what is learnt alone, and losses are means over the
learnt tokens, here by plain float64 loops over each row."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from cached_batches import CHUNKS, ROWS, TEACHER_SIZE, WORDS, assert_same_batch, command_in, needing
from pipeline.cache.verify import verify
from schemas.config import ModelConfig
from schemas.errors import UsageError
from schemas.training import StudentConfig
from trainer.batches.documents import Documents
from trainer.cache import TeacherCache
from trainer.objectives import build
from trainer.objectives.base import Setting
from trainer.student.distiller import Distiller
from trainer.student.model import load_student
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.live import LiveTeacher

KEPT = {
    "signals": ["states", "final", "topk"],
    "state_tokens": "all",
    "storage": dict.fromkeys(("units", "states", "final"), "fp32"),
}
#: Float32 forward passes against float64; and log-probabilities from about -10 that are stored in float16.
TOLERANCE, TOPK_TOLERANCE = 1e-4, 10 * 2**-11
TERMS = [("ce", {}), ("srkl", {}), ("srkl", {"source": "topk"}), ("fdd", {})]


@pytest.fixture(scope="module", params=[True, False], ids=["response-only", "all-tokens"])
def cache(request, make_cache, turns):
    return make_cache(dataset=str(turns), response_only=request.param, **KEPT)


@pytest.fixture(scope="module")
def source(cache, turns):
    documents = Documents(turns)
    wanted = needing(documents, WORDS, CHUNKS, needs=("position_states",), final=True, topk=True)
    return CachedTeacher(Caches([cache], documents), wanted)


def learnt_of(documents, row):
    """The learnt tokens of a row that another comes before, in plain Python."""
    spans, _ = documents.responses("student", np.array([row]))
    return [token for first, last in spans.tolist() for token in range(max(first, 1), last)]


def test_cached_equals_live(source, turns, tiny_teacher):
    documents = Documents(turns)
    live = LiveTeacher(ModelConfig(model=str(tiny_teacher)), documents, source._demand).fetch(ROWS)
    cached = source.fetch(ROWS)
    bounds = documents.lengths("student")[ROWS].cumsum().tolist()
    positions = [
        start + token - 1 for row, start in zip(ROWS, [0, *bounds], strict=False) for token in learnt_of(documents, row)
    ]
    assert cached.positions.tolist() == live.positions.tolist() == positions
    assert torch.equal(cached.targets, live.targets)
    torch.testing.assert_close(cached.final, live.final, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached.topk_logprobs, live.topk_logprobs, rtol=2**-11, atol=1e-4)
    assert float((cached.topk_indices == live.topk_indices).float().mean()) > 0.99
    for layer in (2, 4):
        mine, theirs = (batch.layers[layer].position_states for batch in (cached, live))
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_response_only_cache_holds_what_is_learnt(make_cache, turns):
    made = {each: make_cache(dataset=str(turns), response_only=each, **KEPT) for each in (True, False)}
    part, whole = (TeacherCache(made[each]) for each in (True, False))
    documents = Documents(turns)
    kept = 0
    for row in range(len(part)):
        index = part.learnt_index(row)
        learnt = {
            token
            for first, last in documents.responses("student", np.array([row]))[0].tolist()
            for token in range(first, last)
        }
        assert index.tolist() == sorted(learnt | {token - 1 for token in learnt if token})
        assert torch.equal(part.final(row), whole.final(row)[index])
        assert torch.equal(part.states(row, 4), whole.states(row, 4)[index])
        assert torch.equal(part.token_weights(row, 4), whole.token_weights(row, 4)[index])
        assert all(torch.equal(mine, every[index]) for mine, every in zip(part.topk(row), whole.topk(row), strict=True))
        kept += len(index)
    assert part.manifest.counts["learnt"] == kept < part.manifest.tokens == whole.manifest.counts["learnt"]
    for folder in made.values():
        assert verify(folder, quick=False, dataset=turns).problems == []


def test_one_batch_from_either_cache(make_cache, turns):
    documents = Documents(turns)
    wanted = needing(documents, WORDS, CHUNKS, needs=("position_states",), final=True, topk=True)
    part, whole = (
        CachedTeacher(Caches([make_cache(dataset=str(turns), response_only=each, **KEPT)], documents), wanted)
        for each in (True, False)
    )
    assert_same_batch(part.fetch(ROWS), whole.fetch(ROWS))


def test_states_outside_of_responses_are_refused(make_cache, turns, command, tmp_path):
    """Hidden alignment looks at every covered token; what the message says to run makes what is missing."""
    first = make_cache(dataset=str(turns), response_only=True, **KEPT)
    documents = Documents(turns)
    for needs in (("states",), ("states", "position_states")):
        with pytest.raises(UsageError, match=r"states of tokens outside of responses .* of teacher layer 4") as error:
            CachedTeacher(Caches([first], documents), needing(documents, CHUNKS, needs=needs))
    words = command_in(error).replace("OTHER", str(tmp_path / "other")).split()
    assert command(*words[1:], "--json")[0] == 0
    source = CachedTeacher(
        Caches([first, tmp_path / "other"], documents),
        needing(documents, CHUNKS, needs=("states", "position_states"), final=True),
    )
    assert len(source.fetch(ROWS).layers[4].states)


def in_float64(model):
    plain = LlamaForCausalLM(LlamaConfig.from_dict(model.config.to_dict()))
    plain.load_state_dict(model.state_dict())
    return plain.double().eval()


def outputs(model, ids):
    """Logits after each token, and what each layer's states give through the output matrix."""
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
        return output.logits[0], [model.lm_head(states[0]) for states in output.hidden_states]


def cross_entropy(_name, target, mine, _theirs):
    return -mine[0].log_softmax(0)[target]


def skewed_reverse_kl(source, _target, mine, theirs):
    q, p = (logits[0].softmax(0) for logits in (mine, theirs))
    if source == "topk":
        best = p.topk(64).indices
        q, p = (torch.cat([each[best], 1 - each[best].sum()[None]]) for each in (q, p))
    return (q * (q / (0.9 * p + 0.1 * q)).log()).sum()


def feature_dynamics(_name, _target, mine, theirs):
    pairs = [(mine[1][pair.student], theirs[1][pair.teacher]) for pair in (WORDS, CHUNKS)]
    divergence = sum(F.kl_div((q / 2).log_softmax(0), (p / 2).softmax(0), reduction="sum") for q, p in pairs) / 2
    (q0, p0), (q1, p1) = ((q.log_softmax(0), p.log_softmax(0)) for q, p in pairs)
    return divergence + 1 - F.cosine_similarity(q1 - q0, p1 - p0, dim=0)


LOOPS = {"ce": cross_entropy, "srkl": skewed_reverse_kl, "fdd": feature_dynamics}


@pytest.mark.parametrize(("name", "options"), TERMS)
def test_losses_are_means_over_the_learnt_tokens(source, tiny_teacher, name, options):
    rows = source.documents.lengths("student").argsort()[:4].tolist()
    config = {"model": str(tiny_teacher), "init": {"layers": [0, 1, 3]}}
    student = load_student(StudentConfig.parse(config, "test"), seed=0)
    term = build({name: options}, Setting((WORDS, CHUNKS), student.hidden_size, TEACHER_SIZE), "objectives")
    distiller = Distiller(student, term, source.head)
    batch = source.fetch(rows)
    loss, _ = distiller(batch, distiller.denominators(batch), {name: 1.0})
    models = in_float64(student.model), LlamaForCausalLM.from_pretrained(tiny_teacher).double().eval()
    values = []
    for row in rows:
        ids = source.documents.tokens("student", np.array([row]))[0].tolist()
        given = [outputs(model, ids) for model in models]
        for token in learnt_of(source.documents, row):
            at = [(logits[token - 1], [layer[token - 1] for layer in inner]) for logits, inner in given]
            values.append(LOOPS[name](options.get("source"), ids[token], *at))
    expected = float(torch.stack(values).mean())
    tolerance = TOPK_TOLERANCE if options else TOLERANCE
    assert float(loss.detach()) == pytest.approx(expected, rel=tolerance)
