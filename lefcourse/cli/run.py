"""`lefcourse run`: execute one chapter and sum up what it measured."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from lefcourse.cli.common import Budget, ChapterName, Device, Param, Request, readable, request
from lefcourse.errors import UsageError
from lefcourse.files import writable
from lefcourse.ledger import results
from lefcourse.ledger.statistics import FAILS, HOLDS, NOT_JUDGED, UNDECIDED
from lefcourse.paths import runs_root

COLOURS = {
    HOLDS: typer.colors.GREEN,
    FAILS: typer.colors.RED,
    UNDECIDED: typer.colors.YELLOW,
    NOT_JUDGED: None,
}
MAX_METRICS = 4


def command(
    chapter: ChapterName,
    param: Param = None,
    budget: Budget = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to [default: CHAPTER/DATE-TIME in the runs folder]"
        ),
    ] = None,
) -> None:
    """Execute a chapter and sum up what it measured.

    The executed notebook and its record (record.json: parameters, seed, versions, what every arm
    measured, and whether the claims hold) go to a folder of their own in the runs folder (LEFCOURSE_RUNS; by
    default runs/ in a checkout, else lefcourse-runs/ in the current folder). A run that fails
    or is interrupted leaves its partial notebook there, and a record that says so.

    \b
    Examples:
      lefcourse run elr
      lefcourse run elr -p seed 7 -p dataset mnist
      lefcourse run elr --budget smoke --out try
    """
    asked = request(chapter, param or (), budget, device)
    raise typer.Exit(run(asked, out))


def run(asked: Request, out: Path | None = None) -> int:
    """Execute what was asked for into the new folder `out`, report, and return the exit code."""
    from lefcourse.running.runner import execute, executed  # imports torch and papermill

    folder = _folder(asked.chapter.slug, out)
    notebook = readable(executed(asked.chapter, folder))
    slug = asked.chapter.slug
    try:
        with _progress(slug) as progress:
            record = execute(
                asked.chapter, asked.parameters, folder, asked.budget, asked.device, progress
            )
    except KeyboardInterrupt:
        left = f"what was done by then: {notebook}" if notebook.exists() else "nothing was done yet"
        print(f"{slug} was interrupted; {left}", file=sys.stderr)
        return 130
    if record["status"] == "failed":
        print(f"{slug} failed in {record['error']}", file=sys.stderr)
        print(f"the notebook up to there: {notebook}", file=sys.stderr)
        return 1
    report(record)
    print(f"\nThe executed notebook is {notebook}; open it with\n  jupyter lab {notebook}")
    return 0


def report(record: dict) -> None:
    """Print arms, gap closed, claims, time and memory of a record."""
    if record["arms"]:
        print()
        _print_arms(record["arms"])
    if record["gap_closed"] is not None:
        metric = record.get("gap_metric", "")
        print(
            f"\ngap closed: {record['gap_closed']:.2f} (0: the baseline's {metric}, 1: the oracle's)"
        )
    if record["claims"]:
        print()
    recorded = results.load(record["chapter"]) if record["claims"] else None
    for claim in record["claims"]:
        _print_claim(claim, results.recorded_claim(recorded, claim["name"]))
    memory = f", {record['peak_mb']:.0f} MiB" if record["peak_mb"] else ""
    print(
        f"\n{record['chapter']}: {record['budget']} budget, seed {record['seed']}, "
        f"{record['device']}; {record['wall_s']:.0f} s{memory}"
    )


def _print_claim(claim: dict, seeds: Mapping | None) -> None:
    """Print a claim with this run's value, and the verdict over the recorded seeds: one run is one draw."""
    asked = f"asked {claim['relation']} {_number(claim['threshold'])}"
    here = claim.get("not_judged") or f"{_number(claim['measured'])} here"
    print(f"{claim['name']}: {asked}, {here}; recorded: ", end="", flush=True)
    typer.secho(
        results.told(seeds) if seeds else "nothing yet",
        fg=COLOURS[seeds["verdict"]] if seeds else None,
    )


def _print_arms(arms: dict) -> None:
    names = {
        key: None  # a dict keeps the order of first appearance
        for arm in arms.values()
        for key, value in arm.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    metrics = [*names][:MAX_METRICS]
    rows = [("arm", "role", *(m.replace("_", " ") for m in metrics))]
    rows += [
        (name, _role(arm), *(_number(arm.get(m)) for m in metrics)) for name, arm in arms.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = [f"{row[0]:<{widths[0]}}", f"{row[1]:<{widths[1]}}"]
        words += [f"{cell:>{w}}" for cell, w in zip(row[2:], widths[2:], strict=True)]
        print("  ".join(words).rstrip())


def _role(arm: dict) -> str:
    return f"{arm['role']}, diverged" if arm.get("diverged") else arm["role"]


def _number(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _folder(slug: str, out: Path | None) -> Path:
    """Make and return the folder of a new run."""
    if out is not None:
        if (writable(out) / "record.json").exists():
            raise UsageError(f"folder {str(out)!r} holds a run already: choose another --out")
        return out.resolve()
    stamp = runs_root().resolve() / slug / datetime.now().strftime("%Y%m%d-%H%M%S")
    writable(stamp.parent)
    k = 1
    while True:
        folder = stamp if k == 1 else stamp.with_name(f"{stamp.name}-{k}")
        try:
            folder.mkdir()
        except FileExistsError:
            k += 1
        else:
            return folder


@contextmanager
def _progress(slug: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function of (cells begun, cells in all, section): a bar, or a line for each section."""
    if not sys.stdout.isatty():
        yield _Lines(slug)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(slug), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), transient=True) as bar:
        task = bar.add_task("starting the kernel", total=None)
        yield lambda begun, total, section: bar.update(
            task, completed=begun - 1, total=total, description=section
        )


class _Lines:
    def __init__(self, slug: str):
        self.section = None
        self.start = time.perf_counter()
        print(f"{slug}: starting the kernel", flush=True)

    def __call__(self, begun: int, total: int, section: str) -> None:
        if section != self.section:
            self.section = section
            seconds = time.perf_counter() - self.start
            print(f"{seconds:5.0f} s  cell {begun:>2} of {total}  {section}", flush=True)
