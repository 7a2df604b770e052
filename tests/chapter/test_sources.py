"""What a recorded number depends on."""

import json

import pytest

from lefcourse import catalogue
from lefcourse.chapter import notebook, params, sources
from lefcourse.errors import UsageError


def test_source_hash_follows_code_but_not_prose(tmp_path, monkeypatch):
    chapter = catalogue.get("elr")
    content = json.loads(chapter.path.read_text())
    before = sources.source_sha256("elr")
    copy = tmp_path / "elr.ipynb"

    def rehash(kind, more):
        cell = next(c for c in content["cells"] if c["cell_type"] == kind and c is not install)
        cell["source"] += more
        copy.write_text(json.dumps(content))
        return sources.source_sha256("elr")["notebook"]

    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"])
    monkeypatch.setattr(catalogue, "get", lambda slug: type("C", (), {"path": copy}))
    install = next(c for c in content["cells"] if c["cell_type"] == "code")
    assert install["metadata"]["tags"][0] == "install"
    install["source"] += "\nmore = 1"  # it installs the course, and changes no number
    assert rehash("markdown", "\n# more") == before["notebook"]
    assert rehash("code", "\n# more") == before["notebook"]
    assert rehash("code", "\nmore = 1") != before["notebook"]


def test_source_hash_follows_only_the_modules_that_the_code_names():
    def names(*cells):
        return [path.stem for path in sources.sources(cells)]

    assert names("run = lc.Run('x', globals())  # data, nets, shapes") == ["seeds"]
    # data imports folders and labels
    assert names("data = lc.load('digits')") == ["data", "folders", "labels", "seeds"]
    assert names("from lefcourse import augment") == ["augment", "seeds"]
    assert names("from lefcourse.science import augment") == ["augment", "seeds"]
    assert names("lc.fit(net)", "world = 'shapes'") == ["seeds", "training", "shapes"]
    for way in (
        "from lefcourse.worlds import shapes",
        "lc.worlds.shapes",
        "from lefcourse.science.worlds import shapes",
    ):
        assert names(way) == ["seeds", "shapes"]
    assert names("from lefcourse import miniclip") == ["mini", "miniclip", "seeds", "shapes"]
    assert {"seeds", "training"} <= set(names("update = lc.methods('elr').update_targets"))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("x = 1  # a comment", False),
        ("\n\nx = 1\n", False),
        ("from lefcourse.science import seeds\nx = 1", False),
        ('"""What it is."""\nx = 1', False),
        ("import torch\nx = 1", True),
        ("x = 2", True),
        ("x = '# no comment'", True),
    ],
)
def test_only_what_can_change_a_number_counts(change, counts):
    assert (sources.essence(change) != "x = 1") == counts


def test_source_hash_follows_borrowed_methods(tmp_path, monkeypatch):
    elr = catalogue.get("elr")
    content = json.loads(elr.path.read_text())
    content["cells"] = [c for c in content["cells"] if c["cell_type"] == "code"]
    lender, borrower = tmp_path / "elr.ipynb", tmp_path / "b.ipynb"
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "source": "m = lc.methods('elr')"}
    borrower.write_text(json.dumps({"cells": [cell], "metadata": {}}))
    lender.write_text(json.dumps(content))
    paths = {"elr": lender, "b": borrower}
    monkeypatch.setattr(catalogue, "get", lambda slug: type("C", (), {"path": paths[slug]}))
    hashes = [sources.source_sha256("b")["package"]]
    for tags in (["method"], ["figure"]):
        at = next(c for c in content["cells"] if c["metadata"].get("tags", [])[:1] == tags)
        at["source"] = [*at["source"], "\nmore = 1"]
        lender.write_text(json.dumps(content))
        hashes.append(sources.source_sha256("b")["package"])
    assert hashes[0] != hashes[1] == hashes[2]


def a_chapter(folder, source, tag=""):
    cell = dict(cell_type="code", metadata={"tags": [tag]}, source=source)
    text = dict(cell_type="markdown", metadata={}, source="A title")
    path = folder / "mine.ipynb"
    path.write_text(json.dumps(dict(cells=[text, cell], metadata={})))
    return path


def test_a_readers_magics_and_shell_commands_are_code(tmp_path):
    (code,) = notebook.code_cells(a_chapter(tmp_path, "%timeit 1 + 1\n!ls\nx = 1"))
    assert sources.essence(code).splitlines()[-1] == "x = 1"


@pytest.mark.parametrize("tag", ["", "setup", "parameters"])
def test_a_cell_that_is_not_python_is_named_in_one_line(tmp_path, tag):
    path = a_chapter(tmp_path, "x = 1\nfor y in 3\n", tag)
    read = params.read if tag == "parameters" else notebook.code_cells
    with pytest.raises(UsageError, match=r"mine\.ipynb, cell 2, line 2: not Python.*for y in 3"):
        read(path)
