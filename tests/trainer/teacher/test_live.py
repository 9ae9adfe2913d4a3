"""Cached equals live: the same batches from caches as from the teacher in memory, for every need."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, LlamaForCausalLM, OPTConfig

from schemas.config import ModelConfig
from schemas.errors import UsageError, UserError
from schemas.training import PairConfig
from trainer.batches.batch import tensors
from trainer.batches.documents import Documents
from trainer.maths.geometry import centrality_weights
from trainer.maths.ragged import pointers
from trainer.objectives.base import Needs, Setting, SpanNeed
from trainer.objectives.structure import StructuralAlignment, StructureOptions
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.live import LiveTeacher
from trainer.teacher.needs import teacher_needs

ROWS = [5, 0, 23, 11, 11, 2]
PAIRS = [
    PairConfig(student=1, teacher=2, granularity="words"),
    PairConfig(student=2, teacher=3, granularity="phrases"),
    PairConfig(student=3, teacher=4, granularity="chunks"),
]
LAYERS = [{"layer": pair.teacher, "granularity": pair.granularity} for pair in PAIRS]
#: What an element of a vector comes back within, of its largest one (`trainer.maths.quantization`); and a float32's noise.
BOUNDS = {"fp32": 0.0, "bf16": 2.0**-8, "int8": 0.5 / 127}
NOISE = 1e-5


@pytest.fixture(scope="module")
def teacher_config(tiny_teacher):
    return ModelConfig(model=str(tiny_teacher))


def needing(documents, weights="centrality", pairs=PAIRS, **term):
    term["layers"] = {pair.teacher: frozenset(term["layers"]) for pair in pairs} if "layers" in term else {}
    return teacher_needs({"term": Needs(**term)}, pairs, weights, documents)


def both(make_cache, teacher_config, dataset, cache, **term):
    documents = Documents(dataset)
    wanted = needing(documents, cache.get("weights", "centrality"), **term)
    cached = CachedTeacher(Caches([make_cache(layers=LAYERS, **cache)], documents), wanted)
    live = LiveTeacher(teacher_config, documents, wanted, topk=cache.get("topk", 64))
    return cached.fetch(ROWS), live.fetch(ROWS)


def equal(cached, live, bound=0.0, vectors=()):
    """Every part of two batches: structure exactly, values of `vectors` within `bound` of a vector's largest element."""
    mine, theirs = tensors(cached), tensors(live)
    assert mine.keys() == theirs.keys()
    for path, one in mine.items():
        two = theirs[path]
        assert one.shape == two.shape, path
        if one.is_floating_point():
            difference = (one.double() - two.double()).abs()
            peak = two.double().abs().amax(-1, keepdim=True) if two.ndim == 2 else two.double().abs().clamp_min(1.0)
            within = NOISE * peak + (bound * peak if path[-1] in vectors else 0)
            if path[-1] == "relations":
                within = 2e-5 + NOISE
            assert bool((difference <= within).all()), f"{path}: {float(difference.max())}"
        else:
            assert torch.equal(one, two), path
    return sum(tensor.numel() for tensor in mine.values())


@pytest.mark.parametrize("weights", ["centrality", "uniform"])
@pytest.mark.parametrize("need", ["relations", "units"])
def test_units_of_another_tokenizer(make_cache, teacher_config, prepared, need, weights):
    cache = {"signals": [need], "weights": weights, "storage": {"units": "fp32"}}
    cached, live = both(make_cache, teacher_config, prepared, cache, layers=[need])
    assert equal(cached, live) > 1000
    assert getattr(cached.layers[3], need) is not None
    assert cached.layers[3].states is None


@pytest.mark.parametrize("metric", ["cosine", "distance", "angle", "row_kl"])
def test_pairs_within_a_window(make_cache, teacher_config, prepared, metric):
    """The loss on documents that are cut to bands, for a student that lacks some of their units."""
    (pair,) = PAIRS[2:]
    options = StructureOptions(metric=metric, window=4)
    term = StructuralAlignment(options, Setting((pair,), 16, 48))
    cache = {"signals": ["relations", "units"], "storage": {"units": "fp32"}, "window": 4}
    needs = term.needs()
    wanted = {"layers": needs.layers[pair.teacher], "windows": needs.windows}
    cached, live = both(make_cache, teacher_config, prepared, cache, pairs=[pair], **wanted)
    equal(cached, live)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(cached.ids), 16, generator=generator, requires_grad=True)
    losses = [term({pair.student: hidden}, batch) / term.denominators(batch) for batch in (cached, live)]
    gradients = [torch.autograd.grad(loss, hidden)[0] for loss in losses]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))
    assert losses[0].item() > 1e-3
    # and not that of all pairs
    everything = replace(live, layers={pair.teacher: replace(live.layers[pair.teacher], later=None)})
    assert metric == "row_kl" or float(term.denominators(live)) < 0.9 * float(term.denominators(everything))


@pytest.mark.parametrize("storage", BOUNDS)
def test_all_at_once(make_cache, teacher_config, same, storage):
    cache = {
        "signals": ["relations", "units", "states", "final"],
        "storage": {"units": storage, "states": storage, "final": storage},
        "state_tokens": "all",
    }
    term = {"layers": ["relations", "units", "states", "position_states"], "final": True}
    cached, live = both(make_cache, teacher_config, same, cache, **term)
    vectors = ("units", "states", "final", "position_states")
    equal(cached, live, BOUNDS[storage], vectors)
    for name in ("units", "states", "position_states"):
        assert len(getattr(cached.layers[2], name))
    if storage != "fp32":
        with pytest.raises(AssertionError):  # what the storage takes away is seen by the comparison
            equal(cached, live)


@pytest.mark.parametrize("state_tokens", ["covered", "all"])
def test_states_of_units(make_cache, teacher_config, same, state_tokens):
    cache = {"signals": ["relations", "states"], "storage": {"states": "fp32"}, "state_tokens": state_tokens}
    cached, live = both(make_cache, teacher_config, same, cache, layers=["relations", "states"])
    equal(cached, live)
    for targets in cached.layers.values():
        inside = {token for start, end in targets.spans.tolist() for token in range(start, end)}
        assert targets.state_index.tolist() == sorted(inside)


def test_states_of_the_response_alone(make_cache, teacher_config, same):
    cache = {"signals": ["states", "final"], "storage": {"states": "fp32", "final": "fp32"}, "state_tokens": "all"}
    cached, live = both(make_cache, teacher_config, same, cache, layers=["position_states"], final=True)
    equal(cached, live)
    assert cached.layers[4].states is None
    # the last layer's states are the final ones
    torch.testing.assert_close(cached.layers[4].position_states, cached.final)
    assert len(cached.final) == len(cached.targets) > 0


def test_topk(make_cache, teacher_config, same):
    cached, live = both(make_cache, teacher_config, same, {"signals": ["topk", "units"], "topk": 5}, topk=True)
    # log-probabilities are stored in float16; near ties may change places
    torch.testing.assert_close(cached.topk_logprobs, live.topk_logprobs, rtol=2**-11, atol=1e-4)
    assert float((cached.topk_indices == live.topk_indices).float().mean()) > 0.99
    assert cached.topk_indices.shape == (len(cached.positions), 5)


def test_logits_of_both_are_the_models(make_cache, teacher_config, tiny_teacher, same):
    cache = {"signals": ["final", "units"], "storage": {"final": "fp32"}}
    documents = Documents(same)
    wanted = needing(documents, final=True)
    cached = CachedTeacher(Caches([make_cache(layers=LAYERS, **cache)], documents), wanted)
    live = LiveTeacher(teacher_config, documents, wanted)
    model = LlamaForCausalLM.from_pretrained(tiny_teacher).eval()
    for row in (0, 7):
        batch = cached.fetch([row])
        with torch.no_grad():
            expected = model(batch.ids[None]).logits[0, batch.positions]
        for source in (cached, live):
            torch.testing.assert_close(source.head.logits(source.fetch([row]).final), expected, rtol=1e-4, atol=1e-4)


#: Teachers whose last states, matrices and logits differ in kind.
SIZES = {"vocab_size": 4096, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = SIZES | {"intermediate_size": 16, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048}
TEACHERS = {
    "tied with a scale and a soft cap": Gemma2Config(**GATED, final_logit_softcapping=3.0, initializer_range=0.2),
    "not tied": LlamaConfig(**GATED, initializer_range=0.2),
    "tied and narrow": OPTConfig(
        **SIZES,
        ffn_dim=16,
        word_embed_proj_dim=8,
        max_position_embeddings=2048,
        do_layer_norm_before=False,
        init_std=0.2,
    ),
}


@pytest.fixture(scope="module", params=TEACHERS)
def teacher_of_a_kind(request, tiny_teacher, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    AutoModelForCausalLM.from_config(TEACHERS[request.param]).save_pretrained(folder)
    for file in tiny_teacher.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("response_only", [False, True])
def test_the_teachers_own_tokens_whatever_the_students(make_cache, teacher_of_a_kind, prepared, response_only):
    needs = {"teacher_final": True, "argmax": True, "entropy": True, "embeddings": True}
    needs["whole_final"] = not response_only
    documents = Documents(prepared)
    wanted = needing(documents, pairs=[], **needs)
    cache = make_cache(
        teacher={"model": str(teacher_of_a_kind)},
        layers=[],
        signals=["final", "entropy", "argmax", "embeddings"],
        storage={"final": "fp32"},
        response_only=response_only,
    )
    cached = CachedTeacher(Caches([cache], documents), wanted)
    live = LiveTeacher(ModelConfig(model=str(teacher_of_a_kind)), documents, wanted)
    assert not documents.same_tokens
    mine, theirs = cached.fetch(ROWS), live.fetch(ROWS)
    equal(mine, theirs)
    model = AutoModelForCausalLM.from_pretrained(teacher_of_a_kind).eval()
    table = load_from_disk(str(prepared))
    for place, row in enumerate(ROWS):
        ids = table[row]["teacher_input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(1)
        before = [each - 1 for a, b in table[row]["teacher_responses"] for each in range(max(a, 1), b)]
        tokens = mine.teacher
        first, last = tokens.position_rows[place : place + 2].tolist()
        assert (tokens.positions[first:last] - tokens.rows[place]).tolist() == before
        assert tokens.targets[first:last].tolist() == [ids[each + 1] for each in before]
        if not response_only:
            assert len(tokens.whole_final) == len(tokens.ids)
            assert torch.equal(tokens.whole_final[tokens.positions], tokens.final)
        logits = cached.head.logits(tokens.final[first:last])
        torch.testing.assert_close(logits.log_softmax(1), logprobs[before], rtol=1e-4, atol=1e-4)
        at_best = logprobs[before].gather(1, tokens.argmax[first:last, None]).squeeze(1)
        torch.testing.assert_close(at_best, logprobs[before].amax(1), rtol=0, atol=1e-4)
        entropy = -(logprobs.exp() * logprobs).sum(1)[before]
        torch.testing.assert_close(tokens.entropy[first:last], entropy, rtol=1e-4, atol=1e-4)
    ids = mine.teacher.ids
    assert torch.equal(cached.embeddings(ids), live.embeddings(ids))
    assert torch.equal(live.embeddings(ids), model.get_input_embeddings().weight[ids])


@pytest.mark.parametrize("kept", [True, False])
def test_chunks_and_log_probabilities_of_what_the_teacher_reads(make_cache, teacher_config, prepared, kept):
    """A cache without them will do where the teacher's logits can be had."""
    documents = Documents(prepared)
    wanted = needing(documents, pairs=[], chunks=True, logprob=True, teacher_final=True, output_matrix=True)
    signals = ["final", "logprob"] if kept else ["final"]
    cache = make_cache(layers=[], signals=signals, storage={"final": "fp32"}, response_only=True)
    cached = CachedTeacher(Caches([cache], documents), wanted)
    mine, live = cached.fetch(ROWS), LiveTeacher(teacher_config, documents, wanted).fetch(ROWS)
    logprobs = cached.head.logits(mine.teacher.final).log_softmax(1).gather(1, mine.teacher.targets[:, None])
    torch.testing.assert_close(live.teacher.logprob, logprobs.squeeze(1), rtol=1e-4, atol=1e-4)
    assert len(mine.chunks.student) == len(mine.chunks.teacher) == int(mine.chunks.rows[-1]) > len(ROWS)
    if not kept:
        live = replace(live, teacher=replace(live.teacher, logprob=None))
    equal(mine, live)
    if not kept:
        alone = needing(documents, pairs=[], chunks=True, logprob=True)
        with pytest.raises(UsageError, match=r"has the signal `logprob`; make one.*--signals logprob"):
            CachedTeacher(Caches([cache], documents), alone)


def test_sorted_distributions_of_what_the_teacher_reads(make_cache, teacher_config, prepared):
    """Of a cache that has them, or as many likeliest tokens; no output matrix is there."""
    documents = Documents(prepared)
    wanted = needing(documents, pairs=[], sorted=9)
    live = LiveTeacher(teacher_config, documents, wanted)
    falling = live.fetch(ROWS).teacher.sorted
    expected = live.head.logits(
        LiveTeacher(teacher_config, documents, needing(documents, pairs=[], teacher_final=True))
        .fetch(ROWS)
        .teacher.final
    )
    torch.testing.assert_close(falling, expected.softmax(1).topk(9).values, rtol=1e-4, atol=1e-6)
    for values in ({"signals": ["sorted"], "sorted": 12}, {"signals": ["topk"], "topk": 9}):
        cached = CachedTeacher(Caches([make_cache(layers=[], response_only=True, **values)], documents), wanted)
        # float16 of a probability; of a log-probability of down to -16, as the next number is 2^-6 away there
        precision = 2**-10 if "sorted" in values else 2**-7
        torch.testing.assert_close(cached.fetch(ROWS).teacher.sorted, falling, rtol=precision, atol=1e-6)
        with pytest.raises(UsageError, match="`final`"):
            assert cached.head


def test_the_likeliest_of_the_teachers_own_tokens(make_cache, teacher_config, prepared):
    """No more than are needed, whatever the cache has and the student's side is given."""
    documents = Documents(prepared)
    cache = make_cache(layers=[], signals=["final", "topk"], topk=9, storage={"final": "fp32"}, response_only=True)
    wanted = needing(documents, pairs=[], teacher_final=True, likeliest=5)
    cached, live = CachedTeacher(Caches([cache], documents), wanted), LiveTeacher(teacher_config, documents, wanted)
    mine, theirs = cached.fetch(ROWS).teacher, live.fetch(ROWS).teacher
    expected = cached.head.logits(mine.final).log_softmax(1)
    for tokens in (mine, theirs):
        assert tokens.likeliest.shape == (len(tokens.positions), 5)
        assert tokens.likeliest.dtype == torch.int64
        torch.testing.assert_close(expected.gather(1, tokens.likeliest), expected.topk(5).values, rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs.likeliest_logprobs, expected.topk(5).values, rtol=0, atol=1e-4)
    # float16 in a cache
    torch.testing.assert_close(mine.likeliest_logprobs, theirs.likeliest_logprobs, rtol=2**-11, atol=1e-4)


def test_against_a_plain_pass_of_the_model(teacher_config, tiny_teacher, same):
    """Live batches are right, not only equal to cached ones: one document by the model's own hidden states."""
    documents = Documents(same)
    source = LiveTeacher(teacher_config, documents, needing(documents, layers=["relations", "states"]))
    batch = source.fetch([3, 8])
    model = LlamaForCausalLM.from_pretrained(tiny_teacher).eval()
    begin, end = batch.rows[1:].tolist()
    with torch.no_grad():
        hidden = model(batch.ids[None, begin:end], output_hidden_states=True).hidden_states[2][0].double()
    token = centrality_weights(hidden, pointers([len(hidden)]))
    targets = batch.layers[2]
    units, omega = [], []
    for start, stop in (targets.spans[targets.rows[1] :] - begin).tolist():
        share = token[start:stop]
        units.append((share[:, None] * hidden[start:stop]).sum(0) / share.sum())
        omega.append(float(share.sum()))
    cosines = [
        float(torch.cosine_similarity(units[i], units[j], 0))
        for i in range(len(units))
        for j in range(i + 1, len(units))
    ]
    first = len(targets.relations) - len(cosines)
    np.testing.assert_allclose(targets.relations[first:], cosines, atol=2e-5)
    np.testing.assert_allclose(targets.weights[targets.rows[1] :], np.array(omega) / sum(omega), rtol=1e-4)
    inside = targets.state_index >= begin
    torch.testing.assert_close(
        targets.states[inside].double(), hidden[targets.state_index[inside] - begin], rtol=1e-3, atol=1e-4
    )


def test_only_as_deep_as_needed(teacher_config, prepared):
    documents = Documents(prepared)
    source = LiveTeacher(teacher_config, documents, needing(documents, layers=["relations"], pairs=PAIRS[:1]))
    assert len(source._forward.teacher.layers) == 2
    assert source.documents is documents


def test_nothing_is_run_for_terms_without_a_teacher(teacher_config, prepared, monkeypatch):
    documents = Documents(prepared)
    source = LiveTeacher(teacher_config, documents, needing(documents))
    monkeypatch.setattr(source, "_forward", None)
    batch = source.fetch(ROWS)
    assert batch.layers == {}
    assert batch.final is None


def test_a_row_that_is_too_long_is_told_before_the_first_step(prepared, tmp_path):
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    documents = Documents(prepared)
    with pytest.raises(UserError, match=r"longest row .* takes 32; prepare"):
        LiveTeacher(ModelConfig(model=str(tmp_path)), documents, needing(documents))


@pytest.mark.parametrize("weights", ["attention", "uniform"])
@pytest.mark.parametrize("response_only", [False, True])
def test_spans(make_cache, teacher_config, prepared, response_only, weights):
    documents = Documents(prepared)
    need = SpanNeed(frozenset({2, 4}), weights, 1024)
    wanted = needing(documents, pairs=[], spans=need)
    cache = make_cache(
        layers=[{"layer": 2, "granularity": "words"}, {"layer": 4, "granularity": "chunks"}],
        signals=["states", "final", "attention"],
        storage={"states": "fp32", "final": "fp32"},
        state_tokens="all",
        response_only=response_only,
    )
    cached = CachedTeacher(Caches([cache], documents), wanted).fetch(ROWS)
    live = LiveTeacher(teacher_config, documents, wanted).fetch(ROWS)
    equal(cached, live)
    assert cached.spans.layers.keys() == {2, 4}
    assert cached.spans.layers[4].vectors.shape == (int(cached.spans.rows[-1]), 48)
    # the student's side is in what is learnt of its own tokens
    responses, response_rows = documents.responses("student", np.array(ROWS))
    assert len(cached.spans.student.tokens) == int(responses.diff(dim=1).sum())
    assert torch.equal(
        cached.spans.student.tokens[cached.spans.student.spans[:, 0]],
        documents.common_spans(np.array(ROWS), 1024).student[:, 0],
    )
    assert len(cached.spans.student.spans) > len(response_rows)


@pytest.mark.parametrize("weights", ["attention", "uniform"])
def test_spans_of_layers_that_no_cache_has(make_cache, prepared, weights):
    documents = Documents(prepared)
    cache = make_cache(signals=["relations", "states"])
    wanted = needing(documents, pairs=[], spans=SpanNeed(frozenset({4}), weights, 9))
    with pytest.raises(
        UsageError, match=r"has the states of all learnt tokens \(recipe sra\) of teacher layer 4"
    ) as error:
        CachedTeacher(Caches([cache], documents), wanted)
    command = str(error.value)
    assert f"--signals {'states,attention' if weights == 'attention' else 'states'} " in command
    assert "--set state_tokens=all" in command
    assert "--set response_only=true" in command
