"""`lefcourse compare`: the methods of several chapters on the same data, budget and seeds."""

import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from lefcourse.chapter.sources import source_sha256
from lefcourse.cli import sweep as shared
from lefcourse.cli.common import Budget, Device, readable, written
from lefcourse.errors import UsageError
from lefcourse.ledger import compare
from lefcourse.paths import runs_root
from lefcourse.sweep import grid as grids
from lefcourse.sweep.grid import Sweep


def command(
    chapters: Annotated[
        list[str],
        typer.Argument(
            metavar="CHAPTER CHAPTER...", help="Two or more, of one task; or one with --also."
        ),
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
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to show [default: the metric of the gap closed]; repeat to keep more.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="'CHAPTER: ARM'", help="A further arm to show; repeat for more."),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keep the result in assets/results/compare-NAME.json."),
    ] = None,
) -> None:
    """Compare the methods of several chapters on the same data, budget and seeds.

    Each chapter is swept over the same values of -p and the same seeds; then baseline, method and oracle of all
    of them stand in one table and one plot, and each is compared with the first chapter's method, seed by seed.
    Where the chapters' defaults for data or budget differ, the first chapter's are taken for all. A method keeps its
    own settings (its learning rate, its weights); -p CHAPTER.NAME VALUE changes one of them for one chapter.

    \b
    Examples:
      lefcourse compare elr ANOTHER -p rate 0.2,0.4,0.6   # a chapter about the same labels and task
      lefcourse compare elr ANOTHER -p dataset mnist --seeds 0-4
      lefcourse compare uda shrinkmatch -p per_class 1,2,5 -p shrinkmatch.width 8 --also 'uda: FixMatch'
    """
    seed_list = grids.parse_seeds(seeds)
    known = [written(slug) for slug in chapters]
    common, own = compare.split(chapters, param or [])
    names = [text.partition("=")[0] for text in common]
    compare.check(known, [n for n in names if n != "seed"], also or [])
    taken = {text.partition("=")[0] for texts in own.values() for text in texts}
    settled = compare.settled(known, {*names, *taken})
    fixed = {name: [value] for name, value in settled.items()}
    parsed = [shared.parse(slug, [*common, *own[slug]], budget, device) for slug in chapters]
    for slug, (values, _) in zip(chapters, parsed, strict=True):
        if several := [n for n, v in values.items() if n not in names and len(v) > 1]:
            raise UsageError(f"-p {slug}.{several[0]} takes one value: only what all have is swept")
    asked = parsed[0][1]
    grid = {n: v for n, v in parsed[0][0].items() if n in names}
    if record and (len(swept := [n for n, v in grid.items() if len(v) > 1]) != 1):
        raise UsageError(f"--record keeps a comparison along one parameter, not {len(swept)}")
    manifest = Sweep(
        known[0], fixed | grid, seed_list, asked.budget, asked.device, Path()
    ).manifest()
    manifest["chapter"] = "+".join(chapters)
    if any(own.values()):
        manifest["own"] = own
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
        asked_first = metric[0] if metric else None
        frame, shown = _report(folder, made, [*fixed, *grid], asked_first, also or [])
        if record and not code[-1]:
            by = next(n for n, v in grid.items() if len(v) > 1)
            words = [*chapters, *(w for p in param or [] for w in ("-p", *p.split("=", 1)))]
            words += [w for name in metric or [] for w in ("--metric", name)]
            words += ["--seeds", seeds, *(w for arm in also or [] for w in ("--also", arm))]
            command = shlex.join(["lefcourse", "compare", *words, "--record", record])
            same = {n: v[0] for n, v in grid.items() if n != by}
            metrics = [shown, *(metric or [])[1:]]
            _keep(record, command, made, frame, by, metrics, same, also or [])
    raise typer.Exit(code[-1])


def _keep(name, command, made: list[Sweep], frame, by, metrics, fixed, also) -> None:
    """Write the comparison for the book, with what each arm cost."""
    seconds = {
        (f"{sweep.chapter.slug}: {arm}", cell.parameters[by], cell.seed): sum(parts.values())
        for sweep in made
        for cell in shared.finished(sweep)
        for arm, parts in cell.record().get("seconds", {}).items()
    }
    sources = {sweep.chapter.slug: source_sha256(sweep.chapter.slug) for sweep in made}
    today = date.today().isoformat()
    path = compare.keep(name, command, today, frame, by, metrics, seconds, sources, fixed, also)
    print(readable(path))


def _report(folder: Path, made: list[Sweep], by: list[str], metric: str | None, also: list[str]):
    """Write and print table and plot; return the merged table and the metric shown."""
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
    frame = compare.merge(frames, also)
    first = frame[(frame["chapter"] == made[0].chapter.slug) & (frame["role"] == "method")]["arm"]
    table = report.summary(frame, by, reference=first.iloc[0])
    swept = [name for name in made[0].swept if name in by]
    fig = report.figure(table, swept, shown, compare.looks(table))
    files = report.write(folder, frame, table, fig)
    shared.print_summary(table, swept, shown, first.iloc[0])
    print("\n" + "\n".join(str(readable(path)) for path in files))
    return frame, shown
