"""What a sweep measured: a tidy table, means with 95 % intervals over seeds, and the plot."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lefcourse.errors import choice
from lefcourse.ledger import results

from .grid import Cell

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

GAP = "gap_closed"
LINES = ("-", "--", ":", "-.")
COLUMNS = 3  # panels in a row


def tidy(cells: Iterable[Cell]) -> pd.DataFrame:
    """Return one row for each finished run, arm and metric: chapter, parameters, seed, arm, role, metric, value.

    `wall_s` and `gap_closed` of the run stand in each of its rows. Metrics that are no single number
    are left out.
    """
    import pandas as pd

    rows = []
    for cell in cells:
        record = cell.record()
        run = {"chapter": record["chapter"], **_flat(cell.parameters)}
        end = {"wall_s": record["wall_s"], GAP: record[GAP]}
        for arm, measured in record["arms"].items():
            named = {"arm": arm, "role": measured["role"]}
            rows += [
                run | named | {"metric": metric, "value": float(value)} | end
                for metric, value in measured.items()
                if results.is_number(value)
            ]
    return pd.DataFrame(rows)


def _flat(parameters: Mapping) -> dict:
    """Write lists and the like as text, so that they fit into a column."""
    plain = bool | int | float | str | None
    return {n: v if isinstance(v, plain) else str(v) for n, v in parameters.items()}


def main_metric(cell: Cell, frame: pd.DataFrame, asked: str | None = None) -> str:
    """Return the metric to show: the one asked for, that of the cell's gap closed, or the method's first."""
    if asked:
        return choice("metric", asked, [*dict.fromkeys(frame["metric"]), GAP])
    if metric := cell.record().get("gap_metric"):
        return metric
    method = frame[frame["role"] == "method"]
    return (frame if method.empty else method)["metric"].iloc[0]


def summary(frame: pd.DataFrame, by: Sequence[str], reference: str | None = None) -> pd.DataFrame:
    """Return mean, 95 % interval and number of seeds for each point of the grid, metric and arm.

    The gap closed is a metric of the method. `difference` and its interval are the arm `reference` (the
    method, if none is named) minus this arm at the same seeds, with `p` of the paired t test.
    """
    import pandas as pd

    gap = frame[(frame["role"] == "method") & frame[GAP].notna()]
    gap = gap.drop_duplicates([*by, "seed", "arm"])
    if len(gap):
        frame = pd.concat([frame, gap.assign(metric=GAP, value=gap[GAP].astype(float))])
    rows = []
    for key, group in frame.groupby([*by, "metric"], sort=False):
        of_reference = group["arm"] == reference if reference else group["role"] == "method"
        best = group[of_reference].set_index("seed")["value"].rename("best")
        for (arm, role), own in group.groupby(["arm", "role"], sort=False):
            row = dict(zip([*by, "metric"], key, strict=True)) | {"arm": arm, "role": role}
            row |= results.interval(own["value"].tolist())
            both = own.set_index("seed")[["value"]].join(best, how="inner")
            if arm not in set(group["arm"][of_reference]) and len(both):
                row |= results.paired(both["best"].tolist(), both["value"].tolist())
            rows.append(row)
    return pd.DataFrame(rows)


def role_looks(table: pd.DataFrame) -> dict[str, dict]:
    """Return colour and line of each arm: the colour is its role's, lines tell arms of one role apart."""
    from lefcourse.page import plot  # imports torch

    lines = {role: itertools.cycle(LINES) for role in plot.ROLE_COLOURS}
    arms = table.drop_duplicates("arm").set_index("arm")["role"]
    return {a: dict(color=plot.ROLE_COLOURS[r], ls=next(lines[r])) for a, r in arms.items()}


def figure(
    table: pd.DataFrame, swept: Sequence[str], metric: str, looks: Mapping[str, Mapping]
) -> Figure:
    """Draw `metric` of each arm against the first swept number, one panel for each value of the others.

    Bands (bars where the values are no numbers) are 95 % intervals over seeds.
    """
    from matplotlib import rc_context

    from lefcourse.page import plot  # imports torch

    with rc_context(plot.STYLE):
        return _figure(table, swept, metric, looks)


def _figure(
    table: pd.DataFrame, swept: Sequence[str], metric: str, looks: Mapping[str, Mapping]
) -> Figure:
    from matplotlib.figure import Figure

    table = table[table["metric"] == metric]
    name, others = _axes(table, swept)
    panels = [*table.groupby(others, sort=False)] if others else [((), table)]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    fig = Figure(figsize=(3.2 + 3.2 * columns, 3.4 * rows))
    axes = fig.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (key, panel) in zip(axes.flat, panels, strict=False):
        draw = _lines if name and table[name].dtype.kind in "if" else _bars
        draw(axis, panel, name, looks)
        axis.set_title(", ".join(f"{n} = {v}" for n, v in zip(others, key, strict=True)))
        axis.set_xlabel((name or "").replace("_", " "))
    for axis in axes[:, 0]:
        axis.set_ylabel(metric.replace("_", " "))
    if name:
        handles, names = axes.flat[0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside right center", fontsize=9)
    return fig


def _axes(table: pd.DataFrame, swept: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the parameter of the x-axis (the first that is a number), and the others."""
    numeric = [n for n in swept if table[n].dtype.kind in "if"]
    first = (numeric or [*swept] or [None])[0]
    return first, [n for n in swept if n != first]


def _lines(axis, panel: pd.DataFrame, name: str, looks: Mapping[str, Mapping]) -> None:
    for arm, own in panel.groupby("arm", sort=False):
        own = own.sort_values(name)
        axis.plot(own[name], own["mean"], marker="o", ms=4, label=arm, **looks[arm])
        low, high = own["low"].astype(float), own["high"].astype(float)
        axis.fill_between(own[name], low, high, color=looks[arm]["color"], alpha=0.15, lw=0)
    values = sorted(panel[name].unique())
    if geometric(values):
        axis.set_xscale("log")
        axis.set_xticks(values)
        axis.minorticks_off()
        axis.xaxis.set_major_formatter("{x:g}")


def _bars(axis, panel: pd.DataFrame, name: str | None, looks: Mapping[str, Mapping]) -> None:
    for arm, own in panel.groupby("arm", sort=False):
        at = [str(value) for value in own[name]] if name else [arm]
        reach = abs(own[["low", "high"]].astype(float).sub(own["mean"], axis=0)).fillna(0)
        look = {"color": looks[arm]["color"], "label": arm, "marker": "o", "ls": "", "capsize": 3}
        axis.errorbar(at, own["mean"], reach.to_numpy().T, **look)
    if not name:
        axis.tick_params(axis="x", rotation=60)


def geometric(values: Sequence) -> bool:
    """Do `values` grow by factors (1, 2, 4, 8) rather than by steps (1, 2, 3, 4)?"""
    if len(values) < 3 or min(values) <= 0:
        return False
    pairs = [*itertools.pairwise(sorted(float(v) for v in values))]
    steps, factors = [b - a for a, b in pairs], [b / a for a, b in pairs]
    return max(factors) / min(factors) < max(steps) / min(steps)


def write(folder: Path, frame: pd.DataFrame, table: pd.DataFrame, fig: Figure) -> list[Path]:
    """Write the tidy table (CSV, Parquet), the summary (CSV) and the plot (PNG, SVG); return the files."""
    files = {
        "sweep.csv": lambda path: frame.to_csv(path, index=False),
        "sweep.parquet": lambda path: frame.to_parquet(path, index=False),
        "summary.csv": lambda path: table.to_csv(path, index=False),
        "sweep.png": lambda path: fig.savefig(path, format="png", dpi=160),
        "sweep.svg": lambda path: fig.savefig(path, format="svg"),
    }
    for file, save in files.items():
        partial = folder / f".{os.getpid()}-{file}"
        save(partial)
        partial.replace(folder / file)  # a reader sees the old file or the new one
    return [folder / file for file in files]
