"""A page as a browser shows it: nothing overflows, nothing runs, it is read by mouse, by keyboard, and by everybody."""

from contextlib import contextmanager

import pytest

from browsing import WIDTHS, faults_in, needs_a_browser, opened, overflowing, thin
from pipeline.report import build

pytestmark = [needs_a_browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def hostile_page(browser, hostile, tmp_path_factory):
    """The report on rows that mean harm."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert build.write([hostile], 10, path) < 2_000_000
    return opened(browser, path.as_uri(), path.as_uri())


@pytest.fixture(scope="module")
def sample_report(prepared, make_cache, runs, tmp_path_factory):
    """The report on the sample, a cache of it, and two runs."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    build.write([prepared, make_cache(), *runs], 2, path)
    return path.as_uri()


@pytest.fixture(scope="module")
def sample_page(browser, sample_report):
    """That report, opened."""
    return opened(browser, sample_report, sample_report)


@contextmanager
def all_open(page):
    """The page with everything on it open; as it was, afterwards."""
    states = page.evaluate("[...document.querySelectorAll('details')].map(element => element.open)")
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    yield
    page.evaluate("states => document.querySelectorAll('details').forEach((part, i) => part.open = states[i])", states)
    page.set_viewport_size({"width": 1_400, "height": 900})


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_texts_do_no_harm(hostile_page, width):
    page, events = hostile_page
    with all_open(page):
        assert page.evaluate("document.scripts.length") == 0
        assert page.locator("main img, main [onerror], main [onmouseover], main script").count() == 0
        assert overflowing(page, width) == []
        assert page.locator("details").count() == 6
        assert page.locator("summary").first.is_visible()
        page.locator(".t").first.hover()
        assert events == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(sample_page, width):
    page, events = sample_page
    with all_open(page):
        assert overflowing(page, width) == []
        # no column of single letters
        cells = "[...document.querySelectorAll('td:not(.n), th:not(.n)')].map(cell => cell.clientWidth)"
        assert min(page.evaluate(cells)) > 60
        assert events == []


#: What is read on a report: tokens light and dark, notes, tables, terms and what is behind them, configs.
READ = {
    "b.t",
    "b.t.o",
    "p.note",
    "p.kind",
    "p.mark",
    "figcaption",
    "td.n",
    "th",
    "summary",
    "dt",
    "dd",
    "a",
    "pre",
    "h2",
}


@pytest.fixture(scope="module")
def thin_page(browser, sample_report):
    """The sample's report with two elements of a kind."""
    page, _ = opened(browser, sample_report, sample_report)
    thin(page)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(thin_page, scheme):
    rules = [] if scheme == "light" else ["color-contrast"]  # only colours differ
    thin_page.emulate_media(color_scheme=scheme)
    faults, passed = faults_in(thin_page, rules)
    background = thin_page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    assert faults == []
    assert passed >= READ


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
