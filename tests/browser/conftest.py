"""A browser, and a book to look at: built once a session, served on loopback, with every other host out of reach."""

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Executed for these tests; of the others the copies that are there are shown, or a page that says what is missing.
# LEFCOURSE_BOOK_SITE tests a book that is built already instead.
CHAPTERS = ("start", "elr")
LEFT_OUT = "a cell that this test left out"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker has the browser and builds the book once."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.xdist_group("book"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)})")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def site(browser, tmp_path_factory) -> Path:
    """The folder of a built book."""
    if "LEFCOURSE_BOOK_SITE" in os.environ:
        return Path(os.environ["LEFCOURSE_BOOK_SITE"]).resolve()
    from lefcourse import book
    from lefcourse.book import copies
    from lefcourse.running import runner

    def execute(chapter, *arguments, **options) -> dict:
        if chapter.slug in CHAPTERS:
            return runner.execute(chapter, *arguments, **options)
        return {"status": "failed", "error": LEFT_OUT}

    display = SimpleNamespace(
        watch=lambda chapter: lambda *_: None, ended=lambda copy: None, say=lambda line: None
    )
    out = tmp_path_factory.mktemp("book") / "html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "execute", execute)
        built = book.build("smoke", out, 2, display)
    problems = [problem for problem in built.problems if LEFT_OUT not in problem]
    assert not problems, "\n".join(problems)
    return out


@pytest.fixture(scope="session")
def address(site) -> Iterator[str]:
    """Where the book is served, without a slash at the end."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@dataclass
class Watched:
    """What a browser context asked for, and what went wrong."""

    context: BrowserContext
    host: str
    asked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.route("**/*", self._route)
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on("requestfailed", lambda r: self._note(f"failed request {r.url}"))
        self.context.on("response", self._response)
        self.context.on("console", lambda m: m.type == "error" and self._note(f"console: {m.text}"))
        self.context.on("weberror", lambda error: self._note(f"script: {error.error}"))

    def _route(self, route) -> None:
        here = urlsplit(route.request.url)
        if here.scheme in ("data", "blob") or here.netloc == self.host:
            return route.continue_()
        self._note(f"asked another host: {route.request.url}")
        return route.abort()

    def _response(self, response) -> None:
        if response.status >= 400:
            self._note(f"{response.status} for {response.url}")

    def _note(self, problem: str) -> None:
        self.problems.append(problem)

    def open(self, url: str) -> Page:
        """Open a page of the book in a new tab, and wait until its formulas are set."""
        page = self.context.new_page()
        page.goto(url)
        page.wait_for_function(
            "!document.querySelector('.math') || (window.MathJax?.startup?.promise && true)"
        )
        page.evaluate("window.MathJax?.startup?.promise?.then(() => true)")
        return page


@pytest.fixture
def watched(browser, address, request) -> Iterator[Watched]:
    """A fresh browser profile that reaches the book only; `request.param` may change its options."""
    context = browser.new_context(
        **{"viewport": {"width": 1440, "height": 900}} | getattr(request, "param", {})
    )
    context.set_default_timeout(20_000)
    yield Watched(context, urlsplit(address).netloc)
    context.close()
