"""Print what a sweep costs: overhead over papermill, speed-up of two workers, bookkeeping. Run by `make bench`.

Run it on a machine with two free cores; what else computes there is measured too.
"""

import contextlib
import gc
import io
import sys
import tempfile
import time
from pathlib import Path

import dask
import papermill
import psutil
from nbformat.v4 import new_code_cell, new_notebook, writes

from lefcourse import catalogue
from lefcourse.cli import sweep as command
from lefcourse.files import write_json
from lefcourse.running import runner
from lefcourse.running.record import new_record
from lefcourse.sweep import pool, report
from lefcourse.sweep.grid import Sweep

WORK = """\
import time
begun, k = time.process_time(), 0
while time.process_time() - begun < {seconds}:  # of computing, whatever else the machine does
    k += sum(range(1000))
"""


class Tiny:
    """What a chapter of the catalogue is to those who execute it: a notebook that computes for some seconds."""

    slug, part, exists = "tiny", "00-test", True

    def __init__(self, path: Path):
        self.path = path

    def write(self, seconds: float) -> None:
        cells = [
            new_code_cell("seed = 5  # of every draw", metadata={"tags": ["parameters"]}),
            new_code_cell(WORK.format(seconds=seconds)),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        text = writes(new_notebook(cells=cells, metadata={"kernelspec": kernel}))
        self.path.write_text(text)


def plain(chapter: Tiny, folder: Path, runs: int) -> float:
    """Return the seconds that `runs` runs take one after the other, with papermill alone."""
    start = time.perf_counter()
    for seed in range(runs):
        path = folder / f"plain-{seed}.ipynb"
        papermill.execute_notebook(chapter.path, path, {"seed": seed}, progress_bar=False)
    return time.perf_counter() - start


def must_be_done(ended: pool.Ended) -> None:
    """Stop the benchmark at a run that failed."""
    assert not ended.error, ended.error


def swept(chapter: Tiny, folder: Path, runs: int, jobs: int) -> tuple[float, float]:
    """Return the seconds that a sweep takes, and of these the ones until its workers stand ready."""
    made = Sweep(chapter, {}, [*range(runs)], "standard", "cpu", folder / f"jobs-{jobs}")
    start = time.perf_counter()
    with pool.connect(None, jobs, []) as client:
        ready = time.perf_counter() - start
        pool.run(made.cells(), client, threads=1, watch=must_be_done)
    return time.perf_counter() - start, ready


def stubbed(chapter: Tiny, parameters, out_dir, budget, device, threads=None) -> dict:
    """Take the place of a run: write the record of one that measured something."""
    record = new_record(chapter.slug, dict(parameters), "cpu", budget)
    curve = [0.5] * 500
    arms = {
        name: {"role": role, "accuracy": 0.5, "loss": 1.0, "curve": curve}
        for name, role in [("plain", "baseline"), ("tiny", "method"), ("clean", "oracle")]
    }
    record |= {"status": "done", "wall_s": 1.0, "arms": arms, "gap_closed": 0.5}
    write_json(out_dir / "record.json", record)
    return record


def bookkeeping(chapter: Tiny, folder: Path, runs: int) -> tuple[float, float]:
    """Return seconds a run and the growth of memory in MiB of a sweep whose runs are stubbed."""
    from distributed import LocalCluster

    runner.execute = stubbed
    pool.local_cluster = lambda jobs: LocalCluster(
        n_workers=jobs, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    made = Sweep(
        chapter, {"x": [*range(runs // 5)]}, [*range(5)], "standard", "cpu", folder / f"x-{runs}"
    )
    gc.collect()
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        command.run(made.cells(), 2, 1, None)
        frame = report.tidy(command.finished(made))
        table = report.summary(frame, ["x"])
        fig = report.figure(table, ["x"], "accuracy", report.role_looks(table))
        report.write(made.folder, frame, table, fig)
    seconds = (time.perf_counter() - start) / runs
    gc.collect()
    return seconds, (psutil.Process().memory_info().rss - before) / 2**20


def main(runs: int = 6, seconds: float = 8) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chapter = Tiny(folder / "tiny.ipynb")
        chapter.write(seconds)
        known = folder / "known.py"  # the workers' catalogue
        known.write_text(
            f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path\nfrom bench_sweep import Tiny\nfrom lefcourse import catalogue\n"
            f"catalogue.get = lambda slug: Tiny(Path({str(chapter.path)!r}))\n"
        )
        dask.config.set({"distributed.worker.preload": [str(known)]})
        sys.modules["bench_sweep"] = sys.modules["__main__"]
        Tiny.__module__ = "bench_sweep"
        catalogue.get = lambda slug: chapter

        alone = plain(chapter, folder, runs)
        (one, ready), (two, _) = swept(chapter, folder, runs, 1), swept(chapter, folder, runs, 2)
        extra = (one - alone) / runs
        print(f"papermill alone, {runs} runs of {seconds} s            {alone:7.1f} s")
        print(
            f"sweep with one worker                       {one:7.1f} s  ({ready:.1f} s to start it)"
        )
        print(
            f"overhead a run       {extra:6.2f} s (at most 1), {extra * runs / alone:6.1%} (at most 5 %)"
        )
        print(f"two workers are faster by                   {one / two:7.2f}    (at least 1.7)")
        bookkeeping(chapter, folder, 50)  # imports
        for count in (500, 1000):
            per_run, growth = bookkeeping(chapter, folder, count)
            print(
                f"{count:5} stubbed runs {per_run:8.4f} s a run (at most 0.05), memory grew {growth:5.1f} MiB"
            )


if __name__ == "__main__":
    main()
