"""The documentation site: every page is on it, its equations are drawn, every command is told, nothing of it is fetched."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
import yaml

from browsing import WIDTHS, faults_in, needs_a_browser, opened, overflowing, thin
from documented import ROOT, blocks_of
from pipeline.cli import app

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
#: Elements that load something, and where from.
LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)")
#: Pages of each kind: the face, prose with pictures, equations, tables, what is generated.
BROWSED = ("index.html", "report.html", "methods.html", "performance.html", "commands.html", "api/reading.html")
#: What is wider than its page scrolls by itself: tables, blocks, equations.
SCROLLING = ".md-typeset__scrollwrap *, pre *, .scroll *"


def hook(name: str):
    """A file of docs/site, as mkdocs takes it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_of(entry) -> list[str]:
    """Pages in a part of the navigation, in order."""
    match entry:
        case str():
            return [entry]
        case dict():
            return [page for part in entry.values() for page in pages_of(part)]
        case _:
            return [page for part in entry for page in pages_of(part)]


def test_every_page_is_in_the_navigation_once():
    pages = hook("pages")
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    made = {page for page in (*pages.FILES, *pages.MODULES, "commands.md") if page.endswith(".md")}
    assert sorted(pages_of(NAV)) == sorted(written | made)


@pytest.mark.parametrize("block", blocks_of("math"), ids=str)
def test_equations_are_drawn(block):
    drawing = ElementTree.fromstring(hook("equations").drawn(block.body, "math", "math", {}, None))
    equations = drawing.findall("{*}math")
    assert len(equations) == len(block.body.strip().split("\n\n"))
    for equation in equations:
        assert "\\" not in "".join(equation.itertext())  # a command that nobody knew
        # which is invisible without a font for mathematics, and leaves an equation that is wrong
        assert equation.find(".//{*}msqrt") is None


def test_every_command_is_told():
    text = hook("pages").commands()

    def walk(name, command):
        yield name, command
        for inner, part in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {inner}", part)

    for name, command in list(walk("mta-prep", typer.main.get_command(app)))[1:]:
        _, heading, rest = text.partition(f"# `{name}`\n")
        assert heading, name
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        part = re.split(r"^#+ ", rest, maxsplit=1, flags=re.M)[0]
        assert [
            option for parameter in shown for option in parameter.opts if option.startswith("--") and option not in part
        ] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, and what was said while it was built."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder, built.stderr


@pytest.mark.slow  # a quarter of a minute alone; `make docs` is the same, and part of what main must pass
def test_it_is_built_without_a_warning_and_fetches_nothing(site):
    folder, said = site
    assert "WARNING" not in said
    sources = {page: page.read_text(encoding="utf-8") for page in folder.rglob("*.html")}
    assert {f"{Path(page).with_suffix('.html')}" for page in pages_of(NAV)} <= {
        str(page.relative_to(folder)) for page in sources
    }
    assert [f"{page.name}: {address}" for page, text in sources.items() for address in LOADED.findall(text)] == []
    assert "<math" in (folder / "methods.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(site):
    """The site as a server on the loopback device has it: its address."""
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site[0]))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow  # the site has to be built
@needs_a_browser
@pytest.mark.parametrize("page", BROWSED)
def test_a_page_in_a_browser(browser, served, page):
    """It stays within the window and loads nothing from elsewhere; everybody can read it, in the light and in the dark."""
    for scheme in ("light", "dark"):
        tab, events = opened(browser, served + page, served, scheme)
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 384) == (scheme == "light")
        tab.add_style_tag(content="* { transition: none !important }")  # what slides is wider on its way
        for width in WIDTHS if scheme == "light" else ():
            assert overflowing(tab, width, "article *", SCROLLING) == []
        thin(tab)
        faults, passed = faults_in(tab, ["wcag2a", "wcag2aa"])
        assert faults == []
        assert passed >= {"h1", "p", "code"}
        assert events == []
        tab.context.close()


@pytest.mark.slow
@needs_a_browser
def test_what_is_searched_for(browser, served):
    tab, events = opened(browser, served + "index.html", served)
    tab.keyboard.press("/")
    tab.keyboard.type("fingerprint")
    tab.locator(".md-search-result__item").first.wait_for()
    tab.locator(".md-search-result__link").first.click()
    tab.wait_for_url(lambda address: "index.html" not in address)
    assert "fingerprint" in tab.locator("article").inner_text()
    assert events == []
