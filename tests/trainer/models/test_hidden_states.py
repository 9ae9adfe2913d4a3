"""The packed forward pass gives what the plain model gives for each document alone, in every architecture that differs."""

import math
from itertools import zip_longest

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import ModelConfig
from schemas.errors import UserError
from schemas.signals import SCALARS
from trainer.maths import ragged
from trainer.maths.ragged import pointers
from trainer.models import head as head_module
from trainer.models import packed_attention
from trainer.models.head import Head, next_tokens
from trainer.models.hidden_states import Forward, Request, batches_of
from trainer.models.loading import load_model
from trainer.models.packed_attention import blocks
from trainer.models.probes import first_of_every_kind

VOCABULARY = 97
DEPTH = 4
WINDOW = 6
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 48}
MIXED = ["sliding_attention", "full_attention"] * (DEPTH // 2)

PACKED = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "gpt2": transformers.GPT2Config(**SIZES),
    "gemma2": transformers.Gemma2Config(
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=MIXED,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=1.0,
    ),
    "gemma3": transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=WINDOW, layer_types=MIXED),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=WINDOW),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES, intermediate_size=48),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "opt_projected": transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    "phi3": transformers.Phi3Config(**GROUPED, sliding_window=WINDOW),
    "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=4),
    "afmoe": transformers.AfmoeConfig(
        **GROUPED,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=MIXED,
        num_dense_layers=1,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    ),
}
PADDED = {
    "bloom": transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=DEPTH, n_head=4, bos_token_id=1, eos_token_id=1, pad_token_id=0
    ),
    "gptj": transformers.GPTJConfig(**SIZES, rotary_dim=4),
    "gpt_oss": transformers.GptOssConfig(
        **GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW, rope_parameters=None
    ),
    "llama4": transformers.Llama4TextConfig(
        **GROUPED, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=WINDOW
    ),
}
ALL = PACKED | PADDED
#: One of one token, equal ones side by side and apart, some within and some beyond the window.
LENGTHS = (13, 1, 30, 7, 7, 13, 2, 29)
EVERY = tuple(range(DEPTH + 1))


def documents_of(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCABULARY, length) for length in lengths]


@pytest.fixture(scope="module")
def teacher_of(tmp_path_factory):
    """Tiny random teachers by name, whole or cut; matrices large enough for attention to be far from uniform."""
    folders = {}

    def load(name, deepest=None):
        if name not in folders:
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(ALL[name])
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim >= 2:
                        parameter.mul_(3)
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name])
        return load_model(ModelConfig(model=str(folders[name]), dtype="float32"), deepest)

    return load


@torch.no_grad()
def plain(teacher, document, **wanted):
    """The plain model's own output for one document alone."""
    teacher.model.set_attn_implementation("eager")
    ids = torch.from_numpy(document.astype(np.int64))[None]
    return teacher.model(input_ids=ids, use_cache=False, **wanted)


def assert_close(found, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("name", "together"), [*((name, True) for name in ALL), *((name, False) for name in ("llama", "gemma2", "mistral"))]
)
def test_everything_is_what_the_plain_model_gives_for_each_document_alone(teacher_of, name, together, monkeypatch):
    """`together`: tiny documents are attended to all at once, padded; else only those of about the same length."""
    if not together:
        monkeypatch.setattr(ragged, "FREE_PADDING", 0)
    teacher = teacher_of(name)
    run = Forward(teacher, Request(layers=EVERY, attention=EVERY[1:], final=True, topk=5, scalars=SCALARS))
    assert run.packed == (name in PACKED)
    documents = documents_of(LENGTHS)
    captured = run(documents)
    assert captured.rows.tolist() == [0, *np.cumsum(LENGTHS)]
    for document, first, last in zip(documents, captured.rows, captured.rows[1:], strict=False):
        output = plain(teacher, document, output_hidden_states=True, output_attentions=True)
        for layer in EVERY:
            assert_close(captured.states[layer][first:last], output.hidden_states[layer][0])
        for layer in EVERY[1:]:
            heads = output.attentions[layer - 1][0, :, -1].sum(0)
            assert_close(captured.attention[layer][first:last], heads / heads.sum())
        assert_close(captured.final[first:last], output.hidden_states[-1][0])
        assert_close(run.head.logits(captured.final[first:last]), output.logits[0])
        expected = output.logits[0].log_softmax(-1)
        indices, values = (each[first:last] for each in captured.topk)
        assert_close(values, expected.topk(5).values)
        assert_close(values, expected.gather(1, indices.long()))
        entropy, argmax, logprob = (captured.scalars[name][first:last] for name in SCALARS)
        assert_close(entropy, -(expected.exp() * expected).sum(1))
        assert_close(expected.gather(1, argmax[:, None].long()), expected.amax(1, keepdim=True))
        own = torch.from_numpy(document[1:])[:, None]
        assert_close(logprob, torch.cat([expected[:-1].gather(1, own).squeeze(1), torch.zeros(1)]))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "opt", "bloom"])
def test_other_documents_of_the_batch_change_nothing(teacher_of, name):
    run = Forward(teacher_of(name), Request(layers=EVERY, attention=(2, DEPTH)))
    before = documents_of(LENGTHS)
    after = documents_of(LENGTHS, seed=1)
    kept = 2
    after[kept] = before[kept]
    one, other = run(before), run(after)
    part = slice(int(one.rows[kept]), int(one.rows[kept + 1]))
    for layer in EVERY:
        assert torch.equal(one.states[layer][part], other.states[layer][part])
        assert layer == 0 or not torch.equal(one.states[layer], other.states[layer])
    assert torch.equal(one.attention[2][part], other.attention[2][part])


@pytest.mark.parametrize("name", ["gpt2", "mistral", "bloom"])
def test_results_come_in_the_order_given(teacher_of, name):
    run = Forward(teacher_of(name), Request(layers=(2,)))
    documents = documents_of(LENGTHS)
    forth, back = run(documents), run(documents[::-1])
    states = [forth.states[2][a:b] for a, b in zip(forth.rows, forth.rows[1:], strict=False)]
    assert_close(back.states[2], torch.cat(states[::-1]))


@pytest.mark.parametrize("name", ALL)
def test_a_cut_teacher_gives_the_whole_ones_states(teacher_of, name):
    whole, documents = teacher_of(name), documents_of(LENGTHS)
    for deepest in (0, 1, 3):
        request = Request(layers=(0, deepest), attention=(deepest,) if deepest else ())
        assert request.deepest == deepest
        cut = teacher_of(name, deepest)
        assert len(cut.layers) == max(deepest, 1)
        assert cut.depth == DEPTH
        captured, expected = Forward(cut, request)(documents), Forward(whole, request)(documents)
        for layer in request.layers:
            assert torch.equal(captured.states[layer], expected.states[layer])
        for layer in request.attention:
            assert torch.equal(captured.attention[layer], expected.attention[layer])


def test_it_runs_no_deeper_than_asked_and_without_the_output_matrix(teacher_of):
    teacher = teacher_of("llama")
    run = Forward(teacher, Request(layers=(2,)))
    seen = []
    for layer, module in enumerate(teacher.layers, 1):
        module.register_forward_hook(lambda *_, layer=layer: seen.append(layer))
    teacher.model.lm_head.register_forward_hook(lambda *_: seen.append("head"))
    run(documents_of((5, 3)))
    assert seen == [1, 2]
    seen.clear()
    Forward(teacher, Request(layers=(DEPTH,)))(documents_of((5, 3)))
    assert "head" not in seen


@pytest.mark.parametrize("name", ["gemma3", "gptj"])
def test_the_model_is_left_as_it_was(teacher_of, name):
    teacher = teacher_of(name)
    before = teacher.model.config._attn_implementation
    run = Forward(teacher, Request(layers=(2,), attention=(1,)))
    # transformers leaves hooks of its own, idle ones, where it was asked for hidden states
    hooks = [(dict(layer._forward_hooks), dict(layer._forward_pre_hooks)) for layer in teacher.layers]
    run(documents_of((5, 3)))
    broken = teacher.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(documents_of((5, 3)))
    broken.remove()
    assert teacher.model.config._attn_implementation == before
    assert hooks == [(dict(layer._forward_hooks), dict(layer._forward_pre_hooks)) for layer in teacher.layers]
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())


@pytest.mark.parametrize("name", ["gemma2", "mistral", "afmoe", "llama"])
def test_a_document_alone_in_a_batch(teacher_of, name, monkeypatch):
    """In one block, of which no part is moved; past its window and past the queries that are computed at once."""
    monkeypatch.setattr(packed_attention, "QUERIES_AT_ONCE", 4)
    teacher, (document,) = teacher_of(name), documents_of((30,))
    run = Forward(teacher, Request(layers=EVERY))
    assert run.packed
    captured, output = run([document]), plain(teacher, document, output_hidden_states=True)
    for layer in EVERY:
        assert_close(captured.states[layer], output.hidden_states[layer][0])


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral"])
def test_long_documents_are_attended_to_in_parts(teacher_of, name, monkeypatch):
    teacher, documents = teacher_of(name), documents_of((30, 17, 29))
    run = Forward(teacher, Request(layers=EVERY))
    assert run.packed
    whole = run(documents)
    monkeypatch.setattr(packed_attention, "QUERIES_AT_ONCE", 4)
    parts = run(documents)
    for layer in EVERY:
        assert_close(parts.states[layer], whole.states[layer])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_pack_too(teacher_of, dtype):
    teacher = teacher_of("llama")
    teacher.model.to(dtype)
    run = Forward(teacher, Request(layers=(DEPTH,), attention=(DEPTH,)))
    captured = run(documents_of(LENGTHS))
    assert run.packed
    assert captured.states[DEPTH].dtype == dtype
    assert captured.attention[DEPTH].dtype == torch.float32


def test_a_model_whose_tokens_mix_along_the_sequence_is_padded(teacher_of):
    teacher = teacher_of("llama")
    teacher.layers[0].register_forward_hook(
        lambda _m, _a, out: out + 0.5 * out.roll(1, 1).index_fill(1, torch.tensor(0), 0)
    )
    run = Forward(teacher, Request(layers=(2,)))
    assert not run.packed


def test_a_model_that_mixes_the_documents_of_a_batch_is_refused(teacher_of):
    teacher = teacher_of("llama")
    teacher.layers[0].register_forward_hook(lambda _m, _a, out: out + out.mean((0, 1)))
    with pytest.raises(UserError, match=r"LlamaForCausalLM.*other hidden states in a batch than alone"):
        Forward(teacher, Request(layers=(2,)))


@pytest.mark.parametrize(
    ("precision", "told"),
    [("highest", "choose another model"), ("high", r'TF32.*set `torch\.set_float32_matmul_precision\("highest"\)`')],
)
def test_whether_products_are_shortened_is_told_with_what_to_do(teacher_of, precision, told):
    teacher = teacher_of("llama")
    teacher.layers[0].register_forward_hook(lambda _m, _a, out: out + out.mean((0, 1)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(UserError, match=told):
            Forward(teacher, Request(layers=(2,)))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("longest", "refused"), [(None, True), (40, True), (24, False)])
def test_a_model_is_tried_past_every_length_that_its_config_names(teacher_of, longest, refused):
    """Here it mixes the documents of a batch once it is longer than a chunk of attention."""
    teacher = teacher_of("llama")
    teacher.model.config.attention_chunk_size = 24
    teacher.layers[0].register_forward_hook(lambda _m, _a, out: out + (out.shape[1] > 24) * out.mean((0, 1)))
    if refused:
        with pytest.raises(UserError, match=r"LlamaForCausalLM.*other hidden states in a batch than alone"):
            Forward(teacher, Request(layers=(2,)), longest)
    else:
        assert Forward(teacher, Request(layers=(2,)), longest).packed


def test_the_long_document_runs_as_deep_as_the_first_layer_of_every_kind(teacher_of):
    assert {name: first_of_every_kind(teacher_of(name)) for name in ("llama", "gemma3", "afmoe", "llama4")} == {
        "llama": 1,
        "gemma3": 2,
        "afmoe": 3,  # a dense one and two mixtures, with a window and without
        "llama4": 4,
    }


@pytest.mark.parametrize(
    "change", [lambda out: out[..., None].expand(-1, -1, -1, 4), lambda out: out[:, 1:], lambda _: 3]
)
def test_a_hidden_state_is_one_vector_a_token(teacher_of, change):
    teacher = teacher_of("llama")
    teacher.layers[0].register_forward_pre_hook(lambda _m, arguments: (change(arguments[0]), *arguments[1:]))
    with pytest.raises(UserError, match=r"LlamaForCausalLM\) has no hidden state of one vector a token at layer 0"):
        Forward(teacher, Request(layers=(2,)))


def test_a_model_that_does_not_run_on_text_alone_is_refused_in_a_sentence(teacher_of):
    teacher = teacher_of("llama")
    teacher.layers[0].register_forward_pre_hook(lambda *_: {}["pixel_values"])
    for request in (Request(layers=(2,)), Request(final=True)):
        with pytest.raises(UserError, match=r"LlamaForCausalLM\) does not run on a few tokens alone: 'pixel_values'"):
            Forward(teacher, request)


def test_what_attention_here_does_to_a_model_is_a_reason_to_pad(teacher_of, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("view size is not compatible with input tensor's size and stride")

    monkeypatch.setattr(packed_attention.Pack, "join", fail)
    assert not Forward(teacher_of("llama"), Request(layers=(2,))).packed


def test_a_sliding_window_that_is_not_told_is_not_packed(teacher_of):
    teacher = teacher_of("mistral")
    teacher.model.config.sliding_window = None
    assert Forward(teacher, Request(layers=(2,))).packed
    # layers that should have a window, of a model that does not say so to its attention function: it would be in a mask
    teacher.model.config.layer_types = ["sliding_attention"] * DEPTH
    assert not Forward(teacher, Request(layers=(2,))).packed


def test_hidden_states_that_are_not_the_layers_outputs_are_refused(teacher_of):
    teacher = teacher_of("llama")
    teacher.body.register_forward_hook(
        lambda _m, _a, out: out.__setitem__("hidden_states", out.hidden_states[1:]) if out.hidden_states else None
    )
    with pytest.raises(UserError, match="LlamaForCausalLM"):
        Forward(teacher, Request(layers=(2,)))


@pytest.mark.parametrize(
    "request_",
    [
        Request(layers=(DEPTH + 1,)),
        Request(layers=(-1,)),
        Request(attention=(0,)),
        Request(topk=0),
        Request(topk=VOCABULARY + 1),
    ],
)
def test_what_the_teacher_does_not_have(teacher_of, request_):
    with pytest.raises(ValueError):
        Forward(teacher_of("llama"), request_)


@pytest.mark.parametrize("request_", [Request(layers=(3,)), Request(final=True), Request(topk=1)])
def test_what_a_cut_teacher_does_not_have(teacher_of, request_):
    with pytest.raises(ValueError, match="2 of 4 layers"):
        Forward(teacher_of("llama", 2), request_)


PLACES = {
    "roberta": transformers.RobertaConfig(
        **SIZES | {"max_position_embeddings": 50, "pad_token_id": 1}, is_decoder=True
    ),
    "mpt": transformers.MptConfig(
        d_model=32, n_heads=4, n_layers=DEPTH, max_seq_len=48, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=1
    ),
}
ALL |= PLACES


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", *PLACES])
def test_documents_that_the_teacher_cannot_take(teacher_of, name):
    run = Forward(teacher_of(name), Request(layers=(1,)))
    longest = SIZES["max_position_embeddings"]
    run(documents_of((longest,)))
    with pytest.raises(UserError, match=f"{longest + 1} tokens.*at most {longest}"):
        run(documents_of((3, longest + 1)))
    with pytest.raises(UserError, match=f"token {VOCABULARY}"):
        run([np.array([3, VOCABULARY])])
    with pytest.raises(ValueError, match="at least one token"):
        run([np.array([3]), np.array([], dtype=np.int64)])


def test_long_rope_is_taken_up_to_where_it_would_depend_on_the_batch(teacher_of):
    teacher = teacher_of("phi3")
    teacher.model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 16}
    assert teacher.max_length == 16


def test_next_tokens_in_pieces(monkeypatch):
    torch.manual_seed(0)
    head = Head(torch.randn(VOCABULARY, 8), torch.randn(VOCABULARY), soft_cap=2.0, scale=0.5)
    final = torch.randn(11, 8)
    own = torch.tensor([3, -1, 0, VOCABULARY - 1, 5, 5, 5, 7, 1, 2, -1])
    whole = next_tokens(head, final, 7, SCALARS, own, 9)
    monkeypatch.setattr(head_module, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    pieces = next_tokens(head, final, 7, SCALARS, own, 9)
    raw = (final.double() @ head.weight.double().T + head.bias.double()) * 0.5
    logprobs = (2 * torch.tanh(raw / 2)).log_softmax(1)
    expected = logprobs.topk(7)
    entropy = [-sum(math.exp(p) * p for p in row.tolist()) for row in logprobs]
    logprob = [0.0 if token < 0 else float(row[token]) for row, token in zip(logprobs, own.tolist(), strict=True)]
    for found in (whole, pieces):
        indices, values = found.topk
        assert torch.equal(indices.long(), expected.indices)
        torch.testing.assert_close(values.double(), expected.values, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.sorted.double(), logprobs.topk(9).values.exp(), rtol=1e-5, atol=0)
        assert torch.equal(found.scalars["argmax"], indices[:, 0])
        assert found.scalars["entropy"].tolist() == pytest.approx(entropy, rel=1e-5)
        assert found.scalars["logprob"].tolist() == pytest.approx(logprob, abs=1e-5)
    assert next_tokens(head, final, None, ("entropy",), own).scalars.keys() == {"entropy"}
    assert next_tokens(head, final, None, (), own).topk is None
    assert next_tokens(head, final, None, (), own).sorted is None
    everything = next_tokens(head, final, None, (), own, VOCABULARY + 1).sorted
    torch.testing.assert_close(everything.sum(1), torch.ones(11))
    assert everything.shape == (11, VOCABULARY)


def test_scalars_of_extreme_logits():
    """A certain token has entropy 0, uniform ones the vocabulary's; what is not finite has no likeliest token."""
    weight = torch.tensor([[1.0], [0.0], [0.0], [-1.0]])
    found = next_tokens(
        Head(weight), torch.tensor([[1e4], [0.0], [torch.nan]]), None, SCALARS, torch.tensor([0, 3, -1])
    )
    entropy, argmax, logprob = (found.scalars[name].tolist() for name in SCALARS)
    assert entropy[:2] == pytest.approx([0, math.log(4)])
    assert argmax == [0, 0, -1]
    assert logprob == pytest.approx([0, -math.log(4), 0])


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 100))
def test_a_plan_has_every_document_once_within_the_budget(lengths, budget):
    batches = batches_of(lengths, budget)
    planned = [document for batch in batches for document in batch]
    assert sorted(planned) == [document for document, length in enumerate(lengths) if length]
    assert [lengths[document] for document in planned] == sorted(filter(None, lengths), reverse=True)
    for batch, following in zip_longest(batches, batches[1:]):
        longest = lengths[batch[0]]
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert not following or (len(batch) + 1) * longest > budget


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.sampled_from([32, 2**12, 2**20]))
def test_blocks_hold_every_token_once(lengths, features):
    """The more features, the less padding is free: from one block to one for each length."""
    rows = pointers(lengths)
    values = torch.arange(int(rows[-1]), dtype=torch.float32)[None, :, None]
    out = torch.full((int(rows[-1]),), -1.0)
    seen = 0
    for block in blocks(rows, features):
        mine = block.gather(values)
        assert mine.shape == (block.documents, 1, block.width, 1)
        for document, length in zip(mine[:, 0, :, 0], block.lengths.tolist(), strict=True):
            first = int(document[0])
            assert first in rows
            assert document[:length].tolist() == list(range(first, first + length))
        block.scatter(mine[:, 0, :, 0] * 2, out)
        seen += int(block.lengths.sum())
    assert seen == len(out)
    assert torch.equal(out, values.flatten() * 2)


@pytest.mark.parametrize("name", ["llama", "opt_projected", "bloom"])
@pytest.mark.parametrize("deepest", [2, None])
def test_widths_are_those_of_the_hidden_states(teacher_of, name, deepest):
    teacher = teacher_of(name, deepest)
    run = Forward(teacher, Request(layers=tuple(range(len(teacher.layers) + 1)), final=deepest is None))
    captured = run(documents_of(LENGTHS))
    assert run.widths == {layer: states.shape[1] for layer, states in captured.states.items()}
    assert run.widths[2] == 32
    if captured.final is not None:
        assert run.widths[DEPTH] == captured.final.shape[1] == (16 if name == "opt_projected" else 32)
