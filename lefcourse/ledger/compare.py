"""Compare the methods of several chapters: on the same data, at the same budget, over the same seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lefcourse.catalogue import Chapter
from lefcourse.chapter import params
from lefcourse.errors import UsageError, choice
from lefcourse.files import write_json
from lefcourse.ledger import results

if TYPE_CHECKING:
    import pandas as pd

# What makes the problem: parameters that mean the same in every chapter. The others are a method's own.
PROBLEM = (
    "dataset", "noise", "rate", "labels", "labels_per_class", "per_class", "known", "lost", "tail", "classes",
    "size", "train", "val", "test", "net", "epochs", "steps",
)  # fmt: skip
ROLES = ("baseline", "method", "oracle")
# A representation is judged by a classifier on it; a method for labels on every example, or on none, can be given few.
TASKS = {"representation": "classification"}
SUITS = {"all": {"all", "few"}, "none": {"none", "few"}}
LINES = {"baseline": ":", "method": "-", "oracle": "--"}


def check(chapters: Sequence[Chapter], names: Iterable[str], also: Sequence[str] = ()) -> None:
    """Raise UsageError unless all chapters pose the same problem and have the parameters `names`.

    One chapter is enough where further arms of it are asked for by name (`also`).
    """
    slugs = [c.slug for c in chapters]
    if len(set(slugs)) < (1 if also else 2) or len(set(slugs)) < len(slugs):
        raise UsageError("give two or more different chapters to compare, or one with --also")
    first = chapters[0]
    for other in chapters[1:]:
        if _task(other) != _task(first):
            raise UsageError(
                f"{first.slug} is about {first.task}, {other.slug} about {other.task}: "
                "they have no task in common"
            )
        if not _suits(other) & _suits(first):
            raise UsageError(
                f"{first.slug} assumes {', '.join(first.labels)} labels, "
                f"{other.slug} {', '.join(other.labels)}: they cannot learn from the same ones"
            )
    specs = {c.slug: params.read(c.path) for c in chapters}
    shared = [n for n in specs[first.slug] if all(n in spec for spec in specs.values())]
    for name in ("dataset", *names):
        if lacking := [slug for slug, spec in specs.items() if name not in spec]:
            raise UsageError(
                f"{lacking[0]} has no parameter {name!r}; in common: {', '.join(shared) or 'none'}"
            )


def _task(chapter: Chapter) -> str:
    return TASKS.get(chapter.task, chapter.task)


def _suits(chapter: Chapter) -> set[str]:
    """The kinds of label that the chapter's method can be given."""
    return set().union(*(SUITS.get(kind, {kind}) for kind in chapter.labels))


def split(slugs: Sequence[str], given: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Separate `name=values`, for all chapters, from `CHAPTER.name=value`, for one: (for all, {slug: its own}).

    Raises UsageError for a chapter that is not compared.
    """
    common, own = [], {slug: [] for slug in slugs}
    for text in given:
        name, _, value = text.partition("=")
        slug, dot, rest = name.partition(".")
        if not dot:
            common.append(text)
            continue
        own[choice("chapter of -p " + name, slug, slugs)].append(f"{rest}={value}")
    return common, own


def settled(chapters: Sequence[Chapter], names: Iterable[str]) -> dict[str, object]:
    """Return the values that make the problem the same for all: the first chapter's defaults.

    Only parameters of the PROBLEM are settled, and only where the chapters' defaults differ and the
    reader has not given one (`names`). Raises UsageError if a chapter cannot take the value.
    """
    specs = [params.read(c.path) for c in chapters]
    values = {
        n: specs[0][n].default
        for n in PROBLEM
        if n not in names
        and all(n in spec for spec in specs)
        and len({repr(spec[n].default) for spec in specs}) > 1
    }
    for spec in specs:
        params.check(spec, values)
    return values


def unsettled(records: Mapping[str, Mapping]) -> list[str]:
    """Return what of the problem is not the same in the records (chapter -> record) of one point and seed."""
    found = []
    for name in PROBLEM:
        values = {slug: record["parameters"].get(name, "none") for slug, record in records.items()}
        if len({repr(value) for value in values.values()}) > 1:
            found.append(f"{name} ({', '.join(f'{slug}: {v}' for slug, v in values.items())})")
    return found


def merge(frames: Mapping[str, pd.DataFrame], also: Sequence[str] = ()) -> pd.DataFrame:
    """Put the chapters' tidy tables below each other: baseline, method and oracle of each, named `chapter: arm`.

    `also` names further arms to keep, written likewise. Raises UsageError for one that no chapter has.
    """
    import pandas as pd

    frame = pd.concat(frames.values(), ignore_index=True)
    frame = frame.assign(arm=frame["chapter"] + ": " + frame["arm"])
    known = [*dict.fromkeys(frame["arm"])]
    for arm in also:
        choice("arm of --also", arm, known)
    return frame[frame["role"].isin(ROLES) | frame["arm"].isin(also)]


def looks(table: pd.DataFrame) -> dict[str, dict]:
    """Return colour and line of each arm: a colour for each chapter, a line for each role."""
    from lefcourse.page import plot  # imports torch

    arms = table.drop_duplicates("arm").set_index("arm")["role"]
    slugs = [*dict.fromkeys(arm.split(": ")[0] for arm in arms.index)]
    colours = {slug: plot.PALETTE[k % len(plot.PALETTE)] for k, slug in enumerate(slugs)}
    return {
        a: dict(color=colours[a.split(": ")[0]], ls=LINES.get(role, "-."))
        for a, role in arms.items()
    }


# --- what is kept for the page of a part -----------------------------------------------------------


def path_of(name: str) -> Path:
    """Return the file of the recorded comparison `name`, beside the chapters' results."""
    return results.path_of("compare", name)


def kept(name: str) -> dict | None:
    """Return the recorded comparison `name`; None where there is none."""
    return results.read(path_of(name))


def keep(
    name: str,
    command: str,
    made: str,
    frame: pd.DataFrame,
    by: str,
    metrics: Sequence[str],
    seconds: Mapping[tuple, float],
    sources: Mapping[str, Mapping],
    fixed: Mapping[str, object] = {},
    also: Sequence[str] = (),
) -> Path:
    """Write a comparison along the parameter `by`: a row for each arm, value of `by` and seed.

    `metrics`: the one that is drawn, then further ones. `seconds`: what training the arm cost, at (arm, value, seed), where the chapter has told it.
    `fixed`: what was the same for all by request; `also`: the arms that were asked for by name.
    """
    rows: dict[tuple, dict] = {}
    for r in frame[frame["metric"].isin(metrics)].to_dict("records"):
        key = r["arm"], r[by], r["seed"]
        new = {"arm": r["arm"], "role": r["role"], by: r[by], "seed": r["seed"]}
        rows.setdefault(key, new | {"seconds": seconds.get(key)})[r["metric"]] = r["value"]
    kept = {"command": command, "made": made, "by": by, "metric": metrics[0]}
    kept |= {"further": [*metrics[1:]], "rows": [*rows.values()]}
    path = path_of(name)
    kept |= {"fixed": dict(fixed), "also": list(also), "source_sha256": dict(sources)}
    write_json(path, kept)
    return path


def at(record: Mapping, arm: str, value: object) -> dict[int, Mapping]:
    """Return the rows of one arm at one value of the parameter, by seed."""
    by = record["by"]
    return {r["seed"]: r for r in record["rows"] if r["arm"] == arm and r[by] == value}


def values(record: Mapping) -> list:
    """Return the values of the parameter that is compared along, in order."""
    return sorted({r[record["by"]] for r in record["rows"]})


def roles(record: Mapping) -> dict[str, str]:
    """Return the role of each arm, in the order of the chapters."""
    return {r["arm"]: r["role"] for r in record["rows"]}


def arms(record: Mapping) -> list[str]:
    """Return the arms in the order of the chapters."""
    return [*roles(record)]


def mean(record: Mapping, arm: str, value: object, key: str | None = None) -> dict:
    """Return mean and 95 % interval over the seeds of the metric (or of another column, such as `seconds`)."""
    rows = at(record, arm, value).values()
    return results.interval([r.get(key or record["metric"]) for r in rows])


def difference(record: Mapping, first: str, second: str, value: object) -> dict:
    """Return mean and 95 % interval of first minus second, seed by seed."""
    metric, a, b = record["metric"], at(record, first, value), at(record, second, value)
    return results.interval([a[s][metric] - b[s][metric] for s in sorted(a.keys() & b.keys())])
