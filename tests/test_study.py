"""The study: its grid is what its plan says, its statistics are right, its command trains, measures, tells, and goes on."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launching import launch
from schemas.errors import StateError, UsageError
from schemas.training import TrainConfig
from study import jobs, page
from study.arms import ARMS, grid
from study.compare import difference
from study.profiles import PROFILES
from study.run import opened
from study.stages import Study

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


def some_arms(folder: Path) -> None:
    """The study's own loop over four of its runs, twice: the second time nothing is left to do."""
    from trainer.train import start_ranks

    start_ranks(0)
    study = opened(PROFILES["tiny"], folder, "cpu")
    study.take_rows(None)
    only = frozenset({"teacher", "srkl", "srkl-mta", "cross-ce"})
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
    assert results.keys() == {"teacher", "srkl-1", "srkl-mta-1", "cross-ce-1"}
    teacher, student = (results[name]["tests"]["test-sample"] for name in ("teacher", "srkl-mta-1"))
    assert len(student["kl"]) == PROFILES["tiny"].test_rows
    assert max(teacher["kl"]) < 1e-3 < min(student["kl"])  # a teacher is itself
    assert results["srkl-mta-1"]["last"].keys() == {"srkl", "dsa", "hidden"}
    assert "kl" not in results["cross-ce-1"]["tests"]["test-sample"]
    told = (folder / "study.md").read_text(encoding="utf-8")
    assert "| `srkl-mta` | `srkl` | KL(teacher ‖ student) |" in told
    assert (folder / "results" / page.PLOT).is_file()


def test_a_folder_is_of_one_study(tmp_path):
    opened(PROFILES["tiny"], tmp_path, "cpu")
    opened(PROFILES["tiny"], tmp_path, "cuda")  # where it runs does not matter
    with pytest.raises(StateError, match="another `rows`"):
        opened(PROFILES["quick"], tmp_path, "cpu")


def test_rows_that_are_not_there_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"train\.jsonl"):
        Study(PROFILES["tiny"], tmp_path / "work", "cpu").take_rows(tmp_path)


def test_a_page_keeps_what_stands_around_its_tables(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.write(tmp_path, file)
    assert file.read_text(encoding="utf-8") == f"before\n{page.BEGIN}\n\nNo run has ended yet.\n\n{page.END}\nafter\n"
