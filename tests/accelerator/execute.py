"""Execute a chapter in this process, at the smoke budget, on the CPU or on the simulated device."""

import contextlib
import io
import json
import linecache
import os
import random
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import lefcourse as lc
from lefcourse.chapter import notebook

from .device import installed


class CellError(AssertionError):
    """A cell failed: which one, where in it, and what torch refused."""


def execute(
    path: Path, folder: Path, *, on_device: bool = True, pictures: bool = False, times: int = 1
) -> dict:
    """Run the code cells of the notebook at `path` in one namespace; return the record left in `folder`.

    `on_device`: with the simulated device as the run's device, else on the CPU. `pictures`: render the
    figures, too; without, they are made, so that matplotlib takes (or refuses) their data, but not drawn.
    `times`: how often each cell is run before the next one, as readers do who look at a cell again.
    What the chapter changes in the process (seeds, environment, plot style, deterministic algorithms)
    is put back. Raises CellError for the first cell that fails.
    """
    cells = [cell for cell in notebook.read(path).cells if cell.code]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_unchanged())
        settings = {"LEFCOURSE_BUDGET": "smoke", "LEFCOURSE_RUN_DIR": str(folder)}
        stack.enter_context(mock.patch.dict(os.environ, settings, LEFCOURSE_DEVICE="cpu"))
        if on_device:
            stack.enter_context(_resolved_as(stack.enter_context(installed())))
        if not pictures:
            # Drawing is most of a smoke run's time. The canvas stays white.
            stack.enter_context(
                mock.patch.object(FigureCanvasAgg, "draw", FigureCanvasAgg.get_renderer)
            )
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        namespace = {"__name__": "__main__"}
        for cell in cells:
            for _ in range(times):
                _run_cell(cell, path.stem, namespace)
    return json.loads((folder / "record.json").read_text())


@contextlib.contextmanager
def _resolved_as(device: torch.device) -> Iterator[None]:
    """Make `device` the one that a run, and a chapter that asks for itself, finds."""
    with contextlib.ExitStack() as stack:
        for owner in (sys.modules[lc.Run.__module__], lc):
            stack.enter_context(mock.patch.object(owner, "resolve_device", lambda *_: device))
        yield


def _run_cell(cell: notebook.Cell, slug: str, namespace: dict) -> None:
    filename = f"<{slug}.ipynb, cell {cell.number}, executed>"
    # A time of None tells linecache that there is no file to compare these lines with.
    lines = cell.source.splitlines(keepends=True)
    linecache.cache[filename] = (len(cell.source), None, lines, filename)
    first = next((line for line in lines if line.strip()), "").strip()
    figures = set(plt.get_fignums())
    try:
        exec(compile(cell.source, filename, "exec"), namespace)
    except Exception as error:
        where = "\n".join(_frames(error))
        raise CellError(
            f"{slug}, cell {cell.number} ({first}):\n{where}\n{type(error).__name__}: {error}"
        ) from error
    finally:
        del linecache.cache[filename]
    if set(plt.get_fignums()) - figures:
        raise CellError(
            f"{slug}, cell {cell.number} ({first}): leaves a figure open, which a page would show as it stands, "
            "without caption or text: make it in the cell that shows it by lc.show"
        )


def _frames(error: Exception) -> list[str]:
    """Return the lines of cells and of the package that led to `error`, outermost first."""
    package = str(Path(lc.__file__).parent)
    return [
        f"  {frame.filename.removeprefix(package)}:{frame.lineno}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(("<", package)) and frame.line
    ]


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Put back afterwards what a chapter changes in its process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    benchmark, threads = torch.backends.cudnn.benchmark, torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    figures, grad = set(plt.get_fignums()), torch.is_grad_enabled()
    try:
        with matplotlib.rc_context():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        for number in set(plt.get_fignums()) - figures:
            plt.close(number)
