"""The loader of method cells."""

import inspect
import pickle
import traceback

import pytest
from tinybook import chapter, code, text, write

from lefcourse import catalogue
from lefcourse.chapter.methods import methods as load


@pytest.fixture
def two_part(tmp_path):
    return write(
        tmp_path / "two-part.ipynb",
        code("boom = 1 / 0"),
        code("import math\n\ndef half(x):\n    return x / 2", "method"),
        text("## Then"),
        code(
            "def quarter(x):\n    return half(half(x))\n\ndef fail():\n    raise KeyError('x')",
            "method",
        ),
        code("raise SystemExit"),
    )


def test_only_the_method_cells_are_executed(two_part):
    module = load(two_part)
    assert module.quarter(8) == 2
    assert not hasattr(module, "boom")
    assert module.__name__ == "lefcourse.chapters.two-part"


def test_tracebacks_and_inspect_show_the_cells_source(two_part):
    module = load(two_part)
    assert inspect.getsource(module.half) == "def half(x):\n    return x / 2"
    with pytest.raises(KeyError) as error:
        module.fail()
    shown = "".join(traceback.format_exception(error.value))
    assert "two-part.ipynb, cell 4" in shown
    assert "raise KeyError('x')" in shown


def test_functions_of_a_chapter_can_be_pickled(two_part):
    module = load(two_part)
    assert pickle.loads(pickle.dumps(module.half))(2) == 1


def test_a_module_is_made_again_only_when_the_file_changes(tmp_path):
    path = write(tmp_path / "a.ipynb", code("x = 1", "method"))
    first = load(path)
    assert load(path) is first
    write(path, code("x = 2", "method"))
    assert load(path).x == 2


def test_chapters_are_loaded_by_slug(two_part, monkeypatch):
    monkeypatch.setattr(catalogue, "get", lambda slug: chapter(two_part))
    assert load("two-part").half(1) == 0.5


def test_a_method_that_needs_an_untagged_cell_says_so(tmp_path):
    path = write(tmp_path / "a.ipynb", code("import math"), code("x = math.pi", "method"))
    with pytest.raises(NameError, match="math"):
        load(path)
