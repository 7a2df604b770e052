"""What viewers without HTML or without a kernel make of a saved chapter: LaTeX (and so PDF), and a static page."""

import re

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbconvert import HTMLExporter, LatexExporter

from lefcourse.page import explore, plot

CAPTION = "Where 50 % of the costs_of 3 & 4 lie: under $5."


@pytest.fixture
def outputs(monkeypatch):
    """The outputs that a kernel would save for what is displayed, in its own words."""
    formatter = InteractiveShell.instance().display_formatter
    formatter.active_types = formatter.format_types
    saved = []

    def display(shown, **_):
        data, metadata = formatter.format(shown)
        if bundle := getattr(shown, "_repr_mimebundle_", None):
            data |= bundle()
        saved.append(nbformat.v4.new_output("display_data", text(data), metadata=metadata))

    monkeypatch.setattr("IPython.display.display", display)
    yield saved
    InteractiveShell.clear_instance()


def text(data):
    """Write pictures as a notebook's file does."""
    import base64

    return {
        kind: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for kind, value in data.items()
    }


def converted(exporter, outputs, monkeypatch):
    """Convert a notebook with these outputs; `pandoc`, which is for prose alone, is not asked."""
    for owner in ("nbconvert.filters.pandoc", "nbconvert.filters.markdown"):
        monkeypatch.setattr(f"{owner}.convert_pandoc", lambda source, *_, **__: source)
    cell = nbformat.v4.new_code_cell("draw()", outputs=outputs)
    return exporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))


def draw(k=1):
    fig, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, k])
    return fig


def a_figure():
    plot.show(draw(), alt="a line", caption=CAPTION)


def a_knob():
    explore.explore(draw, k=[1, 2, 3], alt="a line", caption=CAPTION)


def a_live_knob():
    explore._live(draw, "a line", CAPTION, {"k": 2}, {"k": [1, 2, 3]})


@pytest.mark.parametrize("shows", [a_figure, a_knob, a_live_knob])
def test_latex_has_every_figure_and_its_caption(shows, outputs, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_BUDGET", "smoke")
    shows()
    tex, found = converted(LatexExporter, outputs, monkeypatch)
    body = tex[tex.index(r"\begin{document}") :]
    assert len(re.findall(r"\\(?:adjustimage|includegraphics)\b", body)) == 1
    (picture,) = found["outputs"].values()
    assert picture.startswith(b"\x89PNG")
    assert r"\emph{Where 50 \% of the costs\_of 3 \& 4 lie: under \$5.}" in body
    assert "HTML object" not in body and "VBox(" not in body


@pytest.mark.parametrize("shows", [a_figure, a_knob, a_live_knob])
def test_a_static_page_shows_the_first_picture_and_its_caption_once(shows, outputs, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_BUDGET", "smoke")
    shows()
    assert "image/png" in outputs[0].data
    page, _ = converted(HTMLExporter, outputs, monkeypatch)
    body = page[page.index("<main") :]
    assert "<img" in body and "VBox(" not in body and "HTML object" not in body
    assert body.count("Where 50 % of the costs_of 3 &amp; 4 lie: under $5.") == 1
