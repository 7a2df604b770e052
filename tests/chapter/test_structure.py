"""The structural check: a good chapter passes, and each fault is named."""

import copy
import importlib.util
import json
import subprocess
import sys

import jupytext
import nbformat
import pytest
from tinybook import KERNEL, code, text, write

from lefcourse import catalogue
from lefcourse.chapter import notebook, structure
from lefcourse.cli import new
from lefcourse.page.exercise import blank
from lefcourse.paths import NOTEBOOKS

INSTALL = code(structure.INSTALL, *structure.INSTALL_TAGS)
SOLUTION = 'def f(x):\n    """Return twice x."""\n    # solution\n    return 2 * x\n    # end of solution\n\n\ncheck(f)'


def good() -> list:
    """The cells of a chapter that has nothing wrong with it."""
    sections = {
        name: text(f"## {name}\n\n" + "word " * 60, f"section:{name}")
        for name in structure.SECTIONS
    }
    after = {
        "title": [copy.deepcopy(INSTALL)],
        "parameters": [
            code('seed = 0  # of every draw\ndevice = "auto"  # where', "parameters"),
            code(
                'import lefcourse as lc\n\nrun = lc.Run("x", globals(), smoke={}, full={})', "setup"
            ),
        ],
        "problem": [code('lc.show(fig, alt="bars", caption=f"{n} of them")', "figure")],
        "method": [code("def loss(x):\n    return x", "method")],
        "knob": [
            code('lc.explore(draw, alt=lambda r: f"at {r}", caption="moves", r=[1, 2])', "knob")
        ],
        "claim": [code('run.claim("better", 1, ">=", 0, "Table 1")', "claim")],
        "exercises": [
            code(blank(SOLUTION), "exercise"),
            code("check(f)", "check"),
            code(SOLUTION, "solution", "hide-cell", jupyter={"source_hidden": True}),
            code("run.finish()"),
        ],
    }
    return [cell for name, head in sections.items() for cell in [head, *after.get(name, [])]]


def found(tmp_path, cells, name="x") -> list[str]:
    return structure.problems(write(tmp_path / f"{name}.ipynb", *cells))


def cell_with(cells: list, tag: str):
    return next(cell for cell in cells if tag in cell.metadata.get("tags", ()))


def test_a_good_chapter_has_no_problems(tmp_path):
    assert found(tmp_path, good()) == []


def retag(tag, *tags):
    def change(cells):
        cell_with(cells, tag).metadata["tags"] = [*tags]

    return change


def rewrite(tag, source):
    def change(cells):
        cell_with(cells, tag).source = source

    return change


def insert(position, *new_cells):
    def change(cells):
        cells[position:position] = new_cells

    return change


def swap_sections(cells):
    one, two = cell_with(cells, "section:knob"), cell_with(cells, "section:claim")
    one.metadata, two.metadata = two.metadata, one.metadata


def unfold(cells):
    cell_with(cells, "solution").metadata.pop("jupyter")


def drop_finish(cells):
    cells[:] = [cell for cell in cells if cell.source != "run.finish()"]


def keep_output(cells):
    output = nbformat.v4.new_output("stream", text="1")
    cell_with(cells, "setup").outputs = [output]


def keep_count(cells):
    cell_with(cells, "setup").execution_count = 2


def silence(cells):
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("word ", "")


SHOW = 'lc.show(fig, alt="a", caption="b")'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (retag("parameters"), "0 cells are tagged `parameters`"),
        (insert(2, code("x = 1  # x", "parameters")), "2 cells are tagged `parameters`"),
        (rewrite("parameters", "seed = f()  # s"), "seed is not a literal"),
        (rewrite("parameters", "seed = 0\ndevice = 'auto'  # d"), "parameter seed has no comment"),
        (rewrite("parameters", "seed = 0  # s"), "no parameter device"),
        (
            rewrite("parameters", "seed = 0  # s\ndevice = 'auto'  # d\nkind = 'c'  # a | b"),
            "default of kind is none of its choices",
        ),
        (
            rewrite(
                "parameters", "seed = 0  # s\ndevice = 'auto'  # d\nkind = 'a'  # a | b, or so"
            ),
            "comment of kind",
        ),
        (retag("setup"), "0 cells are tagged `setup`"),
        (insert(4, code("x = 1")), "not the code cell after the parameters"),
        (insert(0, code("x = 1")), "the first code cell, and only that"),
        (retag("install"), "the first code cell, and only that"),
        (retag("install", "install"), "must have the tags install, remove-cell"),
        (rewrite("install", structure.INSTALL + "\nx = 1"), "not word for word the cell INSTALL"),
        (retag("method"), "no cell is tagged `method`"),
        (retag("knob"), "no cell is tagged `knob`"),
        (retag("section:knob"), "sections missing (tags section:NAME): knob"),
        (swap_sections, "sections out of order"),
        (rewrite("section:knob", "no heading"), "must stand on a text cell that begins with"),
        (keep_output, "stored with outputs"),
        (keep_count, "stored with outputs or an execution count"),
        (rewrite("figure", SHOW.replace('"a"', '""')), "lc.show without a text in alt="),
        (rewrite("figure", SHOW.replace('"b"', "words")), "lc.show without a text in caption="),
        (rewrite("figure", "lc.show(fig)"), "lc.show without a text in alt="),
        (
            rewrite("knob", "lc.explore(draw, caption='c', r=[1])"),
            "lc.explore without a text in alt=",
        ),
        (rewrite("exercise", "def f(x):\n    return 1"), "not the blank"),
        (retag("solution"), "an exercise without a solution"),
        (rewrite("solution", "def f(x):\n    return 2 * x"), "a solution without `# solution`"),
        (unfold, "a solution that is not folded"),
        (retag("solution", "solution"), "a solution that is not folded"),
        (drop_finish, "does not call run.finish()"),
        (silence, "words of prose"),
        (rewrite("method", "x = 1\n" * 31), None),
        (
            insert(9, *(code("x = 1\n" * 31) for _ in range(2))),
            "more than 30 lines in cells 10, 11",
        ),
        (insert(9, *(code("x = 1\n" * 13) for _ in range(20))), "median code cell"),
        (rewrite("method", "%matplotlib inline"), "not plain Python"),
        (rewrite("method", "open('/srv/x')"), "absolute path"),
        (rewrite("method", "x = 1  # TODO"), "TODO"),
    ],
)
def test_each_fault_is_named(tmp_path, change, words):
    cells = good()
    change(cells)
    problems = found(tmp_path, cells)
    if words is None:
        assert problems == []
    else:
        assert any(words in problem for problem in problems), problems


def test_addresses_and_formulas_are_no_paths(tmp_path):
    cells = good()
    cells[
        0
    ].source += "\n[a](https://arxiv.org/abs/1) $T:\\mathcal{X}$ and/or 1/2/3 `runs/elr/1` <b>x</b>"
    assert found(tmp_path, cells) == []


def test_the_kernel_must_be_python3(tmp_path):
    path = tmp_path / "x.ipynb"
    book = nbformat.v4.new_notebook(
        cells=good(), metadata={"kernelspec": {**KERNEL, "name": "mine"}}
    )
    nbformat.write(book, path)
    assert structure.problems(path) == ["the kernelspec is 'mine', not 'python3'"]


def test_the_start_page_needs_no_sections(tmp_path):
    cells = [text("# Start"), INSTALL, code('lc.show(fig, alt="a", caption="b")')]
    assert found(tmp_path, cells, catalogue.START.slug) == []
    assert found(tmp_path, [text("TODO"), INSTALL], catalogue.START.slug) == ["cell 1: TODO"]


def test_prose_is_counted_without_code_and_formulas(tmp_path):
    source = "# A heading\n\nIt's $a + b$ and [a link](https://x.y/z)\n\n```\ncode here\n```\n$$ c \\\\ d $$"
    book = notebook.read(write(tmp_path / "x.ipynb", text(source), code("x = 1")))
    assert structure.prose_words(book) == len(["A", "heading", "It's", "and", "a", "link"])


def test_the_skeleton_lacks_only_what_is_to_be_written(tmp_path):
    planned = catalogue.chapters()[0]
    filled = new.fill(new.TEMPLATE.read_text(), planned)
    assert "{{" not in filled
    assert planned.title in filled
    book = jupytext.reads(filled, fmt="py:percent")
    book.metadata["kernelspec"] = KERNEL
    nbformat.write(book, tmp_path / "x.ipynb")
    problems = structure.problems(tmp_path / "x.ipynb")
    assert problems
    assert all("TODO" in p or "words of prose" in p for p in problems), problems


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*/*.ipynb")), ids=lambda path: path.stem)
def test_the_file_is_a_valid_notebook(path):
    """Others read it too: Colab, Binder, editors."""
    nbformat.validate(json.loads(path.read_text()))
    ids = [cell["id"] for cell in json.loads(path.read_text())["cells"]]
    assert len(ids) == len({*ids})


# --- the cell that installs the course -------------------------------------------------------------


def asked_for(monkeypatch, there: bool) -> list[list[str]]:
    """Execute the cell where the course is there or not, and return the commands that it would have run."""
    ran = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append(words))
    exec(structure.INSTALL, {"__name__": "__main__"})
    return ran


def test_the_install_cell_does_nothing_where_the_course_is(monkeypatch):
    assert asked_for(monkeypatch, there=True) == []


def test_the_install_cell_installs_the_course_from_its_repository(monkeypatch):
    (words,) = asked_for(monkeypatch, there=False)
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert words[-1] == "git+https://github.com/lefcourse/lefcourse"
