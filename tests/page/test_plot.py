"""Figures: caption and alternative text are not optional; statistics are right."""

import base64
import io
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image as pictures
from scipy import stats

from lefcourse.ledger import results
from lefcourse.page import plot


def test_show_needs_caption_and_alt(capsys):
    for alt, caption in [("", "caption"), ("alt", " ")]:
        with pytest.raises(ValueError, match="alt text and a caption"):
            plot.show(plt.figure(), alt=alt, caption=caption)


def test_shown_figure_carries_both_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda html: shown.append(html.data))
    before = plt.get_fignums()
    plot.show(plt.figure(figsize=(1, 1)), alt='a "b" < c', caption="d & e")
    assert (
        'alt="a &quot;b&quot; &lt; c"' in shown[0]
        and "<figcaption>d &amp; e</figcaption>" in shown[0]
    )
    assert plt.get_fignums() == before, "the figure is closed"


def test_spread_is_mean_and_sample_deviation():
    mean, deviation = plot.spread(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert mean.tolist() == [2, 4]
    assert np.allclose(deviation, [2**0.5, 8**0.5])


def test_interval_is_students():
    values = [0.9, 0.92, 0.95, 0.91, 0.93]
    low, high = stats.t.interval(0.95, 4, np.mean(values), np.std(values, ddof=1) / 5**0.5)
    found = results.interval(values)
    assert found["n"] == 5
    assert np.allclose([found["mean"], found["low"], found["high"]], [np.mean(values), low, high])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], (None, None, 0)), ([0.5], (0.5, None, 1)), ([0, 0, None], (0, 0, 2))],
)
def test_interval_of_few_values(values, expected):
    found = results.interval(values)
    assert (found["mean"], found["low"], found["n"]) == expected


def test_samples_marks_wrong_labels():
    x = torch.zeros(3, 1, 4, 4)
    fig = plot.samples(x, torch.tensor([0, 1, 1]), ["a", "b"], truth=torch.tensor([0, 0, 1]))
    titles = [axis.get_title() for axis in fig.axes[:3]]
    assert titles == ["a", "b (a)", "b"]
    assert [axis.title.get_color() for axis in fig.axes[:3]] == ["black", plot.VERMILION, "black"]
    plt.close(fig)


def test_a_figure_and_its_caption_survive_where_no_page_is_shown():
    """As nbconvert does for LaTeX: PNG where it can, else LaTeX; and plain viewers show PNG or text."""
    from IPython.core.formatters import DisplayFormatter

    shown = []
    for thing in (
        plot.Shown("<figure>x</figure>", plot.render(plt.figure(figsize=(1, 1)))),
        plot.Caption("50 % & more_of $5"),
    ):
        shown.append(DisplayFormatter().format(thing)[0])
    assert shown[0]["image/png"].startswith(b"\x89PNG") and "<figure>" in shown[0]["text/html"]
    assert shown[1]["text/latex"] == r"\emph{50 \% \& more\_of \$5}"
    assert shown[1]["text/html"] == "" and shown[1]["text/plain"] == "50 % & more_of $5"


def test_the_smoke_budget_draws_few_dots(monkeypatch):
    sizes = []
    for budget in ("smoke", "standard"):
        monkeypatch.setenv("LEFCOURSE_BUDGET", budget)
        sizes.append(plot.render(plt.figure(figsize=(1, 1))).size)
    assert sizes == [(plot.SMOKE_DPI, plot.SMOKE_DPI), (160, 160)]


# --- names of a reader's classes -----------------------------------------------------------------

NAMES = ["under $5", "over $_{5}", "50% $frac{1}{2", "$$", "a_b *c* <d> | `e` #f\\g", "\\$", "$a$"]


def drawn_text(name):
    """Return what matplotlib draws for a name that was made safe: it must be no mathematics."""
    fig = plt.figure()
    text = fig.text(0, 0, plot.written([name, name])[0] * 2)
    clean, mathematics = text._preprocess_math(text.get_text())
    plt.close(fig)
    return clean, mathematics


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_shown_as_it_is_written(name):
    clean, mathematics = drawn_text(name)
    assert clean == name * 2 and not mathematics


def test_figures_of_labels_survive_any_name(monkeypatch):
    monkeypatch.setenv("LEFCOURSE_BUDGET", "smoke")
    x, y = torch.zeros(len(NAMES), 1, 4, 4), torch.arange(len(NAMES))
    plot.render(plot.samples(x, y, NAMES, truth=y.flip(0)))
    plot.render(plot.confusion(np.eye(len(NAMES)), NAMES))


def test_mathematics_of_the_chapters_stays_mathematics():
    fig = plt.figure()
    title = f"{plot.written(['under $5'])[0]} and {plot.written(['$'])[0]}: $e_y - p$"
    assert fig.text(0, 0, title)._preprocess_math(title)[1] is True
    plot.render(fig)


def test_characters_that_no_font_has_are_told_once(monkeypatch, capsys, recwarn):
    monkeypatch.setenv("LEFCOURSE_BUDGET", "smoke")
    monkeypatch.setattr(plot, "_unseen", set())
    monkeypatch.setattr(plot.font_manager.fontManager, "ttflist", [])
    for _ in range(2):
        fig, axis = plt.subplots()
        axis.set_xticks([0, 1], ["りんご", "なし"])
        plot.render(fig)
    said = capsys.readouterr().out
    assert said.count("no font here can show") == 1 and "り" in said and "なし"[0] in said
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_a_font_of_the_system_that_has_them_is_used(monkeypatch, capsys):
    monkeypatch.setenv("LEFCOURSE_BUDGET", "smoke")
    monkeypatch.setattr(plot, "_unseen", set())
    # matplotlib's own fonts, whatever the list says that it has kept of this machine
    manager = plot.font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [])
    for name in ("STIXSizOneSymReg", "DejaVuSans"):
        manager.addfont(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")
    monkeypatch.setitem(plt.rcParams, "font.family", ["STIXSizeOneSym"])  # a font of few signs
    fig = plt.figure()
    text = fig.text(0.1, 0.5, "abc")
    plot.render(fig)
    assert len(text.get_fontfamily()) > 1
    assert capsys.readouterr().out == ""


def test_a_dot_for_each_arm_and_its_interval_where_there_is_one():
    _, axis = plt.subplots()
    found = {"a": dict(mean=0.5, low=0.4, high=0.6), "b": dict(mean=0.2, low=None, high=None)}
    plot.dots(axis, found, {"a": "method", "b": "baseline"})
    bar, first, second = axis.lines
    assert list(bar.get_xdata()) == [0.4, 0.6] and list(bar.get_ydata()) == [0, 0]
    assert list(first.get_xdata()) == [0.5] and list(second.get_xdata()) == [0.2]
    assert second.get_color() == plot.ROLE_COLOURS["baseline"] and axis.get_ylim() == (1.5, -0.5)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    plt.close()


def test_a_picture_full_of_noise_does_not_fill_the_page():
    shape = (500, 500, 3)
    noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    loud, plain = (pictures.fromarray(a) for a in (noise, np.zeros(shape, np.uint8)))
    kept = len(plot.encoded(loud, "webp", lossless=True))
    assert kept > plot.LARGEST and len(plot.image_uri(loud)) < kept
    back = pictures.open(io.BytesIO(base64.b64decode(plot.image_uri(plain).partition(",")[2])))
    assert np.array_equal(np.asarray(back.convert("RGB")), np.asarray(plain))
