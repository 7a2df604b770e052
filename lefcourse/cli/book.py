"""`lefcourse book`: execute what changed and build the site."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lefcourse.cli.common import Budget, need_checkout, readable
from lefcourse.errors import UsageError, choice
from lefcourse.files import writable
from lefcourse.paths import ROOT
from lefcourse.settings import BUDGETS

SITE = ROOT / "book" / "_build" / "html"


def command(
    budget: Budget = None,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Chapters executed at a time [default: cores / 2]"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Where to [default: book/_build/html]", show_default=False
        ),
    ] = SITE,
) -> None:
    """Execute the chapters that changed and build the site.

    A chapter is executed if its notebook, the package, its recorded results or the budget changed since its last
    executed copy (kept in book/_build/executed); the others are reused. Then the pages are built into static HTML
    that needs neither a kernel nor a network. Warnings are errors, and links that lead nowhere are named. If a
    chapter fails, it is named, everything else is built, and the exit code is 1. This needs a checkout of the course.

    \b
    Examples:
      lefcourse book
      lefcourse book --budget smoke --out try   # seconds a chapter: does everything build?
      python -m http.server -d book/_build/html # read it at http://localhost:8000
    """
    need_checkout("book")
    budget = choice("budget", budget or os.environ.get("LEFCOURSE_BUDGET") or "standard", BUDGETS)
    if out.is_dir() and any(out.iterdir()) and not (out / "searchindex.js").exists():
        raise UsageError(
            f"folder {str(out)!r} holds something else than a book: choose another --out"
        )
    raise typer.Exit(_build(budget, jobs, writable(out).resolve()))


def _build(budget: str, jobs: int | None, out: Path) -> int:
    from lefcourse.book import build  # imports papermill

    with _Display() as display:
        try:
            built = build(budget, out, jobs, display)
        except KeyboardInterrupt:
            print("interrupted; the same command continues", file=sys.stderr)
            return 130
    for problem in built.problems:
        print(problem, file=sys.stderr)
    if not built.problems:
        print(f"{built.pages} pages, {built.megabytes:.1f} MB: {readable(out / 'index.html')}")
    return 1 if built.problems else 0


class _Display:
    """A bar for each chapter that is being executed on a terminal; a line for each that has ended."""

    def __enter__(self) -> "_Display":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.fields[slug]}"), BarColumn(), MofNCompleteColumn())
        self.bars = Progress(
            *columns,
            TextColumn("{task.description}"),
            transient=True,
            console=Console(highlight=False, soft_wrap=True),
            disable=not sys.stdout.isatty(),
        )
        self.bars.start()
        self.tasks = {}
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def say(self, line: str) -> None:
        self.bars.console.print(line) if sys.stdout.isatty() else print(line, flush=True)

    def watch(self, chapter) -> Callable[[int, int, str], None]:
        task = self.bars.add_task("starting the kernel", total=None, slug=chapter.slug)
        self.tasks[chapter.slug] = task
        return lambda begun, total, section: self.bars.update(
            task, completed=begun - 1, total=total, description=section
        )

    def ended(self, copy) -> None:
        if copy.chapter.slug in self.tasks:
            self.bars.remove_task(self.tasks.pop(copy.chapter.slug))
        if copy.fresh:
            how = f"failed in {copy.error}" if copy.error else "executed"
            self.say(f"{copy.chapter.slug}: {how}, {copy.record['wall_s']:.0f} s")
