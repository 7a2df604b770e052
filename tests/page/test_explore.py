"""Knobs: what a pre-rendered one holds, and what a live one does when it is turned."""

import importlib
import json
import re
from html.parser import HTMLParser

import matplotlib
import pytest

import lefcourse as lc
from lefcourse.errors import UsageError

matplotlib.use("Agg")
MODULE = importlib.import_module("lefcourse.page.explore")


def figure(*values, size=(2, 1)):
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=size)
    axis.set_title(" ".join(map(str, values)))
    return fig


@pytest.fixture
def shown(monkeypatch) -> list:
    """What was displayed."""
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    return shown


def page(shown) -> str:
    return shown[0].data


def frames(text: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [at for name, at in self.found if name == tag]


def test_numbers_make_a_slider_that_says_its_value(shown):
    lc.explore(
        figure_of_rate, alt=lambda rate: f"at {rate}", caption="it moves", rate=[0.0, 0.25, 1.0]
    )
    tags = Tags(page(shown))
    assert not tags.open
    (slider,) = tags.all("input")
    assert slider["type"] == "range" and (slider["min"], slider["max"]) == ("0", "2")
    assert slider["value"] == "1" and slider["aria-valuetext"] == "0.25"
    assert json.loads(slider["data-words"]) == ["0", "0.25", "1"]
    assert tags.all("label")[0]["for"] == slider["id"] == tags.all("output")[0]["for"]
    assert [f["alt"] for f in frames(page(shown))] == ["at 0.0", "at 0.25", "at 1.0"]
    assert tags.all("img")[0]["src"] == frames(page(shown))[1]["src"]


def figure_of_rate(rate):
    return figure(rate)


def test_words_make_a_menu(shown):
    def draw(loss_name):
        return figure(loss_name)

    start = {"loss_name": "b"}
    lc.explore(draw, alt="a & b", caption="x < y", start=start, loss_name=["a", "b", "c"])
    tags = Tags(page(shown))
    assert [o["value"] for o in tags.all("option")] == ["0", "1", "2"]
    assert [o["value"] for o in tags.all("option") if "selected" in o] == ["1"]
    assert ">loss name</label>" in page(shown) and "x &lt; y" in page(shown)
    assert tags.all("img")[0]["alt"] == "a & b"


def test_two_knobs_have_a_frame_for_every_pair_and_the_last_turns_fastest(shown):
    def draw(a, b):
        return figure(a, b)

    start = {"a": 2, "b": "y"}
    lc.explore(
        draw, alt=lambda a, b: f"{a}{b}", caption="c", start=start, a=[1, 2], b=["x", "y", "z"]
    )
    found = frames(page(shown))
    assert [f["alt"] for f in found] == ["1x", "1y", "1z", "2x", "2y", "2z"]
    assert Tags(page(shown)).all("img")[0]["alt"] == "2y"


def test_a_page_loads_nothing_and_survives_hostile_words(shown):
    lc.explore(figure_of_rate, alt="</script><b>", caption="</figure>", rate=[1, 2])
    text = page(shown)
    assert "http" not in text and text.count("</script>") == 2 and text.count("</figure>") == 1
    assert frames(text)[0]["alt"] == "</script><b>"
    assert {f["src"].partition(";")[0] for f in frames(text)} == {"data:image/webp"}


def test_frames_over_the_limit_are_an_error(shown, monkeypatch):
    monkeypatch.setattr(MODULE, "LIMIT", 100)
    with pytest.raises(UsageError, match=r"2 frames take .* MB, more than .* MB: use fewer values"):
        lc.explore(figure_of_rate, alt="a", caption="c", rate=[1, 2])
    assert not shown


def test_errors_of_the_drawing_are_not_caught(shown):
    def draw(rate):
        return figure(1 / rate)

    with pytest.raises(ZeroDivisionError):
        lc.explore(draw, alt="a", caption="c", rate=[0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one or two knobs, got 0"),
        ({"a": [1], "b": [1], "c": [1]}, "one or two knobs, got 3: a, b, c"),
        ({"a": [1, 2], "start": {"a": 3}}, "a cannot start at 3"),
        ({"rate": [1, 2], "start": {"rat": 1}}, "unknown knob 'rat': did you mean 'rate'"),
    ],
)
def test_what_cannot_be_explored_is_said(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        lc.explore(figure, alt="a", caption="c", **arguments)


def test_a_live_knob_redraws(shown, monkeypatch):
    monkeypatch.setattr(MODULE, "in_notebook", lambda: True)
    monkeypatch.setattr(MODULE, "batch", lambda: False)
    drawn = []

    def draw(rate, loss):
        drawn.append((rate, loss))
        return figure(rate, loss)

    lc.explore(
        draw, alt=lambda rate, loss: f"{rate} {loss}", caption="c", rate=[1, 2, 3], loss=["a", "b"]
    )
    slider, menu, picture, _ = shown[0].children
    assert (type(slider).__name__, type(menu).__name__) == ("SelectionSlider", "Dropdown")
    assert 'alt="2 b"' in picture.value
    slider.value = 3
    assert drawn == [(2, "b"), (3, "b")] and 'alt="3 b"' in picture.value
    menu.value = "a"
    assert 'alt="3 a"' in picture.value


def test_a_saved_live_knob_leaves_its_first_picture(shown, monkeypatch):
    monkeypatch.setattr(MODULE, "in_notebook", lambda: True)
    monkeypatch.setattr(MODULE, "batch", lambda: False)
    lc.explore(figure_of_rate, alt=lambda rate: f"at {rate}", caption="it moves", rate=[1, 2, 3])
    bundle = shown[0]._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert 'alt="at 2"' in bundle["text/html"] and "it moves" in bundle["text/html"]
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle["text/plain"] == "it moves"
