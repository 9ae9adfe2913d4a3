"""Pages and their parts: what people look at in a browser or a notebook. Everything that is filled in is escaped.

Templates are Jinja's, in the folder `pages` of the package that shows something; those of this one are there for all:

    page.html    a page whole in itself: no script, nothing fetched, and a policy that forbids both
    parts.html   macros: tables, facts, legends
    summary.html what an object shows of itself in a notebook
    style.css    one look for light, dark and paper
"""

from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2

from schemas import console
from schemas.console import counted, visible

PAGES: Final = Path(__file__).with_name("pages")


@cache
def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, PAGES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "size": console.size, "number": number}
    environment.globals |= {"counted": counted, "style": (PAGES / "style.css").read_text(encoding="utf-8")}
    return environment


def number(value: float | int | None) -> str:
    """`1234567` -> `1,234,567`; four digits of what is no whole number; `–` for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def render(folder: Path, template: str, **values: Any) -> str:
    """A template of `folder`, or of this package, filled in."""
    return _environment(folder).get_template(template).render(**values)


def summary(kind: str, name: str, figures: list[tuple[str, str]], facts: list[tuple[str, str]]) -> str:
    """What an object shows of itself in a notebook: figures with what they count, and facts by name."""
    return render(PAGES, "summary.html", kind=kind, name=name, figures=figures, facts=facts)
