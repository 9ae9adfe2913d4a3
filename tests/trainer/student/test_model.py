"""A student's states and gradients are the plain model's, however its documents are packed, padded, recomputed or adapted."""

import re
import threading

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from schemas.errors import UsageError, UserError
from schemas.training import StudentConfig
from trainer.batches.batch import Batch
from trainer.maths.ragged import pointers
from trainer.models.packed_attention import Pack, attend
from trainer.student.model import load_student
from trainer.student.output_head import OutputHead

VOCABULARY = 61
DEPTH = 4
WINDOW = 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 40}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
STILL = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

PACKED = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "gpt2": transformers.GPT2Config(**SIZES, **STILL),
    "gemma2": transformers.Gemma2Config(
        **GROUPED, head_dim=6, query_pre_attn_scalar=6, sliding_window=WINDOW, layer_types=MIXED
    ),
    "gemma3": transformers.Gemma3TextConfig(**GROUPED, head_dim=6, sliding_window=WINDOW, layer_types=MIXED),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=40, word_embed_proj_dim=24, dropout=0.0),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=WINDOW),
}
PADDED = {
    "bloom": transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=24, n_layer=DEPTH, n_head=4, hidden_dropout=0.0, attention_dropout=0.0
    ),
    # packable, but a pack given to its body does not get to its attention
    "stablelm": transformers.StableLmConfig(**GROUPED),
}
ALL = PACKED | PADDED
EXPERTS = transformers.MixtralConfig(**GROUPED, num_local_experts=4)
LENGTHS = (9, 1, 14, 9, 3)
INNER = (0, 2, 3)
#: Norms, softmax and positions are in float32 in models of any dtype.
TOLERANCE = 1e-6


def batch_of(lengths, seed=0):
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (sum(lengths),), generator=random)
    rows = pointers(list(lengths))
    last = torch.zeros(len(ids), dtype=torch.bool)
    last[rows[1:] - 1] = True
    positions = (~last).nonzero().squeeze(1)
    position_rows = pointers([length - 1 for length in lengths])
    return Batch(torch.arange(len(lengths)), ids, rows, positions, position_rows, ids[positions + 1])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders of tiny random models by name; weights large enough for attention to be far from uniform."""
    folders = {}

    def save(name, config=None):
        if name not in folders:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(config or ALL[name])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(3)
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name])
        return folders[name]

    return save


@pytest.fixture
def student_of(folder_of):
    def load(name, seed=0, **values):
        return load_student(StudentConfig.parse({"model": str(folder_of(name)), **values}, "test"), seed, torch.float64)

    return load


def plain_of(folder):
    """As the student: what a model computes in its constructor is in float32 before it becomes float64."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double().train()


def relations_of(states):
    cosines = F.normalize(states, dim=-1) @ F.normalize(states, dim=-1).T
    target = torch.linspace(-1, 1, cosines.numel(), dtype=cosines.dtype).view_as(cosines)
    direction = torch.linspace(-1, 1, states.shape[1], dtype=states.dtype)
    return ((cosines - target) ** 2).sum() + (F.normalize(states, dim=-1) @ direction).sum()


def loss_of(student, batch):
    """Relations of the tokens of each document in inner layers, and next-token cross-entropy."""
    states = student(batch, INNER)
    logits = student.head(states[DEPTH][batch.positions])
    if student.soft_cap is not None:
        logits = torch.tanh(logits / student.soft_cap) * student.soft_cap
    loss = F.cross_entropy(logits, batch.targets, reduction="sum")
    for first, last in zip(batch.rows, batch.rows[1:], strict=False):
        loss = loss + sum(relations_of(states[layer][first:last]) for layer in INNER)
    return loss


def plain_loss(model, batch):
    """The same by the plain model, one document at a time."""
    loss = 0
    for first, last in zip(batch.rows, batch.rows[1:], strict=False):
        ids = batch.ids[first:last][None]
        output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        loss = loss + sum(relations_of(output.hidden_states[layer][0]) for layer in INNER)
        if last - first > 1:
            loss = loss + F.cross_entropy(output.logits[0, :-1], ids[0, 1:], reduction="sum")
    return loss


def gradients_of(model):
    """Of what learns; what takes no part in the loss has one of zero."""
    return {
        name: torch.zeros_like(each) if each.grad is None else each.grad
        for name, each in model.named_parameters()
        if each.requires_grad
    }


def assert_close(found, expected):
    """Each but for rounding; some are nothing but that (a bias of keys is none to softmax), so next to the largest."""
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    for name, each in expected.items():
        scale = float(each.abs().max())
        bound = TOLERANCE * scale + 1e-9 * largest
        torch.testing.assert_close(found[name], each, rtol=0, atol=bound, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("name", "packing"), [*((name, True) for name in ALL), *((name, False) for name in ("llama", "gpt2", "opt"))]
)
def test_loss_and_gradients_are_the_plain_models(student_of, folder_of, name, packing):
    student, model = student_of(name, packing=packing), plain_of(folder_of(name))
    assert student.packed == (packing and name in PACKED)
    assert student.training
    for lengths in (LENGTHS, (13,), (1,)):
        batch = batch_of(lengths)
        student.zero_grad()
        model.zero_grad()
        loss, expected = loss_of(student, batch), plain_loss(model, batch)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        loss.backward()
        expected.backward()
        assert_close(gradients_of(student.model), gradients_of(model))


#: With what may be done to queries, keys and scores: windows, caps small enough to matter, norms, groups of heads.
ATTENDING = ALL | {
    "gemma2": transformers.Gemma2Config(
        **GROUPED,
        head_dim=6,
        query_pre_attn_scalar=9,
        sliding_window=WINDOW,
        layer_types=MIXED,
        attn_logit_softcapping=1.5,
    ),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=6),
}
ATTENTION = tuple(range(1, DEPTH + 1))


@pytest.mark.parametrize(
    ("name", "packing"), [*((name, True) for name in ATTENDING), *((name, False) for name in ("llama", "gemma3"))]
)
def test_the_last_querys_attention_is_the_plain_models(folder_of, name, packing):
    """Of each document's own last token, over heads, as eager attention tells it; the states are what they are without it."""
    folder = folder_of(f"attending {name}", ATTENDING[name])
    # eager softmax, in float32, has no number for a padding token that may see nothing in float64
    dtype = torch.float64 if packing else torch.float32
    student = load_student(StudentConfig(model=str(folder), packing=packing), 0, dtype)
    assert student.packed == (packing and name not in PADDED)
    batch, model = batch_of(LENGTHS), plain_of(folder).to(dtype).eval()
    model.set_attn_implementation("eager")
    states, paid = student.attending(batch, INNER, ATTENTION)
    without = student(batch, INNER)
    assert all(torch.equal(states[layer], without[layer]) for layer in without)
    assert student.training
    assert all(module.training for module in student.body.modules())
    for first, last in zip(batch.rows, batch.rows[1:], strict=False):
        told = model(batch.ids[first:last][None], use_cache=False, output_attentions=True).attentions
        for layer in ATTENTION:
            line = told[layer - 1][0, :, -1].detach().sum(0).double()
            found = paid[layer][first:last]
            assert not found.requires_grad
            torch.testing.assert_close(found.double(), line / line.sum(), rtol=1e-4, atol=1e-6)
            if ATTENDING[name].to_dict().get("layer_types", [""] * DEPTH)[layer - 1] == "sliding_attention":
                assert not found[:-WINDOW].any()


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
def test_attention_and_gradients_beside_it_are_the_same_when_layers_are_recomputed(student_of, name):
    batch, told = batch_of(LENGTHS), []
    for checkpointing in (False, True):
        student = student_of(name, gradient_checkpointing=checkpointing)
        states, paid = student.attending(batch, INNER, (1, 3))
        kept = {layer: each.clone() for layer, each in paid.items()}
        sum(each.square().sum() for each in states.values()).backward()
        assert all(torch.equal(paid[layer], kept[layer]) for layer in kept)
        told.append((paid, gradients_of(student.model)))
    assert all(torch.equal(told[0][0][layer], told[1][0][layer]) for layer in (1, 3))
    assert_close(told[1][1], told[0][1])


def test_attention_that_cannot_be_had(student_of, folder_of):
    student = student_of("llama")
    with pytest.raises(UsageError, match=r"has layers 1 to 4, not 0"):
        student.attending(batch_of(LENGTHS), (), (0,))
    states, paid = student.attending(batch_of(()), (), (2,))
    assert (len(states[DEPTH]), len(paid[2])) == (0, 0)
    student.require_attention()
    student_of("bloom").require_attention()
    mixed = transformers.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"] * 2)
    partly = load_student(StudentConfig(model=str(folder_of("lfm2", mixed))), 0)
    with pytest.raises(UserError, match=r"student .Lfm2ForCausalLM. does not tell .* set `weights: uniform`"):
        partly.require_attention()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bloom"])
def test_recomputing_changes_nothing(student_of, name):
    """With several packs in flight, and the backward pass in a thread of its own, as on an accelerator."""
    kept, again = student_of(name), student_of(name, gradient_checkpointing=True)
    for student in (kept, again):
        loss = loss_of(student, batch_of(LENGTHS)) + loss_of(student, batch_of((4, 11), seed=1))
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert_close(gradients_of(again.model), gradients_of(kept.model))


def test_layers_are_recomputed(student_of):
    calls = []
    for checkpointing in (False, True):
        student = student_of("llama", gradient_checkpointing=checkpointing)
        linear = student.model.get_submodule("model.layers.1.mlp.up_proj")
        linear.register_forward_hook(lambda *_: calls.append(1))
        loss_of(student, batch_of(LENGTHS)).backward()
    assert len(calls) == 1 + 2


def test_dropout_is_for_training_and_repeated_when_recomputed(folder_of):
    def states(training, seed=0, **values):
        config = {"model": str(folder_of("gpt2")), "config": {"attn_pdrop": 0.3}, **values}
        student = load_student(StudentConfig.parse(config, "test"), 0).train(training)
        torch.manual_seed(seed)
        loss = loss_of(student, batch_of(LENGTHS))
        loss.backward()
        return loss.detach(), gradients_of(student.model)

    evaluated, expected = states(training=False), states(training=True, config={"attn_pdrop": 0.0})
    torch.testing.assert_close(evaluated[0], expected[0], rtol=1e-6, atol=0)
    trained = states(training=True)
    assert abs(float(trained[0] / evaluated[0]) - 1) > 1e-3
    assert not torch.equal(trained[0], states(training=True, seed=1)[0])
    recomputed = states(training=True, gradient_checkpointing=True)
    assert torch.equal(trained[0], recomputed[0])
    assert_close(recomputed[1], trained[1])


@pytest.mark.parametrize("options", [{}, {"sliding_window": 3}, {"softcap": 2.0}], ids=["plain", "sliding", "capped"])
def test_dropout_of_attention_keeps_its_mean(options):
    random = torch.Generator().manual_seed(0)
    lengths = (5, 2, 7)
    query, key = (torch.randn(1, 2, sum(lengths), 4, generator=random) for _ in range(2))
    # the mean over many features, each token's value its own: 1 when all probabilities are kept
    value = torch.ones(1, 2, sum(lengths), 1)
    pack = Pack(pointers(lengths), 8)
    torch.manual_seed(0)
    draws = [attend(nn.Module(), query, key, value, None, dropout=0.4, mta_pack=pack, **options)[0] for _ in range(500)]
    every = torch.stack(draws)
    assert float(every.std(0).min()) > 0.1
    error = every.std(0) / len(draws) ** 0.5
    assert bool(((every.mean(0) - 1).abs() < 5 * error).all())
    still = attend(nn.Module(), query, key, value, None, mta_pack=pack, **options)[0]
    torch.testing.assert_close(still, torch.ones_like(still))


def test_a_batch_without_documents_still_takes_part(student_of):
    for packing in (True, False):
        student = student_of("llama", packing=packing)
        states = student(batch_of(()), INNER)
        assert {layer: tuple(each.shape) for layer, each in states.items()} == dict.fromkeys((*INNER, DEPTH), (0, 24))
        sum(each.sum() for each in states.values()).backward()
        gradients = gradients_of(student.body)
        assert gradients.keys() == dict(student.body.named_parameters()).keys()
        assert not any(bool(each.any()) for each in gradients.values())


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_head_shares_the_embeddings_and_is_saved_as_one(student_of, folder_of, name, tmp_path):
    student = student_of(name)
    assert isinstance(student.head, OutputHead)
    assert student.head.weight is student.model.get_input_embeddings().weight
    student.model.tie_weights()
    assert student.head.weight is student.model.get_input_embeddings().weight
    assert student.model.state_dict().keys() == plain_of(folder_of(name)).state_dict().keys()
    assert len(list(student.parameters())) == len(list(plain_of(folder_of(name)).parameters()))
    student.model.save_pretrained(tmp_path)
    again, before = plain_of(tmp_path), plain_of(folder_of(name))
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids).logits, before(ids).logits)


def test_what_the_model_does_to_its_logits_is_known(student_of):
    assert student_of("gemma2").soft_cap == 30.0
    assert student_of("llama").soft_cap is None
    assert student_of("llama").scale is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_adapters_learn(student_of, name, checkpointing):
    student = student_of(name, lora={"r": 2, "dropout": 0.0}, gradient_checkpointing=checkpointing)
    assert student.packed
    trained = {key for key, each in student.model.named_parameters() if each.requires_grad}
    assert all("lora_" in key for key in trained)
    linear = {"llama": 7, "gpt2": 4}[name]
    assert len(trained) == 2 * linear * DEPTH
    assert type(student.head) is OutputHead
    loss_of(student, batch_of(LENGTHS)).backward()
    gradients = gradients_of(student.model)
    assert gradients.keys() == trained
    assert all(bool(each.any()) for key, each in gradients.items() if "lora_B" in key)
    reference = student_of(name, lora={"r": 2, "dropout": 0.0}, packing=False)
    loss_of(reference, batch_of(LENGTHS)).backward()
    assert_close(gradients, gradients_of(reference.model))


def test_chosen_targets_get_adapters(student_of):
    student = student_of("llama", lora={"r": 2, "targets": ["q_proj", "layers.1.mlp.up_proj"]})
    adapted = {key.partition(".lora_")[0] for key, each in student.model.named_parameters() if each.requires_grad}
    assert adapted == {f"model.layers.{layer}.self_attn.q_proj" for layer in range(DEPTH)} | {
        "model.layers.1.mlp.up_proj"
    }


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("llama", "lm_head", "output head"),
        ("gpt2", "wte", "output head or tied"),
        ("llama", "self_attn", "no linear layer"),
        ("llama", "c_attn", r"no layer 'c_attn'; its linear layers are down_proj, gate_proj, "),
        ("llama", "q_porj", r"no layer 'q_porj'; did you mean `q_proj`"),
    ],
)
def test_targets_that_cannot_be(student_of, name, target, message):
    for others in ([], ["v_proj" if name != "gpt2" else "c_proj"]):
        with pytest.raises(UsageError, match=message):
            student_of(name, lora={"targets": [*others, target]})


def test_experts_have_no_adapters_with_dropout(folder_of):
    folder = str(folder_of("mixtral", EXPERTS))

    def load(**lora):
        # their products are not to be had in float64
        return load_student(StudentConfig.parse({"model": folder, "lora": {"r": 2, **lora}}, "test"), 0)

    with pytest.raises(UsageError, match=r"MixtralForCausalLM.*`lora.dropout: 0`, or leave the experts out") as error:
        load()
    with pytest.raises(UsageError, match=r"no layer 'w7'"):
        load(targets=["q_proj", "w7"])
    (targets,) = re.findall(r"`lora.targets: \[(.*)\]`", str(error.value))
    for lora, some in (({"dropout": 0.0}, "experts"), ({"targets": targets.split(", ")}, "q_proj")):
        student = load(**lora)
        trained = {key for key, each in student.model.named_parameters() if each.requires_grad}
        assert any(some in key for key in trained)
        assert any("experts" in key for key in trained) == (some == "experts")
        loss_of(student, batch_of(LENGTHS)).backward()
        gradients = gradients_of(student.model)
        assert gradients.keys() == trained
        assert all(bool(each.any()) for key, each in gradients.items() if "lora_B" in key)


def test_a_routers_loss_is_not_trained_and_so_not_accepted(folder_of):
    folder = folder_of("routed", transformers.MixtralConfig(**EXPERTS.to_dict() | {"output_router_logits": True}))
    with pytest.raises(UsageError, match=r"`output_router_logits`.*`student.config: \{output_router_logits: false\}`"):
        load_student(StudentConfig(model=str(folder)), 0)
    without = StudentConfig(model=str(folder), config={"output_router_logits": False})
    assert load_student(without, 0).depth == DEPTH


CUTTABLE = PACKED | {
    "qwen2_mixed": transformers.Qwen2Config(
        **GROUPED, layer_types=MIXED[::-1], use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0
    ),
    "bloom": ALL["bloom"],
}


def cut_of(folder, layers):
    return load_student(StudentConfig(model=str(folder), init={"layers": layers}), 0, torch.float64).eval()


@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("layers", [(0, 3), (2,)])
def test_a_cut_model_is_the_deeper_one_without_the_other_layers(folder_of, name, layers):
    folder = folder_of(name, CUTTABLE[name])
    whole = plain_of(folder).eval()
    blocks = next(each for each in whole.modules() if isinstance(each, nn.ModuleList) and len(each) == DEPTH)
    for layer, block in enumerate(blocks):
        if layer not in layers:
            block.register_forward_hook(
                lambda _module, given, output: (given[0], *output[1:]) if isinstance(output, tuple) else given[0]
            )
    batch, student = batch_of((20,)), cut_of(folder, layers)
    with torch.no_grad():
        expected = whole(batch.ids[None], output_hidden_states=True, use_cache=False).hidden_states
        found = student(batch, range(len(layers) + 1))
    for layer, place in enumerate(layers, 1):
        # the last one is behind the final norm
        each = expected[place + 1 if layer < len(layers) else DEPTH][0]
        torch.testing.assert_close(found[layer], each, rtol=0, atol=TOLERANCE * float(each.abs().max()))


@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("layers", [(0, 3), (2, 1, 1)])
def test_a_cut_model_is_the_same_when_loaded_again_and_with_a_cache(folder_of, name, layers, tmp_path):
    student = cut_of(folder_of(name, CUTTABLE[name]), layers)
    ids = batch_of((20,)).ids
    with torch.no_grad():
        states = student(batch_of((20,)), ())
    student.model.save_pretrained(tmp_path)
    again = plain_of(tmp_path).eval()
    text = again.config.get_text_config()
    assert text.num_hidden_layers == student.depth == len(layers)
    if getattr(text, "layer_types", None):
        whole = CUTTABLE[name].layer_types
        assert text.layer_types == [whole[layer] for layer in layers]
    with torch.no_grad():
        expected = again(ids[None], output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        torch.testing.assert_close(
            states[student.depth], expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
        )
        # a KV cache, whose slots go by each layer's own index
        output = again(ids[None, :12], use_cache=True, output_hidden_states=True)
        steps = [output.hidden_states[-1][0]]
        for token in ids[12:]:
            output = again(
                token.view(1, 1), past_key_values=output.past_key_values, use_cache=True, output_hidden_states=True
            )
            steps.append(output.hidden_states[-1][0])
    torch.testing.assert_close(torch.cat(steps), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_layers_that_depend_on_their_place_are_not_cut(folder_of):
    folder = folder_of("placed", transformers.GPT2Config(**SIZES, scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(UserError, match=r"GPT2LMHeadModel.*cannot be cut"):
        cut_of(folder, (0, 3))
    assert cut_of(folder, (0, 1)).depth == 2


def test_layers_that_are_not_there(folder_of, student_of):
    with pytest.raises(UsageError, match=r"decoder layers 0 to 3, so there is no layer 4"):
        cut_of(folder_of("llama"), (0, 4))
    student = student_of("llama")
    with pytest.raises(UsageError, match=r"layers 0 .embeddings. to 4, not 5"):
        student(batch_of(LENGTHS), (5,))


@pytest.mark.parametrize("packing", [False, True])
def test_documents_that_are_too_long(student_of, packing):
    student = student_of("llama", packing=packing)
    student(batch_of((32,)), ())
    with pytest.raises(UserError, match=r"33 tokens.*at most 32.*--set student\.max_length=32"):
        student(batch_of((3, 33)), ())


def fresh(seed, **values):
    config = {"model_type": "llama", **GROUPED, **values}
    return load_student(StudentConfig.parse({"init": "config", "config": config}, "test"), seed)


def test_fresh_weights_are_a_function_of_the_seed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (fresh(seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(each, same[key]) for key, each in one.items())
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_a_config_of_another_model_can_be_changed(folder_of):
    def made(name, **config):
        return load_student(StudentConfig(model=str(folder_of(name)), init="config", config=config), 0)

    shallow = made("gemma3", num_hidden_layers=3, intermediate_size=16)
    assert shallow.depth == 3
    assert shallow.model.config.layer_types == MIXED[:3]
    assert made("gemma3", num_hidden_layers=6).model.config.num_hidden_layers == 6
    assert made("gpt2", hidden_size=16).hidden_size == 16
    assert made("mistral", sliding_window=None).model.config.sliding_window is None
    assert not torch.equal(
        made("llama").model.model.norm.weight, plain_of(folder_of("llama")).model.norm.weight.float()
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init": "config", "config": {"model_type": "lama"}}, "'lama'.*`llama`"),
        ({"init": "config", "config": {"model_type": "llama", "hiden_size": 8}}, "`hiden_size`.*`hidden_size`"),
        ({"init": "config", "config": {"model_type": "llama", "num_hidden_layers": "many"}}, "num_hidden_layers"),
        ({"model": "llama", "config": {"dropuot": 0}}, "student '.*llama.*`dropuot`"),
        ({"init": "config", "config": {"model_type": "qwen2", **SIZES}}, "qwen2. cannot be built.*size of tensor a"),
        ({"model": "llama", "config": {"model_type": "gpt2"}}, "is a llama"),
    ],
)
def test_configs_that_cannot_be(folder_of, values, message):
    if "model" in values:
        values = values | {"model": str(folder_of(values["model"]))}
    with pytest.raises(UsageError, match=message):
        load_student(StudentConfig.parse(values, "test"), 0)


def test_weights_that_are_not_there(folder_of, tmp_path):
    with pytest.raises(UserError, match=r"The student '.*': its files lack.* in another"):
        load_student(StudentConfig(model=str(folder_of("llama")), config={"intermediate_size": 48}), 0)
    with pytest.raises(UserError, match=r"The student .*no such folder"):
        load_student(StudentConfig(model=str(tmp_path / "absent")), 0)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"The student '.*cannot be loaded"):
        load_student(StudentConfig(model=str(tmp_path)), 0)


def test_a_model_whose_states_depend_on_the_batch_is_refused(folder_of, monkeypatch):
    def mixed(self, hidden_states):
        return hidden_states + hidden_states.mean((0, 1))

    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaMLP, "forward", mixed)
    with pytest.raises(UserError, match=r"The student .LlamaForCausalLM. does not give"):
        load_student(StudentConfig(model=str(folder_of("llama"))), 0)
