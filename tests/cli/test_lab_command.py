"""`lefcourse lab`, up to the moment when JupyterLab starts."""

import os

import jupyterlab.labapp
import pytest

from lefcourse.cli import lab, main


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of two notebooks in a folder of its own, as an installed package has it; a server that only listens."""
    notebooks = tmp_path / "course" / "notebooks"
    for name in ("00-start/start", "04-noisy-labels/elr"):
        (notebooks / name).parent.mkdir(parents=True)
        (notebooks / f"{name}.ipynb").write_text(name)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(lab, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(lab, "CHECKOUT", False)
    monkeypatch.setattr(lab, "START", "00-start/start.ipynb")
    monkeypatch.setenv("LEFCOURSE_RUNS", "")  # as good as unset; put back afterwards
    return notebooks


@pytest.fixture
def started(monkeypatch) -> list:
    words = []
    monkeypatch.setattr(jupyterlab.labapp, "main", words.extend)
    return words


def test_it_opens_a_copy_at_the_start_page(course, started, tmp_path, capsys):
    assert main(["lab", "--no-browser"]) == 0
    copies = tmp_path / "here" / "lefcourse-notebooks"
    assert started == [
        f"--ServerApp.root_dir={copies}",
        str(copies / "00-start" / "start.ipynb"),
        "--no-browser",
    ]
    assert os.environ["LEFCOURSE_RUNS"] == str(copies / "runs")
    assert capsys.readouterr().out == "2 notebooks copied to lefcourse-notebooks\n"


def test_in_a_checkout_it_opens_the_checkout(course, started, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "CHECKOUT", True)
    monkeypatch.setattr(lab, "ROOT", tmp_path / "course")
    assert main(["lab"]) == 0
    assert started == [
        f"--ServerApp.root_dir={tmp_path / 'course'}",
        str(course / "00-start" / "start.ipynb"),
    ]
    assert not [*(tmp_path / "here").iterdir()]
    assert main(["lab", "mine", "--copy-only"]) == 0
    assert (tmp_path / "here" / "mine" / "00-start" / "start.ipynb").exists()


def test_what_the_reader_changed_is_kept(course, tmp_path, capsys):
    def again() -> list[str]:
        assert main(["lab", "mine", "--copy-only"]) == 0
        return capsys.readouterr().out.splitlines()

    again()
    start, elr = (tmp_path / "here" / "mine" / p.relative_to(course) for p in course.glob("*/*"))
    if start.stem != "start":
        start, elr = elr, start
    assert again() == ["nothing new for mine"]
    elr.write_text("my own")
    assert again() == ["nothing new for mine", "  kept as you left it: 04-noisy-labels/elr.ipynb"]
    for path in course.glob("*/*"):
        path.write_text("a new version")
    for count in ("1 notebook copied to mine", "nothing new for mine"):
        first, second = again()
        assert first == count
        assert second.startswith("  kept as you left it: 04-noisy-labels/elr.ipynb; the course has")
    assert (start.read_text(), elr.read_text()) == ("a new version", "my own")
    elr.unlink()
    assert again() == ["1 notebook copied to mine"]
    assert elr.read_text() == "a new version"


def test_a_file_that_was_there_before_is_kept(course, tmp_path):
    there = tmp_path / "here" / "00-start" / "start.ipynb"
    there.parent.mkdir()
    there.write_text("mine")
    assert [*lab.copy(tmp_path / "here").kept] == ["00-start/start.ipynb"]
    assert there.read_text() == "mine"
