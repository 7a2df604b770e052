"""Execute one chapter in a kernel of its own, and say truthfully in the record how it ended."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from lefcourse.catalogue import Chapter
from lefcourse.chapter import params
from lefcourse.files import write_json
from lefcourse.paths import data_root
from lefcourse.running.record import new_record

RECORD = "record.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# progress(code cells begun, code cells in all, heading of the section)
Progress = Callable[[int, int, str], None]


def execute(
    chapter: Chapter,
    parameters: Mapping[str, object],
    out_dir: Path,
    budget: str = "standard",
    device: str = "auto",
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict:
    """Execute `chapter` into `out_dir` (SLUG.ipynb and record.json) and return the record.

    `parameters` are those that differ from the chapter's defaults, already checked; `threads` limits
    the kernel's threads. The record says `interrupted` from the start, so that it is right even when
    this process is killed; it ends as `done` or, with `error` set, as `failed`. Its `wall_s` covers
    everything, the start of the kernel included. Ctrl-C and SIGTERM stop the kernel and
    raise KeyboardInterrupt. Several threads or processes may execute chapters at the same time.
    """
    start = time.perf_counter()
    out_dir = Path(out_dir).resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    defaults = {name: p.default for name, p in params.read(chapter.path).items()}
    record = new_record(chapter.slug, defaults | dict(parameters), device, budget)
    write_json(out_dir / RECORD, record)
    watch = _Watch(progress or (lambda *_: None))
    ending = {"status": "interrupted"}
    try:
        with _sigterm_interrupts():
            _papermill(
                chapter,
                parameters,
                out_dir,
                _environment(out_dir, budget, device, threads, parameters),
                watch,
            )
        ending = {"status": "done"}
    except PapermillExecutionError as error:
        message = error.evalue.strip().splitlines()[:1] or [""]
        ending = {
            "status": "failed",
            "error": f"cell {error.exec_count}: {error.ename}: {message[0]}",
        }
    except DeadKernelError:
        why = "the kernel died without a Python error (often: out of memory)"
        ending = {"status": "failed", "error": f"cell {watch.begun}: DeadKernelError: {why}"}
    except Exception as error:
        ending = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        # The notebook has its own copy of the record by now, with what it measured.
        record = json.loads((out_dir / RECORD).read_text())
        record |= ending | {"wall_s": round(time.perf_counter() - start, 2)}
        write_json(out_dir / RECORD, record)
    return record


def executed(chapter: Chapter, out_dir: Path) -> Path:
    """Return where `execute` leaves the executed notebook."""
    return Path(out_dir) / f"{chapter.slug}.ipynb"


def _environment(
    out_dir: Path, budget: str, device: str, threads: int | None, parameters: Mapping
) -> dict[str, str]:
    """Return the kernel's environment: this process's, and what the chapter must know."""
    own = {
        "LEFCOURSE_RUN_DIR": str(out_dir),
        "LEFCOURSE_BUDGET": budget,
        "LEFCOURSE_DEVICE": device,
        "LEFCOURSE_GIVEN": ",".join(parameters),  # a budget does not replace what was given
        "LEFCOURSE_DATA": str(data_root().resolve()),  # the kernel's folder is another one
    }
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads)) if threads else {}
    return os.environ | own | limits


def _papermill(
    chapter: Chapter, parameters: Mapping, out_dir: Path, env: dict, watch: "_Watch"
) -> None:
    # Papermill reports errors twice, in its log and by raising them; once is enough.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    execute_notebook(
        chapter.path,
        executed(chapter, out_dir),
        parameters=dict(parameters),
        engine_name="lefcourse",
        kernel_name="python3",
        progress_bar=False,
        env=env,
        folder=str(chapter.path.parent),
        watch=watch,
    )


class _Watch:
    """Counts the code cells that have begun, and tells `progress`."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.begun = 0

    def follow(self, cells: list) -> None:
        heading, self.headings = "", []
        for cell in cells:
            if cell.cell_type == "markdown" and cell.source.lstrip().startswith("#"):
                heading = cell.source.strip().splitlines()[0].lstrip("# ")
            if cell.cell_type == "code" and cell.source.strip():
                self.headings.append(heading)

    def cell(self, **_) -> None:
        self.begun += 1
        self.progress(self.begun, len(self.headings), self.headings[self.begun - 1])


class _Client(PapermillNotebookClient):
    def papermill_execute_cells(self) -> None:
        try:
            super().papermill_execute_cells()
        except KeyboardInterrupt:
            self.shutdown_kernel = (
                "immediate"  # a kernel that computes would not hear a polite request
            )
            raise


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the interpreter that runs this code, whatever else is installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class _Engine(NBClientEngine):
    """Papermill's engine with an environment and a folder for the kernel alone, and with progress."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, env, folder, watch, **_):
        # Where a run was made is the reader's business: no paths in a notebook that may be published.
        nb_man.nb.metadata.papermill.pop("input_path")
        nb_man.nb.metadata.papermill.pop("output_path")
        if "LEFCOURSE_TUNE" in env:
            _end_after_tuning(nb_man.nb)
        watch.follow(nb_man.nb.cells)
        client = _Client(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=120,
            on_cell_execute=watch.cell,
            log=logging.getLogger("papermill"),
        )
        client.km = client.create_kernel_manager()
        client.km.kernel_spec_manager = _ThisPython()
        client.km.transport_encryption = "auto"  # other users of this machine cannot listen in
        with _sockets(client.km):
            try:
                client.execute(env=env, cwd=folder)
            except KeyboardInterrupt:
                if client.km is not None:  # it was still starting, and the client leaves it behind
                    run_sync(client.km.shutdown_kernel)(now=True)
                raise


@contextmanager
def _sockets(km) -> Iterator[None]:
    """Let a kernel talk through files of its own: a free port may be another run's before the kernel is up."""
    # The path of a socket may have some 100 characters.
    if os.name != "posix" or len(gettempdir()) > 70:
        yield
        return
    with TemporaryDirectory(prefix="lefcourse-", ignore_cleanup_errors=True) as folder:
        km.transport, km.ip = "ipc", str(Path(folder) / "kernel")
        yield


def _end_after_tuning(nb) -> None:
    """Drop the cells below the last one that tries settings: their results are not asked for."""
    last = max(k for k, cell in enumerate(nb.cells) if "tune" in cell.metadata.get("tags", ()))
    del nb.cells[last + 1 :]


papermill_engines.register("lefcourse", _Engine)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does (signals reach the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
