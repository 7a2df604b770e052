"""`lefcourse tune`: try the settings that a chapter declares, and record the choice."""

import os
import sys
from datetime import date
from typing import Annotated

import typer

from lefcourse.chapter import notebook
from lefcourse.cli import sweep as shared
from lefcourse.cli.common import ChapterName, need_checkout, request
from lefcourse.errors import UsageError
from lefcourse.files import write_json
from lefcourse.ledger import tuning
from lefcourse.paths import runs_root
from lefcourse.sweep.grid import DONE, Sweep, parse_seeds


def command(
    chapter: ChapterName,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", help="A range 0-4 or a list 0,2.")
    ] = tuning.SEEDS,
    jobs: shared.Jobs = None,
    threads: shared.Threads = None,
) -> None:
    """Try the settings that a chapter declares for its arms, on seeds that no result is recorded on.

    A chapter declares them in cells tagged `tune`, by run.tune. Each setting is scored on validation samples; the best
    mean over the seeds is the choice. Settings, scores and choice go to assets/tuning/CHAPTER.json, and the chapter's
    page shows them. Where the chapter takes another setting than the best it must say why; a test compares the two.
    This needs a checkout of the course.

    \b
    Example:
      lefcourse tune elr
    """
    need_checkout("tune")
    asked = request(chapter, (), "standard", "cpu")
    if not notebook.read(asked.chapter.path).tagged("tune"):
        raise UsageError(f"{chapter} declares no settings to try: it has no cell tagged `tune`")
    numbers = parse_seeds(seeds)
    folder = (runs_root() / "tune" / chapter).resolve()
    cells = Sweep(asked.chapter, {}, numbers, "standard", "cpu", folder).cells()
    os.environ["LEFCOURSE_TUNE"] = "1"
    with shared.told() as code:
        code.append(shared.run(cells, jobs, threads, None))
        records = [cell.record() or {} for cell in cells]
        if any(record.get("status") != DONE for record in records):
            print(f"{chapter}: nothing is recorded, not every run is done", file=sys.stderr)
            raise typer.Exit(code[-1] or 1)
        path = tuning.FOLDER / f"{chapter}.json"
        path.parent.mkdir(exist_ok=True)
        content = {
            "chapter": chapter,
            "command": f"lefcourse tune {chapter}"
            + (f" --seeds {seeds}" if seeds != tuning.SEEDS else ""),
            "made": date.today().isoformat(),
            "processor": records[0]["processor"],
            "seeds": numbers,
            "minutes": round(sum(record["wall_s"] for record in records) / 60, 1),
            "arms": tuning.summarise(records),
        }
        write_json(path, content)
        for name, arm in content["arms"].items():
            ours = records[0]["tuning"][name]["chapter"]
            same = arm["chosen"] == ours
            takes = "as in the chapter" if same else f"the chapter takes {tuning.words(ours)}"
            print(f"{name}: {tuning.words(arm['chosen'])}, {takes}")
    raise typer.Exit(code[-1])
