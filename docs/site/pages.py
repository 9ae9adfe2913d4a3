"""Pages of the site that are not files in docs: those that stand elsewhere in the tree, the commands, the API.

They are made when the site is built, so nothing of them can be out of date. Links between files of the tree, wherever they
stand, become links between pages.
"""

import posixpath
import re
from pathlib import Path

import typer
import typer.cli
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]
#: Page to the file in the tree that it is.
FILES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "licences.md": "data/LICENSES.md",
    "parser-card.md": "data/parser/README.md",
    "site.css": "docs/site/site.css",
}
#: Page to its title and its modules; `*`: every one of a package.
MODULES = {
    "api/reading.md": (
        "Reading what was made",
        ["trainer.cache", "trainer.cache_folder", "schemas.manifest", "schemas.columns", "schemas.signals"],
    ),
    "api/making.md": (
        "Making datasets, caches and reports",
        [
            "schemas.config",
            "pipeline.dataset.prepare",
            "pipeline.dataset.realign",
            "pipeline.read.offsets",
            "pipeline.align.spans",
            "pipeline.align.units",
            "pipeline.parse.component",
            "pipeline.cache.plan",
            "pipeline.report.build",
            "pipeline.report.rows",
            "pipeline.report.runs",
        ],
    ),
    "api/training.md": ("Training", ["trainer.config", "schemas.training", "trainer.run", "schemas.errors"]),
    "api/objectives.md": ("Terms of the loss", ["trainer.objectives", "trainer.objectives.*"]),
    "api/maths.md": ("The maths", ["trainer.maths", "trainer.maths.*"]),
}
LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for page, file in FILES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_between_pages(text, page, file)))
    for page, (title, names) in MODULES.items():
        modules = [module for name in names for module in _modules(name)]
        text = "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from a file in docs to one elsewhere lead to its page."""
    if page.file.generated_by is not None:
        return markdown
    return _between_pages(markdown, page.file.src_uri, f"docs/{page.file.src_uri}")


def commands() -> str:
    """What `--help` says of every command, by typer's own generator."""
    command = typer.main.get_command(app)
    context = command.make_context("mta-prep", [], resilient_parsing=True)
    return typer.cli.get_docs_for_click(obj=command, ctx=context, name="mta-prep", title="Commands")


def _modules(name: str) -> list[str]:
    """A module, or all within a package in the order of their names."""
    if not name.endswith(".*"):
        return [name]
    package = name.removesuffix(".*")
    paths = sorted((ROOT / package.replace(".", "/")).glob("*.py"))
    return [f"{package}.{path.stem}" for path in paths if path.stem != "__init__"]


def _between_pages(text: str, page: str, file: str) -> str:
    """The text with each link to a file of the tree, as seen from `file`, as one to its page, as seen from `page`."""
    pages = {source: target for target, source in FILES.items()}

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), match[2]))
        target = pages.get(target, target.removeprefix("docs/"))
        return match[1] + posixpath.relpath(target, posixpath.dirname(page) or ".")

    return LINK.sub(link, text)
