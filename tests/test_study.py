"""The study: its grid is what its plan says, its statistics are right, its command trains, measures, tells, and goes on."""

import json
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

from launching import launch
from schemas.errors import Exit, StateError, UsageError
from schemas.manifest import read_manifest
from schemas.training import TrainConfig
from study import jobs, page, plot, run
from study.arms import ARMS, grid
from study.compare import Difference, difference
from study.profiles import PROFILES
from study.run import at_once, opened
from study.stages import Study
from trainer.run import Interrupted
from trainer.step import Stepper

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "study"


def test_the_plan_names_every_arm():
    named = set(re.findall(r"`([a-z0-9-]+)`", (DOCS / "plan.md").read_text(encoding="utf-8")))
    assert ARMS.keys() <= named


def test_arms_are_compared_with_arms_of_their_pair():
    for arm in ARMS.values():
        assert arm.base is None or (arm.base in ARMS and ARMS[arm.base].cross == arm.cross and arm.base != arm.name)


@pytest.mark.parametrize("name", PROFILES)
def test_every_arm_has_its_seeds_once_and_the_primary_ones_come_first(name):
    cells = [(arm.name, seed) for arm, seed in grid(PROFILES[name])]
    assert len(cells) == len(set(cells))
    assert [arm for arm, seed in cells if seed == 1][:2] == ["srkl", "srkl-mta"]
    for arm in ARMS.values():
        if not arm.descent or PROFILES[name].descent:
            assert {seed for cell, seed in cells if cell == arm.name} == {*range(1, arm.seeds(PROFILES[name]) + 1)}


@pytest.mark.parametrize("name", PROFILES)
def test_every_arm_is_a_training_config(name, monkeypatch, tmp_path):
    monkeypatch.setattr(Study, "once", lambda _self, _name, product, _make: product)
    monkeypatch.setattr("trainer.teacher.shape.shape_of", lambda _config: type("Shape", (), {"depth": 6}))
    study = Study(PROFILES[name], tmp_path, "cpu")
    for arm, seed in grid(PROFILES[name]):
        config = TrainConfig.parse(jobs.config_of(study, arm, seed), arm.name)
        assert config.seed == config.data.seed == seed
        assert bool(config.data.caches) == (not arm.live and arm.terms.keys() != {"ce"})


SUMS = st.lists(st.floats(-50, 50), min_size=6, max_size=6).map(lambda values: np.reshape(values, (2, 3)))


@given(SUMS, SUMS, st.floats(-3, 3))
def test_a_difference_is_of_what_was_paired(arm, base, shift):
    weights = np.array([3.0, 1.0, 6.0])
    gap = difference(arm, base, weights, draws=200)
    other = difference(base, arm, weights, draws=200)
    assert gap.mean == pytest.approx((arm - base).sum() / (2 * weights.sum()), abs=1e-9)
    assert gap.mean == pytest.approx(np.mean(gap.by_seed), abs=1e-9)
    assert (gap.low, gap.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    # what is added to every token is certain
    certain = difference(arm + shift * weights, arm, weights, draws=50)
    assert (certain.mean, certain.error) == pytest.approx((shift, 0.0), abs=1e-9)


def test_the_error_of_a_mean_is_that_of_the_textbook():
    random = np.random.default_rng(5)
    gaps = random.normal(size=(1, 400))
    found = difference(gaps, np.zeros_like(gaps), np.ones(400), draws=4000)
    assert found.error == pytest.approx(gaps.std(ddof=1) / 20, rel=0.05)
    assert found.low < found.mean < found.high


def test_seeds_are_drawn_as_blocks():
    # all rows of a seed move together: only seeds can make an error then
    gaps = np.repeat([[1.0], [2.0], [3.0]], 50, axis=1)
    found = difference(gaps, np.zeros_like(gaps), np.ones(50), draws=4000)
    assert found.error == pytest.approx(np.std([1, 2, 3]) / np.sqrt(3), rel=0.05)


def out_of_memory_in(patch: pytest.MonkeyPatch, name: str) -> None:
    """The run's second step finds no memory."""
    step = Stepper.step

    def fails(stepper, number, *rest):
        if number == 1 and Path(stepper._config.out).name == name:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return step(stepper, number, *rest)

    patch.setattr(Stepper, "step", fails)


def test_one_seed_shows_nothing():
    gaps = np.ones((1, 20))
    assert not difference(gaps, 0 * gaps, np.ones(20), draws=50).shown
    assert difference(np.repeat(gaps, 2, axis=0), np.zeros((2, 20)), np.ones(20), draws=50).shown


def some_arms(folder: Path) -> None:
    """The study's own loop over four of its runs, twice: the second time nothing is left to do."""
    from trainer.train import start_ranks

    start_ranks(0)
    study = opened(PROFILES["tiny"], folder, "cpu")
    study.take_rows(None)
    only = frozenset({"teacher", "srkl", "srkl-mta", "cross-ce", "rouge-srkl"})
    with pytest.MonkeyPatch.context() as patch:
        out_of_memory_in(patch, "srkl-mta-1")
        jobs.work(study, only)
    assert jobs.record(study)["srkl-mta-1"] == jobs.OUT_OF_MEMORY
    assert jobs.record(study)["srkl-1"] == "ended"
    assert jobs.forget_out_of_memory(study) == 1
    jobs.work(study, only)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.suffix in (".json", ".safetensors")}
    jobs.work(study, only)
    assert before == {file: file.stat().st_mtime_ns for file in before}
    page.write(folder / "results", folder / "study.md")


def test_the_command_trains_measures_and_tells(tmp_path):
    folder = tmp_path / "study"
    launch(1, some_arms, folder)
    assert not [*(folder / "failures").glob("*")]
    results = {file.stem: json.loads(file.read_text()) for file in (folder / "results").glob("*.json")}
    assert results.keys() == {"teacher", "srkl-1", "srkl-mta-1", "cross-ce-1", "rouge-srkl-1"}
    responses = results["rouge-srkl-1"]["tests"]["test-sample"]
    assert {kind: np.shape(scored["rouge_l"]) for kind, scored in responses.items()} == {
        "greedy": (6, 1),
        "sampled": (6, 2),
    }
    teacher, student = (results[name]["tests"]["test-sample"] for name in ("teacher", "srkl-mta-1"))
    assert len(student["kl"]) == PROFILES["tiny"].test_rows
    assert max(teacher["kl"]) < 1e-3 < min(student["kl"])  # a teacher is itself
    assert results["srkl-mta-1"]["last"].keys() == {"srkl", "dsa", "hidden"}
    assert "kl" not in results["cross-ce-1"]["tests"]["test-sample"]
    limits = read_manifest(folder / "data" / "train-cross").config["student"]
    assert (limits["max_length"], limits["max_prompt_length"]) == PROFILES["tiny"].lengths
    told = (folder / "study.md").read_text(encoding="utf-8")
    assert "| `srkl-mta` | `srkl` | KL(teacher ‖ student) |" in told
    assert "| `srkl` | sampled | 1 |" in told
    assert (folder / "results" / page.PLOT).is_file()


@pytest.mark.parametrize(
    ("free", "processes"), [(None, 10), (85e9, 10), (60e9, 8), (50e9, 7), (7e9, 1), (3e9, 1), (500e9, 10)]
)
def test_there_are_as_many_processes_as_a_card_has_room_for(free, processes):
    assert at_once(PROFILES["card"], free) == processes


@pytest.mark.parametrize(("fits", "counts"), [(10, [10]), (2, [10, 5, 2]), (5, [10, 5]), (0, [10, 5, 2, 1])])
def test_what_ran_out_of_memory_is_tried_again_by_fewer(tmp_path, monkeypatch, fits, counts):
    """`fits`: of how many processes at once the memory is enough."""
    study = Study(PROFILES["card"], tmp_path, "cuda")
    failures = tmp_path / "failures"
    failures.mkdir()
    (failures / "live-1.txt").write_text("UserError: not of memory\n…\n", encoding="utf-8")
    began = []

    def members(_study, count, _until):
        began.append(count)
        if count > fits:
            (failures / "srkl-1.txt").write_text(f"{jobs.OUT_OF_MEMORY}\n…\n", encoding="utf-8")

    monkeypatch.setattr(run, "_members", members)
    monkeypatch.setattr(run, "_free_memory", lambda _device: 85e9)
    run._rounds(study, float("inf"))
    assert began == counts
    states = jobs.record(study)
    assert states["live-1"] == "UserError: not of memory"  # is not tried again
    assert states["srkl-1"] == (jobs.OUT_OF_MEMORY if fits == 0 else "not begun, or interrupted")
    assert states["rouge-srkl-1"] == "its run has not ended"


@pytest.mark.parametrize("only", [None, "srkl"])
def test_a_process_that_is_told_to_end_begins_nothing_more(tmp_path, monkeypatch, capfd, only):
    """Whether it is at a cache, for which the teacher is tuned, or at a run."""
    study, began = Study(PROFILES["tiny"], tmp_path, "cpu"), []

    def interrupted(*_):
        began.append(1)
        raise Interrupted("Interrupted at step 3 of 5, which is saved.")

    monkeypatch.setattr(Study, "tests", property(lambda _: ["test-a", "test-b"]))
    monkeypatch.setattr(Study, "test_cache", interrupted)
    monkeypatch.setattr(jobs, "_trained", interrupted)
    monkeypatch.setattr("trainer.train.start_ranks", lambda _: None)
    with pytest.raises(typer.Exit) as ended:
        run._be_a_member(study, 0, only, float("inf"))
    assert (ended.value.exit_code, began) == (Exit.INTERRUPTED, [1])
    assert "Interrupted at step 3 of 5" in capfd.readouterr().err
    assert not [*tmp_path.glob("failures/*")]


def test_responses_wait_for_their_student(tmp_path):
    study = Study(PROFILES["card"], tmp_path, "cpu")
    jobs.work(study, frozenset({"rouge-srkl"}))
    assert not [*tmp_path.rglob("*.txt")]


def test_the_page_tells_what_ended_and_why_the_rest_did_not():
    record = {
        "teacher": "ended",
        "srkl-1": "ended",
        "srkl-2": "out of memory",
        "srkl-3": "out of memory",
        "ce-1": "ended",
    }
    told = page.ended(record)
    assert told[0] == "2 of 4 runs (an arm with a seed) ended, and 1 of 1 of what else is measured."
    assert "| ended | 2 | `srkl` 1, `ce` 1 | 1 | `teacher` |" in told
    assert "| out of memory | 2 | `srkl` 2 3 | 0 |  |" in told


def test_a_difference_far_beyond_the_others_does_not_hide_them():
    def gap(mean):
        return Difference(mean, 0.01, mean - 0.02, mean + 0.02, (mean - 0.03, mean + 0.03))

    near = [gap(mean) for mean in (-0.1, 0.1, 0.3, 0.4)]
    assert plot._limit(near) == pytest.approx(1.1 * 0.43)
    assert plot._limit([*near, gap(-9.0)]) == plot._limit(near)
    assert plot._limit([]) == 1.0


@pytest.mark.parametrize(("results", "where"), [("results", "../study.md"), ("results-full", "two-cores.md")])
def test_the_page_in_the_repository_is_what_its_results_make(results, where):
    told = page.text(DOCS / results)
    assert f"{page.BEGIN}\n\n{told}\n\n{page.END}" in (DOCS / where).read_text(encoding="utf-8")


def test_a_folder_is_of_one_study(tmp_path):
    opened(PROFILES["tiny"], tmp_path, "cpu")
    opened(PROFILES["tiny"], tmp_path, "cuda")  # where it runs does not matter
    with pytest.raises(StateError, match="another `rows`"):
        opened(PROFILES["quick"], tmp_path, "cpu")


def test_a_study_goes_on_with_more_seeds_and_under_keys_that_it_did_not_have(tmp_path):
    opened(PROFILES["tiny"], tmp_path, "cpu")
    opened(PROFILES["tiny"].model_copy(update={"seeds": 3, "workers": 2}), tmp_path, "cpu")
    record = tmp_path / "study.json"
    told = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({key: value for key, value in told.items() if key != "rouge_draws"}), encoding="utf-8")
    opened(PROFILES["tiny"], tmp_path, "cpu")
    assert json.loads(record.read_text(encoding="utf-8"))["rouge_draws"] == PROFILES["tiny"].rouge_draws
    record.write_text("{", encoding="utf-8")
    with pytest.raises(StateError, match=r"study\.json is damaged"):
        opened(PROFILES["tiny"], tmp_path, "cpu")


def rows_in(folder: Path, train: str | bytes = "{}\n", test: str | bytes = "{}\n") -> Path:
    (folder / "test").mkdir(parents=True)
    for file, text in ((folder / "train.jsonl", train), (folder / "test" / "one.jsonl", test)):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_folder_is_of_one_set_of_rows(tmp_path):
    work = tmp_path / "work"
    opened(PROFILES["tiny"], work, "cpu", rows_in(tmp_path / "rows", "{}\n{}\n"))
    opened(PROFILES["tiny"], work, "cpu")  # they are there
    opened(PROFILES["tiny"], work, "cpu", rows_in(tmp_path / "moved", "{}\n{}\n"))
    with pytest.raises(StateError, match="another `data`"):
        opened(PROFILES["tiny"], work, "cpu", rows_in(tmp_path / "others"))
    opened(PROFILES["tiny"], tmp_path / "embedded", "cpu")
    with pytest.raises(StateError, match="another `data`"):
        opened(PROFILES["tiny"], tmp_path / "embedded", "cpu", tmp_path / "others")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"test": " \n"}, r"one\.jsonl is empty"),
        ({"train": b"\xff\n"}, r"train\.jsonl is no UTF-8"),
        (None, r"wants train\.jsonl"),
    ],
)
def test_rows_that_are_none_are_told_before_anything_is_written(tmp_path, texts, message):
    folder = tmp_path / "rows"
    if texts is not None:
        rows_in(folder, **texts)
    for attempt in (
        lambda: opened(PROFILES["tiny"], tmp_path / "work", "cpu", folder),
        lambda: Study(PROFILES["tiny"], tmp_path / "work", "cpu").take_rows(folder),
    ):
        with pytest.raises(UsageError, match=message):
            attempt()
    assert not [*tmp_path.glob("work/rows/*")]


def test_a_row_is_a_line_whatever_else_stands_in_it(tmp_path):
    rows = "".join(json.dumps({"output": text}, ensure_ascii=False) + "\n" for text in ("a\u2028b", "c\x85d", "e"))
    study = Study(PROFILES["tiny"].model_copy(update={"rows": 2}), tmp_path / "work", "cpu")
    study.take_rows(rows_in(tmp_path / "rows", rows, rows))
    taken = (tmp_path / "work" / "rows" / "train.jsonl").read_text(encoding="utf-8")
    assert taken.split("\n")[:-1] == rows.split("\n")[:2]


def test_the_largest_test_set_is_the_one_that_is_answered(tmp_path):
    study = Study(PROFILES["tiny"], tmp_path, "cpu")
    (tmp_path / "rows").mkdir()
    for name, count in (("test-a", 3), ("test-c", 6), ("test-b", 6)):
        (tmp_path / "rows" / f"{name}.jsonl").write_text("{}\n" * count, encoding="utf-8")
    assert study.largest_test == "test-b"


@pytest.mark.parametrize(
    ("only", "runs"),
    [
        ("srkl", {"srkl-1", "srkl-2"}),
        (" srkl-2 , teacher", {"srkl-2", "teacher"}),
        ("cross-ce,cross-untrained", {"cross-ce-1", "cross-untrained"}),
        ("rouge-srkl", {"rouge-srkl-1"}),
        (None, {"teacher", "cross-untrained", "srkl-1", "srkl-2", "cross-ce-1", "rouge-teacher", "rouge-srkl-1"}),
    ],
)
def test_runs_are_named_by_themselves_or_by_their_arms(only, runs):
    names = ["teacher", "srkl-1", "srkl-2", "cross-untrained", "cross-ce-1", "rouge-teacher", "rouge-srkl-1"]
    assert run._wanted(names, only) == runs
    for wrong in ("srlk", "cross", "rouge", "srkl-3"):
        with pytest.raises(UsageError, match=f"'{wrong}'"):
            run._wanted(names, f"teacher,{wrong}")


@pytest.mark.parametrize(
    "text", ["rows=0", "rows=abc", "seeds=two", "optim=5", "optim.lr=fast", "workers=0", "threads=true", "epoch=2"]
)
def test_what_a_key_cannot_be_is_told(text):
    with pytest.raises(UsageError, match="--profile tiny"):
        run._changed("tiny", {}, [text])
    assert run._changed("tiny", {"teacher": "other"}, ["optim.lr=2e-4", "rows=7"]).optim["lr"] == 2e-4


@pytest.mark.parametrize(
    ("states", "late", "code", "said"),
    [
        ({"ce-1": jobs.ENDED, "srkl-1": "UserError: no"}, False, None, ""),
        ({"ce-1": "UserError: no row"}, False, Exit.FAILED, "ce-1: UserError: no row"),
        ({"ce-1": "UserError: no row"}, True, Exit.FAILED, "ce-1: UserError: no row"),
        ({"ce-1": jobs.NOT_BEGUN}, True, None, "1 run left, from ce-1 on"),
        ({"ce-1": jobs.NOT_BEGUN}, False, Exit.FAILED, "1 run left, from ce-1 on"),
    ],
)
def test_what_has_not_ended_is_told(tmp_path, monkeypatch, capfd, states, late, code, said):
    monkeypatch.setattr(jobs, "record", lambda _: states)
    study = Study(PROFILES["tiny"], tmp_path, "cpu")
    with nullcontext() if code is None else pytest.raises(typer.Exit) as ended:
        run._tell(study, frozenset({"ce-1"}), late)
    assert code is None or ended.value.exit_code == code
    assert said in capfd.readouterr().err
    assert "| 1 |" in (tmp_path / "study.md").read_text(encoding="utf-8")  # the table of what ended, whatever did


def test_results_of_other_rows_are_not_compared(tmp_path):
    def result(tokens, **more):
        return {"arm": "ce", "seed": 1, "tests": {"test-a": {"ce": [1.0] * len(tokens), "tokens": tokens}}} | more

    results = {"ce-1": result([3, 4]), "srkl-1": result([3, 4], arm="srkl")}
    assert page.compared(results, "srkl", "ce", "test-a", "ce").mean == 0
    for tokens in ([3, 5], [3, 4, 5]):
        with pytest.raises(StateError, match=r"srkl-1 and ce-1 are not of the same rows \(test-a\)"):
            page.compared(results | {"ce-1": result(tokens)}, "srkl", "ce", "test-a", "ce")
    one, two = ({"rouge-ce-1": scored(np.ones(count), 0)} for count in (2, 3))
    with pytest.raises(StateError, match="not of the same rows and draws"):
        page.responses(one | {"rouge-teacher": two["rouge-ce-1"]})


@pytest.mark.parametrize("text", ["", "[]", '{"seed": NaN}', "[" * 9999])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "ce-1.json").write_text(text, encoding="utf-8")
    with pytest.raises(StateError, match=r"ce-1\.json is damaged"):
        page.read(tmp_path)


@pytest.mark.parametrize("text", ["", f"{page.BEGIN}\nold", f"old\n{page.END}"])
def test_a_page_without_both_marks_stays_as_it_is(tmp_path, text):
    file = tmp_path / "page.md"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StateError, match="lacks the marks"):
        page.write(tmp_path, file)
    assert file.read_text(encoding="utf-8") == text


def test_a_killed_command_leaves_no_process_and_goes_on(tmp_path):
    """The command itself, as `make study` runs it."""
    work = tmp_path / "work"
    command = [sys.executable, run.__file__, "--profile", "tiny", "--work", str(work), "--only", "ce,teacher"]
    killed = subprocess.Popen(command, start_new_session=True)
    while not (log := work / "member-0.log").exists() or "teacher …" not in log.read_text(encoding="utf-8"):
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(each.pid) for each in members_of(work)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "ended with exit code" not in ended.stderr
    assert {"teacher", "ce-1"} <= page.read(work / "results").keys()
    assert "| `ce` | 1 |" in (work / "study.md").read_text(encoding="utf-8")
    refused = subprocess.run([*command, "--set", "rows=9"], capture_output=True, text=True, check=False)
    assert refused.returncode == Exit.STATE
    assert "holds a study of another `rows`" in " ".join(refused.stderr.split())


def members_of(work: Path) -> list[psutil.Process]:
    """Processes that work in this folder."""
    return [each for each in psutil.process_iter(["cmdline"]) if str(work) in (each.info["cmdline"] or [])]


def test_a_page_keeps_what_stands_around_its_tables(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.write(tmp_path, file)
    assert file.read_text(encoding="utf-8") == f"before\n{page.BEGIN}\n\nNo run has ended yet.\n\n{page.END}\nafter\n"


def scored(values: np.ndarray, *draws: float) -> dict:
    """A result whose rows have these scores, each draw so much more."""
    of_draws = {"greedy": values[:, None], "sampled": values[:, None] + np.array(draws)}
    told = {
        kind: {"rouge_l": rows.tolist(), "tokens": 7.4, "stopped": 0.25} for kind, rows in of_draws.items() if rows.size
    }
    return {"tests": {"test-dolly": told}}


def test_responses_are_compared_row_by_row_and_draws_by_their_mean():
    rows = 40
    random = np.random.default_rng(3)
    base, gain = random.uniform(0, 60, rows), random.normal(1.5, 0.5, rows)
    results = {f"rouge-srkl-{seed}": scored(base + seed, -3, 0, 3) for seed in (1, 2)}
    results |= {f"rouge-srkl-mta-{seed}": scored(base + seed + gain, -5, 0, 5) for seed in (1, 2, 3)}
    results["rouge-teacher"] = scored(base + 9, 0, 0, 0)
    told = page.responses(results)
    assert told[0] == "| arm | responses | seeds | ROUGE-L, dolly | by seed | tokens | ended |"
    for kind in ("greedy", "sampled"):
        assert f"| teacher | {kind} |  | {base.mean() + 9:.2f} | {base.mean() + 9:.2f} | 7 | 25% |" in told
        by_seed = " ".join(f"{base.mean() + seed:.2f}" for seed in (1, 2))
        assert f"| `srkl` | {kind} | 1 2 | {base.mean() + 1.5:.2f} | {by_seed} | 7 | 25% |" in told
        (line,) = [line for line in told if line.startswith(f"| `srkl-mta` | `srkl` | {kind} | {gain.mean():+.2f} |")]
        assert line.endswith(f"| {gain.mean():+.2f} {gain.mean():+.2f} | better |")  # on the seeds that both have


def test_without_draws_only_greedy_responses_are_told():
    told = page.responses({"rouge-ce-1": scored(np.array([1.0, 2.0]))})
    assert told[2:] == ["| `ce` | greedy | 1 | 1.50 | 1.50 | 7 | 25% |", ""]
    assert page.responses({}) == []
