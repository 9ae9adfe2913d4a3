"""`mta-prep doctor`: ten lines at most, the same as JSON, and an end within bounds whatever the network does."""

import json
import time
from importlib.metadata import version

import pytest

from pipeline.bench import doctor
from pipeline.parse import precision


@pytest.fixture
def quick(monkeypatch):
    """Probes that are over at once."""
    monkeypatch.setattr(precision, "PROBE_S", 0.0)
    monkeypatch.setattr(doctor, "HUB_S", 0.2)


def test_it_says_all_in_ten_lines_and_as_json(quick, command):
    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 10
    code, out, _ = command("doctor", "--json")
    values = json.loads(out)
    assert code == 0
    assert [line.split("  ")[0] for line in lines] == list(values)
    assert values["processor"]["cores"] >= 1
    assert values["parser"]["fastest"] in values["parser"]["sentences_per_second"]
    assert values["versions"]["mta-prep"] == version("mta-prep")
    assert values["disk"]["free"] > 0
    assert values["Hub"]["offline"]  # as tests run


def test_versions_that_were_not_tested_are_named(monkeypatch):
    tested = doctor.tested_versions(doctor.CONSTRAINTS.read_text(encoding="utf-8"))
    assert tested["torch"]
    assert tested["typing-extensions"]
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "datasets" else version(name))
    finding = doctor.versions()
    assert not finding.fine
    assert finding.values["others"]["datasets"] == {"installed": "0.0.1", "tested": tested["datasets"]}
    assert "datasets 0.0.1 (tested " in finding.told


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda *_, **__: time.sleep(30), "no answer within"),
        (lambda *_, **__: 1 / 0, "division by zero"),
    ],
)
def test_a_hub_that_does_not_answer_ends_in_a_sentence(monkeypatch, answer, told):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: type("Session", (), {"head": staticmethod(answer)}))
    monkeypatch.setattr(doctor, "HUB_S", 0.2)
    began = time.monotonic()
    finding = doctor._Hub().finding()
    assert time.monotonic() - began < 5
    assert (finding.fine, finding.values["reachable"]) == (False, False)
    assert told in finding.told


def test_what_deepspeed_lacks_is_named(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    finding = doctor.deepspeed()
    assert not finding.fine
    assert "a C++ compiler" in finding.told
