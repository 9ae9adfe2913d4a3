"""`--parser-precision auto`: the fastest here, once, recorded beside a dataset that is byte for byte the explicit one's."""

import json

import pytest

from pipeline.dataset import prepare
from pipeline.parse import precision
from pipeline.parse.benepar import BeneparParser
from pipeline.parse.component import ConstituencyComponent
from pipeline.parse.precision import chosen, measured
from pipeline.shards.ranks import Rank
from schemas.config import ParseConfig, ParserConfig, SideConfig
from schemas.errors import Exit, UsageError

TOKENIZERS = ["--teacher", "embedded:bytelevel-bpe", "--student", "embedded:sentencepiece-bpe"]
RECORD = "parser-precision.json"


def measuring(monkeypatch, **rates):
    monkeypatch.setattr(precision, "measured", lambda model, device: rates)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != RECORD}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": "What is it ?", "response": f"The small cat number {row} sleeps on the sofa."} for row in range(3)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_auto_is_the_precision_that_it_chose_byte_for_byte(rows, tmp_path, command, monkeypatch):
    measuring(monkeypatch, float32=160.0, bf16=170.5)
    arguments = ["parse", rows, *TOKENIZERS, "--workers", 1, "--parser-precision"]
    code, _, err = command(*arguments, "auto", "-o", tmp_path / "auto")
    assert code == Exit.OK
    assert "Parser precision bf16: the fastest here (bf16 170, float32 160 sentences/s)" in " ".join(err.split())
    assert command(*arguments, "bf16", "-o", tmp_path / "bf16")[0] == Exit.OK
    assert contents(tmp_path / "auto") == contents(tmp_path / "bf16")
    record = json.loads((tmp_path / "auto" / RECORD).read_text(encoding="utf-8"))
    assert (record["precision"], record["why"]) == ("bf16", "the fastest here")
    assert record["sentences_per_second"] == {"float32": 160.0, "bf16": 170.5}
    assert record["processor"]
    assert not (tmp_path / "bf16" / RECORD).exists()

    # what is measured later, or elsewhere, changes nothing that was begun
    measuring(monkeypatch, float32=160.0, bf16=20.0)
    again = command(*arguments, "auto", "-o", tmp_path / "auto")
    assert again[0] == Exit.OK
    assert "bf16: what the run in this folder was begun with" in " ".join(again[2].split())
    assert contents(tmp_path / "auto") == contents(tmp_path / "bf16")


@pytest.mark.parametrize("begun", ["manifest.json", ".mta-prep/run.json"])
def test_a_run_goes_on_in_the_precision_that_it_was_begun_with(tmp_path, monkeypatch, begun):
    measuring(monkeypatch, float32=1.0, int8=2.0)
    config = ParserConfig(precision="auto")
    assert chosen(config, tmp_path).precision == "int8"
    path = tmp_path / begun
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"config": {"parser": {"precision": "float32"}}}), encoding="utf-8")
    assert chosen(config, tmp_path).precision == "float32"
    for damaged in ("", "[]", '{"config": {}}', '{"config": {"parser": {"precision": "int4"}}}'):
        path.write_text(damaged, encoding="utf-8")
        assert chosen(config, tmp_path).precision == "int8"


def test_everything_that_takes_a_precision_settles_auto(monkeypatch):
    measuring(monkeypatch, float32=1.0, bf16=2.0)
    assert BeneparParser(ParserConfig(precision="auto")).config.precision == "bf16"
    assert ConstituencyComponent("parser", precision="auto").settings["precision"] == "bf16"


def test_ranks_do_not_choose_each_for_itself(rows, tmp_path):
    side = SideConfig(tokenizer="embedded:bytelevel-bpe")
    config = ParseConfig(inputs=(str(rows),), teacher=side, student=side, parser=ParserConfig(precision="auto"))
    with pytest.raises(UsageError, match=r"rank 1 of 2: each would measure for itself\. Pass --parser-precision int8"):
        prepare.prepare(config, tmp_path / "out", workers=1, rank=Rank(1, 2))


def test_an_extractor_without_such_layers_measures_nothing(monkeypatch):
    measuring(monkeypatch)
    side = SideConfig(tokenizer="embedded:bytelevel-bpe")
    config = ParseConfig(inputs=("a",), teacher=side, student=side, parser=ParserConfig(kind="spacy", precision="auto"))
    settled, choice = prepare.choose_precision(config, None)
    assert (settled.parser.precision, choice) == ("float32", None)


@pytest.mark.parametrize(("slowdown", "known"), [(0.5, {"float32", "bf16", "int8"}), (3.0, {"float32", "bf16"})])
def test_int8_is_measured_only_where_it_is_not_refused(monkeypatch, slowdown, known):
    monkeypatch.setattr(precision, "PROBE_S", 0.0)
    monkeypatch.setattr(precision, "slowdown", lambda: slowdown)
    rates = measured.__wrapped__("embedded", "cpu")
    assert set(rates) == known
    assert min(rates.values()) > 0
