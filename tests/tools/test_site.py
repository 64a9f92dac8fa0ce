"""The book in a browser: every page at two widths and in two themes."""

import os
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

from simo.errors import SimoError
from tools import book
from tools.browser import find_chromium, print_page

WIDTHS = (1400, 390)
THEMES = ("light", "dark")
FIRST, WITH_CODE, OTHER_WITH_CODE = (
    f"notebooks/pages/{name}" for name in ("introduction", "nyuv2", "claims")
)
# what sticks out of the window, apart from what scrolls inside of its own box
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# marks an element of each kind of text that is not `seen`, by what its contrast hangs on; returns all kinds
MARK_NEW_TEXT = """seen => {
  const known = new Set(seen)
  for (const element of document.querySelectorAll('body *')) {
    delete element.dataset.look
    const text = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim())
    if (!text || !element.checkVisibility()) continue
    const own = getComputedStyle(element), kind = [own.color, own.fontSize, own.fontWeight]
    for (let ground = element; ground; ground = ground.parentElement) {
      const style = getComputedStyle(ground)
      const looks = [style.backgroundColor, style.backgroundImage, style.opacity]
      if (looks.join() !== 'rgba(0, 0, 0, 0),none,1') kind.push(...looks)
    }
    if (!known.has(kind.join())) element.dataset.look = known.add(kind.join()).size
  }
  return [...known]
}"""
VISIBLE_CODE = "[...document.querySelectorAll('.cell_input')].filter(e => e.checkVisibility()).length"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each of them."""

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site(redrawn):
    """The address of the book that `make redraw` builds, served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=redrawn))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_redraw_needs_committed_records_only(redrawn):
    """`make redraw` builds the whole book from records/, without data, checkpoints or training."""
    assert (redrawn / "notebooks/pages/nyuv2.html").is_file()
    assert not (redrawn.parents[2] / "checkpoints").exists()


@pytest.fixture(scope="module")
def browser():
    """A Chromium; skipped where there is none, unless the variable CHROMIUM says that there is one."""
    try:
        found = find_chromium()
    except SimoError as error:
        if os.environ.get("CHROMIUM"):
            raise
        pytest.skip(str(error))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


def open_context(browser, site):
    """A window with a storage of its own, patient with a machine that computes something else, too."""
    context = browser.new_context(base_url=site, viewport={"width": WIDTHS[0], "height": 900})
    context.set_default_timeout(300_000)  # milliseconds
    return context


@pytest.fixture
def page(browser, site):
    """An empty page with a storage of its own."""
    context = open_context(browser, site)
    yield context.new_page()
    context.close()


def look_at(page, widths, themes, seen):
    """What is wrong with a page that is open, by kind: wide parts, poor contrast.

    Contrast, which takes long, is measured of one text of a kind; `seen` has the pages' before, by theme.
    """
    found = {"overflow": [], "contrast": []}
    page.add_style_tag(content="* { transition: none !important }")  # colours are looked at, not on their way
    for theme in themes:
        page.evaluate("theme => Object.assign(document.documentElement.dataset, {theme, mode: theme})", theme)
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            if (excess := page.evaluate(OVERFLOW)) > 0:
                found["overflow"].append(f"{excess} pixels at {width}, {theme}")
        kinds = page.evaluate(MARK_NEW_TEXT, seen.get(theme, []))
        if len(kinds) == len(seen.get(theme, [])):
            continue
        seen[theme], rules = kinds, {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
        for violation in Axe().run(page, {"include": [["[data-look]"]]}, rules).response["violations"]:
            found["contrast"] += [f"{theme}: {node['html'][:150]}" for node in violation["nodes"]]
    return found


@pytest.fixture(scope="module")
def looked(browser, site):
    """What is wrong, page by page: a dict of lists with the kinds of `look_at`, `console` and `requests`."""
    context = open_context(browser, site)
    results, leaving, seen = {}, [], {}

    def judge(route):
        if route.request.url.startswith((f"{site}/", "data:", "blob:")):
            return route.continue_()
        leaving.append(route.request.url)
        return route.abort()

    context.route("**/*", judge)
    for name in [*book.pages_of(book.read_toc()), "genindex", "py-modindex", "search"]:
        page, said = context.new_page(), []
        page.on(
            "console", lambda message, said=said: said.append(message) if message.type == "error" else None
        )
        page.on("pageerror", lambda error, said=said: said.append(error))
        page.on("response", lambda reply, said=said: said.append(reply) if reply.status >= 400 else None)
        page.goto(f"/{name}.html")
        found = look_at(page, WIDTHS, THEMES, seen)
        results[name] = found | {"console": [str(one) for one in said], "requests": leaving.copy()}
        leaving.clear()
        page.close()
    context.close()
    return results


@pytest.mark.parametrize("kind", ["console", "requests", "overflow", "contrast"])
def test_every_page_is_sound(looked, kind):
    """No error in the console, no request to another host, nothing wider than the window, legible text."""
    assert {name: found[kind] for name, found in looked.items() if found[kind]} == {}


def test_faults_are_found(page):
    """A word too pale on a page like others, and one too wide; a page seen before has nothing that is new."""
    seen = {}
    page.goto(f"/{FIRST}.html")
    assert look_at(page, WIDTHS, THEMES, seen) == {"overflow": [], "contrast": []}
    kinds = {theme: len(found) for theme, found in seen.items()}
    assert min(kinds.values()) > 10
    look_at(page, WIDTHS, THEMES, seen)
    assert kinds == {theme: len(found) for theme, found in seen.items()}
    page.evaluate("document.querySelector('article p').innerHTML += '<b style=\"color: #888\">pale</b>'")
    assert [text.split(":")[0] for text in look_at(page, WIDTHS, THEMES, seen)["contrast"]] == [*THEMES]
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<div style=\"width: 500px\">wide</div>')")
    assert look_at(page, WIDTHS, ["light"], seen)["overflow"] == ["110 pixels at 390, light"]


def test_search_finds_pages(page):
    """The search needs no server: it finds the pages about a word that the book is about."""
    page.goto("/search.html?q=realignment")
    page.wait_for_selector("ul.search li a")
    assert page.locator("ul.search li").count() > 3


def test_one_switch_shows_the_code_of_every_page(page):
    """Code is out of the way until the keyboard reaches the switch; every page remembers; print follows."""
    page.goto(f"/{WITH_CODE}.html")
    assert page.evaluate(VISIBLE_CODE) == 0
    assert page.locator("details.above-input summary:visible").count() == 0  # no bars
    switch = page.get_by_role("button", name="Show the code")
    switch.focus()
    page.keyboard.press("Enter")
    assert switch.get_attribute("aria-pressed") == "true"
    assert page.evaluate(VISIBLE_CODE) > 5
    page.goto(f"/{OTHER_WITH_CODE}.html")
    assert page.evaluate(VISIBLE_CODE) > 0
    for shown in (True, False):
        page.emulate_media(media="print")
        assert (page.evaluate(VISIBLE_CODE) > 0) == shown
        page.emulate_media(media="screen")
        page.get_by_role("button", name="Show the code").press(" ")


def test_formulas_are_drawn_where_there_are_some(page):
    """MathJax's two megabytes go to pages with formulas, and there no TeX is left as text."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/book/reproduce.html")
    assert not any("tex-svg" in url for url in asked)
    page.goto("/notebooks/pages/deviations.html")
    page.wait_for_selector("mjx-container svg")
    assert page.locator("mjx-merror").count() == 0
    assert page.locator(".math").count() == page.locator(".math mjx-container").count()


@pytest.fixture(scope="module")
def parsed(redrawn):
    """Every page of the book, by its path."""
    paths = [path for path in redrawn.rglob("*.html") if "_static" not in path.relative_to(redrawn).parts]
    return {path: BeautifulSoup(path.read_bytes(), "html.parser") for path in paths}


def test_every_page_introduces_itself(parsed):
    """A page has one viewport, an icon, and what is shown where it is shared: words and a picture."""
    for path, soup in parsed.items():
        if soup.article is None:  # the file that leads from / to the first page
            continue
        assert len(soup.select("meta[name=viewport]")) == 1, path.name
        assert len(soup.select("link[rel=icon]")) == 1, path.name
        (description,) = soup.select("meta[name=description]")
        assert 40 < len(description["content"]) <= 200, path.name
        (picture,) = soup.select("meta[property='og:image']")
        assert (path.parent / picture["content"]).is_file(), path.name


def test_every_link_leads_somewhere(parsed):
    """Every link, picture, style and script inside of the book exists, with the anchor that is asked for."""
    anchors = {path: {tag["id"] for tag in soup.select("[id]")} for path, soup in parsed.items()}
    broken, followed = [], 0
    for path, soup in parsed.items():
        for tag in soup.select("[href], [src]"):
            address, anchor = urldefrag(tag.get("href") or tag.get("src"))
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            followed += 1
            where = unquote(address.split("?")[0])
            target = Path(os.path.normpath(path.parent / where)) if where else path
            if not target.is_file() or (target in anchors and anchor and anchor not in anchors[target]):
                broken.append((path.name, tag.get("href") or tag["src"]))
    assert broken == []
    assert followed > 3000


@pytest.mark.usefixtures("browser")
def test_a_page_is_printed(tmp_path):
    """`make pdf` prints with the system's Chromium, also from a path with spaces, and leaves no half file."""
    (tmp_path / "a page.html").write_text("<p>Some text.", encoding="utf-8")
    print_page(tmp_path / "a page.html", tmp_path / "a page.pdf")
    assert (tmp_path / "a page.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_browser_is_named(tmp_path, monkeypatch):
    """Without a Chromium `make pdf` says what to install, and where it looked."""
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(SimoError, match="none, which is no program; install Chromium or Chrome"):
        find_chromium()
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tools.browser.PLACES", ())
    with pytest.raises(SimoError, match="none of chromium, .* is there"):
        find_chromium()


def test_every_picture_and_table_says_what_it_shows(parsed):
    """A sentence stands in for a picture that cannot be seen, and under it; a table has its caption."""
    silent = []
    for path, soup in parsed.items():
        # Sphinx draws the signs in its own index of modules
        for image in [] if path.name == "py-modindex.html" else soup.select("article img"):
            text, figure = image.get("alt", ""), image.find_parent("figure")
            captioned = figure and figure.figcaption and figure.figcaption.get_text(strip=True)
            if len(text) < 20 or re.search(r"\.(png|svg|jpe?g)$", text) or not captioned:
                silent.append((path.name, text))
        for table in soup.select("article .cell_output table"):
            if not (table.caption and table.caption.get_text(strip=True)):
                silent.append((path.name, table.get_text(" ", strip=True)[:60]))
    assert silent == []
