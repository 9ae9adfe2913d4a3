"""Loading teachers: no deeper than asked, never with random weights, errors in a sentence; heads; identity."""

import json
import os
import shutil
import time
from functools import partial

import pytest
import torch
import transformers
from huggingface_hub import cached_assets_path
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from schemas.config import ModelConfig
from schemas.errors import ResourceError, UsageError, UserError
from schemas.files import sha256_of
from trainer.models import hub
from trainer.models.head import Head
from trainer.models.hub import identity
from trainer.models.loading import load_model

DEPTH = 3
SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 1, "intermediate_size": 24}
HEADS = {
    "plain": (transformers.LlamaConfig(**GROUPED), None, None),
    "tied": (transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True), None, None),
    "biased": (transformers.PhiConfig(**GROUPED), None, None),
    "capped": (transformers.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=30.0), 30.0, None),
    "multiplied": (transformers.CohereConfig(**GROUPED, logit_scale=0.0625), None, 0.0625),
    "divided": (transformers.GraniteConfig(**GROUPED, logits_scaling=6.0), None, 1 / 6),
    "scaled_before": (
        transformers.MiniCPM3Config(
            **SIZES,
            intermediate_size=24,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
            dim_model_base=4,
            num_key_value_heads=2,
        ),
        None,
        0.25,
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing of the user's is read or written."""
    monkeypatch.setattr(
        hub.huggingface_hub, "cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path / "assets")
    )


def save(config, folder, **options):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.3, 0.3)
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture
def llama(tmp_path):
    return save(HEADS["plain"][0], tmp_path / "llama")


def teacher(folder, deepest=None, **options):
    return load_model(ModelConfig(model=str(folder), **options), deepest)


def edit(file, change):
    """Change the tensors of a safetensors file."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("name", HEADS)
def test_head_gives_the_models_own_logits(tmp_path, name):
    config, soft_cap, scale = HEADS[name]
    loaded = teacher(save(config, tmp_path / name))
    head = loaded.head()
    assert head.soft_cap == soft_cap
    assert head.scale == scale
    assert (head.bias is not None) == (name == "biased")
    assert head.weight.shape == (loaded.vocab_size, loaded.hidden_size)
    ids = torch.tensor([[5, 3, 60, 1, 0, 17]])
    with torch.no_grad():
        output = loaded.model(ids, output_hidden_states=True)
    torch.testing.assert_close(head.logits(output.hidden_states[-1][0]), output.logits[0], rtol=1e-6, atol=1e-6)


def test_scale_comes_before_the_cap():
    head = Head(torch.eye(2), soft_cap=3.0, scale=2.0)
    expected = 3 * torch.tanh(torch.tensor([[0.5, -4.0]]) * 2 / 3)
    torch.testing.assert_close(head.logits(torch.tensor([[0.5, -4.0]])), expected)


@pytest.mark.parametrize("after", [lambda x: x * 0.99, lambda x: x.clamp(-20, 20), lambda x: x.roll(1, -1)])
def test_unknown_treatment_of_logits_is_refused_by_name(llama, after):
    loaded = teacher(llama)
    loaded.model.lm_head.register_forward_hook(lambda _m, _a, out: after(out))
    with pytest.raises(UserError, match=r"LlamaForCausalLM.*logits"):
        loaded.head()


def test_a_cap_that_the_model_does_not_apply_is_not_applied(llama):
    loaded = teacher(llama)
    loaded.model.config.final_logit_softcapping = 30.0
    assert loaded.head().soft_cap is None


def test_what_is_known_of_a_teacher(llama):
    whole, cut = teacher(llama), teacher(llama, 1)
    for each in (whole, cut):
        assert (each.depth, each.hidden_size, each.vocab_size) == (DEPTH, 16, 61)
        assert each.architecture == "LlamaForCausalLM"
        assert each.dtype == torch.float32
        assert not each.model.training
        assert not any(parameter.requires_grad for parameter in each.model.parameters())
    assert whole.whole
    assert not cut.whole
    assert len(cut.layers) == 1
    with pytest.raises(ValueError, match="cut after layer 1 of 3"):
        cut.head()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_dtype(tmp_path, dtype):
    folder = save(transformers.LlamaConfig(**GROUPED, dtype="bfloat16"), tmp_path / "bf16")
    expected = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    assert teacher(folder, dtype=dtype).dtype == expected
    if dtype != "float32":
        assert teacher(folder, dtype=dtype).head().weight.dtype == expected


def test_a_cut_teacher_needs_no_weights_beyond_its_cut(llama, capfd):
    """Also where the output matrix is gone, and without a word about weights that were left out on purpose."""
    complete = teacher(llama, 2)
    capfd.readouterr()

    def drop(tensors):
        for name in [name for name in tensors if ".layers.2." in name or "lm_head" in name]:
            del tensors[name]

    edit(llama / "model.safetensors", drop)
    for deepest in (1, 2):
        cut = teacher(llama, deepest)
        for name, tensor in cut.layers.state_dict().items():
            assert torch.equal(tensor, complete.layers.state_dict()[name])
    assert ".layers.2." not in capfd.readouterr().err
    with pytest.raises(UserError, match=r"lack \d+ of the weights of LlamaForCausalLM"):
        teacher(llama)


def test_weights_beyond_the_cut_are_not_warned_of(llama, capfd):
    teacher(llama, 1)
    assert "layers.2" not in "".join(capfd.readouterr())


def test_random_weights_are_never_used(llama):
    edit(llama / "model.safetensors", lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"lack 1 .*model\.layers\.0\.mlp\.up_proj\.weight"):
        teacher(llama, 1)


def test_weights_of_another_shape(llama):
    edit(llama / "model.safetensors", lambda tensors: tensors.update({"model.norm.weight": torch.ones(17)}))
    with pytest.raises(UserError, match=r"llama.*in another shape \(model\.norm\.weight\)"):
        teacher(llama)


def test_a_damaged_file(llama):
    (llama / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        teacher(llama)


def test_layers_beyond_the_last(llama):
    with pytest.raises(UsageError, match=rf"layers 0 \(embeddings\) to {DEPTH}, not {DEPTH + 1}"):
        teacher(llama, DEPTH + 1)
    assert teacher(llama, DEPTH).whole


def test_no_such_folder(tmp_path):
    for load in (teacher, lambda model: identity(ModelConfig(model=str(model)))):
        with pytest.raises(UserError, match=r"nowhere.*no such folder"):
            load(tmp_path / "nowhere")
        with pytest.raises(UserError, match=r"holds no config\.json"):
            load(tmp_path)
    (tmp_path / "one.gguf").touch()
    with pytest.raises(UserError, match=r"Name one of its GGUF files: one\.gguf"):
        teacher(tmp_path)
    with pytest.raises(UserError, match=r"no file two\.gguf"):
        teacher(tmp_path, gguf_file="two.gguf")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, "\udcff", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"w": 3}}']
    + [f'{{"weight_map": {{"w": "{name}"}}}}' for name in ("", "..", "../weights.safetensors", "/etc/hosts")],
)
def test_an_index_that_is_damaged_or_leads_out_of_its_folder(llama, text):
    (llama / "model.safetensors").unlink()
    index = llama / "model.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"{index.name} is damaged"):
        who(llama)


def test_a_hub_id_without_a_network():
    with pytest.raises(ResourceError, match=r"'nobody/nothing'.*hub cannot be reached"):
        teacher("nobody/nothing")
    with pytest.raises(ResourceError, match=r"'nobody/nothing'.*hub cannot be reached"):
        identity(ModelConfig(model="nobody/nothing"))
    with pytest.raises(UserError, match="no valid hub id"):
        teacher("nobody/no:thing")


def test_no_causal_language_model(tmp_path):
    transformers.T5Config(d_model=16, num_layers=1, d_ff=16, num_heads=2, d_kv=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        teacher(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(llama, tmp_path):
    config = json.loads((llama / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (llama / "config.json").write_text(json.dumps(config))
    (llama / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    with pytest.raises(UserError, match="--trust-remote-code"):
        teacher(llama)
    assert not (tmp_path / "run").exists()


def test_quantization_without_its_library(llama, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="bitsandbytes"):
        teacher(llama, quantization="4bit")
    with pytest.raises(UsageError, match="accelerate"):
        teacher(llama, device_map="auto")
    (llama / "model.gguf").touch()
    with pytest.raises(UsageError, match="gguf"):
        teacher(llama, gguf_file="model.gguf")


def who(folder, **options):
    return identity(ModelConfig(model=str(folder), **options))


def test_identity_is_of_the_content(llama, tmp_path):
    one = who(llama)
    assert one["name"] == "llama"
    assert one["revision"] is None
    other = shutil.copytree(llama, tmp_path / "elsewhere" / "llama")
    (other / "README.md").write_text("not the model")
    assert who(other) == one
    edit(other / "model.safetensors", lambda tensors: tensors["model.norm.weight"].mul_(2))
    assert who(other)["sha256"] != one["sha256"]
    shutil.copy(llama / "model.safetensors", other)
    assert who(other) == one
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert who(other)["sha256"] != one["sha256"]


def test_identity_is_of_the_code_that_may_run(llama):
    before = who(llama), who(llama, trust_remote_code=True)
    (llama / "own.py").write_text("pass")
    assert who(llama) == before[0] == before[1]
    assert who(llama, trust_remote_code=True) != before[1]


def test_identity_of_weights_in_several_files(tmp_path):
    folder = save(HEADS["plain"][0], tmp_path / "sharded", max_shard_size="8KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    seen = {who(folder)["sha256"]}
    for shard in shards:
        edit(shard, lambda tensors: next(iter(tensors.values())).add_(1))
        seen.add(who(folder)["sha256"])
    assert len(seen) == len(shards) + 1
    shards[-1].unlink()
    with pytest.raises(UserError, match=rf"lacks {shards[-1].name}"):
        who(folder)


def test_identity_of_a_gguf_file(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    one = who(file)
    assert one["name"] == "model.gguf"
    assert who(tmp_path, gguf_file="model.gguf") == one
    file.rename(tmp_path / "again.gguf")
    assert who(tmp_path / "again.gguf")["sha256"] == one["sha256"]


def test_identity_without_weights(llama):
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks config\.json and model\.safetensors"):
        who(llama)


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files whose hash was computed."""
    names = []
    monkeypatch.setattr(hub, "sha256_of", lambda path: names.append(path.name) or sha256_of(path))
    return names


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(hub, "_SETTLED_SECONDS", -1.0)


def test_a_hash_is_computed_once(llama, hashed, settled):
    one = who(llama)
    hashed.clear()
    assert who(llama) == one
    assert hashed == []


def flipped(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    return bytes(content)


def written_over(file):
    file.write_bytes(flipped(file))


def put_in_its_place(file):
    other = file.with_name("other")
    other.write_bytes(flipped(file))
    state = file.stat()
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [written_over, put_in_its_place])
def test_weights_of_the_same_size_and_time_are_hashed_anew(llama, hashed, settled, change):
    file = llama / "model.safetensors"
    before = file.stat()
    one = who(llama)
    time.sleep(0.02)  # a tick of the clock that files have their times from
    hashed.clear()
    change(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert who(llama)["sha256"] != one["sha256"]
    assert hashed == [file.name]


def test_nothing_is_remembered_of_a_file_that_is_still_being_changed(llama, hashed):
    who(llama)
    hashed.clear()
    who(llama)
    assert hashed == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("damage", ["", "not a hash"])
def test_a_damaged_memory_is_not_believed(llama, tmp_path, settled, damage):
    one = who(llama)
    notes = [path for path in (tmp_path / "assets").rglob("*") if path.is_file()]
    assert len(notes) == 2
    for note in notes:
        note.write_text(damage)
    assert who(llama) == one


def test_a_cache_folder_that_cannot_be_written_is_no_matter(llama, tmp_path, monkeypatch):
    one = who(llama)
    (tmp_path / "file").touch()
    monkeypatch.setattr(
        hub.huggingface_hub, "cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path / "file")
    )
    assert who(llama) == one


def test_the_role_of_a_model_without_weights_is_told(llama):
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^The student .* lacks config\.json and model\.safetensors"):
        identity(ModelConfig(model=str(llama)), "student")
    assert len(identity(ModelConfig(model=str(llama)), "student", weights=False)["sha256"]) == 64


@pytest.mark.parametrize("name", ["model.gguf", "quantized/Q4/model.gguf"])
def test_the_revision_of_a_file_in_a_subfolder_is_the_commit_also_offline(tmp_path, monkeypatch, name):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    repository = cache / "models--someone--model"
    file = repository / "snapshots" / commit / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(transformers.utils, "cached_file", partial(cached_file, cache_dir=str(cache)))
    who = identity(ModelConfig(model="someone/model", gguf_file=name))
    assert (who["name"], who["revision"]) == ("someone/model", commit)


def test_an_output_matrix_of_another_width_is_refused_by_name(tmp_path):
    """ELECTRA projects the last hidden state on its way to the output matrix."""
    config = transformers.ElectraConfig(**SIZES, embedding_size=8, intermediate_size=24, is_decoder=True)
    loaded = teacher(save(config, tmp_path / "electra"))
    with pytest.raises(UserError, match=r"ElectraForCausalLM.*logits"):
        loaded.head()
