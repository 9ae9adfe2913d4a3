"""A teacher cache: what it holds is what the teacher says live, and what is told of it is true."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from datasets import load_from_disk
from safetensors.torch import load, load_file
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, OPTConfig

from pipeline.cache import matching, measure, sizes
from pipeline.cache.estimate import estimate
from pipeline.cache.plan import cache
from pipeline.cache.stage import CacheStage
from pipeline.cache.verify import verify
from pipeline.dataset.realign import realign
from pipeline.read import chat_tokenizer
from schemas.config import CacheConfig, ModelConfig, ParseConfig
from schemas.errors import ResourceError, UserError
from schemas.manifest import CONFIG
from schemas.signals import Signal
from trainer.cache import TeacherCache
from trainer.maths.geometry import centrality_weights, covered, pool, units_with_span
from trainer.maths.pairs import ONE
from trainer.maths.ragged import normalize_rows, pointers
from trainer.models.hub import ModelFiles
from trainer.models.tokenizer import load_tokenizer

EVERY = list(get_args(Signal))
LAYERS = [
    {"layer": 1, "granularity": "phrases"},
    {"layer": 2, "granularity": "words"},
    {"layer": 4, "granularity": "chunks"},
]
TOPK = 5
FEW = 8  # rows: of types whose rounding is looked at, where a row is as good as another
#: float32 sums in another order, relative to the vector's largest element
ROUNDING = 2e-5


def written(plan, out):
    """A cache by this process."""
    return cache(plan, out, workers=1, quiet=True)


@pytest.fixture(scope="module")
def documents(prepared):
    return load_from_disk(str(prepared)).to_list()


@pytest.fixture(scope="module")
def live(tiny_teacher, documents):
    """The plain model's own outputs, each document alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, attn_implementation="eager").eval()
    found = []
    for document in documents:
        ids = torch.tensor(document["teacher_input_ids"])[None]
        with torch.no_grad():
            found.append(model(ids, output_hidden_states=True, output_attentions=True, use_cache=False))
    return found


@pytest.fixture(scope="module")
def plain(cache_plan, tmp_path_factory):
    """An uninterrupted run by one process: relations of two layers."""
    out = tmp_path_factory.mktemp("cache") / "plain"
    written(cache_plan(), out)
    return out


def bound(storage, vectors):
    """How far stored vectors may be from these (trainer/storage.py), rounding of the forward pass included."""
    peak = vectors.abs().amax(1, keepdim=True)
    of_type = {
        "fp32": 0 * vectors,
        "bf16": 2**-8 * vectors.abs(),
        "fp16": 2**-11 * vectors.abs() + 2**-25,
        "fp8": torch.maximum(2**-4 * vectors.abs(), 2**-10 * peak / 448),
        "int8": peak / 127 / 2 + 0 * vectors,
    }
    return of_type[storage] * 1.001 + ROUNDING * peak


@pytest.mark.parametrize(
    ("storage", "state_tokens", "limit"),
    [
        ("fp32", "all", None),
        ("fp32", "covered", FEW),
        ("bf16", "covered", None),
        ("fp16", "all", FEW),
        ("fp8", "covered", FEW),
        ("int8", "all", FEW),
    ],
)
def test_cached_equals_live(cache_plan, documents, live, tmp_path, storage, state_tokens, limit):
    types = dict.fromkeys(("units", "states", "final"), storage)
    values = {"storage": types, "state_tokens": state_tokens, "topk": TOPK, "limit": limit}
    documents, live = documents[:limit], live[:limit]
    written(cache_plan(layers=LAYERS, signals=EVERY, **values), tmp_path / "out")
    found = TeacherCache(tmp_path / "out")
    assert found.layers == {each["layer"]: each["granularity"] for each in LAYERS}
    assert found.ids == [document["id"] for document in documents]
    for row, (document, output) in enumerate(zip(documents, live, strict=True)):
        hidden_states = [hidden[0] for hidden in output.hidden_states]
        tokens = len(document["teacher_input_ids"])
        rows = pointers([tokens])
        for layer, name in found.layers.items():
            hidden = hidden_states[layer]
            spans = torch.tensor(document[f"teacher_{name}"], dtype=torch.int32).reshape(-1, 2)
            units = units_with_span(spans, pointers([len(spans)]), rows)
            weights = centrality_weights(hidden, rows)
            pooled = pool(hidden, weights, units.spans)
            assert torch.equal(found.unit_index(row, layer), units.index)
            assert found.relations(row, layer).shape == (len(pooled), len(pooled))
            cosines = F.cosine_similarity(pooled[:, None], pooled[None], dim=2)
            torch.testing.assert_close(found.relations(row, layer), cosines, rtol=0, atol=1.6e-5 + ROUNDING)
            vectors = found.units(row, layer)
            assert bool(((vectors - pooled).abs() <= bound(storage, pooled)).all())
            share = torch.stack([weights[start:end].sum() for start, end in units.spans.tolist()])
            torch.testing.assert_close(found.unit_weights(row, layer), share / share.sum(), rtol=1e-4, atol=1e-7)
            index = covered(units.spans, tokens).nonzero()[:, 0] if state_tokens == "covered" else torch.arange(tokens)
            assert torch.equal(found.state_index(row, layer), index)
            kept = hidden[index]
            assert bool(((found.states(row, layer) - kept).abs() <= bound(storage, kept)).all())
            torch.testing.assert_close(found.token_weights(row, layer), weights[index], rtol=1e-4, atol=1e-7)
            attention = normalize_rows(output.attentions[layer - 1][0, :, -1].sum(0), rows)
            torch.testing.assert_close(found.attention(row, layer), attention, rtol=1e-4, atol=1e-6)
        final, logits = hidden_states[-1], output.logits[0]
        assert bool(((found.final(row) - final).abs() <= bound(storage, final)).all())
        if storage == "fp32":
            torch.testing.assert_close(found.logits(row), logits, rtol=1e-4, atol=1e-4)
        indices, likely = found.topk(row)
        expected = logits.log_softmax(1).gather(1, indices)
        assert bool((expected[:, -1] >= logits.log_softmax(1).topk(TOPK).values[:, -1] - 1e-4).all())
        torch.testing.assert_close(likely, expected, rtol=2**-11, atol=1e-4)
        logprobs = logits.log_softmax(1)
        torch.testing.assert_close(found.sorted(row), logprobs.topk(1024).values.exp(), rtol=2**-10, atol=1e-6)
        entropy = -(logprobs.exp() * logprobs).sum(1)
        torch.testing.assert_close(found.entropy(row), entropy, rtol=1e-4, atol=1e-4)
        at_best = logprobs.gather(1, found.argmax(row)[:, None])
        torch.testing.assert_close(at_best, logprobs.amax(1, keepdim=True), rtol=0, atol=1e-4)
        following = torch.tensor(document["teacher_input_ids"][1:])[:, None]
        own = torch.cat([logprobs[:-1].gather(1, following).squeeze(1), torch.zeros(1)])
        torch.testing.assert_close(found.logprob(row), own, rtol=1e-4, atol=1e-4)
    assert verify(tmp_path / "out", quick=False, dataset=None).problems == []


def test_another_token_budget_moves_values_by_rounding_only(cache_plan, tmp_path):
    types = dict.fromkeys(("units", "states", "final"), "fp32")
    for budget in (64, 4096):
        plan = cache_plan(signals=EVERY, storage=types, token_budget=budget, shard_tokens=10**6)
        written(plan, tmp_path / str(budget))
    small, large = (load_file(tmp_path / str(budget) / "shards" / "00000.safetensors") for budget in (64, 4096))
    assert small.keys() == large.keys()
    for name, tensor in small.items():
        if name.endswith("relations"):
            assert int((tensor.int() - large[name].int()).abs().max()) <= 1
        elif name in ("topk.indices", "argmax"):
            assert (tensor != large[name]).float().mean() < 1e-3
        else:
            precision = 2**-10 if name in ("topk.logprobs", "sorted") else 1e-4
            torch.testing.assert_close(tensor, large[name], rtol=precision, atol=1e-4, msg=name)


def test_shard_size_changes_files_but_no_row(cache_plan, plain, tmp_path):
    written(cache_plan(shard_bytes=1 << 16, shard_tokens=10**6), tmp_path / "out")
    one, other = TeacherCache(plain), TeacherCache(tmp_path / "out")
    assert len(one.manifest.shards) != len(other.manifest.shards)
    assert max(shard.bytes for shard in other.manifest.shards) < 1.1 * (1 << 16)
    for row in range(len(one)):
        for layer in one.layers:
            torch.testing.assert_close(one.relations(row, layer), other.relations(row, layer), rtol=0, atol=1e-4)


def test_only_the_first_rows(cache_plan, plain, tmp_path):
    written(cache_plan(limit=7), tmp_path / "out")
    assert TeacherCache(tmp_path / "out").ids == TeacherCache(plain).ids[:7]


def test_the_resolved_config_gives_the_same_cache(cache_plan, plain, contents, tmp_path):
    values = CacheConfig.from_yaml(plain / CONFIG)
    written(cache_plan(**values), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(plain)
    assert written(cache_plan(**values), tmp_path / "out").already_finished


def test_one_cache_serves_a_student_aligned_later(plain, prepared, tmp_path):
    other = {"tokenizer": "embedded:sentencepiece-bpe"}
    realign(prepared, tmp_path / "new", {"student": other}, None, workers=1, overwrite=False, quiet=True)
    assert verify(plain, quick=False, dataset=tmp_path / "new").problems == []


@pytest.mark.parametrize(
    "values", [{}, {"signals": EVERY, "shard_tokens": 10**6, "window": 8}, {"signals": ["final"], "layers": []}]
)
def test_the_estimate_is_what_is_written(cache_plan, tmp_path, values):
    plan = cache_plan(**values)
    found = estimate(plan, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    assert found["estimated_seconds"] > 0
    manifest = written(plan, tmp_path / "out").manifest
    assert found["shards"] == len(manifest.shards)
    others = [file.bytes for file in (manifest.index, manifest.head, manifest.embeddings) if file is not None]
    assert found["estimated_bytes"] == pytest.approx(
        sum(shard.bytes for shard in manifest.shards) + sum(others), rel=0.02
    )
    # every signal and layer by itself, from the tensors on disk
    signals = {
        **dict.fromkeys(("token_weights", "state_rows", "state_index"), "states"),
        "topk": "topk",
        "final": "final",
    }
    sizes = {}
    for shard in manifest.shards:
        for name, tensor in load_file(tmp_path / "out" / "shards" / shard.file).items():
            place, _, part = name.removesuffix(".scale").partition(".")
            layer = int(place.removeprefix("layer")) if place.startswith("layer") else None
            part = part if layer is not None else place
            signal = signals.get(part, part if part in EVERY else "structure")
            sizes[signal, layer] = sizes.get((signal, layer), 0) + tensor.numel() * tensor.element_size()
    for part in found["parts"]:
        expected = sizes.pop((part["signal"], part["layer"]))
        assert part["bytes"] == pytest.approx(expected, rel=0.02, abs=8 * len(manifest.shards))
    assert not sizes


def test_out_of_memory_halves_the_batch(cache_plan, plain, tmp_path, monkeypatch):
    whole_batch = CacheStage._batch

    def cramped(self, rows, members):
        if len(members) > 1 and sum(rows.lengths[row] for row in members) > 400:
            raise torch.OutOfMemoryError("no room")
        return whole_batch(self, rows, members)

    monkeypatch.setattr(CacheStage, "_batch", cramped)
    written(cache_plan(), tmp_path / "out")
    one, other = TeacherCache(plain), TeacherCache(tmp_path / "out")
    for row in range(len(one)):
        torch.testing.assert_close(one.relations(row, 4), other.relations(row, 4), rtol=0, atol=1e-4)

    def full(self, rows, members):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(CacheStage, "_batch", full)
    with pytest.raises(ResourceError, match=r"Out of memory on cpu with the row '.*' of \d+ tokens alone"):
        written(cache_plan(), tmp_path / "full")


def test_nan_is_named_by_row_and_layer(cache_plan, tiny_teacher, tmp_path, documents):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_teacher, broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    poison = documents[9]["teacher_input_ids"][len(documents[9]["teacher_input_ids"]) // 2]
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = float("nan")
    model.save_pretrained(broken)
    with pytest.raises(UserError, match=r"^Row '.*', .* of layer \d: the teacher gives NaN") as told:
        written(cache_plan(teacher={"model": str(broken)}), tmp_path / "out")
    with_it = [each["id"] for each in documents if poison in each["teacher_input_ids"]]
    assert 0 < len(with_it) < len(documents)
    assert any(f"Row {name!r}," in str(told.value) for name in with_it)


def test_commands_know_a_cache(command, plain, prepared, documents, tmp_path):
    code, out, err = command("info", plain)
    assert (code, err) == (0, "")
    assert all(word in out for word in ("teacher cache", "LlamaForCausalLM", "24 rows", "relations", "2 (words)"))
    assert json.loads(command("info", plain, "--json")[1])["rows"] == 24
    code, out, _ = command("verify", plain, "--dataset", prepared)
    assert code == 0
    assert "nothing wrong" in out
    assert json.loads(command("verify", plain, "--quick", "--json")[1])["ok"]
    assert command("verify", prepared, "--dataset", prepared)[0] != 0
    assert command("verify", plain, "--teacher", "x")[0] != 0
    code, out, err = command("inspect", plain, "--row", 2)
    assert (code, err) == (0, "")
    assert documents[2]["id"] in out
    found = json.loads(command("inspect", plain, "--id", documents[2]["id"], "--json")[1])
    assert found["row"] == 2
    layer = found["layers"]["4"]
    text = documents[2]["text"]
    assert layer["units"] == [text[a:b] for a, b in (documents[2]["chunks"][unit] for unit in layer["unit_index"])]
    assert len(layer["relations"]) == len(layer["units"]) == len(layer["unit_weights"])
    code, _, err = command("inspect", plain, "--row", 24)
    assert code != 0
    assert "24 rows" in err


def test_long_documents_have_pairs_within_a_window_alone(command, cache_plan, plain, prepared, tmp_path):
    """And nothing else differs; short ones have all of theirs, as without a window."""
    out = tmp_path / "out"
    manifest = written(cache_plan(window=8), out).manifest
    assert "those of units less than 8 units apart" in (out / "README.md").read_text()
    whole, cut = TeacherCache(plain), TeacherCache(out)
    lengths = {layer: [len(whole.unit_index(row, layer)) for row in range(len(whole))] for layer in whole.layers}
    assert min(lengths[4]) <= 16 < max(lengths[4])
    for layer, of in lengths.items():
        pairs = [(count, [(i, j) for i in range(count) for j in range(i + 1, count)]) for count in of]
        near = [[count <= 16 or j - i < 8 for i, j in of_row] for count, of_row in pairs]
        for row, there in enumerate(near):
            every = whole.triangle(row, layer)[torch.tensor(there, dtype=torch.bool)]
            # of bands computed in other blocks, and rounded: a step of the fixed point apart at most
            step = 0 if all(there) else 1.01 / ONE
            torch.testing.assert_close(cut.triangle(row, layer), every, rtol=0, atol=step)
        counted = manifest.counts["layers"][str(layer)]
        assert counted["pairs"] == sum(map(sum, near))
    assert command("verify", out, "--dataset", prepared)[0] == 0
    assert "Of more than 16 units of a document, pairs less than 8 units apart count." in command("info", out)[1]
    row = lengths[4].index(max(lengths[4]))
    code, text, _ = command("inspect", out, "--row", row)
    assert code == 0
    assert "·" in text
    layers = json.loads(command("inspect", out, "--row", row, "--json")[1])["layers"]
    assert layers["4"]["relations"] is None
    assert torch.equal(
        torch.tensor([value for of_unit in layers["4"]["relations_behind"] for value in of_unit]), cut.triangle(row, 4)
    )


def test_a_cache_is_shown_without_its_dataset(command, plain, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(plain, alone)
    manifest = json.loads((alone / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["dataset"] = str(tmp_path / "gone")
    (alone / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    code, out, _ = command("inspect", alone, "--row", 1)
    assert code == 0
    assert "numbered only" in out
    assert json.loads(command("inspect", alone, "--json")[1])["layers"]["2"]["units"] is None


def test_the_command_caches_and_says_what_it_left_out(command, prepared, tiny_teacher, tmp_path):
    arguments = ["cache-teacher", prepared, "--teacher", tiny_teacher, "-o", tmp_path / "out", "--limit", 5]
    code, out, err = command(*arguments, "--dry-run")
    assert code == 0, err
    assert all(word in out for word in ("relations", "bytes/document", "5 rows", "`states` are left out"))
    assert not (tmp_path / "out").exists()
    code, out, err = command(*arguments)
    assert code == 0, err
    assert "`states` are left out" in err
    assert "5 rows" in out
    kept = TeacherCache(tmp_path / "out")
    assert kept.layers == {2: "words", 3: "chunks", 4: "chunks"}
    code, out, _ = command(*arguments)
    assert "already finished" in out
    code, out, _ = command(*arguments, "--student-layers", "1,2", "--student-depth", 2, "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["config"]["layers"][0] == {"layer": 2, "granularity": "words"}
    assert "mta-prep cache-teacher" in command("cache-teacher", "--help")[1]


def test_weights_of_a_shard_cost_what_the_plan_says(cache_plan):
    """Bytes by row, which decide where shards begin, add up to the bytes of the whole."""
    plan = cache_plan(signals=EVERY, layers=LAYERS)
    rows = plan.documents.read(sizes.granularities(plan.config), 0, plan.documents.rows, response_only=False)
    shard = rows.shard(plan.config.layers, "covered", None)
    each = measure.row_bytes(shard, sizes.tensors(plan.config, plan.shape, sizes.nothing(plan.config)).values())
    tensors = sizes.tensors(plan.config, plan.shape, shard.counts()).values()
    pointers = sum(spec.bytes for spec in sizes.tensors(plan.config, plan.shape, sizes.nothing(plan.config)).values())
    assert int(each.sum()) + pointers == sum(spec.bytes for spec in tensors)


#: Teachers with matrices of one kind and another: tied or not, with a scale of their embeddings, of another width.
SIZES = {"vocab_size": 4096, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = SIZES | {"intermediate_size": 16, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048}
MATRICES = {
    "tied with a scale and a soft cap": Gemma2Config(**GATED, final_logit_softcapping=3.0),
    "tied": GPT2Config(**SIZES, n_positions=2048),
    "not tied": LlamaConfig(**GATED),
    "tied and narrower": OPTConfig(
        **SIZES, ffn_dim=16, word_embed_proj_dim=8, max_position_embeddings=2048, do_layer_norm_before=False
    ),
}


@pytest.mark.parametrize("signals", [["final", "embeddings", "states"], ["embeddings"]], ids=["final", "alone"])
@pytest.mark.parametrize("kind", MATRICES)
def test_embeddings_of_a_cache_are_the_models(cache_plan, documents, tiny_teacher, tmp_path, kind, signals):
    torch.manual_seed(0)
    folder = tmp_path / "teacher"
    model = AutoModelForCausalLM.from_config(MATRICES[kind])
    model.save_pretrained(folder)
    for file in tiny_teacher.glob("tokenizer*"):
        shutil.copy(file, folder)
    layers = [{"layer": 2, "granularity": "chunks"}] if "states" in signals else []
    values = {"teacher": {"model": str(folder)}, "layers": layers, "signals": signals, "limit": 4}
    plan = cache_plan(**values, state_tokens="all", response_only=True)
    manifest = written(plan, tmp_path / "out").manifest
    shared = kind.startswith("tied") and "final" in signals
    assert (manifest.tied_embeddings, manifest.embeddings is None) == (shared, shared)
    matrices = [file.file for file in (manifest.head, manifest.embeddings) if file is not None]
    assert plan.sizes().keys() == {"shards", "index.arrow", *matrices}
    for name in matrices:
        content = (tmp_path / "out" / name).read_bytes()
        norm = sum(part.nbytes for key, part in load(content).items() if key.startswith("norm."))
        assert norm <= 2 * plan.shape.width(None) * plan.shape.number_bytes
        assert plan.sizes()[name] == len(content) - 8 - int.from_bytes(content[:8], "little") - norm
    assert verify(tmp_path / "out", quick=False, dataset=Path(plan.config.dataset)).problems == []
    found = TeacherCache(tmp_path / "out")
    ids = torch.tensor([token for document in documents[:4] for token in document["teacher_input_ids"]])
    assert torch.equal(found.embeddings(ids), model.get_input_embeddings().weight[ids])
    absent = next(token for token in range(4096) if token not in set(ids.tolist()))
    if shared:
        assert found.embeddings.weight.data_ptr() == found.head.weight.data_ptr()
    else:
        assert found.embeddings.ids.tolist() == sorted(set(ids.tolist()))
        with pytest.raises(ValueError, match=f"token {absent} has no row"):
            found.embeddings(torch.tensor([absent]))
    for layer in found.layers:
        names = load_file(tmp_path / "out" / "shards" / manifest.shards[0].file).keys()
        assert f"layer{layer}.states" not in names
        assert f"layer{layer}.token_weights" in names
        assert all(torch.equal(found.states(row, layer), found.final(row)) for row in range(4))


@pytest.mark.parametrize(
    "values",
    [{"state_tokens": "covered"}, {"storage": {"states": "fp32"}}, {"signals": ["states"]}, {"layers": LAYERS[:1]}],
)
def test_states_that_final_does_not_hold_are_stored(cache_plan, tmp_path, values):
    base = {"signals": ["states", "final"], "layers": LAYERS[-1:], "state_tokens": "all", "limit": 2}
    plan = cache_plan(**base | values)
    written(plan, tmp_path / "out")
    names = load_file(next((tmp_path / "out" / "shards").iterdir())).keys()
    assert f"layer{plan.config.layers[0].layer}.states" in names


def test_a_teacher_without_a_chat_template_of_its_own_is_told_and_opened_once(tmp_path, monkeypatch):
    load_tokenizer("embedded:sentencepiece-bpe", None, "Tokenizer").save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    opened = []
    monkeypatch.setattr(chat_tokenizer, "load_tokenizer", lambda *given: opened.append(given) or load_tokenizer(*given))
    side = {"tokenizer": str(tmp_path), "template": "native"}
    values = {"inputs": ["rows.jsonl"], "fields": {"form": "conversation"}, "teacher": side, "student": side}
    told = matching._tokenizer(ModelFiles(str(tmp_path)), ModelConfig(model="M"), ParseConfig.parse(values, "here"))
    assert told == (
        "M comes without a chat template, so the dataset's tokens were not compared with those that it would read."
    )
    assert len(opened) == 1
