import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tinybook import chapter, code, text, write

from lefcourse import catalogue, cli
from lefcourse.chapter import notebook
from lefcourse.cli import doctor, main

PARAMETERS = """\
seed = 0  # of every draw
device = "auto"  # where to compute
dataset = "digits"  # digits | mnist | imagefolder:PATH: images
rate = 0.6  # share of wrong labels
"""
RECORD = """\
import json, os
from pathlib import Path
path = Path(os.environ["LEFCOURSE_RUN_DIR"], "record.json")
record = json.loads(path.read_text())
record["arms"] = {
    "cross-entropy": {"role": "baseline", "accuracy": 0.5, "curve": [1, 2]},
    "tiny": {"role": "method", "accuracy": 0.75},
    "clean labels": {"role": "oracle", "accuracy": 1.0, "loss": None},
}
record |= {"gap_closed": 0.5, "gap_metric": "accuracy", "peak_mb": 100.0}
claim = {"measured": 0.75, "relation": ">=", "threshold": 0.7, "paper": "Table 1"}
record["claims"] = [
    {"name": "it helps", "holds": True} | claim,
    {"name": "a lot", "holds": False} | claim,
    {"name": "at scale", "holds": None} | claim,
]
path.write_text(json.dumps(record))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A catalogue in which the chapter `tiny` is written and `elr` is planned; the current folder is empty."""
    written = chapter(
        write(tmp_path / "tiny.ipynb", code(PARAMETERS, "parameters"), text("## Try"), code(RECORD))
    )
    planned = SimpleNamespace(slug="elr", exists=False)
    chapters = {"tiny": written, "elr": planned}

    def get(slug):
        from lefcourse.errors import choice

        return chapters[choice("chapter", slug, chapters)]

    monkeypatch.setattr(catalogue, "get", get)
    monkeypatch.setattr(catalogue, "chapters", lambda: [written, planned])
    monkeypatch.setenv("LEFCOURSE_RUNS", str(tmp_path / "runs"))
    for name in ("LEFCOURSE_BUDGET", "LEFCOURSE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return written


@pytest.fixture
def no_kernel(monkeypatch):
    """Fail if anything is executed."""
    from lefcourse.running import runner

    def execute(*_, **__):
        raise AssertionError("a kernel would have been started")

    monkeypatch.setattr(runner, "execute", execute)


# --- what is not understood ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run tinny", ["chapter 'tinny'", "did you mean 'tiny'", "elr"]),
        ("run elr", ["'elr' is planned", "written: tiny"]),
        ("run tiny -p rat=1", ["parameter 'rat'", "did you mean 'rate'", "seed"]),
        ("run tiny -p rate high", ["'rate' takes a number", "'high'"]),
        ("run tiny -p seed 1.5", ["'seed' takes an integer"]),
        ("run tiny -p seed", ["'seed' has no value"]),
        ("run tiny -p seed -p rate=1", ["'seed' has no value"]),
        ("run tiny -p dataset mnits", ["data set 'mnits'", "did you mean 'mnist'"]),
        ("run tiny -p dataset imagefolder:none", ["'imagefolder'", "no folder", "none"]),
        ("run tiny --budget smok", ["budget 'smok'", "did you mean 'smoke'", "standard, full"]),
        ("run tiny --device gpu", ["device 'gpu'", "auto", "cpu", "cuda"]),
        ("run tiny -p device gpu", ["device 'gpu'", "auto", "cpu", "cuda"]),
        ("run tiny --out .", ["folder '.' holds a run already"]),
        ("run", ["'CHAPTER'", "lefcourse run --help"]),
        ("run tiny --fast", ["--fast"]),
        ("run tiny -p", ["-p"]),
        ("rnu tiny", ["command 'rnu'", "did you mean 'run'"]),
        ("list --labels nosy", ["kind of label 'nosy'", "did you mean 'noisy'"]),
        ("list --part 99", ["part '99'", "04-noisy-labels"]),
        ("new tinny", ["chapter 'tinny'"]),
        ("new tiny", ["'tiny' is written already", "tiny.ipynb"]),
        ("--nothing", ["--nothing"]),
    ],
)
def test_one_line_and_code_2(words, expected, tiny, no_kernel, tmp_path, capsys):
    (tmp_path / "record.json").write_text("{}")
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lefcourse: ")
    assert err.count("\n") == 1
    for word in expected:
        assert word in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["--device", "cuda"], ["-p", "device", "cuda"]])
def test_cuda_asked_for_and_absent(words, tiny, no_kernel, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "tiny", *words]) == 2
    assert "'cuda'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("LEFCOURSE_BUDGET", "smok"), ("LEFCOURSE_DEVICE", "gpu")]
)
def test_the_environment_is_checked_too(name, value, tiny, no_kernel, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert main(["run", "tiny"]) == 2
    assert f"'{value}'" in capsys.readouterr().err


# --- run -----------------------------------------------------------------------------------------


def test_run_sums_up(tiny, tmp_path, capsys):
    words = ["-p", "rate", "0.4", "-p", "seed=3", "--budget", "smoke", "--device", "cpu"]
    assert main(["run", "tiny", *words]) == 0
    out, err = capsys.readouterr()
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["parameters"] == {"seed": 3, "device": "auto", "dataset": "digits", "rate": 0.4}
    assert (record["status"], record["seed"], record["budget"]) == ("done", 3, "smoke")
    lines = out.splitlines()
    assert lines[0] == "tiny: starting the kernel"
    assert "cross-entropy  baseline       0.5" in lines
    assert "clean labels   oracle           1" in lines
    assert "gap closed: 0.50 (0: the baseline's accuracy, 1: the oracle's)" in lines
    assert "it helps: asked >= 0.7, 0.75 here; recorded: nothing yet" in lines
    assert "a lot: asked >= 0.7, 0.75 here; recorded: nothing yet" in lines
    assert "at scale: asked >= 0.7, 0.75 here; recorded: nothing yet" in lines
    executed = folder.relative_to(tmp_path) / "tiny.ipynb"
    assert lines[-1] == f"  jupyter lab {executed}"
    assert executed.exists()
    assert err == ""


def test_runs_of_the_same_second_have_folders_of_their_own(tiny, tmp_path):
    from lefcourse.cli.run import _folder

    folders = {_folder("tiny", None) for _ in range(4)}
    assert len(folders) == 4
    assert all(folder.parent == tmp_path / "runs" / "tiny" for folder in folders)


def test_a_run_that_fails_says_where(tiny, tmp_path, capsys):
    write(tiny.path, code("1"), code("raise RuntimeError('no luck')"))
    assert main(["run", "tiny", "--out", "there"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "tiny failed in cell 2: RuntimeError: no luck",
        "the notebook up to there: there/tiny.ipynb",
    ]
    assert json.loads((tmp_path / "there" / "record.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        ("run a -p x 1", "run a -p x=1"),
        ("run a -p x=1 -p y 2", "run a -p x=1 -p y=2"),
        ("run a --param x -1", "run a --param x=-1"),
        ("sweep a -p x 1,2 --seeds 5-9", "sweep a -p x=1,2 --seeds 5-9"),
        ("run a -p x --budget smoke", "run a -p x --budget smoke"),
        ("run a -p", "run a -p"),
    ],
)
def test_both_ways_to_write_a_parameter(words, joined):
    assert cli.join_parameters(words.split()) == joined.split()


# --- list, doctor, new, help ---------------------------------------------------------------------


def test_list_has_a_line_for_every_chapter(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [c.slug for c in catalogue.chapters()]
    assert {line.split()[1] for line in lines} <= {"written", "planned"}


def test_list_by_kind_and_part(capsys):
    assert main(["list", "--labels", "noisy", "--part", "4"]) == 0
    by_number = capsys.readouterr().out
    slugs = [line.split()[0] for line in by_number.splitlines()]
    (part,) = (p for p in catalogue.parts() if p.folder == "04-noisy-labels")
    assert slugs == [c.slug for c in part.chapters if "noisy" in c.labels]
    for name in ("04", "noisy-labels", "04-noisy-labels"):
        main(["list", "--labels", "noisy", "--part", name])
        assert capsys.readouterr().out == by_number


def test_list_on_a_terminal_names_every_slug_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["list"]) == 0
    words = capsys.readouterr().out.split()
    assert all(c.slug in words for c in catalogue.chapters())


def test_new_writes_a_skeleton_once(tmp_path, monkeypatch, capsys):
    planned = catalogue.chapters()[0]
    target = tmp_path / "part" / f"{planned.slug}.ipynb"
    fields = {name: getattr(planned, name) for name in planned.__dataclass_fields__}
    here = SimpleNamespace(**fields, path=target, exists=False)
    monkeypatch.setattr(catalogue, "get", lambda slug: here)
    assert main(["new", planned.slug]) == 0
    assert str(target) in capsys.readouterr().out
    book = notebook.read(target)
    assert book.tagged("section:title")[0].source.startswith(f"# {planned.short}: ")
    assert book.tagged("solution")[0].metadata["jupyter"] == {"source_hidden": True}
    here.exists = True
    assert main(["new", planned.slug]) == 2


def test_doctor_reports_and_succeeds_here(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for subject in ("python", "packages", "torch", "cores", "memory", "disk", "mnist", "chromium"):
        assert f" {subject} " in out


def test_doctor_names_what_is_not_as_pinned(tmp_path, monkeypatch):
    pins = 'numpy==0.1\nno-such-package==1\npytest>=1\nhidden==1 ; sys_platform == "none"\n'
    (tmp_path / "requirements.txt").write_text(pins)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    (absent, other) = doctor.packages()
    assert absent[0] == doctor.NOTE
    assert "no-such-package" in absent[2]
    assert "hidden" not in absent[2]
    assert "numpy" in other[2]
    assert "0.1" in other[2]
    assert "pytest" not in other[2]


def test_doctor_fails_where_something_needed_is_missing(monkeypatch, capsys):
    for check in ("packages", "device", "machine", "data", "book"):
        monkeypatch.setattr(doctor, check, lambda: iter(()))
    monkeypatch.setattr(doctor, "PYTHONS", ((9, 0), (9, 1)))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.startswith("missing")


@pytest.mark.parametrize("words", [[], ["--help"], ["run", "--help"], ["list", "-h"]])
def test_help(words, capsys):
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: lefcourse")
    assert err == ""


def test_help_and_list_need_no_torch():
    script = (
        "import sys; from lefcourse.cli import main; main(['list']); main(['--help']); "
        "heavy = {'torch', 'papermill', 'nbformat', 'matplotlib', 'pandas'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
