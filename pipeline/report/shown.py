"""What a page is made of also shows by itself, in a notebook: the same template, with its style beside it."""

from pathlib import Path
from typing import Final

from schemas.html import render

PAGES: Final = Path(__file__).with_name("pages")


class Shown:
    """Something with a template."""

    template: str

    def _repr_html_(self) -> str:
        """As notebooks show it."""
        return render(PAGES, "notebook.html", section=self)
