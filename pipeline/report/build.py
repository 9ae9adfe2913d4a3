"""A page out of folders: what each is, what is shown of it, and the file."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pipeline.report.cache import CacheSection, cache_section
from pipeline.report.dataset import DatasetSection, dataset_section
from pipeline.report.runs import RunsSection, is_evaluation, is_run, runs_section
from pipeline.report.shown import PAGES
from schemas import files
from schemas.errors import StateError, UsageError
from schemas.html import render
from schemas.manifest import CACHE_FORMAT, CONFIG, MANIFEST, format_of, is_finished
from trainer.engine.monitor import METRICS

#: By which a file is known for a page of ours, within so many bytes.
_SIGN: Final = b'<meta name="generator" content="mta-prep'
_HEAD: Final = 1_000

Section = DatasetSection | CacheSection | RunsSection


def require_writable(out: Path) -> None:
    """Raises `UsageError` for a file that is no page of ours, which is not replaced, or where no file can be."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file, such as {out / 'report.html'}.")
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent} for {out.name}.")
    if out.exists():
        with out.open("rb") as stream:
            if _SIGN not in stream.read(_HEAD):
                raise UsageError(f"{out} is there already and is no report of ours; choose another --out.")


def page(targets: Sequence[Path], rows: int) -> str:
    """The page about these, in their order; runs and evaluations together, where the first of them stands.

    Raises `UsageError` or `StateError` for what is none of these.
    """
    runs = [target for target in targets if is_run(target)]
    evaluations = [target for target in targets if is_evaluation(target)]
    sections: list[Section] = []
    for place, target in enumerate(targets, 1):
        anchor = f"part-{place}"
        if target in (*runs, *evaluations):
            if not any(isinstance(section, RunsSection) for section in sections):
                sections.append(runs_section(runs, evaluations, anchor))
        elif target.is_file():
            raise UsageError(f"{target} is a file, and no result of `mta-prep evaluate run --out`; name folders.")
        elif not is_finished(target):
            raise StateError(
                f"{target} has no {MANIFEST}, as a finished dataset or cache has, and not both {METRICS} and {CONFIG}, as a "
                "run has from its first logged step on: there is nothing to report on."
            )
        elif format_of(target) == CACHE_FORMAT:
            sections.append(cache_section(target, anchor))
        else:
            sections.append(dataset_section(target, anchor, rows))
    title = ", ".join(section.folder for section in sections)
    return render(PAGES, "report.html", title=title, sections=sections, version=version("mta-prep"))


def write(targets: Sequence[Path], rows: int, out: Path) -> int:
    """Write the page, whole or not at all; its bytes."""
    text = page(targets, rows)
    files.write_text(out, text)
    return len(text.encode())
