"""Run the cells of sweeps on Dask: this machine's cores or GPUs, or any cluster with an address."""

import errno
import logging
import os
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin, as_completed
from filelock import FileLock, Timeout

from lefcourse import catalogue
from lefcourse.chapter.sources import source_sha256
from lefcourse.errors import UsageError
from lefcourse.files import write_json

from .grid import DONE, FAILED, Cell, SweepError

LOCK = ".lock"
ATTEMPTS = 3  # a run that takes as many workers with it has failed
BUSY = "busy"  # another sweep is running this cell
BUSY_WAIT = 5  # seconds that a worker waits for it, before it asks for something else to do
TIMEOUT = 10  # seconds to wait for the answer of a scheduler
CONFIG = {
    # Dask blames a dead worker's whole queue, also what had not begun; we count for ourselves.
    "distributed.scheduler.allowed-failures": 1_000_000,
    "distributed.scheduler.worker-saturation": 1.0,  # no run waits at a worker while another is idle
    "distributed.deploy.lost-worker-timeout": "365 days",  # a worker that dies is started again
    "distributed.nanny.pre-spawn-environ": {},  # Dask would limit every kernel to one thread
}


@dataclass(frozen=True)
class Ended:
    """How one cell ended: `state` is DONE or FAILED; `fresh` is False if another sweep ran it."""

    cell: Cell
    state: str
    error: str = ""
    wall_s: float = 0.0
    fresh: bool = True


# --- on a worker ---------------------------------------------------------------------------------

_stopped: set[str] = set()  # sweeps that were interrupted while this worker was busy with them


def attempt(cell: Cell, sweep: str, source: Mapping, threads: int | None, wait: float) -> dict:
    """Run `cell` unless it is done, or (BUSY) in the hands of another sweep. Runs on a worker."""
    from lefcourse.running.runner import execute  # imports papermill

    cell.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cell.folder / LOCK)  # the system frees it when its holder dies
    try:
        held = lock.acquire(timeout=wait)
    except Timeout:
        return {"state": BUSY}
    with held:
        if cell.state(source) == DONE:
            return {"state": DONE, "fresh": False}
        if (deaths := _begun(cell, sweep)) >= ATTEMPTS:
            return {"state": FAILED, "error": _record_deaths(cell, deaths)}
        _sign(cell, sweep)
        if (cell.record() or {}).get("status") == "interrupted":
            kill_kernels([cell.folder], everywhere=True)  # of a worker that died a moment ago
        chapter = catalogue.get(cell.chapter.slug)
        record = execute(
            chapter, cell.parameters, cell.folder, cell.budget, cell.device, threads=threads
        )
        if sweep in _stopped and record["status"] == "failed":  # its kernel was killed
            record = record | {"status": "interrupted"}
            del record["error"]
            write_json(cell.folder / "record.json", record)
    return {
        "state": DONE if record["status"] == "done" else FAILED,
        "error": record.get("error", ""),
        "wall_s": record["wall_s"],
    }


def _sign(cell: Cell, sweep: str) -> None:
    """Add a line to the lock file: who runs the cell, for which sweep."""
    with open(cell.folder / LOCK, "a") as file:
        print(sweep, platform.node(), os.getpid(), file=file)


def _begun(cell: Cell, sweep: str) -> int:
    """Return how often a worker has begun to run the cell for this sweep."""
    path = cell.folder / LOCK
    return path.read_text().count(sweep) if path.exists() else 0


def _record_deaths(cell: Cell, deaths: int) -> str:
    """Write into the cell's record that its workers died, and return the message."""
    message = f"its worker died {deaths} times (often: out of memory)"
    failed = {"status": "failed", "error": message}
    write_json(cell.folder / "record.json", (cell.record() or {}) | failed)
    return message


def stop(sweep: str, folders: Iterable[Path]) -> None:
    """End what this worker runs of an interrupted sweep. Runs on a worker, beside its task."""
    _stopped.add(sweep)
    kill_kernels(folders)


def kill_kernels(folders: Iterable[Path], everywhere: bool = False) -> None:
    """Kill the kernels that write into `folders`: this process's own, or this machine's."""
    import psutil

    wanted = {str(folder) for folder in folders}
    processes = psutil.process_iter() if everywhere else psutil.Process().children(recursive=True)
    for process in processes:
        try:
            if process.environ().get("LEFCOURSE_RUN_DIR") in wanted:
                process.kill()
        except psutil.Error:
            continue  # it has ended, or is somebody else's


class LocalWorker(WorkerPlugin):
    """What a worker on this machine must know: which GPU is its own, and that Ctrl-C is not for it."""

    name = "lefcourse"

    def __init__(self, gpus: list[str]):
        self.gpus = gpus

    def setup(self, worker) -> None:
        import signal
        import threading

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, lambda *_: None)  # the command's own process stops us
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[worker.name % len(self.gpus)]


# --- the workers ---------------------------------------------------------------------------------


@contextmanager
def connect(address: str | None, jobs: int, gpus: list[str]) -> Iterator[Client]:
    """Yield a client of the cluster at `address`, or of `jobs` new workers on this machine.

    With `gpus` each worker has one of them. Raises UsageError if nothing answers at the address.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # we say what matters ourselves
    if address:
        try:
            client = Client(address, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"no Dask scheduler answers at {address!r} ({why})") from None
        with client:
            yield client
        return
    with (
        dask.config.set(CONFIG),
        local_cluster(jobs) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(LocalWorker(gpus))
        yield client


def local_cluster(jobs: int) -> LocalCluster:
    """Start `jobs` processes with one thread each; a kernel's memory is not Dask's to limit."""
    return LocalCluster(
        n_workers=jobs,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",  # the usual port may be taken
        silence_logs=logging.CRITICAL,
    )


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def visible_gpus(device: str) -> list[str]:
    """Return the names of the GPUs that runs on `device` would use, as CUDA_VISIBLE_DEVICES wants them."""
    if device == "cpu":
        return []
    import torch

    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",") if torch.cuda.is_available() else []
    return [str(k) for k in range(torch.cuda.device_count())]


# --- the runs ------------------------------------------------------------------------------------


def run(
    cells: Iterable[Cell],
    client: Client,
    *,
    threads: int | None = None,
    watch: Callable[[Ended], None] = lambda _: None,
) -> None:
    """Run `cells` on the client's workers and call `watch` as each ends.

    A run whose worker dies is given to another one, at most twice. Raises SweepError when the disk is
    full or the scheduler is lost. When this is interrupted, all kernels are killed.
    """
    work = _Work(list(cells), client, threads)
    try:
        for ended in work:
            watch(ended)
    except BaseException:
        work.abandon()
        raise


class _Work:
    def __init__(self, cells: list[Cell], client: Client, threads: int | None):
        self.client, self.threads = client, threads
        self.sweep = uuid.uuid4().hex
        self.sources = {c.chapter.slug: None for c in cells}
        self.sources = {slug: source_sha256(slug) for slug in self.sources}
        self.futures, self.cells = {}, {}
        for cell in cells:
            self._submit(cell)

    def _submit(self, cell: Cell, wait: float = 0) -> Future:
        future = self.client.submit(
            attempt,
            cell,
            self.sweep,
            self.sources[cell.chapter.slug],
            self.threads,
            wait,
            key=(self.sweep, f"{cell.folder.name}-{uuid.uuid4().hex[:8]}"),  # one group for all
            priority=-wait,  # what another sweep has in hand comes last
            pure=False,
        )
        self.futures[future.key], self.cells[future.key] = future, cell
        return future

    def __iter__(self) -> Iterator[Ended]:
        queue = as_completed(self.futures.values(), loop=self.client.loop)
        for future in queue:
            cell = self.cells.pop(future.key)
            del self.futures[future.key]
            if future.status == "finished":
                result = future.result()
                if result["state"] == BUSY:
                    queue.add(self._submit(cell, BUSY_WAIT))
                else:
                    yield Ended(cell, **result)
            elif future.status == "error":
                error = future.exception()
                if isinstance(error, KilledWorker):  # to be judged by the next worker
                    queue.add(self._submit(cell))
                else:
                    yield Ended(cell, FAILED, _failure(cell, error))
            else:
                raise SweepError("the Dask scheduler is gone; the same command continues the sweep")

    def abandon(self) -> None:
        """Take back what has not begun, and kill what has."""
        folders = [cell.folder for cell in self.cells.values()]
        try:
            self.client.cancel([*self.futures.values()], force=True)
            self.client.run(stop, self.sweep, folders)
        except Exception as error:  # the cluster is gone, and its kernels go with their workers
            logging.getLogger(__name__).debug("abandon: %s", error)


def _failure(cell: Cell, error: BaseException) -> str:
    """Say why a cell failed that raised; a full disk ends the sweep."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise SweepError(
            f"no space left for {cell.folder}; free some, and the same command continues the sweep"
        ) from error
    return f"{type(error).__name__}: {error}".splitlines()[0]
