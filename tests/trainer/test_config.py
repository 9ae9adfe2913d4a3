"""A run's config: a file, `--set key=value` on top of it, and what may differ when a run goes on."""

from pathlib import Path

import pytest
import yaml

from schemas.errors import StateError, UsageError
from trainer.config import CONFIGS, load_config, require_same

VALUES = {
    "student": {"model": "org/student"},
    "data": {"dataset": "out/demo", "caches": ["out/cache"], "batch_size": 8},
    "objectives": {"ce": {"weight": 1.0}, "dsa": {}},
    "optim": {"lr": 1e-3, "warmup": 5},
    "steps": 60,
}


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    return lambda *assignments: load_config(file, assignments)


@pytest.mark.parametrize(
    ("assignment", "read", "expected"),
    [
        ("optim.lr=2e-4", lambda config: config.optim.lr, 2e-4),  # to YAML 1.1 a word
        ("optim.lr=2.0E-4", lambda config: config.optim.lr, 2e-4),
        ("steps=7", lambda config: config.steps, 7),
        ("steps=null", lambda config: config.steps, None),
        ("steps=", lambda config: config.steps, None),
        ("data.caches=[a, b]", lambda config: config.data.caches, ("a", "b")),
        ("log.tensorboard=false", lambda config: config.log.tensorboard, False),  # no `log` in the file
        ("objectives.dsa.weight=3", lambda config: config.objectives["dsa"], {"weight": 3}),
        ("objectives.srkl={weight: 2}", lambda config: sorted(config.objectives), ["ce", "dsa", "srkl"]),
        ("objectives.dsa=null", lambda config: list(config.objectives), ["ce"]),
        ("objectives.absent=null", lambda config: sorted(config.objectives), ["ce", "dsa"]),
        ("out=2026-11-26", lambda config: config.out, "2026-11-26"),  # no date
        ("out='2e-4'", lambda config: config.out, "2e-4"),
        (" out = runs/a=b ", lambda config: config.out, "runs/a=b"),
        ("student.init={layers: [0, 3]}", lambda config: config.student.init.layers, (0, 3)),
    ],
)
def test_a_key_is_set(load, assignment, read, expected):
    assert read(load(assignment)) == expected


def test_later_ones_win(load):
    assert load("steps=7", "steps=8").steps == 8
    assert load("optim={lr: 1.0e-5}", "optim.warmup=3").optim.warmup == 3


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("steps", "--set 'steps' is no assignment; write it like optim.lr=2e-4"),
        ("=7", "is no assignment"),
        ("steps.more=7", "`steps` is 60 and has no keys"),
        ("steps..more=7", "is no assignment"),
        ("out={", "'{' is no YAML value"),
        ("out=" + "[" * 10**5, "is no YAML value"),
        ("optim.warmpu=3", "unknown key `optim.warmpu`; did you mean `warmup`"),
        ("stesp=3", "unknown key `stesp`; did you mean `steps`"),
        ("steps=many", "`steps`: .* got 'many'"),
        ("optim=null", None),
        ("objectives.dsa.data=b", r"objectives\.dsa\.data`: there is no dataset `b`; known are default, and others"),
        ("data.more={student: {dataset: a}}", "no term looks at the dataset `student`; give one `data: student`"),
        ("data.more={default: {dataset: a}}", "`data.more`: a dataset's name is lower-case"),
        ("data.join=prompt", "`join` is of several datasets"),
    ],
)
def test_what_cannot_be_set_is_told(load, assignment, told):
    if told is None:  # a key with a default may be taken out
        assert load(assignment).optim.warmup != VALUES["optim"]["warmup"]
        return
    with pytest.raises(UsageError, match=told):
        load(assignment)


def test_what_may_differ_when_a_run_goes_on(load, tmp_path):
    before = tmp_path / "before.yaml"
    before.write_text(load().to_yaml(), encoding="utf-8")
    for assignment in ("log.every=3", "checkpoint.every=9", "data.workers=4", "data.micro_batches=2"):
        require_same(before, load(assignment))
    for key, assignment in (
        ("optim.lr", "optim.lr=1"),
        ("data.limit", "data.limit=5"),
        ("objectives.dsa.weight", "objectives.dsa.weight=3"),
        ("objectives.ce", "objectives.ce=null"),
        ("objectives.dsa", "objectives.dsa=null"),
        ("student.model", "student.model=other"),
    ):
        with pytest.raises(StateError, match=rf"another config: its `{key}` is .* or pass --overwrite"):
            require_same(before, load(assignment))


def test_a_run_of_an_older_version_goes_on(load, tmp_path):
    """Its resolved config lacks keys that are new."""
    before = tmp_path / "before.yaml"
    values = yaml.safe_load(load().to_yaml())
    for key in ("more", "join"):
        del values["data"][key]
    before.write_text(yaml.safe_dump(values), encoding="utf-8")
    require_same(before, load())


def test_a_config_that_comes_along_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("mta"), []) == load_config(CONFIGS / "mta.yaml", [])
    Path("mta").write_text("student: {model: m}\ndata: {dataset: d}\nobjectives: {ce: {}}\nsteps: 2\nout: o\n", "utf-8")
    assert load_config(Path("mta"), []).steps == 2  # a file of one's own comes first
    with pytest.raises(UsageError, match=r"No config file at mat; those that come along are .*\bmta, .*\bsft\b"):
        load_config(Path("mat"), [])
