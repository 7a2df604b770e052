"""`lefcourse results`: the ledger, every claim with the paper's number and the course's own."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from lefcourse import catalogue
from lefcourse.cli.common import written
from lefcourse.cli.sweep import duration, print_table
from lefcourse.ledger import results

HEADER = (
    "chapter", "claim", "verdict", "measured", "asked", "gap closed",
    "seeds", "time", "device", "state", "the paper",
)  # fmt: skip


def command(
    chapters: Annotated[
        list[str] | None, typer.Argument(metavar="[CHAPTER...]", help="[default: all written ones]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every number.")] = False,
) -> None:
    """Show what the course measured of its papers' claims.

    A row for each claim: the verdict, what was measured (mean and 95 % interval over the seeds), what was asked, how
    much of the gap between baseline and oracle the method closed, the time of a run, and what the paper reports. A
    claim holds where the whole interval lies on the right side of what was asked, fails where it lies on the wrong
    side, and is undecided otherwise. A result is stale when its chapter has changed since; `lefcourse reproduce`
    measures it again, and with --confirm looks whether the numbers moved. Where the course is installed as a package,
    these are the results that came with it.
    """
    entries = results.ledger([written(slug) for slug in chapters or ()] or None)
    if as_json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    rows = [row for entry in entries if entry["state"] != "none" for row in _rows(entry)]
    if rows:
        print_table(HEADER, rows)
    for entry in entries:
        if entry["state"] == "none":
            slug = entry["chapter"]
            print(f"{slug}: nothing is recorded yet; lefcourse reproduce {slug}")
    planned = sum(not c.exists for c in catalogue.chapters())
    if planned and not chapters:
        print(f"{planned} chapters are planned, but not written yet")


def _rows(entry: Mapping) -> Iterator[tuple[str, ...]]:
    variant = f" ({entry['variant']})" if entry["variant"] else ""
    run = (
        results.span(entry["gap_closed"], 2),
        str(len(entry["seeds"])),
        duration(entry["wall_s"]["mean"]),
        entry["device"]
        + ("" if entry["budget"] == "standard" else f", {entry['budget']}")
        + (f", {entry['cuda_peak_mb']:.0f} MiB" if entry["cuda_peak_mb"] else ""),
        entry["state"],
    )
    for claim in entry["claims"]:
        asked = f"{results.SIGNS[claim['relation']]} {claim['threshold']:g}"
        measured = results.span(claim["measured"])
        name = f"{entry['chapter']}{variant}"
        yield name, claim["name"], claim["verdict"], measured, asked, *run, claim["paper"]
