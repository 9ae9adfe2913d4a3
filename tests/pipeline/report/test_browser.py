"""A page as a browser shows it: nothing overflows, nothing runs, it is read by mouse, by keyboard, and by everybody.

The browser is the system's own (Chromium or Chrome); where there is none, these tests are skipped.
"""

import shutil
from contextlib import contextmanager

import pytest

from pipeline.report import build

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"no browser on this machine (looked for {', '.join(NAMES)})"),
    pytest.mark.xdist_group("browser"),
]
WIDTHS = (400, 1_400)
#: Elements beyond the right edge, but for those in a part that scrolls by itself.
OVERFLOWING = """() => [...document.querySelectorAll("main *")]
    .filter(element => !element.closest(".scroll > *, svg > *"))
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => `${element.tagName} ${element.className}`)"""


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests here."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, path):
    """A page of one file, and what happens on it that should not; tests change its width and scheme."""
    page, events = browser.new_context(viewport={"width": 1_400, "height": 900}).new_page(), []
    page.on("dialog", lambda dialog: (events.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: events.append(f"error {error}"))
    page.on("console", lambda message: events.append(f"console {message.text}"))
    page.on("request", lambda request: events.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    return page, events


@pytest.fixture(scope="module")
def hostile_page(browser, hostile, tmp_path_factory):
    """The report on rows that mean harm."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    build.write([hostile], 10, path)
    return opened(browser, path)


@pytest.fixture(scope="module")
def sample_page(browser, prepared, make_cache, runs, tmp_path_factory):
    """The report on the sample, a cache of it, and two runs."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    build.write([prepared, make_cache(), *runs], 2, path)
    return opened(browser, path)


@contextmanager
def at(page, width):
    """The page so wide, with everything on it open; as it was, afterwards."""
    states = page.evaluate("[...document.querySelectorAll('details')].map(element => element.open)")
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    yield
    page.evaluate("states => document.querySelectorAll('details').forEach((part, i) => part.open = states[i])", states)
    page.set_viewport_size({"width": 1_400, "height": 900})


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_texts_do_no_harm(hostile_page, width):
    page, events = hostile_page
    with at(page, width):
        assert page.evaluate("document.scripts.length") == 0
        assert page.locator("main img, main [onerror], main [onmouseover], main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []
        assert page.locator("details").count() == 6
        assert page.locator("summary").first.is_visible()
        page.locator(".t").first.hover()
        assert events == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(sample_page, width):
    page, events = sample_page
    with at(page, width):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []
        assert events == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(sample_page, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page, _ = sample_page
    page.emulate_media(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    rules = {} if scheme == "light" else {"runOnly": ["color-contrast"]}  # only colours differ
    # three sentences of a row have all that further ones have
    results = Axe().run(page, context={"exclude": [[".sentence:nth-of-type(n+4)"]]}, options=rules)
    (contrast,) = (rule for rule in results.response["passes"] if rule["id"] == "color-contrast")
    assert len(contrast["nodes"]) > 100
    assert results.violations_count == 0, results.generate_report()


def test_mouse_and_keyboard(sample_page):
    page, events = sample_page
    token = page.locator("details[open] .side .t").nth(3)
    before = token.evaluate("element => getComputedStyle(element).backgroundColor")
    token.hover()
    assert token.evaluate("element => getComputedStyle(element).backgroundColor") != before
    assert token.get_attribute("title").startswith("token ")
    box = page.get_by_label("Show the number of every token")
    box.focus()
    page.keyboard.press("Space")
    shown = token.evaluate("element => getComputedStyle(element, '::after').content")
    assert shown == f'"{token.get_attribute("data-i")}"'
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # closes the first row
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens the second
    assert page.evaluate("[...document.querySelectorAll('details')].map(element => element.open)")[:2] == [
        False,
        True,
    ]
    assert page.evaluate("document.activeElement.matches(':focus-visible')")
    assert events == []


def test_a_printed_page_is_light_open_and_whole(sample_page):
    """What is closed on the screen is on paper; nothing is cut by what would scroll, and no column is of single letters."""
    page, _ = sample_page
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 700, "height": 900})  # of A4 between its margins
    paper = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))")
    assert paper == ["rgb(27, 31, 36)", "rgb(255, 255, 255)"]  # also of a page that is dark on the screen
    assert page.evaluate("[...document.querySelectorAll('details > .sentence')].every(part => part.checkVisibility())")
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.evaluate("Math.min(...[...document.querySelectorAll('td, th')].map(cell => cell.clientWidth))") > 40
    page.emulate_media(media="screen", color_scheme="light")
