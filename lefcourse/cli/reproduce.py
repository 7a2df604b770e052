"""`lefcourse reproduce`: measure the course's published numbers."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.chapter.sources import source_sha256
from lefcourse.cli import sweep as shared
from lefcourse.cli.common import Device, Param, Request, readable, request, written
from lefcourse.errors import UsageError
from lefcourse.files import writable, write_json
from lefcourse.ledger import results
from lefcourse.ledger.confirm import compare
from lefcourse.paths import RESULTS, measured_root, runs_root
from lefcourse.sweep.grid import DONE, Cell, Sweep, parse_seeds

SEEDS = "5-9"


def command(
    chapters: Annotated[
        list[str] | None, typer.Argument(metavar="[CHAPTER...]", help="[default: all written ones]")
    ] = None,
    param: Param = None,
    variant: Annotated[
        str, typer.Option(metavar="NAME", help="Name of a further result, measured with other -p.")
    ] = "",
    seeds: shared.Seeds = SEEDS,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Only results that are absent or older than their chapter."),
    ] = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm", help="Run one recorded seed again: did the numbers move since then?"
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to [default: assets/results in a checkout, else results in the runs folder]",
        ),
    ] = None,
    jobs: shared.Jobs = None,
    threads: shared.Threads = None,
    scheduler: shared.Scheduler = None,
    budget: Annotated[
        str, typer.Option(metavar="BUDGET", help="smoke, standard or full.")
    ] = "standard",
    device: Device = None,
) -> None:
    """Run chapters over seeds, with every arm they know, and record what they measure.

    The result of a chapter goes to CHAPTER.json in assets/results (of a checkout; else to results in the runs folder, and
    what came with the package stays as it is): the record of each seed, and mean and
    95 % interval of every metric and claim. If a run fails, nothing is recorded. The runs are kept in
    reproduce in the runs folder; the same command again runs only what is missing, has failed, or was made before
    the chapter changed. With --jobs 1 the recorded times are those of a machine with nothing else to do.

    After a change, --confirm runs the first recorded seed of each result again, with every arm. If all numbers are equal (on the
    processor that they were recorded on) or have moved by no more than the recorded seeds differ (on another one), the result is
    stamped as confirmed and counts as up to date; otherwise those that moved are named and it stays stale.

    \b
    Examples:
      lefcourse reproduce                   all chapters
      lefcourse reproduce --stale           those that changed since they were recorded
      lefcourse reproduce elr --jobs 1      one, with honest times
      lefcourse reproduce elr --variant mnist -p dataset mnist
      lefcourse reproduce --stale --confirm see whether what changed changed a number
    """
    out = out or measured_root()
    if confirm:
        if param or seeds != SEEDS:
            raise UsageError("--confirm runs what is recorded: give it no -p and no --seeds")
        with shared.told() as code:
            code.append(_confirm(chapters, variant, stale, out, device, jobs, threads, scheduler))
        raise typer.Exit(code[-1])
    slugs = chapters or [c.slug for c in catalogue.chapters() if c.exists]
    asked = [request(slug, _with_all_arms(slug, param or []), budget, device) for slug in slugs]
    _check(asked, variant, param, out)
    plans = [_Plan(a, variant, param or [], parse_seeds(seeds), seeds, out) for a in asked]
    if stale:
        plans = [plan for plan in plans if plan.outdated()]
    if not plans:
        print("every result is up to date")
        return
    for folder in (out, runs_root() / "reproduce"):
        writable(folder)
    with shared.told() as code:
        code.append(_run(plans, jobs, threads, scheduler))
    raise typer.Exit(code[-1])


def _with_all_arms(slug: str, given: list[str]) -> list[str]:
    path = catalogue.get(slug).path
    if not path.exists() or "arms" not in params.read(path):
        return given
    return ["arms=all", *given]  # what is given comes later, and wins


def _check(asked: Sequence[Request], variant: str, param: list[str] | None, out: Path) -> None:
    if bool(variant) != bool(param):
        raise UsageError(
            "--variant NAME and -p go together: the main result has the chapter's own parameters"
        )
    if variant and not re.fullmatch(r"[a-z0-9][a-z0-9-]*", variant):
        raise UsageError(f"variant {variant!r}: write it in lower-case letters, digits and hyphens")
    names = {f"{a.chapter.slug}-{variant}" for a in asked}
    if taken := names & {c.slug for c in catalogue.chapters()}:
        raise UsageError(f"{taken.pop()!r} is a chapter: choose another --variant")
    if asked and asked[0].budget == "smoke" and out.resolve() == measured_root().resolve():
        raise UsageError(f"the smoke budget measures nothing: give another --out than {out}")


@dataclass
class _Plan:
    """One result: a chapter's runs, and the file that they end in."""

    asked: Request
    variant: str
    given: list[str]
    seeds: list[int]
    seeds_text: str
    out: Path

    def __post_init__(self):
        self.slug = self.asked.chapter.slug
        self.path = results.path_of(self.slug, self.variant, self.out)
        grid = {name: [value] for name, value in self.asked.parameters.items()}
        folder = (runs_root() / "reproduce" / self.path.stem).resolve()
        self.cells = Sweep(
            self.asked.chapter, grid, self.seeds, self.asked.budget, self.asked.device, folder
        ).cells()
        self.source = source_sha256(self.slug)

    def outdated(self) -> bool:
        recorded = results.read(_known(self.path))
        return recorded is None or results.stale(self.slug, recorded)

    def missing(self) -> set[Path]:
        return {cell.folder for cell in self.cells if cell.state(self.source) != DONE}

    def command(self) -> str:
        words = ["lefcourse", "reproduce", self.slug]
        words += ["--variant", self.variant] if self.variant else []
        words += [word for text in self.given for word in ("-p", *text.split("=", 1))]
        usual = {"--seeds": SEEDS, "--budget": "standard", "--device": "auto"}
        is_now = {
            "--seeds": self.seeds_text,
            "--budget": self.asked.budget,
            "--device": self.asked.device,
        }
        words += [
            w for name, value in is_now.items() if value != usual[name] for w in (name, value)
        ]
        return shlex.join(words)

    def write(self) -> None:
        """Write the result, if every run is done; otherwise say that it stays as it was."""
        if missing := self.missing():
            print(
                f"{self.path.stem}: not recorded, {len(missing)} of {len(self.cells)} runs are not done",
                file=sys.stderr,
            )
            return
        made = {"chapter": self.slug, "command": self.command(), "made": date.today().isoformat()}
        content = made | results.summarise([cell.record() for cell in self.cells])
        write_json(self.path, content)
        claims = content["summary"]["claims"]
        verdicts = results.count(claims)
        gap = results.span(content["summary"]["gap_closed"], 2)
        print(
            f"{self.path.stem}: {verdicts}; gap closed {gap}; {readable(self.path.resolve())}",
            flush=True,
        )


def _known(path: Path) -> Path:
    """Return where the result that `path` replaces is read: there, or among those that came with the package."""
    shipped = RESULTS / path.name
    ours = path.parent.resolve() == measured_root().resolve()
    return shipped if ours and not path.exists() and shipped.exists() else path


def _run(
    plans: Sequence[_Plan], jobs: int | None, threads: int | None, scheduler: str | None
) -> int:
    """Run everything in one queue, and write each result as soon as its last run has ended."""
    left = {plan.path: plan.missing() for plan in plans}
    plan_of = {cell.folder: plan for plan in plans for cell in plan.cells}

    def ended(end) -> None:
        plan = plan_of[end.cell.folder]
        left[plan.path].discard(end.cell.folder)
        if not left[plan.path]:
            plan.write()

    for plan in plans:
        if not left[plan.path]:
            plan.write()
    cells = [cell for plan in plans for cell in plan.cells]
    return shared.run(cells, jobs, threads, scheduler, ended)


# --- did the numbers move? -----------------------------------------------------------------------


def _confirm(chapters, variant, stale, out, device, jobs, threads, scheduler) -> int:
    """Run one seed of each recorded result again, stamp those whose numbers stand, and name what moved."""
    found = list(_recorded(chapters, variant, out))
    if stale:
        found = [(slug, path) for slug, path in found if results.stale(slug, results.read(path))]
    if not found:
        print("nothing to confirm: every result is up to date" if stale else "nothing is recorded")
        return 0
    plan_of = {}
    for slug, path in found:
        recorded = results.read(path)
        plan_of[path] = _again(slug, recorded, device or recorded["runs"][0]["device"])
    code = shared.run([*plan_of.values()], jobs, threads, scheduler)
    for path, cell in plan_of.items():
        code |= _judge(path, cell, out / path.name)
    return code


def _recorded(chapters: list[str] | None, variant: str, out: Path):
    """Yield slug and file of each result that is there: the variant that is named, or all of them."""
    folders = [out, RESULTS] if out == measured_root() else [out]
    for slug in chapters or [c.slug for c in catalogue.chapters() if c.exists]:
        written(slug)
        there = [name for folder in folders for name in results.variants(slug, folder)]
        names = [variant] if variant else dict.fromkeys(there)
        paths = [_known(results.path_of(slug, name, out)) for name in names]
        if chapters and not [path for path in paths if path.exists()]:
            raise UsageError(
                f"{slug}: nothing is recorded{f' as {variant!r}' if variant else ''} that could be confirmed"
            )
        yield from ((slug, path) for path in paths if path.exists())


def _again(slug: str, recorded: Mapping, device: str) -> Cell:
    """Return the run that repeats the first recorded seed of a result: by its own command, on the same device."""
    words = shlex.split(recorded["command"])
    given = [f"{words[k + 1]}={words[k + 2]}" for k, word in enumerate(words) if word == "-p"]
    first = recorded["runs"][0]
    asked = request(slug, _with_all_arms(slug, given), first["budget"], device)
    grid = {name: [value] for name, value in asked.parameters.items()}
    folder = (runs_root() / "confirm" / slug).resolve()
    (cell,) = Sweep(asked.chapter, grid, [first["seed"]], asked.budget, device, folder).cells()
    return cell


def _judge(path: Path, cell: Cell, stamped: Path) -> int:
    """Compare a run with the result recorded in `path`; write that with a stamp to `stamped` if the numbers stand."""
    recorded, now = results.read(path), cell.record()
    if cell.state(source_sha256(cell.chapter.slug)) != DONE:
        print(f"{path.stem}: not confirmed, its run is not done", file=sys.stderr)
        return 1
    found = compare(recorded["runs"], now)
    if found.moved:
        print(
            f"{path.stem}: not confirmed, {len(found.moved)} of {found.compared} numbers moved at seed {now['seed']}"
        )
        print("\n".join(f"  {line}" for line in found.moved))
        return 1
    recorded["confirmed"] = {
        "date": date.today().isoformat(),
        "seed": now["seed"],
        "processor": now.get("processor"),
        "compared": found.compared,
        "how": found.how,
        "source_sha256": now["source_sha256"],
    }
    write_json(stamped, recorded)
    print(f"{path.stem}: confirmed, {found.compared} numbers of seed {now['seed']} {found.how}")
    return 0
