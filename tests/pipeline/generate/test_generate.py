"""Responses do not depend on the road to them, `parse` reads them as they were asked for, and no row is lost in silence."""

import json
import random
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from datasets import load_from_disk

from pipeline.generate import place
from pipeline.generate.plan import planned
from pipeline.read.inputs import open_inputs
from schemas import embedded
from schemas.config import GenerateConfig, ModelConfig
from schemas.errors import Exit, UsageError
from schemas.responses import manifest_of, read_responses_manifest, rejected_of, work_of
from trainer.evaluation.answers import Decoder
from trainer.evaluation.generate import Generator, Prompt, Sampling
from trainer.evaluation.prompts import Prompter
from trainer.evaluation.questions import Reading, asked_by
from trainer.evaluation.responses import load

NEW_TOKENS = 12
ASKED = [
    {"id": "a", "instruction": "Name a colour.", "output": "Red."},
    {"id": "b", "instruction": "Translate into French.", "input": "The mill is old.", "category": "words"},
    {"instruction": "", "input": "Why is the sky blue at noon, and red when the sun goes down over the sea?"},
    {"id": 7, "prompt": "The people of the city", "response": " went home."},
    {"id": "e", "instruction": "Name a colour.", "context": ""},
    {
        "id": "f",
        "instruction": "Say it in one word.",
        "context": "It rains and rains, and nobody knows when it will end.",
    },
    {"id": "g", "instruction": "Name a colour."},
]
CHATS = [
    {
        "id": "chat",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "A mill.", "weight": 0},
            {"role": "user", "content": "Where?"},
        ],
    },
    {"conversations": [{"from": "human", "value": "And now?"}, {"from": "gpt", "value": "Now it ends."}]},
    {"instruction": "Name a colour.", "system": "Be long."},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of the embedded teacher, for which a comma and an `e` end a response, so that some end and some do not."""
    folder = tmp_path_factory.mktemp("model") / "ending"
    shutil.copytree(embedded.resolve("embedded:teacher"), folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    settings["eos_token_id"] = [2, vocabulary[","], vocabulary["e"]]
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    """Makes a config of the prompts; keyword arguments override."""
    rows = written(tmp_path_factory.mktemp("prompts") / "rows.jsonl", ASKED)

    def make(**values):
        base = {
            "inputs": [str(rows)],
            "model": {"model": str(model)},
            "max_new_tokens": NEW_TOKENS,
            "unfinished": "keep",
            "shard_rows": 3,
            "batch_size": 2,
        }
        return GenerateConfig.parse(base | values, "test")

    return make


def generate(config, out, workers=1, overwrite=False):
    with planned(config, out) as plan:
        return place.generate(plan, workers=workers, overwrite=overwrite, quiet=True)


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    """An uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("plain") / "out.jsonl"
    generate(config(), out)
    return out


def test_a_row_is_answered_as_if_it_was_alone(plain, model):
    loaded = load(ModelConfig(model=str(model), dtype="float32"))
    generator = Generator(loaded.teacher.model, loaded.stop, NEW_TOKENS, Sampling())
    prompter, text_of = Prompter(loaded.tokenizer, None, 1000), Decoder(loaded.tokenizer)
    expected = []
    for number, row in enumerate(ASKED):
        (response,) = generator([Prompt(prompter.asked(asked_by(row, Reading())).ids, number, 42)])
        expected.append((text_of(response.ids), response.stopped))
    answered = read(plain)
    assert [(row["output"], row["finished"]) for row in answered] == expected
    assert {True, False} == {row["finished"] for row in answered}
    same = [
        row["output"]
        for row, asked in zip(answered, ASKED, strict=True)
        if asked["instruction" if "instruction" in asked else "prompt"] == "Name a colour."
    ]
    assert len(set(same)) == len(same) == 3, "rows have random numbers of their own"


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 1}, {"batch_size": 16, "shard_rows": None}, {"shard_rows": 1}, {"batch_size": 3, "shard_rows": 5}],
    ids=str,
)
def test_responses_do_not_depend_on_batches_and_shards(config, plain, tmp_path, settings):
    generate(config(**settings), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == plain.read_bytes()


def test_nor_on_workers_and_threads(config, plain, tmp_path, forked_workers, monkeypatch, contents):
    generate(config(), tmp_path / "out.jsonl", workers=2)
    assert contents(tmp_path) == contents(plain.parent)
    monkeypatch.setattr("pipeline.shards.pool.default_workers", lambda: 3)
    generate(config(), tmp_path / "out.jsonl", overwrite=True)
    assert contents(tmp_path) == contents(plain.parent)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_is_refused_leaves_nothing_behind(config, tmp_path, forked_workers, workers):
    """Also where it is loaded by processes of their own, which have their sentence told and not that they died."""
    with pytest.raises(UsageError, match="leaves none for a prompt"):
        generate(config(max_new_tokens=10**6), tmp_path / "out.jsonl", workers=workers)
    assert not list(tmp_path.iterdir())


def test_a_refusal_leaves_what_was_finished_before(
    config, plain, tmp_path, killed_at, forked_workers, monkeypatch, contents
):
    out = tmp_path / "out.jsonl"
    killed_at("00001.rows", "before", partial(generate, config(), out))

    def refuse(*_):
        raise UsageError("No room.")

    with monkeypatch.context() as refusing:
        refusing.setattr(place, "GenerateStage", refuse)
        with pytest.raises(UsageError, match="No room"):
            generate(config(), out, workers=2)
    assert (work_of(out) / "00000.rows").exists()
    generate(config(), out)
    assert contents(tmp_path) == contents(plain.parent)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_nor_on_ranks(on_ranks, config, plain, tmp_path, contents):
    written_to = tmp_path / "config.yaml"
    written_to.write_text(config().to_yaml(), encoding="utf-8")
    out = tmp_path / "out" / "out.jsonl"
    out.parent.mkdir()
    for more in ([], [], ["--overwrite"]):  # the second time it is there already
        first, second = on_ranks("generate", "--config", written_to, "--out", out, "--json", *more)
        assert contents(out.parent) == contents(plain.parent)
        assert (json.loads(first)["rows_in"], second) == (len(ASKED), "")


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("00001.rows", "before"),
        ("00001.json", "before"),
        ("00002.json", "after"),
        ("out.jsonl", "before"),
        ("out.jsonl", "after"),
        ("out.jsonl.json", "after"),
    ],
)
def test_killed_and_resumed_it_is_the_same_to_the_byte(killed_at, config, plain, contents, tmp_path, name, when):
    out = tmp_path / "out.jsonl"
    killed_at(name, when, partial(generate, config(), out))
    assert manifest_of(out).exists() == (name == "out.jsonl.json")
    done = {
        path.name: path.stat().st_mtime_ns
        for path in work_of(out).glob("*.rows")
        if (work_of(out) / ".mta-prep" / f"{path.stem}.json").exists()
    }
    if name == "00001.rows":
        assert list(done) == ["00000.rows"]
        killed_at("00001.json", "after", partial(generate, config(), out))
    generate(config(), out)
    assert contents(tmp_path) == contents(plain.parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.json"]


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_times(killed_after, config, plain, tmp_path, monkeypatch, kills):
    """In the same place until the file is finished, then in the next."""
    settings, moments, unfinished = config(shard_rows=1), random.Random(3), 0
    stage = place.GenerateStage(settings, settings.model, 1)
    monkeypatch.setattr(place, "GenerateStage", lambda *_: stage)  # it is the writing that is interrupted
    outs = (folder / "out.jsonl" for folder in (tmp_path / f"{number}" for number in range(kills + 2)))
    timed, out = next(outs), next(outs)
    timed.parent.mkdir()
    began = time.monotonic()
    generate(settings, timed)
    took = time.monotonic() - began
    for _ in range(kills):
        out.parent.mkdir(exist_ok=True)
        unfinished += killed_after(moments.uniform(0, took), partial(generate, settings, out))
        if manifest_of(out).exists():
            assert out.read_bytes() == plain.read_bytes()
            out = next(outs)
    assert unfinished, "no run was killed before its end"
    out.parent.mkdir(exist_ok=True)
    generate(settings, out)
    assert out.read_bytes() == plain.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl", "out.jsonl.json"]


def test_fields_can_be_named(command, model, tmp_path):
    rows = written(tmp_path / "rows.jsonl", [{"q": "Name a colour.", "key": "a", "id": "b", "prompt": "Unread."}])
    asked = ["generate", rows, "--model", model, "--max-new-tokens", 3, "--set", "unfinished=keep", "--json"]
    code, _, err = command(*asked, "--prompt-field", "question", "-o", tmp_path / "out.jsonl")
    assert (code, "No row has the field `question` (--prompt-field)" in err) == (Exit.INPUT, True)
    code, _, err = command(*asked, "--prompt-field", "q", "--messages-field", "key", "-o", tmp_path / "out.jsonl")
    assert (code, "exclude each other" in err) == (Exit.USAGE, True)
    code, told, err = command(*asked, "--prompt-field", "q", "--id-field", "key", "-o", tmp_path / "out.jsonl")
    assert code == 0, err
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["id"], row["prompt"]) == ("a", "Name a colour.")
    assert json.loads(told)["counts"]["not_carried"] == {"id": 1, "prompt": 1}


def test_what_is_interrupted_ends_at_once(config, model, tmp_path):
    with planned(config(max_new_tokens=1500, shard_rows=7, batch_size=1), tmp_path / "out.jsonl") as plan:
        stage = place.GenerateStage(plan.config, plan.config.model, threads=2)
        told = []

        def tick(rows, tokens):
            told.append(rows)
            if sum(told):
                raise KeyboardInterrupt

        ((_, item),) = plan.items(lambda index: True)
        with pytest.raises(KeyboardInterrupt):
            stage.run(item, tick)
        assert stage.responder.idle.qsize() == 2, "a thread goes on"
        assert sum(told) == 1


def test_seeds_temperature_and_greedy(config, plain, tmp_path):
    outputs = {}
    for name, sampling in {
        "seed": {"seed": 43},
        "cold": {"temperature": 0.01},
        "one": {"top_k": 1},
        "greedy": {"greedy": True},
    }.items():
        out = tmp_path / f"{name}.jsonl"
        generate(config(sampling=sampling), out)
        outputs[name] = [row["output"] for row in read(out)]
    drawn = [row["output"] for row in read(plain)]
    assert all(a != b for a, b in zip(outputs["seed"], drawn, strict=True))
    assert outputs["one"] == outputs["greedy"] == outputs["cold"]
    assert outputs["greedy"][0] == outputs["greedy"][4] == outputs["greedy"][6], "the same prompt"


def test_the_manifest_says_who_answered_and_how(plain, model):
    manifest = read_responses_manifest(plain)
    assert manifest.model["name"] == model.name
    assert len(manifest.model["sha256"]) == len(manifest.model["tokenizer_sha256"]) == 64
    assert manifest.config["sampling"]["seed"] == 42
    assert set(manifest.stop) == {"</s>", ",", "e"}
    assert (manifest.rows_in, manifest.rows_out) == (7, 7)
    assert manifest.counts["not_carried"] == {"category": 1, "response": 1}
    assert manifest.counts["finished"] == sum(row["finished"] for row in read(plain))
    assert manifest.problem(plain) is None


def test_conversations_go_on_with_a_turn(command, model, tmp_path):
    rows, out = written(tmp_path / "rows.jsonl", CHATS), tmp_path / "out.jsonl"
    line = ["generate", rows, "--model", model, "-o", out, "--max-new-tokens", NEW_TOKENS, "--unfinished", "keep"]
    code, told, err = command(*line)
    assert code == 0, err
    assert "--learn last" in told
    answered = read(out)
    assert [row.get("id") for row in answered] == ["chat", None, None]
    assert [[turn["role"] for turn in row["messages"]] for row in answered] == [
        ["system", "user", "assistant", "user", "assistant"],
        ["user", "assistant"],
        ["system", "user", "assistant"],
    ]
    assert answered[0]["messages"][:4] == [
        *CHATS[0]["messages"][:2],
        {"role": "assistant", "content": "A mill.", "train": False},
        CHATS[0]["messages"][3],
    ]
    assert answered[1]["messages"][0] == {"role": "user", "content": "And now?"}
    loaded = load(ModelConfig(model=str(model), dtype="float32"), None, True)
    text = loaded.template.prompt(asked_by(CHATS[2], Reading(True)))
    ids = tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    (response,) = Generator(loaded.teacher.model, loaded.stop, NEW_TOKENS, Sampling())([Prompt(ids, 2, 42)])
    assert answered[2]["messages"][2]["content"] == Decoder(loaded.tokenizer)(response.ids)


def test_parse_reads_what_was_answered(command, plain, tmp_path):
    answered = [row for row in read(plain) if "prompt" not in row]
    rows = written(tmp_path / "rows.jsonl", answered)
    sides = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]
    code, _, err = command("parse", rows, *sides, "-o", tmp_path / "prepared", "--json")
    assert code == 0, err
    prepared = load_from_disk(str(tmp_path / "prepared")).to_list()
    for row, document in zip(answered, prepared, strict=True):
        assert document["text"] == asked_by(row, Reading()) + row["output"]
        assert document["id"] == row.get("id", document["id"])


def test_a_folder_of_responses_is_read_without_what_lies_beside_them(plain, tmp_path):
    for path in (plain, manifest_of(plain)):
        shutil.copy(path, tmp_path)
    rejected_of(tmp_path / plain.name).write_text("{}\n", encoding="utf-8")
    opened = open_inputs([str(tmp_path)], split=None, revision=None, spool=tmp_path)
    assert [Path(source.name).name for source in opened.sources] == [plain.name]
    assert len(opened.skipped) == 2


def test_rows_that_get_no_answer_are_told(command, model, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.generate.plan.SAMPLE_ROWS", 5)
    bad = [
        {"question": "What?"},
        {"id": "long", "instruction": "word " * 3000},
        {"messages": [{"role": "user", "content": "a"}]},
        {"instruction": "With a picture.", "images": ["a.png"]},
    ]
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    written(rows, [*ASKED, *bad])
    rows.write_text(rows.read_text(encoding="utf-8") + "{broken\nnot read", encoding="utf-8")
    line = ["generate", rows, "--model", model, "-o", out, "--max-new-tokens", NEW_TOKENS, "--limit", 12]
    code, _, err = command(*line)
    assert code == Exit.REJECTED, err
    manifest = read_responses_manifest(out)
    lost = read(rejected_of(out))
    assert manifest.rows_in == 12 == manifest.rows_out + len(lost)
    assert sum(manifest.rejected.values()) + sum(manifest.dropped.values()) == len(lost)
    assert str(rejected_of(out)) in err
    told = {row["line"]: row["reason"] for row in lost}
    assert told[8].startswith("neither `prompt` nor `instruction`")
    assert told[9].startswith("the prompt is too long: more than 2036 tokens")
    assert told[10].startswith("a conversation among single prompts")
    assert "no place for `images`" in told[11]
    assert "JSON" in told[12]
    cut = [row for row in lost if row["reason"] == "the response did not end: within 12 tokens"]
    assert len(cut) == manifest.dropped["the response did not end"] > 0
    assert all(row["response"] for row in cut), "what was computed is kept"
    assert all(row["finished"] for row in read(out))
    assert command(*line, "--allow-rejected")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "out.json"], Exit.USAGE, "a file of JSON lines is wanted"),
        (["-o", "rows.jsonl"], Exit.STATE, "`mta-prep generate` has not made it"),
        (["-o", "new.jsonl", "--max-new-tokens", "5000"], Exit.USAGE, "--max-new-tokens 5000 leaves none for a prompt"),
        (["-o", "new.jsonl", "--top-p", "1.5"], Exit.USAGE, "top_p"),
        (
            ["-o", "new.jsonl", "--temperature", "0"],
            Exit.USAGE,
            "for the likeliest token always, set `sampling.greedy`",
        ),
        (
            ["-o", "new.jsonl", "--max-prompt-length", "2"],
            Exit.INPUT,
            "can be asked. The first problem: rows.jsonl, line 1: the prompt is too long",
        ),
        (["-o", "plain.jsonl", "--seed", "1"], Exit.STATE, "`config.sampling.seed` was 42, is now 1"),
    ],
)
def test_refusals(command, model, plain, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    written(Path("rows.jsonl"), ASKED)
    shutil.copy(plain, "plain.jsonl")
    shutil.copy(manifest_of(plain), "plain.jsonl.json")
    before = sorted(path.name for path in tmp_path.iterdir())
    ended, _, err = command("generate", "rows.jsonl", "--model", model, *arguments)
    assert (ended, message in err) == (code, True), err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_unfinished_run_of_other_settings_is_refused(killed_at, config, tmp_path, command):
    out = tmp_path / "out.jsonl"
    killed_at("00000.json", "after", partial(generate, config(), out))
    with pytest.raises(place.StateError, match=r"`config.max_new_tokens` was 12, is now 9.*pass --overwrite"):
        generate(config(max_new_tokens=9), out)
    generate(config(max_new_tokens=9), out, overwrite=True)
    assert read_responses_manifest(out).config["max_new_tokens"] == 9


def test_a_changed_file_is_not_called_finished(config, plain, tmp_path):
    out = tmp_path / "out.jsonl"
    for path in (plain, manifest_of(plain)):
        shutil.copy(path, tmp_path)
    assert generate(config(), out).already_finished
    out.write_bytes(out.read_bytes()[:-5])
    with pytest.raises(place.StateError, match="its manifest says"):
        generate(config(), out)
    assert not generate(config(), out, overwrite=True).already_finished
    assert out.read_bytes() == plain.read_bytes()


def test_no_answer_at_all_is_an_error(config, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(place.UserError, match="No row of 7 rows was answered: 7 the response did not end"):
        generate(config(unfinished="drop", max_new_tokens=1, sampling={"greedy": True}), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl.rejected"]


def test_dry_run_writes_nothing(command, model, tmp_path):
    rows = written(tmp_path / "rows.jsonl", ASKED)
    line = ["generate", rows, "--model", model, "-o", tmp_path / "out.jsonl", "--max-new-tokens", 2, "--dry-run"]
    code, said, err = command(*line)
    assert code == 0, err
    assert "Would answer 7 rows in 1 shard" in said
    assert "Some rows have a `prompt` and others none" in said
    code, said, _ = command(*line, "--json", "--template", "chatml")
    assert (code, json.loads(said)["rows"]) == (0, 7)
    assert json.loads(said)["notes"] == [], "all are conversations"
    written(rows, [{"prompt": "The people"}, {"prompt": " "}, {"prompt": 5}, {"question": "What?"}])
    code, said, _ = command(*line, "--json")
    assert (code, json.loads(said)["notes"]) == (0, []), "the others cannot be asked"
    assert list(tmp_path.iterdir()) == [rows]
