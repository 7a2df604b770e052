"""`lefcourse lab`: the notebooks in JupyterLab; in a copy that the reader may write, where there is no checkout."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from lefcourse import catalogue
from lefcourse.cli.common import readable
from lefcourse.files import writable, write_json
from lefcourse.paths import CHECKOUT, NOTEBOOKS, ROOT

START = f"{catalogue.START.part}/{catalogue.START.slug}.ipynb"
FOLDER = "lefcourse-notebooks"
COPIED = ".lefcourse.json"  # beside the copies: the hash that each file had when it was copied


def command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help=f"Where to copy the notebooks [default: {FOLDER}; in a checkout nothing is copied]",
            show_default=False,
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser window.")
    ] = True,
    copy_only: Annotated[
        bool, typer.Option("--copy-only", help="Copy the notebooks and start nothing.")
    ] = False,
) -> None:
    """Open the course in JupyterLab, at its start page.

    In a checkout these are the checkout's own notebooks. Elsewhere, or where FOLDER is named, they are copied into a
    folder that is yours: run them, change them, keep them. The same command again opens the folder as it is and
    never overwrites what you changed or ran; notebooks that you left alone are replaced when the course has newer ones.
    Runs in such a folder leave their records in its folder runs, unless LEFCOURSE_RUNS names another.

    \b
    Examples:
      lefcourse lab
      lefcourse lab ~/study
      lefcourse lab ~/study --copy-only   # for another editor
    """
    if folder is None and CHECKOUT and not copy_only:
        return _open(ROOT, NOTEBOOKS, browser)
    folder = writable(folder or Path(FOLDER)).resolve()
    made = copy(folder)
    print(made.sentence(folder))
    for name, why in made.kept.items():
        print(f"  kept as you left it: {name}{why}")
    if not copy_only:
        os.environ["LEFCOURSE_RUNS"] = os.environ.get("LEFCOURSE_RUNS") or str(folder / "runs")
        _open(folder, folder, browser)


def _open(root: Path, notebooks: Path, browser: bool) -> None:
    """Start JupyterLab in this process; its files are those below `root`. Returns when it is stopped."""
    from jupyterlab.labapp import main

    words = [f"--ServerApp.root_dir={root}", str(notebooks / START)]
    main([*words, *([] if browser else ["--no-browser"])])


@dataclass
class Copied:
    """What became of the notebooks in a folder: how many are new there, and which were kept, with a remark."""

    new: int = 0
    kept: dict[str, str] = field(default_factory=dict)

    def sentence(self, folder: Path) -> str:
        place = readable(folder)
        return (
            f"{self.new} notebook{'s' * (self.new != 1)} copied to {place}"
            if self.new
            else f"nothing new for {place}"
        )


def copy(folder: Path) -> Copied:
    """Copy the notebooks into `folder`; leave alone what the reader has changed there since it was copied."""
    seal = folder / COPIED
    before = json.loads(seal.read_text()) if seal.exists() else {}
    now, made = {}, Copied()
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        name, content = path.relative_to(NOTEBOOKS).as_posix(), path.read_bytes()
        there = folder / name
        found = _sha256(there.read_bytes()) if there.exists() else None
        ours = _sha256(content)
        if found not in (None, ours, before.get(name)):
            newer = before.get(name) != ours
            made.kept[name] = "; the course has another one: move yours to get it" if newer else ""
            now[name] = before.get(name)
            continue
        now[name] = ours
        if found != ours:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(content)
            made.new += 1
    write_json(seal, now)
    return made


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
