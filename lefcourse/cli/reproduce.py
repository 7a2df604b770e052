"""`lefcourse reproduce`: measure the course's published numbers."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.chapter.sources import source_sha256
from lefcourse.cli import sweep as shared
from lefcourse.cli.common import Device, Param, Request, readable, request
from lefcourse.errors import UsageError
from lefcourse.files import writable, write_json
from lefcourse.ledger import results
from lefcourse.paths import RESULTS, runs_root
from lefcourse.sweep.grid import DONE, Sweep, parse_seeds

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
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where to [default: assets/results]", show_default=False),
    ] = RESULTS,
    jobs: shared.Jobs = None,
    threads: shared.Threads = None,
    scheduler: shared.Scheduler = None,
    budget: Annotated[
        str, typer.Option(metavar="BUDGET", help="smoke, standard or full.")
    ] = "standard",
    device: Device = None,
) -> None:
    """Run chapters over seeds, with every arm they know, and record what they measure.

    The result of a chapter goes to assets/results/CHAPTER.json: the record of each seed, and mean and
    95 % interval of every metric and claim. If a run fails, nothing is recorded. The runs are kept in
    runs/reproduce; the same command again runs only what is missing, has failed, or was made before
    the chapter changed. With --jobs 1 the recorded times are those of a machine with nothing else to do.

    \b
    Examples:
      lefcourse reproduce                   all chapters
      lefcourse reproduce --stale           those that changed since they were recorded
      lefcourse reproduce elr --jobs 1      one, with honest times
      lefcourse reproduce elr --variant mnist -p dataset mnist
    """
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
    if asked and asked[0].budget == "smoke" and out.resolve() == RESULTS.resolve():
        raise UsageError(
            "the smoke budget measures nothing: give another --out than assets/results"
        )


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
        recorded = results.read(self.path)
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
        hold = sum(claim["verdict"] == "holds" for claim in claims)
        gap = results.span(content["summary"]["gap_closed"], 2)
        print(
            f"{self.path.stem}: {hold} of {len(claims)} claims hold, gap closed {gap}; "
            f"{readable(self.path.resolve())}",
            flush=True,
        )


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
