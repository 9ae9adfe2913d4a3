"""A page out of folders: what each is, what is shown of it, and the file."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pipeline.report.dataset import DatasetSection, dataset_section
from schemas import files
from schemas.errors import UsageError
from schemas.html import render

PAGES: Final = Path(__file__).with_name("pages")
#: By which a file is known for a page of ours, within so many bytes.
_SIGN: Final = b'<meta name="generator" content="mta-prep'
_HEAD: Final = 1_000


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
    """The page about these folders, in their order."""
    sections = [_section(target, f"part-{place}", rows) for place, target in enumerate(targets, 1)]
    title = ", ".join(section.folder for section in sections)
    return render(PAGES, "report.html", title=title, sections=sections, version=version("mta-prep"))


def _section(target: Path, anchor: str, rows: int) -> DatasetSection:
    return dataset_section(target, anchor, rows)


def write(targets: Sequence[Path], rows: int, out: Path) -> int:
    """Write the page, whole or not at all; its bytes."""
    text = page(targets, rows)
    files.write_text(out, text)
    return len(text.encode())
