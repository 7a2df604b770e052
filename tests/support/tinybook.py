"""Tiny notebooks for tests: written in a line or two, and offered as if they were chapters."""

import signal
from pathlib import Path
from types import SimpleNamespace

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def code(source: str, *tags: str, **metadata):
    return new_code_cell(source, metadata={"tags": [*tags], **metadata} if tags else metadata)


def text(source: str, *tags: str):
    return new_markdown_cell(source, metadata={"tags": [*tags]} if tags else {})


def write(path: Path, *cells) -> Path:
    nbformat.write(new_notebook(cells=[*cells], metadata={"kernelspec": KERNEL}), path)
    return path


def chapter(path: Path) -> SimpleNamespace:
    """What a chapter of the catalogue is to those who execute it."""
    return SimpleNamespace(slug=path.stem, path=path, exists=True, part="00-test")


def heed_ctrl_c() -> None:
    """Let a child process be interrupted, also where the tests themselves run with SIGINT ignored (`make test &`)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
