"""What a run needs is looked for before anything is trained: in the command, and in a chapter's first cells."""

import json
import pickle
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.cli import main
from lefcourse.errors import DataError, UsageError
from lefcourse.paths import data_root
from lefcourse.running import needs, runner
from lefcourse.running.run import Run

WRITTEN = [c for c in catalogue.chapters() if c.exists]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No data, no network, and no kernel."""

    def refused(*_, **__):
        raise OSError("no network")

    def started(*_, **__):
        raise AssertionError("a kernel would have been started")

    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LEFCOURSE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("LEFCOURSE_BUDGET", "smoke")
    monkeypatch.setattr("urllib.request.urlopen", refused)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refused)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refused)
    monkeypatch.setattr("sklearn.datasets.fetch_20newsgroups", refused)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", refused)
    monkeypatch.setattr(runner, "execute", started)
    monkeypatch.setattr(needs, "PACKAGES", {"hf": ("no_such", "no-such"), "open_clip": ("no_such", "no-such")})  # fmt: skip


def begun(slug, **changes):
    """Run the setup cell of a chapter, as a notebook does."""
    path = catalogue.get(slug).path
    values = {name: p.default for name, p in params.read(path).items()} | changes
    preset = {"smoke": {}, "full": {}} | params.presets(path)
    Run(slug, values, **preset)
    return values


ABSENT = [
    ("loki", "source newsgroups", "20news-bydate_py3.pkz"),
    ("clip", "clip_model hf:openai/clip-vit-base-patch32", "pip install no-such"),
    ("clip", "clip_model open_clip:ViT-B-32/laion2b_s34b_b79k", "pip install no-such"),
    ("clip", "dataset cifar10", "cifar10"),
    ("elr", "dataset mnist", "train-images-idx3-ubyte"),
    ("uda", "dataset fashion_mnist", "FashionMNIST"),
    ("start", "dataset mnist", "MNIST"),
    ("erase", "source citeseer", "ind.citeseer.x"),
    ("soft-teacher", "source bccd", "BCCD"),
    ("llp-bp", "task adult", "openml"),
]


@pytest.mark.parametrize(("slug", "given", "says"), ABSENT)
def test_what_is_absent_is_said_before_a_kernel_starts(slug, given, says, capsys):
    assert main(["run", slug, "-p", *given.split()]) == 1
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(("slug", "given", "says"), ABSENT)
def test_what_is_absent_is_said_by_the_first_cells(slug, given, says):
    name, value = given.split()
    with pytest.raises(DataError, match=says):
        begun(slug, **{name: value})


@pytest.mark.parametrize(
    "words",
    ["run elr --budget full", "sweep elr -p dataset digits,mnist", "reproduce elr --variant m -p dataset mnist"],
)  # fmt: skip
def test_budgets_sweeps_and_recorded_runs_are_looked_after_too(words, capsys):
    assert main(words.split()) == 1
    assert "could not be downloaded" in capsys.readouterr().err


def test_a_name_is_left_as_it_was_written_and_no_model_is_no_data(monkeypatch):
    spec = params.read(catalogue.get("clip").path)
    name = "hf:openai/clip-vit-base-patch32"
    assert params.parse(spec, [f"clip_model={name}"])["clip_model"] == name
    monkeypatch.setattr(needs, "PACKAGES", {"open_clip": ("json", "json")})
    with pytest.raises(UsageError, match="ARCHITECTURE/WEIGHTS"):
        needs.look({"clip_model": "open_clip:ViT-B-32"})


@pytest.mark.parametrize("content", [b"", b"half", zlib.compress(b"no pickle"), zlib.compress(pickle.dumps({}))])  # fmt: skip
def test_damaged_newsgroups_are_named(content):
    path = data_root() / "20news-bydate_py3.pkz"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"20news-bydate_py3\.pkz is broken"):
        needs.look({"source": "newsgroups"})


def test_whole_newsgroups_are_found():
    path = data_root() / "20news-bydate_py3.pkz"
    path.parent.mkdir()
    part = SimpleNamespace(data=["a"], target=[0])
    path.write_bytes(zlib.compress(pickle.dumps({"train": part, "test": part})))
    assert needs.look({"source": "newsgroups"}) == {}


# --- a reader's own pictures ---------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    for name in ("apple", "pear"):
        for i in range(20):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), i, np.uint8)).save(path)
    return f"imagefolder:{tmp_path / 'photos'}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("-p train 1000", "has 40 pictures, too few for train 1000; what fits: -p train 24 -p val 6 -p test 10"),
        ("-p val 40", "too few for val 40"),
        ("-p test 39", "too few for test 39"),
        ("-p test 35", "'train' is 4; allowed: at least 10"),
    ],
)  # fmt: skip
def test_what_a_small_folder_cannot_give_is_said_with_what_it_can(given, says, photos, capsys):
    assert main(["run", "elr", "-p", "dataset", photos, *given.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert main(["sweep", "elr", "-p", "dataset", photos, *given.split()]) == 2


def test_a_small_folder_is_shared_out_where_nothing_is_given(photos, capsys, tmp_path):
    values = begun("elr", dataset=photos)
    assert [values[part] for part in needs.PARTS] == [27, 5, 8]
    assert "train = 27, val = 5, test = 8" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["parameters"]["train"] == 27


def test_what_the_reader_gave_is_kept(photos, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_GIVEN", "dataset,train")
    values = begun("elr", dataset=photos, train=12)
    assert values["train"] == 12 and values["val"] + values["test"] <= 28


@pytest.mark.parametrize("chapter", WRITTEN, ids=lambda c: c.slug)
def test_presets_are_read_as_the_setup_cell_says(chapter):
    presets = params.presets(chapter.path)
    assert set(presets) == {"smoke", "full"}
    for preset in presets.values():
        params.check(params.read(chapter.path), preset)
