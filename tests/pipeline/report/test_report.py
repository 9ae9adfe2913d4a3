"""`mta-prep report`: what it says is what the folders say, and it replaces nothing that is not its own."""

import json
import math
import re
import shutil

import pytest

from pipeline.report import build
from pipeline.report.cache import UNITS, cache_section
from pipeline.report.curves import POINTS
from pipeline.report.dataset import dataset_section
from pipeline.report.rows import drawn_rows
from pipeline.report.runs import runs_section
from schemas.columns import GRANULARITIES, SIDES
from schemas.errors import Exit
from schemas.manifest import read_cache_manifest, read_manifest
from trainer.cache import TeacherCache
from trainer.engine.monitor import METRICS
from trainer.evaluation.results import read_result


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
    assert row.begins.endswith("…")  # cut, and says so
    assert len(row.begins) <= 81
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


def test_heat_maps_are_the_relations_of_the_row(make_cache):
    folder = make_cache()
    section, cache = cache_section(folder, "part-1"), TeacherCache(folder)
    row = int(section.row.split(",")[0])
    assert section.row == f"{row}, id {cache.ids[row]}"
    assert len(section.maps) == len(cache.layers)
    for layer, heat_map in zip(cache.layers, section.maps, strict=True):
        relations, units = cache.relations(row, layer), cache.unit_index(row, layer).tolist()
        shown = min(len(units), UNITS)
        assert (len(heat_map.labels), len(heat_map.cells)) == (shown, shown * (shown - 1) // 2)
        heaviest = sorted(cache.unit_weights(row, layer).argsort(descending=True, stable=True)[:shown].tolist())
        lower = [f"{relations[one, other]:.2f}" for place, one in enumerate(heaviest) for other in heaviest[:place]]
        assert [cell.told.rsplit(": ", 1)[1] for cell in heat_map.cells] == lower
        assert [int(label.split()[0]) for _, label, _ in heat_map.labels] == [units[unit] for unit in heaviest]
        assert {min(cell.shade for cell in heat_map.cells), max(cell.shade for cell in heat_map.cells)} == {0, 1}


def test_a_cache_is_put_beside_plain_hidden_states(make_cache):
    folder = make_cache()
    section, manifest = cache_section(folder, "part-1"), read_cache_manifest(folder)
    names = [name for name, *_ in section.parts]
    assert names[-1].startswith("hidden states")
    assert {"relations, layer 2 (words)", "relations, layer 4 (chunks)", "index.arrow"} <= set(names)
    plain = 2 * 2 * 48 * manifest.tokens  # bf16, two layers, 48 features
    assert section.parts[-1][1] == section.plain
    assert section.parts[-1][2] == f"{plain / manifest.rows:,.0f}"


def test_curves_lie_over_one_another_and_differences_are_told(runs):
    section = runs_section(runs, [], "part-1")
    assert [(panel.title, [line.run for line in panel.lines]) for panel in section.panels] == [
        ("loss", ["sft", "mta<b>"]),
        ("ce", ["sft", "mta<b>"]),
        ("dsa", ["mta<b>"]),
    ]
    for panel in section.panels:
        assert panel.joined == 3
        for line in panel.lines:
            assert len(line.training) == 200 <= POINTS
            heights = [y for _, y in line.training]
            assert heights == sorted(heights)  # losses fall, and pictures are measured from above
            assert len(line.held_out) == 3
    assert section.ends[0][:4] == ("sft", "600", "2.1098", "2.1098 (step 600)")
    differing = {key: values for key, *values in section.differing}
    assert differing.pop("objectives.ce.weight")[1] == "0.5"
    assert differing["objectives.dsa.weight"] == ["–", "2.0"]
    assert all(key.startswith("objectives.dsa.") for key in differing)


def test_a_run_of_cross_entropy_alone_has_one_panel(runs):
    section = runs_section(runs[:1], [], "part-1")
    assert [panel.title for panel in section.panels] == ["loss"]
    assert section.differing == []


def test_evaluations_have_intervals_and_are_compared_with_the_first(runs):
    section = runs_section(runs, [], "part-1")
    for row, better in zip(section.scores, (0, 1), strict=True):
        mean, low, high = map(float, re.fullmatch(r"(.*) \((.*) to (.*)\)", row[4]).groups())
        assert low < mean < high
        assert mean == pytest.approx(2.4375 + better, abs=0.005)  # as it is rounded
    (rouge_l, exact) = section.compared
    assert rouge_l[2:5] == ("ROUGE-L", "+1.00", "+1.00 to +1.00")
    assert exact[2:4] == ("EM", "+0.00")
    assert section.notes == []


def test_evaluated_models_can_be_told_apart(runs, tmp_path):
    """Exported students are all called by the name of their folder, `student`."""
    paths = []
    for name in ("a", "b", "other"):
        result = read_result(runs[0] / "dolly.json")
        paths.append(tmp_path / f"{name}.json")
        model = {"name": "teacher" if name == "other" else "student"}
        paths[-1].write_text(result.model_copy(update={"model": model}).model_dump_json(), encoding="utf-8")
    section = runs_section(runs, paths)
    a, b, _ = paths
    names = [row[0] for row in section.scores]
    assert names == [f"student ({a})", f"student ({b})", "teacher", "sft", "mta<b>"]
    assert {row[0] for row in section.compared} == {f"{name} − student ({a})" for name in names[1:]}


def test_a_run_that_diverged_says_so(runs, tmp_path):
    """What is no number is in no curve and no minimum, and is told."""
    folder = tmp_path / "diverged"
    shutil.copytree(runs[0], folder)
    lines = [
        {"step": 601, "loss": math.nan, "ce": math.nan},
        {"step": 602, "held_out_loss": math.nan, "held_out_ce": math.nan},
        {"step": 603, "loss": math.inf, "ce": math.inf},
    ]
    text = (folder / METRICS).read_text(encoding="utf-8")
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines) + text, encoding="utf-8")
    section = runs_section([folder])
    (line,) = section.panels[0].lines
    assert "not finite at 2 of 602 logged steps" in line.told
    assert all(math.isfinite(value) for point in line.training for value in point)
    assert section.ends[0][3] == "2.1098 (step 600)"


def test_a_file_beside_a_run_that_is_nested_deeply_is_no_evaluation(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    (folder / "other.json").write_text("[" * 100_000, encoding="utf-8")
    assert len(runs_section([folder]).scores) == 1


def test_too_many_runs_are_refused(runs, command, tmp_path):
    code, _, told = command("report", *[runs[0]] * 9, "-o", tmp_path / "page.html")
    assert (code, "at most 8" in told) == (Exit.USAGE, True)


def test_a_file_that_is_no_evaluation_is_refused(tmp_path, command):
    (tmp_path / "rows.json").write_text("{}", encoding="utf-8")
    code, _, told = command("report", tmp_path / "rows.json", "-o", tmp_path / "page.html")
    assert code == Exit.USAGE
    assert "no result of `mta-prep evaluate run --out`" in told


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
        (
            ".",
            "page.html",
            "no manifest.json, as a finished dataset or cache has, and not both metrics.jsonl",
            Exit.STATE,
        ),
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


def test_notebooks_show_the_same(prepared, make_cache, runs):
    (row,) = drawn_rows(prepared, [0])
    shown = row._repr_html_()
    assert row.id in shown
    assert shown.count('class="side"') == 2 * len(row.sentences)
    assert "mta&lt;b&gt;" in runs_section(runs)._repr_html_()
    cache = TeacherCache(make_cache())
    assert "2: words, 4: chunks" in cache._repr_html_()
    for html in (shown, cache._repr_html_()):
        assert "<script" not in html


@pytest.mark.parametrize("key", ["fields", "id", "input"])
def test_a_key_of_a_manifests_config_may_be_left_to_its_default(prepared, tmp_path, key):
    folder = tmp_path / "dataset"
    shutil.copytree(prepared, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del (manifest["config"] if key == "fields" else manifest["config"]["fields"])[key]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert dataset_section(folder, "part-1", 1).warnings == dataset_section(prepared, "part-1", 1).warnings


def test_a_runs_config_that_holds_itself_is_named(runs, tmp_path, command):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    (folder / "config.yaml").write_text("a: &a [*a]\n", encoding="utf-8")
    code, _, said = command("report", folder, "-o", tmp_path / "page.html")
    assert code == Exit.STATE
    assert "config.yaml is damaged: it is nested deeper than 64 levels" in " ".join(said.split())
