"""Tables, intervals and a plot of what the study left, as Markdown.

    python tests/study/page.py docs/study/results docs/study.md

In a page that has the two marks, what stands between them is replaced; without a page, one is made of it. The plot is
written beside the results.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import typer
from pydantic_core import from_json

from schemas import console
from schemas.errors import StateError, UsageError
from schemas.files import write_text
from study.arms import ARMS
from study.compare import Difference, difference

BEGIN: Final = "<!-- written by tests/study/page.py -->"
END: Final = "<!-- end -->"
PLOT: Final = "differences.png"
#: Beside the results: what was made once, and what has ended.
COSTS: Final = "costs"
RECORD: Final = "record"
#: How results begin that hold scores of responses.
SCORES: Final = "rouge-"
_MEASURES: Final[Mapping[str, str]] = {
    "kl": "KL(teacher ‖ student)",
    "ce": "cross-entropy",
    "reverse_kl": "KL(student ‖ teacher)",
}
#: Arms that the tables compare: each with its base, and beyond the plan MTA with its better half.
_PAIRS: Final = (
    *((name, arm.base) for name, arm in ARMS.items() if arm.base is not None),
    ("srkl-mta", "srkl-hidden"),
)
Results = dict[str, dict[str, Any]]  # by name of the run


def read(folder: Path) -> Results:
    """Every result in a folder. Raises `StateError` for one that is damaged."""
    files = [file for file in sorted(folder.glob("*.json")) if file.stem not in (COSTS, RECORD)]
    return {file.stem: _values(file) for file in files}


def read_beside(folder: Path, name: str) -> dict[str, Any]:
    """What is told of all of them together; empty where it is not. Raises as `read`."""
    file = folder / f"{name}.json"
    return _values(file) if file.is_file() else {}


def _values(file: Path) -> dict[str, Any]:
    try:
        values = from_json(file.read_bytes(), allow_inf_nan=False)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise StateError(f"{file} is damaged; remove it, and the study makes it again.")
    return values


def seeds_of(results: Results, arm: str) -> list[int]:
    """Those that were run."""
    return sorted(result["seed"] for result in results.values() if result.get("arm") == arm)


def mean(results: Results, name: str, test: str, measure: str) -> float | None:
    """A measure of one run on a test set, a token."""
    values = results.get(name, {}).get("tests", {}).get(test, {})
    return sum(values[measure]) / sum(values["tokens"]) if measure in values else None


def compared(results: Results, arm: str, base: str, test: str, measure: str) -> Difference | None:
    """An arm against another, on the seeds that both have. Raises as `require_same_rows`."""
    shared = [seed for seed in seeds_of(results, arm) if seed in seeds_of(results, base)]
    if not shared or measure not in results[f"{arm}-{shared[0]}"]["tests"][test]:
        return None
    names = [[f"{name}-{seed}" for seed in shared] for name in (arm, base)]
    require_same_rows(results, [name for side in names for name in side], test)
    sides = [np.array([results[name]["tests"][test][measure] for name in side]) for side in names]
    return difference(*sides, np.array(results[names[0][0]]["tests"][test]["tokens"], dtype=float))


def require_same_rows(results: Results, names: Sequence[str], test: str) -> None:
    """Raises `StateError` unless these results are of the same tokens of the same rows."""
    tokens = {name: results[name]["tests"].get(test, {}).get("tokens") for name in names}
    for name in names:
        if tokens[name] != tokens[names[0]] or tokens[name] is None:
            raise StateError(
                f"The results {names[0]} and {name} are not of the same rows ({test}); one is of another study."
            )


def tests_of(results: Results) -> list[str]:
    """Names of the test sets, the one with the most rows first."""
    any_run = next(result["tests"] for result in results.values() if "arm" in result)
    return sorted(any_run, key=lambda test: (-len(any_run[test]["tokens"]), test))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows)] + [""]


def _names(names: Sequence[str]) -> str:
    """Arms with their seeds, in short."""
    seeds: dict[str, list[str]] = {}
    for name in names:
        arm, _, seed = name.rpartition("-")
        if seed.isdigit():
            seeds.setdefault(arm, []).append(seed)
        else:
            seeds[name] = []
    return ", ".join(" ".join([f"`{name}`", *mine]) for name, mine in seeds.items())


def ended(record: Mapping[str, str]) -> list[str]:
    """Which runs ended, and why the others did not."""
    if not record:
        return []
    runs = {name: state for name, state in record.items() if name.rpartition("-")[0] in ARMS}
    others = {name: state for name, state in record.items() if name not in runs}
    counts = [f"{list(some.values()).count('ended')} of {len(some)}" for some in (runs, others)]
    rows = []
    for state in sorted(set(record.values()), key=lambda state: (state != "ended", state)):
        names = [[name for name in some if some[name] == state] for some in (runs, others)]
        rows.append([state, *[cell for some in names for cell in (str(len(some)), _names(some))]])
    return [
        f"{counts[0]} runs (an arm with a seed) ended, and {counts[1]} of what else is measured.",
        "",
        *table(["", "runs", "", "others", ""], rows),
    ]


def _measures(cross: bool) -> list[str]:
    """Those of a pair: a divergence is of one vocabulary."""
    return ["ce"] if cross else list(_MEASURES)


def scores(results: Results, cross: bool) -> list[str]:
    """What every arm came to: means over seeds, and how far seeds lie apart."""
    tests = tests_of(results)
    measures = _measures(cross)
    names = ["cross-untrained"] if cross else ["teacher", "untrained"]
    arms = [name for name, arm in ARMS.items() if arm.cross == cross and seeds_of(results, name)]
    rows = []
    for name in [each for each in names if each in results] + arms:
        runs = [f"{name}-{seed}" for seed in seeds_of(results, name)] if name in arms else [name]
        cells = []
        for measure in measures:
            for test in tests:
                values = [value for run in runs if (value := mean(results, run, test, measure)) is not None]
                spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.4f}{spread}" if values else "")
        seeds = " ".join(map(str, seeds_of(results, name))) if name in arms else ""
        rows.append([f"`{name}`" if name in arms else name, seeds, *cells])
    headings = [f"{_MEASURES[measure]}, {test.removeprefix('test-')}" for measure in measures for test in tests]
    return table(["arm", "seeds", *headings], rows)


_TOLD: Final = ("difference", "standard error", "95 %", "by seed", "")


def _told(gap: Difference, digits: int, more: str, less: str) -> list[str]:
    """Cells of a difference, and what the plan's rule makes of it; `more` is what a larger value is called."""
    verdict = (more if gap.mean > 0 else less) if gap.shown else "not shown"
    if len(gap.by_seed) == 1:
        verdict = "one seed: over rows only, undecided"
    interval = f"{gap.low:+.{digits}f} to {gap.high:+.{digits}f}"
    by_seed = " ".join(f"{value:+.{digits}f}" for value in gap.by_seed)
    return [f"{gap.mean:+.{digits}f}", f"{gap.error:.{digits}f}", interval, by_seed, verdict]


def differences(results: Results, cross: bool) -> list[str]:
    """Every arm against its base on the largest test set."""
    test = tests_of(results)[0]
    rows = []
    for name, base in _PAIRS:
        for measure in _measures(cross):
            gap = compared(results, name, base, test, measure) if ARMS[name].cross == cross else None
            if gap is not None:
                rows.append([f"`{name}`", f"`{base}`", _MEASURES[measure], *_told(gap, 4, "worse", "better")])
    return table(["arm", "base", f"nats a token, {test.removeprefix('test-')}", *_TOLD], rows)


def elsewhere(results: Results, cross: bool) -> list[str]:
    """The same differences on the other test sets, each with its standard error; in bold what is larger than two of them."""
    tests, measures = tests_of(results)[1:], _measures(cross)
    rows = []
    for name, base in _PAIRS:
        gaps = [compared(results, name, base, test, measure) for measure in measures for test in tests]
        if ARMS[name].cross == cross and any(gaps):
            cells = ["" if gap is None else f"{gap.mean:+.4f} ± {gap.error:.4f}" for gap in gaps]
            marked = [f"**{cell}**" if gap and gap.shown else cell for gap, cell in zip(gaps, cells, strict=True)]
            rows.append([f"`{name}`", f"`{base}`", *marked])
    headings = [f"{_MEASURES[measure]}, {test.removeprefix('test-')}" for measure in measures for test in tests]
    return table(["arm", "base", *headings], rows) if tests else []


def responses(results: Results) -> list[str]:
    """ROUGE-L of responses: what each arm came to, how far seeds lie apart, and how far the arm is from its base."""
    by_kind: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}  # then by arm and seed
    shapes = set()
    for name, result in results.items():
        if name.startswith(SCORES):
            arm, _, seed = name.removeprefix(SCORES).rpartition("-")
            ((test, kinds),) = result["tests"].items()
            shapes.add((test, *((kind, *np.shape(scored["rouge_l"])) for kind, scored in kinds.items())))
            for kind, scored in kinds.items():  # what has no seed is the teacher
                by_kind.setdefault(kind, {}).setdefault(arm or seed, {})[int(seed) if arm else 0] = scored
    if not by_kind:
        return []
    if len(shapes) > 1:
        raise StateError(f"The results {SCORES}… are not of the same rows and draws; some are of another study.")
    means, gaps = [], []
    for kind, by_arm in by_kind.items():
        for name in (each for each in ("teacher", *ARMS) if each in by_arm):
            runs = by_arm[name].values()
            by_seed = [float(np.mean(run["rouge_l"])) for run in runs]
            seeds = " ".join(map(str, by_arm[name])) if name in ARMS else ""
            cells = [f"{np.mean(by_seed):.2f}", " ".join(f"{value:.2f}" for value in by_seed)]
            cells += [
                f"{np.mean([run['tokens'] for run in runs]):.0f}",
                f"{np.mean([run['stopped'] for run in runs]):.0%}",
            ]
            means.append([f"`{name}`" if name in ARMS else name, kind, seeds, *cells])
            base = ARMS[name].base if name in ARMS else None
            if base and (shared := sorted(by_arm[name].keys() & by_arm.get(base, {}).keys())):
                arm_rows, base_rows = (
                    np.array([np.mean(by_arm[side][seed]["rouge_l"], axis=1) for seed in shared])
                    for side in (name, base)
                )
                gap = difference(arm_rows, base_rows, np.ones(arm_rows.shape[1]))
                gaps.append([f"`{name}`", f"`{base}`", kind, *_told(gap, 2, "better", "worse")])
    headings = ["arm", "responses", "seeds", f"ROUGE-L, {test.removeprefix('test-')}", "by seed", "tokens", "ended"]
    return table(headings, means) + (table(["arm", "base", "responses", *_TOLD], gaps) if gaps else [])


def costs(results: Results, folder: Path) -> list[str]:
    """What was made once, and what training took with and without it."""
    made = read_beside(folder, COSTS)
    lines = []
    if made:
        together = {key: sum(cost[key] for cost in made.values()) for key in ("seconds", "bytes")}
        rows = [
            [name, f"{cost['seconds']:,.1f}", f"{cost['bytes'] / 1e6:,.1f}"]
            for name, cost in [*sorted(made.items()), ("together", together)]
        ]
        lines += table(["made once", "seconds", "MB"], rows)
    rows = []
    for name in ARMS:
        runs = [results[f"{name}-{seed}"] for seed in seeds_of(results, name)]
        if runs:
            speed = np.mean(
                [np.median(run["tokens_per_second"]) for run in runs if run["tokens_per_second"]] or [np.nan]
            )
            # one that went on after an interruption tells what came after it
            whole = [run["training_seconds"] for run in runs if not run["began_at"]]
            seconds = f"{np.mean(whole):.1f}" if whole else ""
            memory = max(run["memory_gb"] for run in runs)
            cells = [f"{runs[0]['steps']}", seconds, f"{speed:,.0f}", f"{memory:.2f}"]
            rows.append([f"`{name}`", f"{len(runs)}", *cells])
    return lines + table(["arm", "seeds", "steps", "seconds a whole run", "tokens/s", "GB"], rows)


def drawn(results: Results) -> dict[str, dict[str, Difference]]:
    """What is plotted: by measure, every arm against its base on the first test set."""
    test = tests_of(results)[0]
    panels = {
        f"{told}, nats a token, {test.removeprefix('test-')}": {
            f"{name} − {arm.base}": gap
            for name, arm in ARMS.items()
            if arm.base and (gap := compared(results, name, arm.base, test, measure)) is not None
        }
        for measure, told in _MEASURES.items()
    }
    return {measure: gaps for measure, gaps in panels.items() if gaps}


def text(folder: Path) -> str:
    """All tables of the results in a folder."""
    results, lines = read(folder), ended(read_beside(folder, RECORD))
    if not any("arm" in result for result in results.values()):
        return "\n".join(["No run has ended yet.", "", *lines]).rstrip()
    for cross, title in ((False, "First pair"), (True, "Second pair")):
        if any(ARMS[result["arm"]].cross == cross for result in results.values() if "arm" in result):
            parts = (scores, differences, elsewhere)
            lines += [f"### {title}", "", *(line for part in parts for line in part(results, cross))]
            lines += [] if cross else responses(results)
    return "\n".join([*lines, "### What it took", "", *costs(results, folder)]).rstrip()


def write(folder: Path, page: Path) -> None:
    """The tables into a page, and the plot beside the results. Raises `StateError` for a page without the two marks."""
    tables = text(folder)
    old = page.read_text(encoding="utf-8") if page.is_file() else f"# The study\n\n{BEGIN}\n{END}\n"
    before, begins, rest = old.partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not begins or not ends:
        raise StateError(f"{page} lacks the marks {BEGIN} and {END}, between which the tables go.")
    write_text(page, f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
    results = read(folder)
    if any("arm" in result for result in results.values()) and (panels := drawn(results)):
        from study.plot import plot  # slow to import

        plot(panels, folder / PLOT)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def tables_into_page(
    results: Annotated[Path, typer.Argument(help="Folder of results.", show_default=False)],
    page: Annotated[Path, typer.Argument(help="Markdown file.", show_default=False)],
) -> None:
    """Write the tables of some results into a page."""
    if not any(results.glob("*.json")):
        raise UsageError(f"There are no results in {results}.")
    write(results, page)


if __name__ == "__main__":
    console.run(app, "page", None)
