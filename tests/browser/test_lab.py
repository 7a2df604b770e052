"""JupyterLab as a reader uses it: run a chapter, watch its progress, turn its knob, unfold a solution."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from lefcourse import catalogue
from lefcourse.cli import lab as command
from lefcourse.paths import NOTEBOOKS

# More steps than the smoke budget's twenty, as a reader may ask for: then there is progress to see.
STEPS = 1500


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The notebooks, copied as `lefcourse lab` copies them; in the start page more steps."""
    folder = tmp_path_factory.mktemp("lab")
    command.copy(folder)
    path = folder / catalogue.START.path.relative_to(NOTEBOOKS)
    book = json.loads(path.read_text())
    cell = next(c for c in book["cells"] if "parameters" in c["metadata"].get("tags", ()))
    source = "".join(cell["source"])
    cell["source"] = re.sub(r"steps = \d+", f"steps = {STEPS}", source)
    assert cell["source"] != source
    path.write_text(json.dumps(book))
    return folder


@pytest.fixture(scope="module")
def lab(browser, folder) -> Iterator[str]:
    """The address of a server started by `lefcourse lab`, on a free port of the loopback, without a window."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = hasattr(os, "getuid") and os.getuid() == 0
    address = {"ip": "127.0.0.1", "port": port, "allow_root": root}
    own = {"ServerApp": address, "IdentityProvider": {"token": "lab"}}
    (folder / "config").mkdir()
    (folder / "config" / "jupyter_server_config.json").write_text(json.dumps(own))
    words = [str(Path(sys.executable).with_name("lefcourse")), "lab", str(folder), "--no-browser"]
    env = os.environ | {
        "LEFCOURSE_BUDGET": "smoke",
        "LEFCOURSE_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    # A reader's kernel starts anew: not for one test's run, nor forked as the other tests' kernels are.
    for name in ("LEFCOURSE_RUN_DIR", "JUPYTER_PATH"):
        env.pop(name, None)
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, server, folder / "server.log")
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/api", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


# Seen from the page's own side, because a bar may come and go between two looks from here.
WATCH_BARS = """() => {
    window.lefBars = [];
    new MutationObserver(() => {
        for (const bar of document.querySelectorAll('.widget-hprogress .progress-bar'))
            if (!window.lefBars.includes(bar.style.width)) window.lefBars.push(bar.style.width);
    }).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""
# How the run ends, and how a cell fails.
ENDED = """() => [...document.querySelectorAll('.jp-OutputArea-output')].some(
    e => /smoke budget, seed \\d+, \\w+; \\d+ s/.test(e.textContent) || e.dataset.mimeType?.includes('stderr')
         || e.dataset.mimeType?.includes('error'))"""


@pytest.fixture
def page(browser, lab) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def run_all(page: Page) -> None:
    # A kernel that is still starting may miss what it is told to run.
    page.get_by_text(re.compile(r"\| Idle")).first.wait_for()
    page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()


def wait_for_the_end(page: Page) -> None:
    page.wait_for_function(ENDED, timeout=300_000)
    failed = page.locator(".jp-OutputArea-output[data-mime-type*=error]")
    assert failed.count() == 0, failed.first.inner_text()[-1000:]


def turn_the_knob(page: Page) -> None:
    """Move the slider by keyboard and see another picture."""
    picture = page.locator(".widget-vbox img")
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("image => image.naturalWidth") > 300
    before = picture.get_attribute("src")
    page.locator(".widget-vbox .noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "before => document.querySelector('.widget-vbox img').src !== before", arg=before
    )


def test_the_start_page(page, lab):
    page.goto(f"{lab}/lab/tree/00-start/start.ipynb?token=lab")  # what `make lab` opens
    page.get_by_role("heading", name=re.compile("Start here")).first.wait_for()
    page.evaluate(WATCH_BARS)
    run_all(page)
    wait_for_the_end(page)
    bars = page.evaluate("window.lefBars")
    assert len(bars) > 2, f"no progress bar was seen to move: {bars}"
    turn_the_knob(page)


def test_a_chapter(page, lab):
    page.goto(f"{lab}/lab/tree/04-noisy-labels/elr.ipynb?token=lab&reset")
    page.get_by_role("heading", name=re.compile("ELR: hold on")).first.wait_for()
    run_all(page)
    wait_for_the_end(page)
    turn_the_knob(page)

    # A solution is folded until it is asked for.
    solution = page.locator(".jp-CodeCell:has(.jp-InputPlaceholder)").first
    solution.scroll_into_view_if_needed()
    assert "# end of solution" not in solution.inner_text()
    solution.locator(".jp-InputPlaceholder").click()
    page.get_by_text("# end of solution").first.wait_for()
