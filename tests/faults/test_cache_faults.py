"""A teacher cache under SIGKILL, damage, wrong partners and a full disk: each is found and named, and nothing is lost."""

import json
import multiprocessing
import random
import re
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, ElectraConfig

from pipeline.cache import matching
from pipeline.cache import plan as planning
from pipeline.cache.verify import verify
from pipeline.dataset.realign import realign
from pipeline.shards import ranks, workspace
from schemas import embedded
from schemas.errors import Exit, ResourceError, StateError, UsageError, UserError
from schemas.manifest import MANIFEST, read_cache_manifest
from trainer.cache import TeacherCache
from trainer.teacher.shape import shape_of

#: (file whose rename into place is the point, whether the process dies before or after it)
POINTS = [
    (name, when)
    for name in (
        "run.json",
        "head.safetensors",
        "embeddings.safetensors",
        "00000.safetensors",
        "00002.safetensors",
        "00002.json",
        "index.arrow",
        MANIFEST,
    )
    for when in ("before", "after")
]
SIGNALS = ["relations", "final", "sorted", "entropy", "argmax", "logprob", "embeddings"]
#: Caches made, and times that each one's run is killed, at random moments of about as long as it takes.
CACHES = [2, pytest.param(17, marks=pytest.mark.slow)]
KILLS = 3


@pytest.fixture(scope="module")
def plan(cache_plan):
    return cache_plan(signals=SIGNALS)


@pytest.fixture(scope="module")
def plain(plan, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("cache") / "plain"
    planning.cache(plan, out, workers=1, quiet=True)
    return out


@pytest.mark.parametrize(("name", "when"), POINTS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_a_named_point(killed_at, plan, plain, contents, tmp_path, name, when):
    out = tmp_path / "out"
    killed_at(name, when, partial(planning.cache, plan, out, workers=1, quiet=True))
    whole = (out / MANIFEST).exists()
    assert whole == ((name, when) == (MANIFEST, "after"))
    if not whole:
        with pytest.raises(StateError, match="has not finished"):
            TeacherCache(out)
    receipts = {path.stem for path in (out / workspace.WORK).glob("0*.json")}
    finished = {
        path: path.stat().st_mtime_ns for path in (out / "shards").glob("*.safetensors") if path.stem in receipts
    }
    planning.cache(plan, out, workers=1, quiet=True)
    assert all(path.stat().st_mtime_ns == when_written for path, when_written in finished.items()), "a shard was redone"
    left = {path: data for path, data in contents(out).items() if not path.startswith(workspace.WORK)}
    assert left == contents(plain)


@pytest.mark.parametrize("caches", CACHES)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_times(plan, plain, contents, tmp_path, caches):
    began = time.monotonic()
    planning.cache(plan, tmp_path / "timed", workers=1, quiet=True)
    took = time.monotonic() - began
    moments = random.Random(5)
    unfinished = 0
    for out in (tmp_path / str(number) for number in range(caches)):
        for _ in range(KILLS):
            child = multiprocessing.get_context("fork").Process(
                target=partial(planning.cache, plan, out, workers=1, quiet=True)
            )
            began = time.monotonic()
            child.start()
            child.join(moments.uniform(0, took))
            child.kill()
            child.join()
            if (out / MANIFEST).exists():
                took = min(took, time.monotonic() - began)  # the first may have been held up by other work
                break
            unfinished += 1
            with pytest.raises(StateError):
                TeacherCache(out)
        planning.cache(plan, out, workers=1, quiet=True)
        left = {path: data for path, data in contents(out).items() if not path.startswith(workspace.WORK)}
        assert left == contents(plain)
    assert unfinished, "no run was killed before its end"


@pytest.mark.parametrize("file", ["head.safetensors", "embeddings.safetensors"])
def test_a_matrix_that_was_lost_is_written_again(killed_at, plan, plain, contents, tmp_path, file):
    out = tmp_path / "out"
    killed_at("00002.json", "after", partial(planning.cache, plan, out, workers=1, quiet=True))
    (out / file).unlink()
    planning.cache(plan, out, workers=1, quiet=True)
    assert contents(out) == contents(plain)


@pytest.fixture
def copy(plain, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(plain, folder)
    return folder


def changed(folder, change):
    """Change the manifest."""
    path = folder / MANIFEST
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def rewritten(folder, file, change):
    """Change tensors of a file whose checksum is then made to fit."""
    from safetensors.torch import load_file, save

    from schemas import files

    path = folder / file
    tensors = load_file(path)
    change(tensors)
    path.write_bytes(save(tensors))

    def fit(values):
        for entry in (*values["shards"], values["head"], values["embeddings"], values["index"]):
            if entry["file"] == path.name:
                entry |= {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}

    changed(folder, fit)


def problems(folder, dataset=None):
    return " ".join(verify(folder, quick=False, dataset=dataset).problems)


SHARD = "shards/00001.safetensors"


@pytest.mark.parametrize("file", [SHARD, "index.arrow", "head.safetensors", "embeddings.safetensors"])
@pytest.mark.parametrize("quick", [True, False])
def test_a_flipped_byte_a_truncated_and_a_missing_file_are_found(copy, file, quick):
    path = copy / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert f"{file} has another checksum" in " ".join(verify(copy, quick=quick, dataset=None).problems)
    path.write_bytes(data[:-100])
    assert f"{file} has {len(data) - 100} bytes" in " ".join(verify(copy, quick=quick, dataset=None).problems)
    with pytest.raises(StateError, match="is damaged"):
        TeacherCache(copy).final(0)
    path.unlink()
    assert f"{file} is missing" in " ".join(verify(copy, quick=quick, dataset=None).problems)


def shifted(values, by):
    values += by


@pytest.mark.parametrize(
    ("file", "name", "change", "told"),
    [
        (SHARD, "layer2.relations", lambda t: t.fill_(-32768), "cosines below -1"),
        (SHARD, "layer2.unit_weights", lambda t: t.mul_(1.01), "do not add up to 1"),
        (SHARD, "layer2.unit_weights", lambda t: t[:1].fill_(float("nan")), "NaN"),
        (SHARD, "layer4.unit_weights", lambda t: t[:1].fill_(-0.1), "not all between 0 and 1"),
        (SHARD, "layer4.unit_index", lambda t: t[1:2].copy_(t[:1]), "does not rise within a row"),
        (SHARD, "final", lambda t: t[3:4].fill_(float("inf")), "NaN or infinite"),
        (SHARD, "layer4.unit_rows", lambda t: t[-1:].add_(1), "not of that shape"),
        (SHARD, "layer4.unit_rows", lambda t: t[1:2].fill_(10**6), "row pointers are missing or wrong"),
        (SHARD, "tokens.rows", lambda t: t[1:2].add_(1), "other tokens than index.arrow says"),
        (SHARD, "entropy", lambda t: t[:1].fill_(-0.1), "entropies that a distribution over 4096 tokens cannot have"),
        (SHARD, "entropy", lambda t: t[:1].fill_(9.0), "entropies that a distribution over 4096 tokens cannot have"),
        (SHARD, "argmax", lambda t: t[:1].fill_(4096), "tokens outside the vocabulary of 4096"),
        (SHARD, "logprob", lambda t: t[:1].fill_(0.1), "are no log-probabilities"),
        (SHARD, "sorted", lambda t: t[:1].neg_(), "are no probabilities, likeliest first"),
        (SHARD, "sorted", lambda t: t[:1, :2].copy_(t[:1, :2].flip(1)), "are no probabilities, likeliest first"),
        (SHARD, "sorted", lambda t: t[:1, 0].fill_(1.001), "are no probabilities, likeliest first"),
        (SHARD, "sorted", lambda t: t[:1, :9].fill_(0.12), "add up to more than 1"),
        ("head.safetensors", "weight", lambda t: t[:1].fill_(float("nan")), "NaN or infinite"),
        ("head.safetensors", "norm.weight", lambda t: t[:1].fill_(float("nan")), "NaN or infinite"),
        ("embeddings.safetensors", "weight", lambda t: t[:1].fill_(float("inf")), "NaN or infinite"),
        ("embeddings.safetensors", "ids", lambda t: t[1:2].copy_(t[:1]), "no rising tokens of the vocabulary of 4096"),
        ("embeddings.safetensors", "ids", lambda t: t[-1:].fill_(4096), "no rising tokens of the vocabulary of 4096"),
    ],
)
def test_what_cannot_be_is_found_though_checksums_fit(copy, file, name, change, told):
    rewritten(copy, file, lambda tensors: change(tensors[name]))
    found = problems(copy)
    assert told in found
    assert file in found


def one_later(tensors):
    """The last row's last learnt token is said to be another, of which there is none."""
    tensors["learnt_index"][-1] += 1


def another_instead(tensors):
    """The first row's first learnt token is said to be the one before it."""
    tensors["learnt_index"][0] -= 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors["learnt_index"][:1].fill_(-1), "learnt_index holds negative places"),
        (lambda tensors: tensors["learnt_index"][1:2].copy_(tensors["learnt_index"][:1]), "does not rise within a row"),
        (one_later, "learnt_index names tokens that its row does not have"),
        (another_instead, "learnt_index does not follow from the dataset"),
        (lambda tensors: tensors["learnt_rows"][1:2].fill_(10**6), "row pointers are missing or wrong"),
        (lambda tensors: tensors.pop("learnt_rows"), "row pointers are missing or wrong"),
    ],
)
def test_learnt_tokens_that_cannot_be(make_cache, prepared, tmp_path, change, told):
    folder = tmp_path / "cache"
    shutil.copytree(make_cache(signals=SIGNALS, response_only=True), folder)
    assert problems(folder, prepared) == ""
    rewritten(folder, SHARD, change)
    assert told in problems(folder, prepared)


def test_tensors_that_should_not_be_there_or_should(copy):
    rewritten(copy, SHARD, lambda tensors: tensors.pop("layer2.relations"))
    assert "layer2.relations: not what the manifest's config makes" in problems(copy)
    rewritten(copy, SHARD, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert "extra" in problems(copy)
    rewritten(copy, SHARD, lambda tensors: tensors.pop("layer2.unit_rows"))
    assert "row pointers are missing" in problems(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("ids"),
        lambda tensors: tensors.update(ids=tensors["ids"].int()),
        lambda tensors: tensors.update(weight=tensors["weight"][1:].clone()),
        lambda tensors: tensors.update(weight=tensors["weight"][:, 1:].clone()),
    ],
)
def test_embeddings_of_another_form(copy, change):
    rewritten(copy, "embeddings.safetensors", change)
    assert "no matrix of embeddings [tokens, 48] with its `ids`" in problems(copy)


def test_embeddings_of_other_tokens_than_the_datasets(copy, prepared):
    def without_one(tensors):
        tensors.update({name: tensor[1:].clone() for name, tensor in tensors.items()})

    rewritten(copy, "embeddings.safetensors", without_one)
    assert problems(copy) == ""
    assert "`ids` are not the tokens that occur in" in problems(copy, prepared)


def test_false_counts_in_the_manifest(copy):
    def lie(values):
        values["counts"]["layers"]["2"]["units"] += 1

    changed(copy, lie)
    assert "not those of the shards" in problems(copy)
    changed(copy, lambda values: values.update(tokens=7))
    assert "does not add up to the 7 tokens" in problems(copy)


def test_units_that_are_not_the_datasets(copy, prepared):
    """Shapes, sums and checksums all fit, and still it says of some unit what belongs to another."""

    def swap(tensors):
        index = tensors["layer2.unit_index"]
        index[int(tensors["layer2.unit_rows"][1]) - 1] += 1

    assert problems(copy, prepared) == ""
    rewritten(copy, SHARD, swap)
    assert problems(copy) == ""
    assert "layer2.unit_index does not follow from the dataset" in problems(copy, prepared)


@pytest.fixture(scope="module")
def elsewhere(prepared, tmp_path_factory):
    """The same texts with other teacher tokens."""
    out = tmp_path_factory.mktemp("elsewhere") / "out"
    other = {"tokenizer": "embedded:bytelevel-bpe"}
    realign(prepared, out, {"teacher": other}, None, workers=1, overwrite=False, quiet=True)
    return out


def test_a_wrong_dataset(plain, elsewhere, plan, cache_plan, tmp_path):
    assert f"It is no cache of {elsewhere}" in problems(plain, elsewhere)
    with pytest.raises(
        UserError, match=r"prepared for another teacher: token \d+ of its row '.*' is \d+, and .* gives \d+"
    ):
        cache_plan(dataset=str(elsewhere))
    with pytest.raises(StateError, match="no manifest"):
        cache_plan(dataset=str(tmp_path))


def test_a_damaged_dataset(cache_plan, prepared, tmp_path):
    copied = tmp_path / "dataset"
    shutil.copytree(prepared, copied)
    path = copied / "data-00002-of-00005.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match=r"data-00002-of-00005\.arrow has another checksum"):
        cache_plan(dataset=str(copied))


def test_a_wrong_teacher(plan, plain, cache_plan, tiny_teacher, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(tiny_teacher, small)
    model = AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(2000)
    model.save_pretrained(small)
    with pytest.raises(UserError, match="knows only 2000 tokens"):
        cache_plan(teacher={"model": str(small)})
    other = tmp_path / "llama"
    shutil.copytree(tiny_teacher, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(other)
    with pytest.raises(StateError, match=r"`teacher\.sha256` was"):
        planning.cache(cache_plan(signals=SIGNALS, teacher={"model": str(other)}), plain, workers=1, quiet=True)
    with pytest.raises(UserError, match="no such folder"):
        cache_plan(teacher={"model": str(tmp_path / "nowhere")})


def test_a_teacher_without_a_tokenizer_is_taken_and_told(cache_plan, tiny_teacher, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_teacher, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    assert "were not compared" in cache_plan(teacher={"model": str(bare)}).notes[0]


def gguf_file(path, tokens, merges):
    """A GGUF teacher without a tensor: sizes, and a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(16)
    writer.add_block_count(4)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {"model": str(path)}


def test_the_tokenizer_in_a_gguf_file_is_compared(cache_plan, elsewhere, tmp_path):
    """`elsewhere` has byte-level tokens, the prepared sample sentencepiece ones. A tokenizer.json beside it says nothing."""
    beside = Path(embedded.resolve("embedded:sentencepiece-bpe")) / "tokenizer.json"
    shutil.copy(beside, tmp_path)
    model = json.loads((Path(embedded.resolve("embedded:bytelevel-bpe")) / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in model["merges"]]
    own = gguf_file(tmp_path / "own.gguf", tokens, merges)
    assert cache_plan(dataset=str(elsewhere), teacher=own).notes == ()
    with pytest.raises(UserError, match=r"prepared for another teacher: token \d+ of its row .*--teacher TOKENIZER"):
        cache_plan(teacher=own)
    # as where the rule by which text is split is not known: other tokens, spelled as they should be
    fewer = gguf_file(tmp_path / "fewer.gguf", tokens, merges[:2000])
    (told,) = cache_plan(dataset=str(elsewhere), teacher=fewer).notes
    assert re.search(r"splits 24 of 24 compared rows into other tokens .*, though it spells", told)
    # as where it is another one that splits like it
    moved = gguf_file(tmp_path / "moved.gguf", [tokens[0], *tokens[2:], tokens[1]], merges)
    with pytest.raises(UserError, match="prepared for another teacher"):
        cache_plan(dataset=str(elsewhere), teacher=moved)


def test_a_gguf_file_without_a_tokenizer_is_taken_and_told(cache_plan, tmp_path, monkeypatch):
    bare = gguf_file(tmp_path / "bare.gguf", [f"<{token}>" for token in range(4096)], [])

    def unknown(*_, **__):
        raise KeyError("a kind that is not known")

    monkeypatch.setattr(matching.transformers.AutoTokenizer, "from_pretrained", unknown)
    assert "were not compared with its own. (Reading it from the GGUF file" in cache_plan(teacher=bare).notes[0]


def test_a_row_longer_than_the_teacher_takes(cache_plan, tiny_teacher, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(tiny_teacher, short)
    config = json.loads((short / "config.json").read_text(encoding="utf-8"))
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}), encoding="utf-8")
    with pytest.raises(UserError, match="takes 64; prepare the dataset with a teacher `max_length` of 64"):
        planning.cache(cache_plan(teacher={"model": str(short)}), tmp_path / "out", workers=1, quiet=True)


def test_vectors_of_a_width_that_nothing_tells(cache_plan, tmp_path):
    """ELECTRA's output matrix is narrower than its last hidden state, which is projected between the two."""
    config = ElectraConfig(
        vocab_size=4096,
        hidden_size=16,
        embedding_size=8,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=2048,
        is_decoder=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "electra")
    teacher = {"model": str(tmp_path / "electra")}
    planning.cache(cache_plan(teacher=teacher, limit=2), tmp_path / "relations", workers=1, quiet=True)
    for signals, told in ((["states"], "gives 16 features at layer 4, where .* say 8"), (["final"], "to its logits")):
        layers = {} if signals == ["states"] else {"layers": []}
        plan = cache_plan(teacher=teacher, limit=2, signals=signals, **layers)
        with pytest.raises(UserError, match=f"electra.*{told}|ElectraForCausalLM.*{told}"):
            planning.cache(plan, tmp_path / signals[0], workers=1, quiet=True)


def test_a_layer_that_is_too_deep(command, prepared, tiny_teacher, tmp_path):
    code, _, err = command(
        "cache-teacher", prepared, "--teacher", tiny_teacher, "--layers", "5:words", "-o", tmp_path / "o"
    )
    assert code == UsageError.exit_code
    assert "has layers 0 (embeddings) to 4, not 5" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{prepared}"], Exit.USAGE, "--out"),
        (["-o", "{tmp}/o", "--teacher", "{teacher}"], Exit.USAGE, "a dataset"),
        (["{prepared}", "-o", "{tmp}/o"], Exit.USAGE, "--teacher"),
        (["{tmp}", "-o", "{tmp}/o", "--teacher", "{teacher}"], Exit.STATE, "manifest.json"),
        (["{teacher}", "-o", "{tmp}/o", "--teacher", "{teacher}"], Exit.STATE, "manifest.json"),
        (["{prepared}", "-o", "{tmp}/o", "--teacher", "{tmp}"], Exit.INPUT, "config.json"),
        (["{prepared}", "-o", "{tmp}/o", "--teacher", "nobody/nothing"], Exit.RESOURCE, "nobody/nothing"),
        (["{prepared}", "-o", "{prepared}", "--teacher", "{teacher}"], Exit.STATE, "other files"),
        (["{prepared}", "-o", "{tmp}/o", "--teacher", "{teacher}", "--recipe", "mtb"], Exit.USAGE, "mta-dsa"),
        (["{prepared}", "-o", "{tmp}/o", "--teacher", "{teacher}", "--set", "shard_bytes=big"], Exit.USAGE, "512MiB"),
        (["{prepared}", "-o", "{tmp}/o", "--teacher", "{teacher}", "--storage", "fp4"], Exit.USAGE, "fp8"),
        (["{prepared}", "-o", "{tmp}/o", "--teacher", "{teacher}", "--set", "dataset=3"], Exit.USAGE, "`dataset`"),
        (
            ["{prepared}", "-o", "{tmp}/o", "--teacher", "{teacher}", "--recipe", "mta", "--set", "signals=[final]"],
            Exit.USAGE,
            "pass one of them",
        ),
        (
            ["{prepared}", "-o", "{tmp}/o", "--teacher", "{teacher}", "--layers", "auto", "--set", "layers=[]"],
            Exit.USAGE,
            "pass one of them",
        ),
    ],
)
def test_a_sentence_and_an_exit_code(command, prepared, tiny_teacher, tmp_path, arguments, code, told):
    names = {"{prepared}": prepared, "{teacher}": tiny_teacher, "{tmp}": tmp_path}
    for name, folder in names.items():
        arguments = [argument.replace(name, str(folder)) for argument in arguments]
    found, out, err = command("cache-teacher", *arguments)
    text = " ".join((out + err).split())
    assert (found, told in text) == (code, True), text
    assert "Traceback" not in text


def test_a_disk_that_is_too_small_is_told_before_the_first_row(plan, tmp_path, monkeypatch):
    needed = sum(plan.sizes().values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(ResourceError, match=r"The cache needs about .* has room for"):
        planning.cache(plan, tmp_path / "out", workers=1, quiet=True)
    assert not (tmp_path / "out").exists()


def test_room_that_finished_shards_take_counts(killed_at, plan, plain, contents, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed_at("00002.json", "after", partial(planning.cache, plan, out, workers=1, quiet=True))
    matrices = [out / name for name in ("head.safetensors", "embeddings.safetensors")]
    there = sum(path.stat().st_size for path in (*(out / "shards").iterdir(), *matrices))
    usage = shutil.disk_usage(tmp_path)
    left = sum(plan.sizes().values()) - there
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=left - 1))
    with pytest.raises(ResourceError):
        planning.cache(plan, out, workers=1, quiet=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=left))
    planning.cache(plan, out, workers=1, quiet=True)
    assert contents(out) == contents(plain)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_disk_full_in_the_middle_loses_nothing(on_full_disk, cache_plan, contents, tmp_path):
    """The kernel refuses to let a file grow past the limit, as a full disk does; the run then goes on without it."""
    plan, plain, out = cache_plan(), tmp_path / "plain", tmp_path / "out"
    planning.cache(plan, plain, workers=1, quiet=True)
    sizes = sorted(path.stat().st_size for path in (plain / "shards").iterdir())

    code, said = on_full_disk(["cache-teacher", "--config", plain / workspace.CONFIG, "-o", out], sizes[-1] - 1)
    assert code == Exit.RESOURCE, said
    assert "No room left" in said
    assert not (out / MANIFEST).exists()
    assert not list(out.rglob("*.partial"))
    planning.cache(plan, out, workers=1, quiet=True)
    assert contents(out) == contents(plain)


def test_a_second_writer_is_refused(plan, tmp_path):
    out = tmp_path / "out"
    (out / workspace.WORK).mkdir(parents=True)
    with (
        FileLock(out / workspace.WORK / workspace.LOCK),
        pytest.raises(StateError, match="Another run is writing"),
    ):
        planning.cache(plan, out, workers=1, quiet=True)


def test_another_run_in_the_same_folder_is_refused(plan, cache_plan, plain, contents):
    before = contents(plain)
    with pytest.raises(StateError, match=r"finished teacher cache of another run.*`config\.limit` was null, is now 3"):
        planning.cache(cache_plan(signals=SIGNALS, limit=3), plain, workers=1, quiet=True)
    assert contents(plain) == before


def test_a_rank_that_ended_is_named(plan, tmp_path):
    held = workspace.workspace(tmp_path / "out", planning.LAYOUT, plan.record(), plan.shards, overwrite=False)
    with held as space, pytest.raises(ResourceError, match="Rank 1 ended before its shards were finished"):
        ranks.wait_for_others(space, ranks.Rank(0, 2))


def test_ranks_do_not_wait_forever(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE", 0.5)
    for number, told in ((0, "Only 1 of 2 ranks came"), (1, "Rank 1 waited")):
        with (
            pytest.raises(ResourceError, match=told),
            ranks.shared_workspace(tmp_path / "o", planning.LAYOUT, plan.record(), 4, False, ranks.Rank(number, 2)),
        ):
            pass


def test_a_rank_takes_no_answer_to_an_earlier_run(plan, tmp_path, monkeypatch):
    """What a killed run left in the working folder is not taken for rank 0's word."""
    monkeypatch.setattr(ranks, "PATIENCE", 0.5)
    out = tmp_path / "out"
    with workspace.workspace(out, planning.LAYOUT, plan.record(), plan.shards, overwrite=False) as space:
        for name in ("hello-1", "answer-1"):
            (space.work / name).write_text("0" * 32)
    with (
        pytest.raises(ResourceError, match="Rank 1 waited"),
        ranks.shared_workspace(out, planning.LAYOUT, plan.record(), plan.shards, False, ranks.Rank(1, 2)),
    ):
        pass


def test_the_manifest_knows_whose_it_is(plain, tiny_teacher, prepared):
    manifest = read_cache_manifest(plain)
    assert manifest.teacher["name"] == "llama"
    assert manifest.teacher["depth"] == shape_of(plan_teacher(tiny_teacher)).depth == 4
    assert manifest.logits == {"soft_cap": None, "scale": None}
    assert manifest.norm == {"kind": "rms", "epsilon": 1e-6}
    dataset = json.loads((prepared / MANIFEST).read_text(encoding="utf-8"))
    assert manifest.teacher_fingerprint == dataset["teacher_fingerprint"]


def plan_teacher(folder):
    from schemas.config import ModelConfig

    return ModelConfig(model=str(folder))
