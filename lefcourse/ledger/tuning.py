"""What was tried when a chapter's settings were chosen: on which seeds, with which scores, and the choice."""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence

from lefcourse.errors import UsageError
from lefcourse.paths import ASSETS

FOLDER = ASSETS / "tuning"
SEEDS = "0-4"  # never among those that results are recorded on
MOST = 12  # settings of an arm


def settings(arm: str, grid: Mapping[str, Sequence]) -> list[dict]:
    """Return the product of `grid` {name: values}. Raises UsageError for none, or more than a chapter may try."""
    every = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    if not grid or not every:
        raise UsageError(f"the grid of {arm!r} is empty: give it name=[values]")
    if len(every) > MOST:
        raise UsageError(f"{len(every)} settings of {arm!r}: at most {MOST} are tried")
    return every


def load(slug: str) -> dict | None:
    """Return what is recorded of a chapter's choices, None if nothing is."""
    path = FOLDER / f"{slug}.json"
    return json.loads(path.read_text()) if path.exists() else None


def summarise(records: Sequence[Mapping]) -> dict[str, dict]:
    """Join the `tuning` of several seeds' records: for each arm its settings with their scores, and the best mean.

    Of equal means the setting that was listed first is chosen. A score that is not finite (None) never wins.
    """
    arms = {}
    for name, first in records[0]["tuning"].items():
        rows = []
        for k, tried in enumerate(first["tried"]):
            scores = [record["tuning"][name]["tried"][k]["score"] for record in records]
            mean = None if None in scores else statistics.fmean(scores)
            rows.append({"setting": tried["setting"], "scores": scores, "mean": mean})
        best = max(rows, key=lambda row: -float("inf") if row["mean"] is None else row["mean"])
        arms[name] = {
            "metric": first["metric"],
            "val": first["val"],
            "settings": rows,
            "chosen": best["setting"],
        }
    return arms


def words(setting: Mapping) -> str:
    """Write a setting as `lam = 3, beta = 0.7`."""
    return ", ".join(
        f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in setting.items()
    )


def told(recorded: Mapping | None, arm: str, chapter: Mapping, why: str) -> str:
    """Say in Markdown what was tried for `arm`, folded, and what the chapter takes: `chapter`, because of `why`."""
    entry = (recorded or {}).get("arms", {}).get(arm)
    if entry is None:
        return f"*{arm}: {words(chapter)}; what was tried is not recorded yet.*"
    rows = "\n".join(
        f"| {words(row['setting'])} | {_number(row['mean'])} | {', '.join(map(_number, row['scores']))} |"
        for row in sorted(entry["settings"], key=lambda row: -(row["mean"] or 0))
    )
    takes = words(chapter)
    if chapter != entry["chosen"]:
        takes += f", not the best ({words(entry['chosen'])}): {why}"
    seeds = recorded["seeds"]
    head = (
        f"<b>{arm}</b>: {len(entry['settings'])} settings tried on seeds {seeds[0]} to {seeds[-1]} "
        f"with {entry['val']:,} validation samples; taken: {takes}"
    )
    return (
        f"<details><summary>{head}</summary>\n\n| setting | {entry['metric']}: mean over seeds | by seed |\n|---|---|---|\n"
        f"{rows}\n\n</details>"
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
