"""Several caches of one teacher joined, and what does not fit: a sentence with the command that makes what is missing."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch

from cached_batches import CHUNKS, ROWS, TOP, WORDS, assert_same_batch, command_in, needing, source_of
from schemas import files
from schemas.config import ModelConfig
from schemas.errors import UsageError
from schemas.manifest import read_manifest, same_tokens
from schemas.signals import WINDOW
from schemas.training import PairConfig
from trainer.batches.documents import Documents
from trainer.cache import TeacherCache
from trainer.maths.pairs import ONE
from trainer.objectives.base import Needs, SpanNeed
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.needs import teacher_needs


def test_layers_cached_on_different_days(make_cache, prepared):
    words = make_cache(layers=[{"layer": 2, "granularity": "words"}])
    chunks, units = make_cache(**TOP), make_cache(**TOP | {"signals": ["units"]})
    whole = make_cache(signals=["relations", "units"])
    merged = source_of(prepared, [words, chunks, units], WORDS, CHUNKS)
    assert_same_batch(merged.fetch(ROWS), source_of(prepared, [whole], WORDS, CHUNKS).fetch(ROWS))
    for caches in ([chunks, units], [units, chunks]):
        both = source_of(prepared, caches, CHUNKS, needs=("relations", "units"))
        assert_same_batch(
            both.fetch(ROWS), source_of(prepared, [whole], CHUNKS, needs=("relations", "units")).fetch(ROWS)
        )
    caches = Caches([chunks, words], Documents(prepared))
    assert caches.layers == {2: "words", 4: "chunks"}
    assert (caches.teacher["depth"], caches.teacher["hidden_size"], caches.rows) == (4, 48, 24)


def test_a_cache_of_the_right_granularity_is_found_among_others(make_cache, prepared):
    phrases = make_cache(signals=["relations"], layers=[{"layer": 4, "granularity": "phrases"}])
    found = source_of(prepared, [phrases, make_cache(**TOP)], CHUNKS).fetch(ROWS)
    assert_same_batch(found, source_of(prepared, [make_cache(**TOP)], CHUNKS).fetch(ROWS))


def test_a_pickled_source_carries_no_data(make_cache, prepared):
    source = source_of(prepared, [make_cache()], WORDS)
    expected = source.fetch(ROWS)
    stored = pickle.dumps(source)
    assert len(stored) < 5000
    assert_same_batch(pickle.loads(stored).fetch(ROWS), expected)


def test_a_cache_of_another_dataset(make_cache, settings_for, tmp_path):
    from pipeline.dataset.prepare import prepare

    out = tmp_path / "other"
    prepare(settings_for(limit=5), out, workers=1, quiet=True)
    cache = make_cache()
    with pytest.raises(UsageError, match=r"is a cache of another dataset than .*teacher fingerprint") as error:
        Caches([cache], Documents(out))
    assert command_in(error) == f"mta-prep cache-teacher {out} --config {cache}/config.yaml -o OTHER"


def test_ids_are_compared(make_cache, prepared, tmp_path):
    import pyarrow as pa

    folder = tmp_path / "cache"
    shutil.copytree(make_cache(), folder)
    table = TeacherCache(folder).index
    ids = table["id"].to_pylist()
    ids[9] = ids[9][:-1] + "#"
    with pa.ipc.new_file(str(folder / "index.arrow"), table.schema) as writer:
        writer.write_table(table.set_column(0, table.schema.field(0), pa.array(ids)))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    index = folder / "index.arrow"
    manifest["index"] |= {"bytes": index.stat().st_size, "sha256": files.sha256_of(index)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match=r"Row 9 of .*#'"):
        Caches([folder], Documents(prepared))


def test_caches_of_different_teachers(make_cache, prepared, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(make_cache(), folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"sha256": "', '"sha256": "0', 1), encoding="utf-8")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["teacher"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest), encoding="utf-8")
    first = make_cache(**TOP)
    with pytest.raises(UsageError, match="are of different teachers") as error:
        Caches([first, folder], Documents(prepared))
    assert command_in(error) == (
        f"mta-prep cache-teacher --config {first}/config.yaml --layers 2:words,4:chunks -o OTHER"
    )


def test_a_missing_layer(make_cache, prepared):
    cache = make_cache(**TOP)
    with pytest.raises(UsageError, match="has teacher layer 2; make one, and name it there as well") as error:
        source_of(prepared, [cache], WORDS, CHUNKS)
    assert command_in(error) == f"mta-prep cache-teacher --config {cache}/config.yaml --layers 2:words -o OTHER"


def test_a_missing_signal(make_cache, prepared):
    with pytest.raises(UsageError, match="the signal `units` of teacher layer 4") as error:
        source_of(prepared, [make_cache(**TOP)], CHUNKS, needs=("relations", "units"))
    assert command_in(error).endswith("config.yaml --signals units -o OTHER")


def test_pairs_of_a_narrower_window_come_out_of_a_wider_cache(make_cache, prepared):
    whole, wide, narrow = (make_cache(**TOP, window=window) for window in (None, 20, 18))
    wanted = {"windows": frozenset({18})}
    batch = source_of(prepared, [narrow], CHUNKS, **wanted).fetch(ROWS)
    for cache in (whole, wide):
        other = source_of(prepared, [cache], CHUNKS, **wanted).fetch(ROWS)
        mine, theirs = (each.layers[4] for each in (batch, other))
        # computed in other blocks, and rounded: a step of the fixed point apart at most
        torch.testing.assert_close(mine.relations, theirs.relations, rtol=0, atol=1.01 / ONE)
        assert_same_batch(replace(other, layers={4: replace(theirs, relations=mine.relations)}), batch)
    # some are cut, some are not
    units = batch.layers[4].rows.diff()
    assert bool((units > 40).any())
    assert bool((units < 36).any())
    assert len(batch.layers[4].relations) == int(batch.layers[4].later.sum())
    assert len(batch.layers[4].relations) < len(source_of(prepared, [whole], CHUNKS).fetch(ROWS).layers[4].relations)


@pytest.mark.parametrize(("window", "told"), [(6, "6"), (None, "null")])
def test_a_wider_window_than_the_caches_is_refused(make_cache, prepared, window, told):
    cache = make_cache(**TOP, window=4)
    with pytest.raises(UsageError, match="units less than 4 apart") as error:
        source_of(prepared, [cache], CHUNKS, windows=frozenset({window}))
    assert f"`objectives.dsa.window: {told}`" in str(error.value)
    assert command_in(error) == f"mta-prep cache-teacher --config {cache}/config.yaml --set window={told} -o OTHER"
    # one that is wide enough, named behind it, serves
    assert source_of(prepared, [cache, make_cache(**TOP)], CHUNKS, windows=frozenset({window})).fetch(ROWS)


def test_another_granularity(make_cache, prepared):
    pair = PairConfig(student=1, teacher=4, granularity="words")
    with pytest.raises(UsageError, match="has chunks at teacher layer 4, which the config pairs for words") as error:
        source_of(prepared, [make_cache()], pair)
    assert command_in(error).endswith("config.yaml --layers 4:words -o OTHER")


def test_other_weights(make_cache, prepared):
    with pytest.raises(
        UsageError, match="made with `weights: centrality`, and this config says `weights: uniform`"
    ) as error:
        source_of(prepared, [make_cache()], CHUNKS, weights="uniform")
    assert "--set weights=uniform -o" in command_in(error)


def test_final_and_states_of_all_tokens_that_no_cache_has(make_cache, same):
    with pytest.raises(UsageError, match="has the signal `final`;") as error:
        source_of(same, [make_cache()], final=True)
    assert command_in(error).endswith("--signals final --set response_only=true -o OTHER")
    with pytest.raises(UsageError, match="has the signal `topk`;"):
        source_of(same, [make_cache()], topk=True)
    cache = make_cache(signals=["states"])
    with pytest.raises(UsageError, match=r"states of all tokens \(recipe fdd\) of teacher layer 4") as error:
        source_of(same, [cache], CHUNKS, needs=("position_states",))
    assert command_in(error).endswith("--layers 4:chunks --set state_tokens=all --set response_only=true -o OTHER")
    with pytest.raises(UsageError, match="the teacher's output matrix") as error:
        source_of(same, [cache], CHUNKS, needs=("states",)).head  # noqa: B018  # it is looked for when asked for
    assert command_in(error).endswith("--signals final --set response_only=true -o OTHER")


def test_the_commands_are_understood(make_cache, same, command, tmp_path):
    """What a message says to run, run as it stands, makes what was missing."""
    first = make_cache(**TOP, storage={"states": "int8"})
    wanted = {"needs": ("relations", "states"), "final": True}
    with pytest.raises(UsageError) as error:
        source_of(same, [first], WORDS, CHUNKS, **wanted)
    words = command_in(error).replace("OTHER", str(tmp_path / "other")).split()
    assert command(*words[1:], "--json")[0] == 0
    other = TeacherCache(tmp_path / "other").config
    assert other.storage == TeacherCache(first).config.storage, "what nothing is said of is as in the cache named"
    assert other.signals == ("relations", "states", "final")
    batch = source_of(same, [first, tmp_path / "other"], WORDS, CHUNKS, **wanted).fetch(ROWS)
    assert batch.final is not None
    assert len(batch.layers[2].states)


def with_norm(cache, out, norm):
    """A copy of a cache whose manifest says another thing of the norm."""
    shutil.copytree(cache, out)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    (out / "manifest.json").write_text(json.dumps(manifest | {"norm": norm}), encoding="utf-8")
    return out


def test_a_final_norm_that_no_cache_has(make_cache, same, tmp_path):
    cache = make_cache(signals=["final"], layers=[])
    older = with_norm(cache, tmp_path / "older", None)
    wanted = {"final": True, "norm": True}
    assert source_of(same, [older], final=True).head.norm is None
    with pytest.raises(UsageError, match="older than the option `norm`") as error:
        source_of(same, [older], **wanted)
    assert command_in(error) == f"mta-prep cache-teacher --config {older / 'config.yaml'} -o OTHER"
    without = with_norm(cache, tmp_path / "without", {"kind": "none", "epsilon": None})
    with pytest.raises(UsageError, match=r"teacher of .*without \(LlamaForCausalLM\) to have a norm.*leave it out"):
        source_of(same, [without], **wanted)
    # of several the one that has it serves
    assert source_of(same, [older, cache], **wanted).head.norm.kind == "rms"


def test_no_cache(prepared):
    documents = Documents(prepared)
    caches = Caches([], documents)
    with pytest.raises(UsageError, match=r"`data\.caches` names no cache"):
        _ = caches.teacher
    with pytest.raises(UsageError, match=r"--teacher MODEL --layers 4:chunks --signals relations -o OTHER"):
        CachedTeacher(caches, needing(documents, CHUNKS, windows=frozenset({WINDOW})))
    batch = CachedTeacher(caches, needing(documents)).fetch(ROWS)  # cross-entropy alone
    assert batch.layers == {}


def test_token_level_terms_on_different_tokens(prepared, same, aligned):
    token = Needs({4: frozenset({"states"})}, instead="`level: unit`")
    unit = Needs({4: frozenset({"units"})})
    assert [same_tokens(read_manifest(each)) for each in (prepared, same, aligned)] == [False, True, False]
    for folder in (prepared, aligned):
        documents = Documents(folder)
        with pytest.raises(UsageError, match=r"^`hidden` compares .* set `level: unit` in `hidden`, or train") as error:
            teacher_needs({"dsa": unit, "hidden": token}, [CHUNKS], "centrality", documents)
        assert command_in(error) == f"mta-prep align {folder} --student embedded:sentencepiece-bpe -o NEW"
        with pytest.raises(UsageError, match=r"^`hidden` and `srkl` compare .* in `hidden` and leave out `srkl`, or"):
            teacher_needs({"hidden": token, "srkl": Needs(final=True)}, [CHUNKS], "centrality", documents)
        with pytest.raises(UsageError, match=r"limits; leave out `srkl`, or"):
            teacher_needs({"srkl": Needs(topk=True)}, [], "centrality", documents)
        assert teacher_needs({"hidden": unit}, [CHUNKS], "centrality", documents).layers == {4: {"units"}}
    found = teacher_needs(
        {"hidden": token, "dsa": unit, "srkl": Needs(final=True)}, [CHUNKS], "uniform", Documents(same)
    )
    assert found.layers == {4: {"states", "units"}}
    assert (found.final, found.topk, found.weights) == (True, False, "uniform")


def test_a_limited_cache(make_cache, prepared):
    cache = make_cache(limit=6)
    source = source_of(prepared, [cache, make_cache()], CHUNKS)
    assert source.rows == 6
    assert_same_batch(source.fetch([5, 1]), source_of(prepared, [make_cache()], CHUNKS).fetch([5, 1]))
    with pytest.raises(ValueError):
        source.fetch([6])
    assert source_of(prepared, [cache], CHUNKS, limit=6).rows == 6
    assert source_of(prepared, [cache], CHUNKS, limit=4).rows == 4
    assert source_of(prepared, [make_cache()], CHUNKS, limit=1000).rows == 24
    with pytest.raises(UsageError, match=r"asks for 7 rows, .* the first 6; set `data.limit: 6`") as error:
        source_of(prepared, [cache], CHUNKS, limit=7)
    assert command_in(error).endswith(f"{cache}/config.yaml --set limit=7 -o OTHER")


@pytest.mark.parametrize(
    ("need", "signal"),
    [
        ("teacher_final", "final"),
        ("output_rows", "final"),
        ("embeddings", "embeddings"),
        ("argmax", "argmax"),
        ("entropy", "entropy"),
    ],
)
def test_what_cross_tokenizer_terms_need_and_no_cache_has(make_cache, prepared, need, signal):
    cache = make_cache(**TOP)
    with pytest.raises(UsageError, match=f"No cache in `data.caches` has the signal `{signal}`") as error:
        source_of(prepared, [cache], **{need: True}, needs=())
    command = command_in(error)
    assert f"--signals {signal}" in command
    assert ("--set response_only=true" in command) == (need != "embeddings")


def test_states_of_prompts_are_not_in_a_cache_of_responses(make_cache, prepared):
    cache = make_cache(layers=[], signals=["final"], response_only=True)
    assert source_of(prepared, [cache], needs=(), teacher_final=True).fetch(ROWS).teacher.whole_final is None
    with pytest.raises(
        UsageError, match=r"signal `final` of tokens outside of responses \(`response_only: false`\)"
    ) as error:
        source_of(prepared, [cache], needs=(), teacher_final=True, whole_final=True)
    again = f"mta-prep cache-teacher --config {cache}/config.yaml --set response_only=false -o OTHER"
    assert command_in(error) == again


def test_a_cache_for_another_method(make_cache, prepared, command, tmp_path):
    documents, cache = Documents(prepared), make_cache(**TOP)
    told = Caches([cache], documents).command("dskd-eta")
    assert told == f"mta-prep cache-teacher --config {cache}/config.yaml --signals relations,final,argmax -o OTHER"
    code, _, error = command(*told.replace("OTHER", str(tmp_path / "other")).split()[1:], "--dry-run")
    assert code == 0, error
    teacher = ModelConfig(model="TEACHER")
    assert Caches([], documents).command("dskd", teacher) == (
        f"mta-prep cache-teacher {prepared} --teacher TEACHER --signals final,embeddings --set response_only=true -o OTHER"
    )


def test_more_likeliest_tokens_than_a_cache_has(make_cache, prepared):
    cache = make_cache(layers=[], signals=["final", "topk"], topk=9, response_only=True)
    assert source_of(prepared, [cache], needs=(), likeliest=9).fetch(ROWS).teacher.likeliest.shape[1] == 9
    with pytest.raises(UsageError, match="the signal `topk` of 10 tokens; make one") as error:
        source_of(prepared, [cache], needs=(), likeliest=10)
    assert (
        command_in(error)
        == f"mta-prep cache-teacher --config {cache}/config.yaml --signals topk --set topk=10 -o OTHER"
    )
    with pytest.raises(UsageError, match="the signal `topk` of 10 tokens") as error:
        source_of(prepared, [], needs=(), likeliest=10)
    assert "--set topk=10" in command_in(error)


def test_more_sorted_probabilities_than_a_cache_has(make_cache, prepared):
    cache = make_cache(layers=[], signals=["sorted"], sorted=9, response_only=True)
    with pytest.raises(UsageError, match="the signal `sorted` of 10 probabilities; make one") as error:
        source_of(prepared, [cache], needs=(), sorted=10)
    assert command_in(error) == f"mta-prep cache-teacher --config {cache}/config.yaml --set sorted=10 -o OTHER"
    whole = make_cache(layers=[], signals=["sorted"], sorted=4096, response_only=True, limit=1)
    assert source_of(prepared, [whole], needs=(), sorted=10**6).fetch([0]).teacher.sorted.shape[1] == 4096


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (SpanNeed(frozenset({2}), "uniform", 9), "`weights: attention` and `span_kl` `weights: uniform`"),
        (SpanNeed(frozenset({2}), "attention", 8), "`max_spans: 9` and `span_kl` `max_spans: 8`"),
    ],
)
def test_a_batch_has_spans_of_one_kind(prepared, other, told):
    documents = Documents(prepared)
    spans = {"span_cos": Needs(spans=SpanNeed(frozenset({4}), "attention", 9)), "ce": Needs()}
    wanted = teacher_needs(
        spans | {"span_kl": Needs(spans=replace(other, weights="attention", most=9))}, [], "centrality", documents
    )
    assert wanted.spans == SpanNeed(frozenset({2, 4}), "attention", 9)
    with pytest.raises(UsageError, match=f"`span_cos` has {told}; give all terms on spans the same"):
        teacher_needs(spans | {"span_kl": Needs(spans=other)}, [], "centrality", documents)


def test_embeddings_that_were_not_asked_for(make_cache, prepared):
    cache = make_cache(**TOP)
    source = source_of(prepared, [cache], CHUNKS)
    with pytest.raises(UsageError, match="the signal `embeddings`; make one") as error:
        assert source.embeddings
    assert "--signals embeddings" in command_in(error)
