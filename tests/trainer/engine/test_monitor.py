"""What a run notes of itself: nothing twice, nothing cut off, and one run at each tracker however often it went on."""

import importlib.machinery
import json
import sys
import types

import pytest

from schemas.errors import StateError, UsageError
from schemas.training import LogConfig
from trainer.engine.monitor import METRICS, Monitor, read_metrics, require_trackers


class Service(types.ModuleType):
    """Stands for wandb or trackio: keeps what it is given."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.begun, self.logged = [], []

    def init(self, **options):
        self.begun.append(options)

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.begun[-1]["finished"] = True


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    made = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def noted(out, config, start, *records, resolved=None):
    monitor = Monitor(out, config, resolved or {}, start, 10)
    for record in records:
        monitor.log(record)
    monitor.close()


def record(step, loss=1.0):
    return {"step": step, "loss": loss, "ce": loss, "tokens_per_second": 5.0}


def test_a_run_that_goes_on_forgets_what_came_after_its_checkpoint(tmp_path):
    config = LogConfig(tensorboard=False)
    noted(tmp_path, config, 0, *map(record, range(1, 6)))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "lo')  # a crash
    noted(tmp_path, config, 3, record(4, 2.0), record(5, 2.0))
    assert [(each["step"], each["loss"]) for each in read_metrics(tmp_path / METRICS)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
    ]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "line",
    [
        "[{}",
        "[]",
        "3",
        '{"loss": 3.0}',
        '{"step": "2"}',
        '{"step": 1.5}',
        '{"step": NaN}',
        '{"step": 2, "loss": null}',
        pytest.param('{"step": ' * 9_999 + "}", id="deep"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost_of_the_others(tmp_path, line):
    text = f'{{"step": 1, "loss": 2.0}}\n{line}\n'
    (tmp_path / METRICS).write_text(text, encoding="utf-8")
    with pytest.raises(StateError, match=r"metrics\.jsonl is damaged: line 2 "):
        Monitor(tmp_path, LogConfig(tensorboard=False), {}, 1, 10)
    assert (tmp_path / METRICS).read_text(encoding="utf-8") == text


def test_a_run_that_diverged_is_read(tmp_path):
    (tmp_path / METRICS).write_text(
        '{"step": 1, "loss": NaN, "ce": 1e999, "dsa": 1' + "0" * 400 + "}\n", encoding="utf-8"
    )
    (values,) = read_metrics(tmp_path / METRICS)
    assert repr(values) == "{'step': 1, 'loss': nan, 'ce': inf, 'dsa': inf}"


def test_a_tracker_gets_every_record_and_the_config(service, tmp_path):
    config = LogConfig(tensorboard=False, project="mine", **{service.__name__: True})
    noted(tmp_path, config, 0, record(1), {"step": 1, "held_out_loss": 3.0}, resolved={"steps": 10})
    (begun,) = service.begun
    assert (begun["project"], begun["name"], begun["config"], begun["finished"]) == (
        "mine",
        tmp_path.name,
        {"steps": 10},
        True,
    )
    assert service.logged == [
        (1, {"loss": 1.0, "ce": 1.0, "tokens_per_second": 5.0}),
        (1, {"held_out_loss": 3.0}),
    ]
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[1]) == {"step": 1, "held_out_loss": 3.0}


def test_a_run_that_goes_on_is_the_same_run_there(service, tmp_path):
    config = LogConfig(tensorboard=False, **{service.__name__: True})
    for start in (0, 3, 6, 0):
        noted(tmp_path, config, start, record(start + 1))
    first, second, third, anew = service.begun
    assert [each["resume"] for each in service.begun] == ["never", "allow", "allow", "never"]
    if service.__name__ == "wandb":
        assert first["id"] == second["id"] == third["id"] != anew["id"]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"log\.wandb"):
        require_trackers(LogConfig(tensorboard=False, wandb=True))
