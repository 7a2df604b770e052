"""The course as an installed package: built as a release is, unpacked elsewhere, and used from another folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lefcourse import catalogue
from lefcourse.chapter.sources import source_sha256
from lefcourse.cli import main, reproduce
from lefcourse.paths import NOTEBOOKS, RESULTS, ROOT

SOURCES = ("lefcourse", "notebooks", "assets", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
# One process for all commands, because each would import torch anew. It ends in one line of JSON.
USE = """
import contextlib, io, json, sys
from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="lefcourse")
main, said = command.load(), {}
for words in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words.split())
    said[words] = [code, out.getvalue(), err.getvalue()]

import lefcourse as lc
from lefcourse.chapter.sources import source_sha256

said["file"] = lc.__file__
said["loss"] = lc.methods("elr").elr_loss.__name__
said["clip"] = type(lc.miniclip.load()).__name__
said["hashes"] = {c.slug: source_sha256(c.slug) for c in lc.catalogue.chapters() if c.exists}
print(json.dumps(said))
"""


def python(code: str, *words: str, cwd: Path, **env: str) -> str:
    unset = ("LEFCOURSE_RUNS", "LEFCOURSE_RUN_DIR", "LEFCOURSE_BUDGET", "LEFCOURSE_DEVICE")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, env=inherited | env, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def hashes() -> dict:
    """What the chapters' results depend on, in the checkout as it is when it is copied."""
    return {c.slug: source_sha256(c.slug) for c in catalogue.chapters() if c.exists}


@pytest.fixture(scope="module")
def wheel(hashes, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from the source distribution, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("build")
    here, dist = folder / "checkout", folder / "dist"
    here.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, here / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, here)
    left = here / "notebooks" / "00-start" / ".ipynb_checkpoints" / "start-checkpoint.ipynb"
    left.parent.mkdir()
    left.write_text("{}")
    sdist = dist / python(BUILD, "build_sdist", str(dist), cwd=here)
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    return zipfile.ZipFile(dist / python(BUILD, "build_wheel", str(dist), cwd=unpacked))


def test_the_wheel_carries_the_course(wheel):
    names = {n for n in wheel.namelist() if n.startswith("lefcourse/course/")}
    course = {
        f"lefcourse/course/{path.relative_to(ROOT).as_posix()}"
        for folder in (NOTEBOOKS, RESULTS)
        for path in folder.rglob("*.*")
        if path.suffix in (".ipynb", ".json") and ".ipynb_checkpoints" not in path.parts
    }
    assert course <= names
    assert "lefcourse/course/assets/clip/mini.safetensors" in names
    assert not [n for n in wheel.namelist() if ".ipynb_checkpoints" in n or "__pycache__" in n]
    assert sum(entry.file_size for entry in wheel.infolist()) < 20e6


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file below `folder`: a superuser may write what is read-only."""
    stats = {str(p): p.stat() for p in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


COMMANDS = {
    "list": "list --labels noisy",
    "results": "results elr",
    "doctor": "doctor",
    "run": "run elr --budget smoke",
    "book": "book",
    "new": "new capro",
    "lab": "lab --copy-only",
}


@pytest.fixture(scope="module")
def used(wheel, tmp_path_factory) -> dict:
    """What was said by each command, with the wheel unpacked into a read-only folder, and what was written where."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    wheel.extractall(site)
    for path in [*site.rglob("*"), site]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = listing(site)
    own = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    own |= {"LEFCOURSE_CACHE": str(elsewhere / "cache")}
    said = json.loads(python(USE, *COMMANDS.values(), cwd=elsewhere, **own))
    assert Path(said["file"]).is_relative_to(site), "this is not the installed package"
    yield said | {"folder": elsewhere, "site": (before, listing(site))}
    for path in [site, *site.rglob("*")]:
        path.chmod(0o755)


def test_nothing_is_written_beside_the_package(used):
    before, after = used["site"]
    assert before == after
    assert {path.name for path in used["folder"].iterdir()} <= {
        "lefcourse-runs",
        "lefcourse-notebooks",
        "cache",
    }


def test_list_knows_what_is_written(used):
    code, out, _ = used[COMMANDS["list"]]
    states = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert code == 0 and states["elr"] == "written"


def test_results_are_those_of_the_checkout(used):
    code, out, _ = used[COMMANDS["results"]]
    recorded = json.loads((RESULTS / "elr.json").read_text())["summary"]["claims"]
    assert code == 0 and all(claim["name"] in out for claim in recorded)


def test_what_results_depend_on_is_the_same_where_it_is_installed(used, hashes):
    assert used["hashes"] == hashes


def test_doctor_compares_with_what_the_package_asks_for(used):
    code, out, err = used[COMMANDS["doctor"]]
    assert code == 0, out + err
    assert " as asked" in out and "git clone https://github.com/lefcourse/lefcourse" in out
    assert str(used["folder"] / "lefcourse-runs") in out


def test_run_leaves_its_record_in_the_current_folder(used):
    code, out, err = used[COMMANDS["run"]]
    assert code == 0, out + err
    (record,) = (used["folder"] / "lefcourse-runs" / "elr").glob("*/record.json")
    assert json.loads(record.read_text())["status"] == "done"
    assert record.with_name("elr.ipynb").exists()


@pytest.mark.parametrize("command", ["book", "new"])
def test_what_needs_a_checkout_says_so(used, command):
    code, out, err = used[COMMANDS[command]]
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"`lefcourse {command}` needs a checkout" in err and "git clone https://" in err


def test_lab_copies_the_notebooks(used):
    code, _, err = used[COMMANDS["lab"]]
    assert (code, err) == (0, "")
    copies = used["folder"] / "lefcourse-notebooks"
    for path in NOTEBOOKS.glob("*/*.ipynb"):
        assert (copies / path.relative_to(NOTEBOOKS)).read_bytes() == path.read_bytes()
    assert os.access(copies / "00-start" / "start.ipynb", os.W_OK)


def test_methods_and_weights_come_with_it(used):
    assert used["loss"] == "elr_loss"
    assert used["clip"]


def test_what_is_measured_elsewhere_leaves_the_package_alone(tmp_path, monkeypatch):
    """`reproduce` reads what came with the package, and writes into the runs folder."""
    shipped, own = tmp_path / "shipped", tmp_path / "runs" / "results"
    shipped.mkdir()
    shutil.copy(RESULTS / "elr.json", shipped)
    for name, value in {"RESULTS": shipped, "measured_root": lambda: own}.items():
        monkeypatch.setattr(reproduce, name, value)
    assert reproduce._known(own / "elr.json") == shipped / "elr.json"
    assert [*reproduce._recorded(["elr"], "", own)] == [("elr", shipped / "elr.json")]
    own.mkdir(parents=True)
    shutil.copy(RESULTS / "elr.json", own)
    assert [*reproduce._recorded(["elr"], "", own)] == [("elr", own / "elr.json")]
    other = tmp_path / "other"
    assert reproduce._known(other / "elr.json") == other / "elr.json"
    assert main(["reproduce", "elr", "--budget", "smoke"]) == 2
