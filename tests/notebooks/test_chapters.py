"""What holds for every chapter: its structure, its methods, and that a seed repeats its numbers."""

import json
import os
import re
import subprocess

import pytest
from accelerator.execute import execute

from lefcourse import catalogue
from lefcourse.chapter import notebook, params, structure
from lefcourse.chapter.methods import methods as load
from lefcourse.ledger import tuning
from lefcourse.paths import NOTEBOOKS
from lefcourse.running import runner

# Every cell twice in a row, as readers run them: too long for these, unless LEFCOURSE_SLOW asks for it.
ONCE = set() if "LEFCOURSE_SLOW" in os.environ else {"clip", "llp-bp", "loki"}
WRITTEN = [chapter for chapter in catalogue.chapters() if chapter.exists]
EVERY = [catalogue.START, *WRITTEN]


def slugs(chapters):
    return [pytest.param(c, id=c.slug, marks=pytest.mark.xdist_group(c.slug)) for c in chapters]


def test_every_notebook_is_in_the_catalogue():
    found = {path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    assert found == {chapter.path for chapter in EVERY}


@pytest.mark.parametrize("chapter", slugs(EVERY))
def test_structure(chapter):
    assert structure.problems(chapter.path) == []


@pytest.mark.parametrize("chapter", slugs(EVERY))
def test_links_to_other_chapters_lead_somewhere(chapter):
    text = "\n".join(c.source for c in notebook.read(chapter.path).cells if c.kind == "markdown")
    for link in re.findall(r"\]\(([\w./-]+\.ipynb)", text):
        assert (chapter.path.parent / link).resolve().is_file(), f"{link} leads nowhere"


@pytest.mark.parametrize("chapter", slugs(WRITTEN))
def test_methods_are_importable(chapter):
    assert vars(load(chapter.slug))


@pytest.mark.parametrize("chapter", slugs(EVERY))
def test_presets_of_the_budgets_are_parameters(chapter):
    spec = params.read(chapter.path)
    assert {"seed", "device"} <= set(spec)


@pytest.mark.parametrize("chapter", slugs(EVERY))
def test_the_same_seed_gives_the_same_numbers_on_an_accelerator(chapter, executed, tmp_path):
    """Execute once more, on another device and every cell twice in a row, and compare every metric to the last digit.

    The first time was nbmake's, in a kernel and on this worker. Where `LEFCOURSE_DEVICE` names a real device, both
    runs are on it.
    """
    device = os.environ.get("LEFCOURSE_DEVICE", "auto")
    first = executed.get(chapter.slug)
    if first is None and chapter is not catalogue.START:
        first = runner.execute(chapter, {}, tmp_path / "1", "smoke", device)
    if device == "cuda":
        second = runner.execute(chapter, {}, tmp_path / "2", "smoke", device)
        assert second["status"] == "done", second.get("error")
    else:
        second = execute(chapter.path, tmp_path / "2", times=1 if chapter.slug in ONCE else 2)
    if chapter is not catalogue.START:
        assert json.dumps(first["arms"]) == json.dumps(second["arms"])
        assert first["gap_closed"] == second["gap_closed"]


@pytest.mark.parametrize("chapter", slugs(WRITTEN))
def test_a_chapter_takes_what_was_chosen(chapter, executed):
    """The settings that the executed chapter declares as its own are those of the recorded choice, arm by arm."""
    recorded, first = tuning.load(chapter.slug), executed.get(chapter.slug)
    if recorded is None or first is None:
        pytest.skip("no choice is recorded" if recorded is None else "not executed in this process")
    assert set(first["tuning"]) == set(recorded["arms"])
    for name, arm in first["tuning"].items():
        chosen = recorded["arms"][name]["chosen"]
        assert arm["chapter"] == chosen or arm["why"], f"{name}: {arm['chapter']}, chosen {chosen}"


@pytest.mark.parametrize("chapter", slugs(EVERY))
def test_committed_without_outputs(chapter):
    cells = json.loads(chapter.path.read_text())["cells"]
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in cells)


@pytest.mark.gpu
def test_cuda_is_there_when_it_is_asked_for():
    """`LEFCOURSE_DEVICE=cuda pytest -m gpu` must fail, not skip, on a machine without CUDA."""
    if os.environ.get("LEFCOURSE_DEVICE") != "cuda":
        pytest.skip("runs with LEFCOURSE_DEVICE=cuda")
    import torch

    assert torch.cuda.is_available()
    assert "GPU" in subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
