"""Pictures of what was measured, as SVG that follows the theme: gap closed, claims by verdict, comparisons over a parameter."""

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from lefcourse.ledger import results
from lefcourse.ledger.statistics import VERDICTS
from lefcourse.palette import PALETTE

# A second round of colours is dashed; yellow is too pale for a line on white.
COLOURS = PALETTE[:7]
DASHES = ("none", "6 4", "2 3")
ROW, TOP, NAMES, PLOT, RIGHT = 26, 34, 170, 470, 90  # pixels


def gaps(rows: Sequence[tuple[str, Mapping]]) -> str:
    """Draw the gap closed of each chapter (name, summary): its mean with the 95 % interval, between 0 and 1."""
    rows = [(name, gap) for name, gap in rows if gap["mean"] is not None]
    if not rows:
        return ""
    ends = [v for _, gap in rows for v in (gap["mean"], gap["low"], gap["high"]) if v is not None]
    low, high = max(min(-0.1, *ends), -0.6), min(max(1.1, *ends), 1.6)

    def x(value: float) -> float:
        return NAMES + PLOT * (min(max(value, low), high) - low) / (high - low)

    height = TOP + ROW * len(rows)
    marks = [
        f'<line class="lef-mark" x1="{x(v):.1f}" y1="{TOP - 8}" x2="{x(v):.1f}" y2="{height}"/>'
        f'<text x="{x(v):.1f}" y="{TOP - 14}" text-anchor="middle">{words}</text>'
        for v, words in ((0, "0: the baseline"), (1, "1: the oracle"))
    ]
    for k, (name, gap) in enumerate(rows):
        y = TOP + ROW * (k + 0.5)
        marks.append(_name(name, y))
        if gap["low"] is not None:
            marks.append(
                f'<line class="lef-reach" x1="{x(gap["low"]):.1f}" y1="{y}" x2="{x(gap["high"]):.1f}" y2="{y}"/>'
            )
        marks.append(f'<circle class="lef-mean" cx="{x(gap["mean"]):.1f}" cy="{y}" r="5"/>')
        marks.append(f'<text x="{NAMES + PLOT + 12}" y="{y + 4}">{gap["mean"]:.2f}</text>')
    said = "; ".join(f"{name} {results.span(gap, 2)}" for name, gap in rows)
    caption = (
        "Gap closed by each method: 0 is what the same network does with the labels given, 1 what it does with all clean "
        "labels. Dots are means over the recorded seeds, bars 95 % intervals."
    )
    return _figure("".join(marks), height, f"Gap closed, mean and 95 % interval: {said}.", caption)


def curves(
    xs: Sequence[float], series: Mapping[str, Sequence[Mapping]], xlabel: str, ylabel: str
) -> str:
    """Draw one line for each name in `series`: a mean with its 95 % interval at each of `xs` (a logarithmic axis where they span a factor of eight)."""
    below = max(map(len, series)) > 26  # long names stand below, in two columns
    left, top, width, height = 60, 12, 650 if below else 430, 300
    found = [v for line in series.values() for m in line for v in (m["mean"], m["low"], m["high"])]
    low, high = min(v for v in found if v is not None), max(v for v in found if v is not None)
    low, high = max(0.0, low - 0.03), high + 0.03 if high > 1 else min(1.0, high + 0.03)
    wide = xs[0] > 0 and xs[-1] >= 8 * xs[0]
    at = [math.log(x / xs[0]) if wide else x - xs[0] for x in xs]

    def x(k: int) -> float:
        return left + 16 + (width - 32) * at[k] / at[-1]

    def y(value: float) -> float:
        return top + height * (1 - (min(max(value, low), high) - low) / (high - low))

    marks = [
        f'<line class="lef-mark" x1="{x(k):.1f}" y1="{top}" x2="{x(k):.1f}" y2="{top + height}"/>'
        f'<text x="{x(k):.1f}" y="{top + height + 18}" text-anchor="middle">{value:g}</text>'
        for k, value in enumerate(xs)
    ]
    ticks = [t / 10 for t in range(11) if low <= t / 10 <= high]
    marks += [
        f'<text x="{left - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.1f}</text>' for t in ticks
    ]
    marks.append(
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">{html.escape(xlabel)}</text>'
    )
    marks.append(
        f'<text transform="translate(16 {top + height / 2}) rotate(-90)" text-anchor="middle">{html.escape(ylabel)}</text>'
    )
    for n, (name, line) in enumerate(series.items()):
        style = (
            f'stroke="{COLOURS[n % len(COLOURS)]}" stroke-dasharray="{DASHES[n // len(COLOURS)]}"'
        )
        points = " ".join(f"{x(k):.1f},{y(m['mean']):.1f}" for k, m in enumerate(line))
        marks.append(f'<polyline fill="none" stroke-width="2" {style} points="{points}"/>')
        for k, m in enumerate(line):
            if m["low"] is not None:
                shift = x(k) + 3 * (n - len(series) / 2)  # bars side by side
                marks.append(
                    f'<line stroke-width="2" {style} x1="{shift:.1f}" x2="{shift:.1f}" y1="{y(m["low"]):.1f}" y2="{y(m["high"]):.1f}"/>'
                )
        beside, down = left + width + 20, top + 10 + 20 * n
        if below:
            beside, down = left + 340 * (n % 2), top + height + 62 + 20 * (n // 2)
        marks.append(
            f'<line stroke-width="3" {style} x1="{beside}" x2="{beside + 24}" y1="{down}" y2="{down}"/>'
        )
        marks.append(f'<text x="{beside + 30}" y="{down + 4}">{html.escape(name)}</text>')
    said = "; ".join(
        f"{name} " + ", ".join(f"{m['mean']:.3f} at {v:g}" for v, m in zip(xs, line, strict=True))
        for name, line in series.items()
    )
    caption = f"Over {xlabel}, {ylabel}: lines join the means over the recorded seeds, bars are 95 % intervals."
    tall = top + height + 44 + below * (20 * -(-len(series) // 2) + 8)
    return _figure("".join(marks), tall, f"{ylabel} over {xlabel}: {said}.", caption)


def verdicts(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Draw the claims of each chapter (name, verdicts) as a bar with a piece for each claim, by verdict."""
    rows = [(name, Counter(found)) for name, found in rows if found]
    if not rows:
        return ""
    longest = max(sum(counted.values()) for _, counted in rows)
    piece = min(PLOT / longest, 46)
    height = TOP + ROW * len(rows)
    seen = [v for v in VERDICTS if any(counted[v] for _, counted in rows)]
    marks, left = [], NAMES
    for verdict in seen:
        marks.append(
            f'<rect class="{_class(verdict)}" x="{left}" y="8" width="14" height="14"/>'
            f'<text x="{left + 20}" y="20">{verdict}</text>'
        )
        left += 44 + 8 * len(verdict)
    for k, (name, counted) in enumerate(rows):
        y, left = TOP + ROW * k + 4, NAMES
        marks.append(_name(name, y + ROW / 2 - 4))
        for verdict in seen:
            for _ in range(counted[verdict]):
                marks.append(
                    f'<rect class="{_class(verdict)}" x="{left:.1f}" y="{y}" width="{piece - 3:.1f}" height="{ROW - 8}"/>'
                )
                left += piece
    said = "; ".join(
        f"{name} " + ", ".join(f"{counted[v]} {v}" for v in VERDICTS if counted[v])
        for name, counted in rows
    )
    caption = (
        "Every claim of every chapter, by verdict: it holds or fails where the whole 95 % interval over the recorded seeds lies "
        "on one side of what was asked, and is undecided otherwise."
    )
    return _figure("".join(marks), height, f"Claims by verdict: {said}.", caption)


def _class(verdict: str) -> str:
    return f"lef-{verdict.replace(' ', '-')}"


def _name(name: str, y: float) -> str:
    return f'<text x="{NAMES - 12}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>'


def _figure(content: str, height: int, said: str, caption: str) -> str:
    width = NAMES + PLOT + RIGHT
    return (
        f'<figure class="lef-figure lef-ledger"><svg viewBox="0 0 {width} {height + 6}" role="img" '
        f'aria-label="{html.escape(said)}">{content}</svg><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
