"""Pages as a browser shows them: what happens on one, what sticks out of it, and what axe-core says of it.

The browser is the system's own (Chromium or Chrome); where there is none, tests with it are skipped. One serves a file of
tests, and a page many checks: starting either takes longer than they do.
"""

import re
import shutil
from collections.abc import Iterable

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
#: A mark of tests that need one.
needs_a_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser on this machine (looked for {', '.join(NAMES)})"
)
#: In pixels: a telephone's, and a large screen's.
WIDTHS = (400, 1_400)
#: Elements beyond the right edge, but for those in a part that scrolls by itself.
_OVERFLOWING = """([within, scrolling]) => [...document.querySelectorAll(within)]
    .filter(element => element.checkVisibility() && !element.closest(scrolling))
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => `${element.tagName} ${element.className}`)"""
#: Of elements of the same kind (tag, classes, and those of what they are in) two stay, with all that has a name, a role or
#: the keyboard: what holds of every token and every cell is asked of two. axe-core takes its time for each.
_THIN = """() => {
    const NAMED = "[id], [role], [aria-label], [tabindex], input", WHOLE = "h1, h2, h3, h4, h5, h6, label, summary";
    const counts = new Map(), kinds = new Map(), staying = new Set([document.body]);
    const elements = [...document.body.querySelectorAll("*")];
    for (const element of elements) {
        const path = [...(kinds.get(element.parentElement) ?? []), `${element.tagName}.${element.getAttribute("class")}`];
        kinds.set(element, path.slice(-3));
        const kind = path.slice(-3).join(" ");
        counts.set(kind, (counts.get(kind) ?? 0) + 1);
        if (counts.get(kind) <= 2 || element.matches(NAMED) || element.closest(WHOLE))
            for (let part = element; !staying.has(part); part = part.parentElement) staying.add(part);
    }
    elements.filter(element => !staying.has(element)).forEach(element => element.remove());
}"""


@pytest.fixture(scope="module")
def browser():
    """One browser for a file of tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, address: str, own: str, scheme: str = "light"):
    """A page, and what happens on it that should not: dialogs, errors, words on the console, requests but for its `own`."""
    context = browser.new_context(viewport={"width": 1_400, "height": 900}, color_scheme=scheme)
    page, events = context.new_page(), []
    page.on("dialog", lambda dialog: (events.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: events.append(f"error {error}"))
    page.on("console", lambda message: events.append(f"console {message.text}"))
    page.on("request", lambda request: None if request.url.startswith(own) else events.append(request.url))
    page.goto(address)
    return page, events


def overflowing(page, width: int, within: str = "main *", scrolling: str = ".scroll > *, svg > *") -> list[str]:
    """What is beyond the right edge of a page that is so wide, but for what scrolls by itself."""
    page.set_viewport_size({"width": width, "height": 900})
    whole = page.evaluate("document.documentElement.scrollWidth")
    return [*page.evaluate(_OVERFLOWING, [within, scrolling]), *([f"the page: {whole}"] if whole > width else [])]


def thin(page) -> None:
    """Open everything, and leave two elements of each kind, for axe-core."""
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    page.evaluate(_THIN)


def faults_in(page, rules: Iterable[str] = ()) -> tuple[list[str], set[str]]:
    """What axe-core says against a page, by all its rules or by those of some names or tags; and what could be read there.

    The latter by its tag and classes, as `td.n` and `b.t.o`.
    """
    from axe_playwright_python.sync_playwright import Axe

    results = Axe().run(page, options={"runOnly": list(rules)} if rules else {}).response
    faults = [
        f"{rule['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for rule in results["violations"]
        for node in rule["nodes"]
    ]
    passed = [node["html"] for rule in results["passes"] if rule["id"] == "color-contrast" for node in rule["nodes"]]
    heads = (re.match(r'<(\w+)(?:[^>]*? class="([^"]*)")?', html).groups(default="") for html in passed)
    return faults, {".".join([tag, *classes.split()]) for tag, classes in heads}
