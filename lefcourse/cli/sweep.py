"""`lefcourse sweep`: a chapter over a grid of parameters and seeds, with a table and a plot at the end."""

import itertools
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lefcourse.chapter.sources import source_sha256
from lefcourse.cli.common import (
    Budget,
    ChapterName,
    Device,
    Request,
    look_for_data,
    readable,
    request,
)
from lefcourse.paths import runs_root
from lefcourse.running.needs import NAMES, PARTS
from lefcourse.sweep import grid as grids
from lefcourse.sweep.grid import DONE, FAILED, STALE, Cell, Sweep

Seeds = Annotated[str, typer.Option(metavar="SEEDS", help="A range 5-9 or a list 0,3,7.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Runs at a time on this machine [default: its GPUs, or its cores]"
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Threads of a run [default: cores divided by jobs; on a cluster 1]"
    ),
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask cluster, such as tcp://node7:8786.")
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--param",
        metavar="NAME V1,V2,...",
        help="Values of a parameter; repeat for a grid of several.",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What to show [default: the metric of the gap closed]"),
]


def command(
    chapter: ChapterName,
    param: Grid = None,
    seeds: Seeds = "5-9",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to [default: a folder in sweep/CHAPTER in the runs folder]"
        ),
    ] = None,
    jobs: Jobs = None,
    threads: Threads = None,
    scheduler: Scheduler = None,
    budget: Budget = None,
    device: Device = None,
    metric: Metric = None,
) -> None:
    """Run a chapter over a grid of parameters and seeds; end with a table and a plot.

    Each run has a folder of its own with its executed notebook and its record. The same command again
    runs only what is missing, has failed, or was made before the chapter changed; so a sweep that was
    interrupted goes on where it stopped. Runs are spread over this machine's cores or GPUs, or, with
    --scheduler, over any Dask cluster whose workers see the same files.

    At the end the folder holds sweep.csv and sweep.parquet (one row for each run, arm and metric),
    summary.csv (mean and 95 % interval over seeds, paired tests) and the plot, sweep.png and sweep.svg.

    \b
    Examples:
      lefcourse sweep elr -p rate 0,0.2,0.4,0.6,0.8
      lefcourse sweep elr -p rate 0.4,0.6 -p lam 1,3,5 --seeds 0-4 --jobs 2
      lefcourse sweep elr -p dataset mnist -p rate 0.2,0.6 --scheduler tcp://node7:8786

    \b
    A cluster, for instance:
      SLURM        dask-jobqueue: cluster = SLURMCluster(cores=1, memory="4GB"); cluster.scale(50)
      Kubernetes   dask-kubernetes: cluster = KubeCluster(name="lefcourse", n_workers=50)
      many GPUs    dask-cuda: dask cuda worker tcp://node7:8786, on every machine
    and then --scheduler with cluster.scheduler_address.
    """
    seed_list = grids.parse_seeds(seeds)
    grid, asked = parse(chapter, param or [], budget, device)
    made = Sweep(asked.chapter, grid, seed_list, asked.budget, asked.device, Path())
    name = f"{'+'.join(made.swept) or 'seeds'}-{grids.fingerprint(made.manifest())}"
    folder = (out or runs_root() / "sweep" / made.chapter.slug / name).resolve()
    made = Sweep(made.chapter, grid, seed_list, made.budget, made.device, folder)
    with told() as code:
        grids.claim(folder, made.manifest())
        cells = made.cells()
        print(f"{made.chapter.slug}: {len(cells)} runs in {readable(folder)}", flush=True)
        code.append(run(cells, jobs, threads, scheduler))
        report(made, metric)
    raise typer.Exit(code[-1])


def parse(
    slug: str, given: Sequence[str], budget: str | None, device: str | None
) -> tuple[dict[str, list], Request]:
    """Return the checked grid {name: [values]} and the request (chapter, budget, device) behind it."""
    asked = request(slug, (), budget, device, look=False)
    grid = grids.parse_grid(
        given, lambda t: request(slug, [t], budget, device, look=False).parameters
    )
    named = {name: values for name, values in grid.items() if name in (*NAMES, *PARTS)}
    for values in itertools.product(*named.values()):
        look_for_data(asked, dict(zip(named, values, strict=True)))
    return grid, asked


# --- shared with `reproduce` and `compare` -------------------------------------------------------


@contextmanager
def told() -> Iterator[list[int]]:
    """Turn what stops a sweep into one line and an exit code, the last of the list that this yields."""

    def terminated(*_) -> None:
        raise KeyboardInterrupt

    codes = [0]
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield codes
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        codes.append(130)
    except grids.SweepError as error:
        print(f"lefcourse: {error}", file=sys.stderr)
        codes.append(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"lefcourse: {error.strerror or error}{where}", file=sys.stderr)
        codes.append(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def run(
    cells: Sequence,
    jobs: int | None,
    threads: int | None,
    scheduler: str | None,
    watch=lambda ended: None,
) -> int:
    """Run what is not done of `cells`, say how it goes, and return 1 if any run failed, else 0."""
    sources = {slug: source_sha256(slug) for slug in {c.chapter.slug for c in cells}}
    states = [cell.state(sources[cell.chapter.slug]) for cell in cells]
    todo = [cell for cell, state in zip(cells, states, strict=True) if state != DONE]
    _say_what_is_done(cells, states)
    if not todo:
        return 0
    from lefcourse.sweep import pool  # imports Dask

    gpus = [] if scheduler else pool.visible_gpus(todo[0].device)
    jobs = min(jobs or len(gpus) or pool.cores(), len(todo))
    if threads is None:
        # One job alone has the machine; on a cluster a worker has one core, unless it is said otherwise.
        threads = 1 if scheduler else max(1, pool.cores() // jobs) if jobs > 1 else None
    failed = []
    with pool.connect(scheduler, jobs, gpus) as client, _progress(len(todo)) as shown:

        def ended(end: pool.Ended) -> None:
            if end.state == FAILED:
                failed.append(end)
            shown(end)
            watch(end)

        if scheduler and not client.nthreads():
            print(f"{scheduler} has no workers yet; waiting for them", flush=True)
        pool.run(todo, client, threads=threads, watch=ended)
    for end in failed:
        print(f"failed: {end.cell.name}: {end.error}", file=sys.stderr)
        notebook = end.cell.folder / f"{end.cell.chapter.slug}.ipynb"
        if notebook.exists():
            print(f"  the notebook up to there: {readable(notebook)}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(cells)} runs failed; the same command repeats them",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _say_what_is_done(cells: Sequence, states: Sequence[str]) -> None:
    done, failed = states.count(DONE), states.count(FAILED)
    if done or failed:
        again = f", {failed} failed before and are run again" if failed else ""
        print(f"{done} of {len(cells)} are done{again}", flush=True)
    if stale := [c.name for c, s in zip(cells, states, strict=True) if s == STALE]:
        named = "; ".join(stale[:5]) + ("; ..." if len(stale) > 5 else "")
        print(f"{len(stale)} run again, because the chapter has changed: {named}", flush=True)


@contextmanager
def _progress(total: int) -> Iterator:
    """Yield a function to call as each run ends: a bar with the time left, or a line now and then."""
    clock = grids.Clock(total)
    if not sys.stdout.isatty():
        yield _Lines(clock)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), transient=True) as bar:
        task = bar.add_task("starting", total=total)

        def shown(end) -> None:
            clock.ended += 1
            left = f"about {duration(clock.left())} left"
            bar.update(task, completed=clock.ended, description=f"{left}; last: {end.cell.name}")

        yield shown


class _Lines:
    """For logs: a line for each run, but at most one in five seconds, and always the last."""

    def __init__(self, clock):
        self.clock, self.said = clock, 0.0

    def __call__(self, end) -> None:
        clock = self.clock
        clock.ended += 1
        now = time.perf_counter()
        if now - self.said > 5 or clock.ended == clock.total:
            self.said = now
            print(
                f"{now - clock.start:6.0f} s  {clock.ended} of {clock.total} ended, "
                f"about {duration(clock.left())} left; last: {end.cell.name} ({end.state})",
                flush=True,
            )


def duration(seconds: float) -> str:
    """Write a time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def report(made: Sweep, metric: str | None) -> None:
    """Write and print what the finished runs of a sweep measured."""
    from lefcourse.sweep import report

    done = finished(made)
    _say_what_diverged(done)
    frame = report.tidy(done)
    if frame.empty:
        return
    metric = report.main_metric(done[0], frame, metric)
    table = report.summary(frame, [*made.grid])
    fig = report.figure(table, made.swept, metric, report.role_looks(table))
    files = report.write(made.folder, frame, table, fig)
    print_summary(table, made.swept, metric, "method")
    print("\n" + "\n".join(str(readable(path)) for path in files))


def _say_what_diverged(done: Sequence[Cell]) -> None:
    for cell in done:
        arms = [name for name, arm in cell.record()["arms"].items() if arm.get("diverged")]
        if arms:
            print(f"diverged, and left out below: {', '.join(arms)} ({cell.name})", file=sys.stderr)


def finished(made: Sweep) -> list[Cell]:
    """Return the runs that are done, with the chapter as it is now."""
    source = source_sha256(made.chapter.slug)
    return [cell for cell in made.cells() if cell.state(source) == DONE]


def print_summary(table, swept: Sequence[str], metric: str, reference: str) -> None:
    """Print the summary of one metric; `reference` names what is compared with each arm."""
    what = [metric.replace("_", " "), "95 % interval", f"{reference} minus arm"]
    rows = table[table["metric"] == metric].to_dict("records")
    print()
    print_table(
        [*swept, "arm", "role", "seeds", *what],
        [(*(r[n] for n in swept), r["arm"], r["role"], r["n"], *_numbers(r)) for r in rows],
    )


def _numbers(row: dict) -> tuple[str, str, str]:
    interval = difference = ""
    if _known(row["low"]):
        interval = f"{row['low']:.4g} to {row['high']:.4g}"
    if _known(row.get("difference")):
        difference = f"{row['difference']:+.4g}"
        difference += f" (p = {row['p']:.2g})" if _known(row["p"]) else ""
    return f"{row['mean']:.4g}", interval, difference


def _known(value: float | None) -> bool:
    return value is not None and value == value


def print_table(header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Print a table: on a terminal drawn by rich, elsewhere in plain columns."""
    texts = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*header, box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for row in texts:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    for row in [header, *texts]:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())
