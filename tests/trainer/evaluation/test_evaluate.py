"""`trainer/evaluate.py`: scores, files of mixed shapes, held-out loss, comparisons, and what it says of bad input."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.read.fields import resolve_fields
from pipeline.read.records import Record
from pipeline.read.template import Renderer, resolve_templates
from schemas import embedded
from schemas.alpaca import alpaca
from schemas.config import FieldsConfig, ParseConfig, SideConfig
from schemas.errors import Exit, UserError
from trainer import evaluate
from trainer.evaluation import perplexity, responses
from trainer.evaluation.generate import Response
from trainer.evaluation.questions import names_of, read_questions
from trainer.evaluation.results import compare, read_result
from trainer.evaluation.rouge import RougeL
from turns import conversations

TEACHER = "embedded:teacher"
SCRIPT = Path(evaluate.__file__)
QUICK = ("--max-length", 40, "--max-prompt-length", 32, "--seeds", "10,20")
ROWS = [
    {"prompt": "Tell me about cats.\n", "output": "Cats are small animals."},
    {"prompt": "Tell me about dogs.\n", "output": ["Dogs bark.", "Dogs are loyal animals."], "instruction": "not used"},
    {"instruction": "Name a colour.", "input": "", "output": "Blue is a colour."},
    {"instruction": "Shorten.", "input": "A very long text indeed.", "response": "A long text."},
    {"instruction": "Answer.", "context": "Paris is in France.", "completion": ["Paris."]},
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path):
    return written(tmp_path / "mixed.jsonl", ROWS)


@pytest.fixture(scope="module")
def same_side(prepared, tmp_path_factory):
    """The prepared sample with the teacher's tokenizer as the student's."""
    from pipeline.dataset import realign

    out = tmp_path_factory.mktemp("evaluate") / "same"
    sides = {"student": {"tokenizer": "embedded:sentencepiece-bpe", "max_length": 120, "max_prompt_length": 40}}
    realign.realign(prepared, out, sides, None, workers=1, overwrite=False, quiet=True)
    return out


def test_rows_of_mixed_shapes(mixed):
    found = read_questions(mixed)
    assert [question.prompt for question in found] == [
        "Tell me about cats.\n",
        "Tell me about dogs.\n",
        alpaca("Name a colour."),
        alpaca("Shorten.", "A very long text indeed."),
        alpaca("Answer.", "Paris is in France."),
    ]
    assert [question.references for question in found] == [
        ("Cats are small animals.",),
        ("Dogs bark.", "Dogs are loyal animals."),
        ("Blue is a colour.",),
        ("A long text.",),
        ("Paris.",),
    ]
    assert [question.row for question in read_questions(mixed, min_words=4)] == [0, 2], "the first reference counts"
    assert [question.row for question in read_questions(mixed, min_words=3, limit=2)] == [0, 2]


@pytest.mark.parametrize(
    "row",
    [
        *ROWS,
        {"prompt": "What is 2 + 2?", "output": "4"},
        {"prompt": "The sky is", "completion": " blue."},
        {"prompt": "P", "instruction": "I", "output": ["\nO", "o"]},
        {"instruction": "", "input": "Who sold the mill?", "output": "Ada."},
        {"input": "Who sold the mill?", "output": "Ada."},
    ],
)
def test_a_student_is_asked_as_it_was_trained(tmp_path, row):
    record = Record(0, "rows.jsonl", 1, row)
    fields = resolve_fields(FieldsConfig(), [record])
    side = SideConfig(tokenizer="embedded:sentencepiece-bpe")
    config = resolve_templates(ParseConfig(inputs=("rows.jsonl",), fields=fields, teacher=side, student=side))
    trained = Renderer(fields, config.template).render(record)
    (asked,) = read_questions(written(tmp_path / "rows.jsonl", [row]))
    assert asked.prompt == trained.text[: trained.response_start]
    assert asked.references[0] == trained.text[trained.response_start :]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 3: broken JSON"),
        pytest.param('{"prompt": ' + "[" * 100_000, "line 3: a value in it is nested too deeply", id="deep"),
        pytest.param(
            '{"prompt": ' + "1" * 5_000 + "}", "line 3: a value in it is nested too deeply, or a number", id="digits"
        ),
        ('["prompt"]', "line 3: not a JSON object"),
        (
            '{"question": "a", "output": "b"}',
            "line 3: neither `prompt` nor `instruction`: the fields are question, output",
        ),
        ('{"prompt": "a", "text": "b"}', "line 3: no reference: the fields are prompt, text"),
        ('{"prompt": " ", "output": "b"}', "line 3: `prompt` is empty"),
        ('{"prompt": 3, "output": "b"}', "line 3: `prompt` is 3, a text is wanted"),
        ('{"prompt": "a", "output": []}', "line 3: `output` is an empty list"),
        ('{"prompt": "a", "output": ["b", ""]}', "line 3: `output` is empty"),
        ('{"prompt": "a", "output": ["b", null]}', "line 3: `output` is null"),
        ('{"prompt": "\\ud800", "output": "b"}', "line 3: `prompt` holds an unpaired surrogate"),
        (
            '{"prompt": "a", "output": "b", "system": "c"}',
            "line 3: a ready-made or Alpaca prompt has no place for `system`; a chat template has",
        ),
        (
            '{"prompt": "a", "output": "b", "Images": ["c"]}',
            "line 3: a ready-made or Alpaca prompt has no place for `Im",
        ),
    ],
)
def test_bad_rows_are_told_with_their_place(tmp_path, run, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n", encoding="utf-8")
    code, out, err = run("run", TEACHER, path)
    assert (code, out) == (Exit.INPUT, "")
    assert f"{path}, {message}" in err
    assert "Traceback" not in err


def test_files_that_cannot_be_read(tmp_path, mixed):
    empty, array, latin = (tmp_path / name for name in ("empty.jsonl", "array.jsonl", "latin.jsonl"))
    empty.write_text("\n\n")
    array.write_text(json.dumps(ROWS))
    latin.write_bytes(b'{"prompt": "caf\xe9"}')
    for path, message in (
        (empty, "holds no rows"),
        (array, "is a JSON array"),
        (latin, "not UTF-8"),
        (tmp_path / "none.jsonl", "No such file"),
    ):
        with pytest.raises(UserError, match=message):
            read_questions(path)
    with pytest.raises(UserError, match="lower --min-words"):
        read_questions(mixed, min_words=50)


def test_names_tell_files_apart():
    paths = [Path("dolly/valid.jsonl"), Path("vicuna/valid.jsonl")]
    assert names_of(paths) == ["dolly/valid", "vicuna/valid"]
    assert names_of([Path("a/x.jsonl"), Path("a/y.jsonl")]) == ["x", "y"]
    with pytest.raises(UserError, match="same name"):
        names_of([paths[0], paths[0]])


def test_json_alone_with_every_score(run, mixed, tmp_path):
    out = tmp_path / "result.json"
    code, printed, err = run("run", TEACHER, mixed, *QUICK, "--json", "--out", out, "--save-texts", "--batch-size", 3)
    assert (code, err) == (Exit.OK, "")
    assert printed.count("\n") == 1
    result = json.loads(printed)
    assert result == json.loads(out.read_text(encoding="utf-8"))
    (file,) = result["files"]
    assert (file["name"], file["rows"], file["row_numbers"]) == ("mixed", 5, [0, 1, 2, 3, 4])
    questions = read_questions(mixed)
    rouge = RougeL()
    scores = [
        [rouge.score(text, question.references) for text in texts]
        for question, texts in zip(questions, file["texts"], strict=True)
    ]
    assert file["scores"] == scores
    means = [math.fsum(row[seed] for row in scores) / 5 for seed in range(2)]
    assert file["rouge_l"]["per_seed"] == pytest.approx(means)
    assert file["rouge_l"]["mean"] == pytest.approx(sum(means) / 2)
    assert file["rouge_l"]["deviation"] == pytest.approx(abs(means[0] - means[1]) / math.sqrt(2))
    assert any(first != second for first, second in file["texts"]), "seeds give other texts"
    assert 0 < file["tokens"] <= 8
    assert file["cut_prompts"] == 3, "the Alpaca ones"
    assert result["model"]["name"] == "teacher"
    assert result["config"]["seeds"] == [10, 20]
    assert result["mean"] is None
    assert result["held_out"] is None

    code, again, _ = run("run", TEACHER, mixed, *QUICK, "--json", "--save-texts", "--batch-size", 7)
    assert json.loads(again)["files"] == result["files"], "whatever the batch size"
    code, some, _ = run("run", TEACHER, mixed, *QUICK, "--json", "--save-texts", "--min-words", 4)
    assert json.loads(some)["files"][0]["texts"] == [file["texts"][0], file["texts"][2]], "whatever the other rows"


class Scripted:
    """Stands for a generator: notes the prompts, and answers with the same ids."""

    seen: tuple = ()

    def __init__(self, model, stop, new_tokens, sampling):
        self.options = (stop, new_tokens)

    def __call__(self, prompts):
        type(self).seen += tuple(prompts)
        assert self.options == ((2,), 8)
        return [Response(Scripted.answer, prompt.seed == 10) for prompt in prompts]


def test_prompts_lose_their_beginning_and_responses_are_scored_as_text(run, mixed, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve(TEACHER))
    Scripted.answer = tuple(tokenizer("Cats are small animals.", add_special_tokens=False)["input_ids"])
    Scripted.seen = ()
    monkeypatch.setattr(responses, "Generator", Scripted)
    code, printed, _ = run("run", TEACHER, mixed, *QUICK, "--json")
    assert code == Exit.OK
    by_row = {(prompt.row, prompt.seed): prompt.ids for prompt in Scripted.seen}
    assert len(by_row) == len(Scripted.seen) == 10
    for question in read_questions(mixed):
        whole = tokenizer(question.prompt)["input_ids"]
        assert whole[0] == tokenizer.bos_token_id
        expected = whole if len(whole) <= 32 else whole[:1] + whole[-31:]
        assert by_row[question.row, 10] == by_row[question.row, 20] == tuple(expected)
    (file,) = json.loads(printed)["files"]
    assert file["scores"][0] == [pytest.approx(100)] * 2
    assert file["scores"][1] == [pytest.approx(50)] * 2, "`are animals` of the second reference"
    assert (file["stopped"], file["tokens"]) == (0.5, len(Scripted.answer))


def test_several_files_in_a_table(run, mixed, tmp_path):
    other = written(tmp_path / "other.jsonl", ROWS[2:4])
    code, printed, err = run("run", TEACHER, mixed, other, "--greedy", "--max-length", 36, "--max-prompt-length", 32)
    assert code == Exit.OK
    assert all(word in printed for word in ("greedy", "mixed", "other", "mean", "ROUGE-L", "EM", "prompts cut"))
    assert "±" not in printed
    assert "5/5 rows" in err
    assert "2/2 rows" in err


@pytest.mark.parametrize("turns", [False, True])
def test_held_out_loss_equals_a_plain_loop(run, same_side, tmp_path, turns):
    import pyarrow as pa

    folder = conversations(tmp_path / "turns") if turns else same_side
    code, printed, err = run("run", TEACHER, "--held-out", folder, "--json")
    assert (code, err) == (Exit.OK, "")
    found = json.loads(printed)["held_out"]
    model = AutoModelForCausalLM.from_pretrained(embedded.resolve(TEACHER), dtype=torch.float32).eval()
    total, count, rows = 0.0, 0, 0
    for shard in sorted(folder.glob("*.arrow")):
        with pa.ipc.open_stream(shard) as reader:
            table = reader.read_all()
        for row in table.select(["student_input_ids", "student_responses"]).to_pylist():
            ids = row["student_input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].double()
            for first, last in row["student_responses"]:
                for place in range(max(first, 1), last):
                    total -= float(logits[place - 1].log_softmax(0)[ids[place]])
                    count += 1
            rows += 1
    assert (found["tokens"], found["rows"]) == (count, rows)
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_a_loss_that_is_no_number_is_refused(run, same_side, monkeypatch):
    monkeypatch.setattr(
        perplexity, "losses", lambda _head, _states, targets: torch.full_like(targets, math.nan, dtype=torch.float32)
    )
    code, printed, err = run("run", TEACHER, "--held-out", same_side, "--json")
    assert (code, printed) == (Exit.INPUT, "")
    assert "is nan: the model's weights or logits are no finite numbers" in " ".join(err.split())


def test_a_dataset_of_another_tokenizer_is_refused(run, prepared, tmp_path):
    code, _, err = run("run", TEACHER, "--held-out", prepared)
    assert code == Exit.INPUT
    assert "another student tokenizer than the model's" in err
    code, _, err = run("run", TEACHER, "--held-out", tmp_path)
    assert code == Exit.STATE


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), Exit.USAGE, "Nothing to evaluate on"),
        (("FILE", "--seeds", "1,x"), Exit.USAGE, "whole numbers"),
        (("FILE", "--seeds", "1,1"), Exit.USAGE, "once"),
        (("FILE", "--seeds", "1,9223372036854775808"), Exit.USAGE, "from 0 to 9223372036854775807"),
        (("FILE", "--temperature", "0"), Exit.USAGE, "for the likeliest token always, pass --greedy"),
        (("FILE", "--temperature", "-1"), Exit.USAGE, "above 0"),
        (("FILE", "--temperature", "nan"), Exit.USAGE, "nan is no finite number above 0"),
        (("FILE", "--top-p", "nan"), Exit.USAGE, "less than or equal to 1"),
        (("FILE", "--max-length", "200"), Exit.USAGE, "leaves no token"),
        (("FILE", "--max-length", "4096"), Exit.USAGE, "at most 2048 tokens"),
        (("FILE", "--max-prompt-length", "1"), Exit.USAGE, "no room"),
        (("FILE", "--out", "/nowhere/result.json"), Exit.USAGE, "no folder"),
        (("FILE", "--out", "/tmp"), Exit.USAGE, "/tmp is a folder"),
        (("FILE", "--out", "/proc/result.json"), Exit.RESOURCE, "/proc/result.json cannot be written"),
        (("FILE", "--dtype", "int8"), Exit.USAGE, "int8"),
    ],
)
def test_wrong_command_lines(run, mixed, arguments, code, message):
    found = run("run", TEACHER, *(mixed if each == "FILE" else each for each in arguments))
    assert found[0] == code
    assert found[1] == ""
    assert message in found[2]


def test_models_that_cannot_be_used(run, mixed, tmp_path):
    code, _, err = run("run", tmp_path / "none", mixed)
    assert code == Exit.INPUT
    assert "no such folder" in err
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(embedded.resolve(TEACHER)).save_pretrained(bare)
    code, _, err = run("run", bare, mixed)
    assert code == Exit.INPUT
    assert "the folder holds no tokenizer" in err


def test_all_ends_of_sequence_count():
    teacher = responses.load(responses.ModelConfig(model=TEACHER))
    assert teacher.stop == (2,)
    teacher.teacher.model.generation_config.eos_token_id = [7, 2, 5]
    assert teacher.stop == (2, 5, 7)
    teacher.teacher.model.generation_config.eos_token_id = None
    assert teacher.stop == (2,)


@pytest.fixture
def results(run, mixed, tmp_path):
    other = written(tmp_path / "other.jsonl", ROWS[1:4])
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, how in zip(paths, [(), ("--greedy",)], strict=True):
        assert run("run", TEACHER, mixed, other, *QUICK, *how, "--json", "--out", path)[0] == Exit.OK
    return paths


def test_comparison(run, results):
    code, printed, err = run("compare", *results, "--samples", 400, "--seed", 3, "--json")
    assert (code, err) == (Exit.OK, "")
    found = json.loads(printed)
    a, b = map(read_result, results)
    for measure, values in (("rouge_l", "scores"), ("exact_match", "matches")):
        per_file = []
        factor = {"scores": 1, "matches": 100}[values]
        for number, difference in enumerate(found[measure]["files"]):
            rows = [factor * np.mean(getattr(file.files[number], values), axis=1) for file in (a, b)]
            assert difference["a"] == pytest.approx(getattr(a.files[number], measure).mean)
            assert difference["difference"] == pytest.approx(rows[1].mean() - rows[0].mean())
            drawn = np.random.default_rng((3, number)).integers(len(rows[0]), size=(400, len(rows[0])))
            means = (rows[1] - rows[0])[drawn].mean(1)
            assert [difference["low"], difference["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist())
            per_file.append(means)
        total, mean = np.mean(per_file, axis=0), found[measure]["mean"]
        assert mean["difference"] == pytest.approx(getattr(b.mean, measure).mean - getattr(a.mean, measure).mean)
        assert mean["low"] == pytest.approx(np.percentile(total, 2.5))
    assert found["unlike"] == [{"setting": "seeds", "a": [10, 20], "b": None}]
    code, printed, err = run("compare", *results)
    assert code == Exit.OK
    assert all(word in printed for word in ("mixed", "other", "mean", "ROUGE-L", "EM", "95 % interval"))
    assert "A and B were not evaluated alike (seeds [10, 20] and null)" in err


def test_what_is_compared_is_alike_or_told(tmp_path, results):
    same = json.loads(results[0].read_text(encoding="utf-8"))
    sampled, greedy = same["config"], same["config"] | {"seeds": None}

    def unlike(first, second, **others):
        paths = [tmp_path / name for name in ("first.json", "second.json")]
        for path, config, more in zip(paths, (first, second), ({}, others), strict=True):
            path.write_text(json.dumps(same | {"config": config} | more), encoding="utf-8")
        return {each.setting: (each.a, each.b) for each in compare(*paths, 10, 0).unlike}

    assert unlike(sampled, sampled) == {}
    assert unlike(sampled, sampled | {"batch_size": 999, "device": "cuda", "limit": 5}) == {}
    changes = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "max_length": 999,
        "max_prompt_length": 9,
        "dtype": "float16",
        "template": "chatml",
        "merge_turns": True,
        "system_into_user": True,
        "rouge_tokenizer": "multilingual",
    }
    for name, value in changes.items():
        assert unlike(sampled, sampled | {name: value}) == {name: (sampled[name], value)}
        assert bool(unlike(greedy, greedy | {name: value})) == (name not in ("temperature", "top_p", "top_k"))
    versions = same["versions"] | {"rouge-score": "0", "torch": "1"}
    assert unlike(sampled, sampled, versions=versions) == {"rouge-score": (same["versions"]["rouge-score"], "0")}


def test_a_result_that_cannot_be_written_is_printed(run, mixed, tmp_path, monkeypatch):
    def full(_path, _text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate, "write_text", full)
    arguments = ("--greedy", "--max-length", 36, "--max-prompt-length", 32, "--out", tmp_path / "result.json")
    for flags in ((), ("--json",)):
        code, printed, err = run("run", TEACHER, mixed, *arguments, *flags)
        assert (code, len(json.loads(printed.splitlines()[-1])["files"])) == (Exit.RESOURCE, 1)
        assert "cannot be written (No space left on device); its content was printed" in err


def test_results_on_other_rows_are_not_compared(run, results, mixed, tmp_path):
    fewer, alone = tmp_path / "fewer.json", tmp_path / "alone.json"
    other = tmp_path / "other.jsonl"
    run("run", TEACHER, mixed, other, *QUICK, "--limit", 2, "--json", "--out", fewer)
    run("run", TEACHER, mixed, *QUICK, "--limit", 2, "--json", "--out", alone)
    for path, message in (
        (fewer, "different rows of mixed (5 and 2)"),
        (alone, "different files"),
        (mixed, "no result of"),
        (tmp_path / "none.json", "No such file"),
    ):
        code, _, err = run("compare", results[0], path)
        assert code == Exit.INPUT
        assert message in err


def test_runs_as_a_script_from_any_folder(tmp_path):
    found = subprocess.run(
        [sys.executable, SCRIPT, "run", TEACHER, "none.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (Exit.INPUT, "")
    assert found.stderr == "Error: none.jsonl cannot be read (No such file or directory).\n"
