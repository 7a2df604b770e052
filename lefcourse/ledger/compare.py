"""Compare the methods of several chapters: on the same data, at the same budget, over the same seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lefcourse.catalogue import Chapter
from lefcourse.chapter import params
from lefcourse.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

# What makes the problem: parameters that mean the same in every chapter. The others are a method's own.
PROBLEM = (
    "dataset", "noise", "rate", "labels", "labels_per_class", "train", "val", "test",
    "net", "epochs", "steps",
)  # fmt: skip
ROLES = ("baseline", "method", "oracle")
LINES = {"baseline": ":", "method": "-", "oracle": "--"}


def check(chapters: Sequence[Chapter], names: Iterable[str]) -> None:
    """Raise UsageError unless all chapters pose the same problem and have the parameters `names`."""
    slugs = [c.slug for c in chapters]
    if len(set(slugs)) < 2 or len(set(slugs)) < len(slugs):
        raise UsageError("give two or more different chapters to compare")
    first = chapters[0]
    for other in chapters[1:]:
        if other.task != first.task:
            raise UsageError(
                f"{first.slug} is about {first.task}, {other.slug} about {other.task}: "
                "they have no task in common"
            )
        if not set(other.labels) & set(first.labels):
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


def merge(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put the chapters' tidy tables below each other: baseline, method and oracle of each, named `chapter: arm`."""
    import pandas as pd

    frame = pd.concat(frames.values(), ignore_index=True)
    frame = frame[frame["role"].isin(ROLES)]
    return frame.assign(arm=frame["chapter"] + ": " + frame["arm"])


def looks(table: pd.DataFrame) -> dict[str, dict]:
    """Return colour and line of each arm: a colour for each chapter, a line for each role."""
    from lefcourse.page import plot  # imports torch

    arms = table.drop_duplicates("arm").set_index("arm")["role"]
    slugs = [*dict.fromkeys(arm.split(": ")[0] for arm in arms.index)]
    colours = {slug: plot.PALETTE[k % len(plot.PALETTE)] for k, slug in enumerate(slugs)}
    return {a: dict(color=colours[a.split(": ")[0]], ls=LINES[role]) for a, role in arms.items()}
