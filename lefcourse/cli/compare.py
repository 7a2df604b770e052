"""`lefcourse compare`: the methods of several chapters on the same data, budget and seeds."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lefcourse.cli import sweep as shared
from lefcourse.cli.common import Budget, Device, readable, written
from lefcourse.errors import UsageError
from lefcourse.ledger import compare
from lefcourse.paths import runs_root
from lefcourse.sweep import grid as grids
from lefcourse.sweep.grid import Sweep


def command(
    chapters: Annotated[
        list[str], typer.Argument(metavar="CHAPTER CHAPTER...", help="Two or more, of one task.")
    ],
    param: shared.Grid = None,
    seeds: shared.Seeds = "5-9",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to [default: a folder in compare in the runs folder]"
        ),
    ] = None,
    jobs: shared.Jobs = None,
    threads: shared.Threads = None,
    scheduler: shared.Scheduler = None,
    budget: Budget = None,
    device: Device = None,
    metric: shared.Metric = None,
) -> None:
    """Compare the methods of several chapters on the same data, budget and seeds.

    Each chapter is swept over the same values of -p and the same seeds; then baseline, method and oracle of all
    of them stand in one table and one plot, and each is compared with the first chapter's method, seed by seed.
    Where the chapters' defaults for data or budget differ, the first chapter's are taken for all. A method keeps its
    own settings (its learning rate, its weights).

    \b
    Examples:
      lefcourse compare elr ANOTHER -p rate 0.2,0.4,0.6   # a chapter about the same labels and task
      lefcourse compare elr ANOTHER -p dataset mnist --seeds 0-4
    """
    seed_list = grids.parse_seeds(seeds)
    known = [written(slug) for slug in chapters]
    names = [text.partition("=")[0] for text in param or []]
    compare.check(known, [n for n in names if n != "seed"])
    settled = compare.settled(known, names)
    fixed = {name: [value] for name, value in settled.items()}
    parsed = [shared.parse(slug, param or [], budget, device) for slug in chapters]
    grid, asked = parsed[0]
    manifest = Sweep(
        known[0], fixed | grid, seed_list, asked.budget, asked.device, Path()
    ).manifest()
    manifest["chapter"] = "+".join(chapters)
    name = f"{manifest['chapter']}-{grids.fingerprint(manifest)}"
    folder = (out or runs_root() / "compare" / name).resolve()
    made = [
        Sweep(c, fixed | g, seed_list, a.budget, a.device, folder / c.slug)
        for c, (g, a) in zip(known, parsed, strict=True)
    ]
    with shared.told() as code:
        grids.claim(folder, manifest)
        cells = [cell for sweep in made for cell in sweep.cells()]
        print(f"{len(cells)} runs in {readable(folder)}", flush=True)
        if settled:
            print("the same for all: " + ", ".join(f"{n}={v}" for n, v in settled.items()))
        code.append(shared.run(cells, jobs, threads, scheduler))
        _report(folder, made, metric)
    raise typer.Exit(code[-1])


def _report(folder: Path, made: list[Sweep], metric: str | None) -> None:
    from lefcourse.sweep import report

    done = {sweep.chapter.slug: shared.finished(sweep) for sweep in made}
    frames = {slug: report.tidy(cells) for slug, cells in done.items()}
    if empty := [slug for slug, frame in frames.items() if frame.empty]:
        raise grids.SweepError(f"{empty[0]} has no finished run: nothing to compare")
    metrics = {s: report.main_metric(c[0], frames[s], metric) for s, c in done.items()}
    if len(set(metrics.values())) > 1:
        named = ", ".join(f"{slug}: {m}" for slug, m in metrics.items())
        raise UsageError(
            f"the chapters measure different things ({named}): choose one with --metric"
        )
    shown = metrics[made[0].chapter.slug]
    if differs := compare.unsettled({slug: cells[0].record() for slug, cells in done.items()}):
        print(f"not the same for all: {'; '.join(differs)}", file=sys.stderr)
    frame = compare.merge(frames)
    first = frame[(frame["chapter"] == made[0].chapter.slug) & (frame["role"] == "method")]["arm"]
    table = report.summary(frame, [*made[0].grid], reference=first.iloc[0])
    fig = report.figure(table, made[0].swept, shown, compare.looks(table))
    files = report.write(folder, frame, table, fig)
    shared.print_summary(table, made[0].swept, shown, first.iloc[0])
    print("\n" + "\n".join(str(readable(path)) for path in files))
