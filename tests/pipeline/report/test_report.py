"""`mta-prep report`: what it says is what the folders say, and it replaces nothing that is not its own."""

import json
import re

import pytest

from pipeline.report import build
from pipeline.report.dataset import dataset_section
from schemas.columns import GRANULARITIES, SIDES
from schemas.errors import Exit
from schemas.manifest import read_manifest


def test_sizes_are_those_of_the_rows(prepared):
    from datasets import load_from_disk

    section, rows = dataset_section(prepared, "part-1", 3), load_from_disk(str(prepared))
    charts = {chart.title: chart for chart in section.histograms}
    lengths = {name: [len(row[name]) for row in rows] for name in ("text", "sentences", *GRANULARITIES)}
    lengths["characters"] = lengths.pop("text")
    for name, values in lengths.items():
        (series,) = charts[f"{name.capitalize()} a row"].series
        assert series.largest == max(values)
        assert dict(map(reversed, section.figures))[name] == f"{sum(values):,}"
    for side, series in zip(SIDES, charts["Learnt tokens a row"].series, strict=True):
        learnt = [sum(end - start for start, end in row[f"{side}_responses"]) for row in rows]
        assert (series.name, series.largest) == (side, max(learnt))
    for side, series in zip(SIDES, charts["Tokens a phrase"].series, strict=True):
        tokens = [end - start for row in rows for start, end in row[f"{side}_phrases"] if start >= 0]
        assert sum(bar.count for bar in series.bars) == len(tokens)
        assert series.largest == max(tokens)


def test_rows_are_spread_and_drawn_with_every_token_and_unit(prepared):
    section = dataset_section(prepared, "part-1", 4)
    rows = read_manifest(prepared).rows_out
    assert [row.row for row in section.rows] == [0, rows // 4, rows // 2, 3 * rows // 4]
    html = build.page([prepared], 1)
    row = section.rows[0]
    for side in SIDES:
        line = "".join(re.findall(rf"<span>{side}</span>(.*?)</div>", html, re.DOTALL))
        tokens = set(re.findall(r'title="token (\d+): id', line))
        assert len(tokens) + len(row.special[side]) == row.sizes[f"{side} tokens"]
        for name in GRANULARITIES:
            assert len(set(re.findall(rf'title="{name[:-1]} (\d+)', line))) == row.sizes[name]


def test_alignment_is_the_manifests(prepared):
    alignment = read_manifest(prepared).counts["alignment"]
    for share in dataset_section(prepared, "part-1", 0).alignment:
        name, side = share.name.split(", ")
        assert (share.kept, share.inside, share.cut) == tuple(
            alignment[side][name][part] for part in ("kept", "inside", "cut")
        )
        assert sum(part for _, part in share.parts) == pytest.approx(100)


def test_a_page_is_the_same_every_time_and_replaces_only_its_own(prepared, tmp_path, command):
    out = tmp_path / "page.html"
    assert command("report", prepared, "-o", out, "--json")[0] == 0
    first = out.read_bytes()
    code, printed, _ = command("report", prepared, "-o", out, "--json")
    assert (code, json.loads(printed)) == (0, {"out": str(out), "bytes": len(first)})
    assert out.read_bytes() == first
    out.write_text("mine", encoding="utf-8")
    code, _, told = command("report", prepared, "-o", out)
    assert code == Exit.USAGE
    assert "no report of ours" in told
    assert out.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("target", "out", "told", "code"),
    [
        ("missing", "page.html", "no folder", Exit.STATE),
        (".", "page.html", "no manifest.json", Exit.STATE),
        (".", "nowhere/page.html", "no folder", Exit.USAGE),
        (".", ".", "is a folder", Exit.USAGE),
    ],
)
def test_what_cannot_be_is_said(tmp_path, monkeypatch, command, target, out, told, code):
    monkeypatch.chdir(tmp_path)
    result = command("report", target, "-o", out)
    assert result[0] == code
    assert told in result[2]
    assert list(tmp_path.iterdir()) == []
