"""The look of the course's figures, and the few plots that chapters share."""

import base64
import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image as pictures
import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL.Image import Image

from lefcourse.palette import BLUE, GREEN, GREY, ORANGE, PALETTE, PURPLE, SKY, VERMILION, YELLOW  # noqa: F401  (chapters say lc.plot.BLUE)
from lefcourse.settings import budget_name

# The same role has the same colour in every chapter.
ROLE_COLOURS = {
    "floor": GREY,
    "baseline": VERMILION,
    "alternative": ORANGE,
    "method": BLUE,
    "oracle": GREEN,
    "ablation": PURPLE,
}
SMOKE_DPI = 50
STYLE = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
    "image.cmap": "viridis",
}


def use_style() -> None:
    """Give matplotlib the course's look."""
    plt.rcParams.update(STYLE)


def array(values) -> np.ndarray:
    """Return a tensor (on any device) or a sequence as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def render(fig: Figure, dpi: int = 160) -> Image:
    """Draw `fig` and close it. At the smoke budget, where nobody looks, with few dots."""
    fig.set_dpi(dpi if budget_name() != "smoke" else SMOKE_DPI)
    canvas = FigureCanvasAgg(fig)
    if missing := _draw(canvas):
        _say_what_no_font_has(_use_fonts_with(missing, fig))
        _draw(canvas)
    plt.close(fig)
    return pictures.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# --- words of the reader's own: names of classes ---


def written(names: Sequence[str]) -> list[str]:
    """Return names so that a figure shows them as they are written: to matplotlib, dollars enclose mathematics."""
    return [str(name).replace("$", r"\$") for name in names]


GLYPH = re.compile(r"Glyph (\d+) .*missing from")
_unseen: set[str] = set()


def _draw(canvas: FigureCanvasAgg) -> set[str]:
    """Draw, and return the characters that the figure's fonts lack."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        canvas.draw()
    missing = set()
    for warning in caught:
        if glyph := GLYPH.search(str(warning.message)):
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return missing


def _use_fonts_with(characters: set[str], fig: Figure) -> set[str]:
    """Let this figure, and those to come, use fonts of the system that have `characters`; return those that none has."""
    left, found = set(characters), []
    for font in font_manager.fontManager.ttflist:
        if left and not font.name.startswith("Last Resort"):
            has = {c for c in left if ord(c) in font_manager.get_font(font.fname).get_charmap()}
            if has:
                found.append(font.name)
                left -= has
    families = [*plt.rcParams["font.family"], *found]
    plt.rcParams["font.family"] = [*dict.fromkeys(families)]
    for text in fig.findobj(Text):
        text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *found])])
    return left


def _say_what_no_font_has(characters: set[str]) -> None:
    """Tell the reader once."""
    if new := sorted(characters - _unseen):
        _unseen.update(new)
        print(
            f"no font here can show {' '.join(new[:20])}: these characters are boxes in the figures; "
            "install a font that has them (such as Noto Sans CJK) and restart the kernel"
        )


def encoded(picture: Image, form: str, **how) -> bytes:
    """Return `picture` as the bytes of a file of this form (`webp`, `png`)."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **how)
    return buffer.getvalue()


LARGEST = 250_000


def image_uri(picture: Image, *, lossless: bool = True) -> str:
    """Return `picture` as a data URI (WebP, a third of the size of PNG).

    Lossless or not; one with much noise in it, which lossless takes more than LARGEST bytes, is compressed as photographs are.
    """
    how = {"lossless": True, "quality": 50} if lossless else {"quality": 80, "method": 4}
    content = encoded(picture, "webp", **how)
    if lossless and len(content) > LARGEST:
        content = encoded(picture, "webp", quality=90, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


class Shown:
    """A picture as a page shows it (HTML), and as viewers do that show no HTML (PNG)."""

    def __init__(self, page: str, picture: Image):
        self.data, self.picture = page, picture

    def _repr_html_(self) -> str:
        return self.data

    def _repr_png_(self) -> bytes:
        return encoded(self.picture, "png")


class Caption:
    """What a picture's caption is where a viewer shows the picture alone; a page has it already."""

    def __init__(self, text: str):
        self.text, self.data = text, ""

    def _repr_html_(self) -> str:
        return self.data

    def _repr_latex_(self) -> str:
        return rf"\emph{{{latex(self.text)}}}"

    def __repr__(self) -> str:
        return self.text


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: "\\" + sign for sign in "&%$#_{}"
}


def latex(text: str) -> str:
    """Write `text` so that LaTeX prints it as it stands."""
    return "".join(LATEX.get(sign, sign) for sign in text)


def show(fig: Figure, *, alt: str, caption: str) -> None:
    """Display `fig` with a caption (what to see in it) and an alternative text (for those who cannot).

    Raises ValueError if either is empty.
    """
    from IPython.display import display

    if not (alt.strip() and caption.strip()):
        raise ValueError("a figure needs an alt text and a caption")
    width = int(fig.get_figwidth() * 100)
    picture = render(fig)
    page = (
        f'<figure class="lef-figure" style="margin:1em 0">'
        f'<img src="{image_uri(picture)}" alt="{html.escape(alt)}" '
        f'style="width:{width}px;max-width:100%;height:auto;background:white">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
    display(Shown(page, picture))
    display(Caption(caption))


def say(text: str) -> None:
    """Display a sentence, in Markdown, that was made from measured numbers."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def as_picture(image) -> np.ndarray:
    """Return a (C, H, W) or (H, W) image in [0, 1] in the layout that matplotlib draws."""
    picture = array(image)
    if picture.ndim == 3:
        picture = picture[0] if picture.shape[0] == 1 else picture.transpose(1, 2, 0)
    return picture.clip(0, 1)


def grid(
    images, titles: Sequence[str] | None = None, columns: int = 10, colours=None, size: float = 0.75
) -> Figure:
    """Draw images (N, C, H, W) in rows of `columns`, each with its title; `size` is inches per image."""
    rows = -(-len(images) // columns)
    height = size * (1.35 if titles is not None else 1.05)
    fig, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for k, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(as_picture(image), cmap="gray_r", vmin=0, vmax=1)
        if titles is not None:
            axis.set_title(titles[k], fontsize=8, color=colours[k] if colours else "black", pad=2)
    return fig


def samples(
    x, y, classes: Sequence[str], truth=None, columns: int = 10, size: float = 0.75
) -> Figure:
    """Draw labelled images (N, C, H, W); labels that differ from `truth` (N,) are red, in `given (true)` form."""
    given, true = array(y), array(y if truth is None else truth)
    names = written(classes)
    titles = [
        names[g] if g == t else f"{names[g]} ({names[t]})" for g, t in zip(given, true, strict=True)
    ]
    colours = ["black" if g == t else VERMILION for g, t in zip(given, true, strict=True)]
    return grid(x, titles, columns, colours, size)


def spread(values) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over the first axis (seeds) of `values` (S, T)."""
    values = np.atleast_2d(array(values))
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def curves(
    axis, series: Mapping[str, object], x=None, colours: Mapping[str, str] | None = None
) -> None:
    """Draw one line per name: values (T,), or (S, T) over seeds with a band of one standard deviation."""
    for name, values in series.items():
        mean, deviation = spread(values)
        steps = np.arange(1, len(mean) + 1) if x is None else x
        (line,) = axis.plot(steps, mean, label=name, color=(colours or {}).get(name))
        axis.fill_between(
            steps, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0
        )


def legend(axis) -> None:
    """Put the legend to the right of the axes, where it hides no data."""
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def confusion(matrix, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (C, C) of counts; rows are true classes and sum to one in the colours."""
    matrix = array(matrix)
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    fig, axis = plt.subplots(figsize=(4.6, 4))
    axis.grid(False)
    picture = axis.imshow(shares, vmin=0, vmax=1, cmap="cividis")
    axis.set(
        xticks=range(len(classes)),
        yticks=range(len(classes)),
        xlabel="predicted class",
        ylabel="true class",
    )
    axis.set_xticklabels(written(classes), rotation=90)
    axis.set_yticklabels(written(classes))
    fig.colorbar(picture, label="share of the true class")
    return fig


def dots(axis, found: Mapping[str, Mapping], roles: Mapping[str, str]) -> None:
    """Draw a row for each name in `found`: its mean as a dot, its interval, if it has one, behind it.

    `found` holds mean, low and high, as `lefcourse.results.summary` returns them; `roles` give the colours.
    """
    for row, (name, seen) in enumerate(found.items()):
        colour = ROLE_COLOURS[roles[name]]
        if seen["low"] is not None:
            axis.plot([seen["low"], seen["high"]], [row, row], color=colour, lw=8, alpha=0.35)
        axis.plot(seen["mean"], row, "o", color=colour, ms=7, mec="white", zorder=3)
    axis.set_yticks(range(len(found)), list(found))
    axis.set(ylim=(len(found) - 0.5, -0.5))


def gap_closed(
    run, metric: str, recorded: Mapping | None = None, label: str | None = None
) -> Figure:
    """Draw every main arm of a run on one axis, and the recorded mean and 95 % interval of each behind it.

    `recorded` is what `lefcourse.results.load` returns (None: nothing recorded yet).
    """
    arms = {n: a for n, a in run.record["arms"].items() if a["role"] != "ablation" and metric in a}
    fig, axis = plt.subplots(figsize=(7, 0.7 + 0.36 * len(arms)))
    for row, (name, arm) in enumerate(arms.items()):
        colour = ROLE_COLOURS[arm["role"]]
        summary = recorded["summary"]["arms"].get(name, {}).get(metric) if recorded else None
        if summary:
            axis.plot(
                [summary["low"], summary["high"]],
                [row, row],
                color=colour,
                alpha=0.35,
                lw=9,
                solid_capstyle="butt",
            )
            axis.plot(summary["mean"], row, "|", color=colour, ms=13, mew=2)
        axis.plot(arm[metric], row, "o", color=colour, ms=7, mec="white", zorder=3)
    axis.set(
        yticks=range(len(arms)), yticklabels=list(arms), xlabel=label or metric.replace("_", " ")
    )
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    return fig
