"""Compare: the same problem for several chapters, or a refusal in one line."""

import json
from pathlib import Path

import pandas as pd
import pytest
from tinybook import chapter, code, write
from tinysweep import PARAMETERS, in_process

from lefcourse import catalogue
from lefcourse.cli import main
from lefcourse.files import write_json
from lefcourse.ledger import compare
from lefcourse.running import runner
from lefcourse.running.record import new_record
from lefcourse.sweep import pool

DATA = 'dataset = "digits"  # digits | mnist\n'


@pytest.fixture
def chapters(tmp_path, monkeypatch):
    """Four written chapters: `one` and `two` pose the same problem, `few` and `boxes` others."""

    def make(slug, source, task="classification", labels=("noisy",)):
        made = chapter(write(tmp_path / f"{slug}.ipynb", code(source, "parameters")))
        made.task, made.labels = task, labels
        return made

    known = {
        "one": make("one", PARAMETERS + DATA + "lr = 0.1  # of one\ntrain = 100  # images"),
        "two": make("two", PARAMETERS + DATA + "lr = 0.3  # of two\ntrain = 200  # images\nnu = 1  # own"),
        "few": make("few", PARAMETERS + DATA, labels=("few",)),
        "boxes": make("boxes", PARAMETERS + DATA, task="detection"),
        "table": make("table", PARAMETERS),
    }  # fmt: skip
    monkeypatch.setattr(catalogue, "get", lambda slug: known[slug])
    monkeypatch.setattr(catalogue, "chapters", lambda: [*known.values()])
    monkeypatch.setattr(pool, "local_cluster", in_process)
    monkeypatch.setenv("LEFCOURSE_RUNS", str(tmp_path / "runs"))
    for name in ("LEFCOURSE_BUDGET", "LEFCOURSE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return known


@pytest.fixture
def ran(chapters, monkeypatch):
    """Runs are function calls; return what was run."""
    ran = []

    def execute(chapter, parameters, out_dir, budget, device, threads=None):
        ran.append((chapter.slug, dict(parameters)))
        record = new_record(chapter.slug, {"dataset": "digits"} | parameters, "cpu", budget)
        better = 0.05 * (chapter.slug == "two") + 0.001 * parameters["seed"] ** 2
        accuracy = 0.9 - parameters["rate"] / 2 + better
        metric = "accuracy" if chapter.slug != "odd" else "error"
        arms = {
            "cross-entropy": {"role": "baseline", metric: 0.9 - parameters["rate"]},
            chapter.slug.upper(): {"role": "method", metric: accuracy, "loss": 1.0},
            "clean labels": {"role": "oracle", metric: 0.95},
            "half": {"role": "ablation", metric: 0.4},
        }
        record |= {"status": "done", "arms": arms, "gap_closed": 0.5, "wall_s": 1.0}
        write_json(out_dir / "record.json", record | {"gap_metric": metric})
        return record

    monkeypatch.setattr(runner, "execute", execute)
    return ran


def test_the_same_problem_for_both(ran, capsys):
    words = "compare one two -p rate 0.2,0.4 --seeds 5-7 --device cpu --out out"
    assert main(words.split()) == 0
    assert len(ran) == 2 * 2 * 3
    assert {p["train"] for _, p in ran} == {100}  # the first chapter's
    assert not any("lr" in p for _, p in ran)  # the method's own
    said = capsys.readouterr().out
    assert "the same for all: train=100" in said
    assert "one: ONE minus arm" in said
    table = pd.read_csv("out/summary.csv").set_index(["rate", "metric", "arm"])
    both = table.loc[0.2, "accuracy", "two: TWO"]
    assert both["difference"] == pytest.approx(-0.05)
    arms = {"one: cross-entropy", "one: ONE", "one: clean labels"}
    assert {a for a in table.index.get_level_values("arm") if a.startswith("one")} == arms
    for name in ("sweep.csv", "sweep.parquet", "sweep.png", "sweep.svg"):
        assert Path("out", name).exists()
    ran.clear()
    assert main(words.split()) == 0
    assert not ran


def test_what_is_not_the_same_is_said(ran, capsys, monkeypatch):
    monkeypatch.setattr(compare, "settled", lambda *_: {})
    usual = runner.execute

    def execute(chapter, parameters, *args, **options):
        extra = {"train": 100 if chapter.slug == "one" else 200}
        return usual(chapter, parameters | extra, *args, **options)

    monkeypatch.setattr(runner, "execute", execute)
    words = "compare one two -p rate 0.2 --seeds 5 --device cpu --out out"
    assert main(words.split()) == 0
    assert "not the same for all: train (one: 100, two: 200)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("one", "give two or more different chapters"),
        ("one one", "give two or more different chapters"),
        ("one boxes", "one is about classification, boxes about detection"),
        ("one few", "one assumes noisy labels, few few"),
        ("one two -p three.lr 1", "chapter of -p three.lr"),
        ("one two -p two.nu 1,2", "-p two.nu takes one value"),
        ("one two -p rate 0.2 --record x", "along one parameter, not 0"),
        ("one table", "table has no parameter 'dataset'; in common: seed, rate"),
        ("one two -p nu 1,2", "one has no parameter 'nu'; in common: seed, rate"),
        ("one two -p rate=", "parameter 'rate' lacks a value"),
        ("one two -p seed 1", "the seeds are given by --seeds"),
        ("one two --seeds x", "seeds 'x'"),
    ],
)
def test_bad_input_is_one_line(ran, capsys, words, expected):
    assert main(["compare", *words.split(), "--device", "cpu", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and expected in said
    assert not ran and not Path("out").exists()


def test_another_comparison_is_not_overwritten(ran, capsys):
    words = "compare one two --device cpu --out out --seeds 5 -p rate"
    assert main([*words.split(), "0.2"]) == 0
    before = json.loads(Path("out/sweep.json").read_text())
    assert before["chapter"] == "one+two"
    assert main([*words.split(), "0.4"]) == 2
    assert "another sweep (one+two train=100 rate=0.2 seeds=5 standard)" in capsys.readouterr().err
    assert json.loads(Path("out/sweep.json").read_text()) == before


def test_one_chapter_can_have_its_own_value(ran, capsys):
    words = "compare one two -p rate 0.2,0.4 -p two.train 150 -p two.lr 0.5 --seeds 5 --device cpu"
    assert main([*words.split(), "--out", "out"]) == 0
    said = capsys.readouterr()
    assert [p.get("train") for slug, p in ran if slug == "one"] == [None, None]  # its default
    assert [(p["train"], p["lr"]) for slug, p in ran if slug == "two"] == [(150, 0.5)] * 2
    manifest = json.loads(Path("out/sweep.json").read_text())
    assert manifest["own"] == {"one": [], "two": ["train=150", "lr=0.5"]}
    assert "two: TWO" in said.out


def test_further_arms_are_shown_if_they_are_there(ran, capsys):
    words = "compare one two -p rate 0.2,0.4 --seeds 5 --device cpu --out out"
    words = [*words.split(), "--also"]
    assert main([*words, "two: half"]) == 0
    assert "two: half" in capsys.readouterr().out
    table = pd.read_csv("out/summary.csv")
    assert "two: half" in set(table["arm"]) and "one: half" not in set(table["arm"])
    assert main([*words, "two: hlaf"]) == 2
    assert "two: half" in capsys.readouterr().err, "the nearest name is offered"


def test_one_chapter_is_enough_where_its_arms_are_asked_for(ran, capsys):
    words = "compare one -p rate 0.2 --seeds 5 --device cpu --out out"
    assert main([*words.split(), "--also", "one: half"]) == 0
    assert "one: half" in capsys.readouterr().out
    assert {slug for slug, _ in ran} == {"one"}


def test_a_comparison_is_kept_with_its_cost(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.results, "RESULTS", tmp_path / "kept")
    usual = runner.execute

    def execute(chapter, parameters, out_dir, *args, **options):
        record = usual(chapter, parameters, out_dir, *args, **options)
        record["seconds"] = {chapter.slug.upper(): {"training": 2.0, "pre-training": 1.5}}
        write_json(out_dir / "record.json", record | {"gap_metric": "accuracy"})
        return record

    monkeypatch.setattr(runner, "execute", execute)
    words = "compare one two -p rate 0.2,0.4 -p dataset digits --seeds 5-7"
    words += " --metric accuracy --metric loss"
    also = ["--also", "two: half"]
    more = "--device cpu --out out --record noisy"
    assert main([*f"{words} {more}".split(), *also]) == 0
    kept = compare.kept("noisy")
    told = "lefcourse compare one two -p rate 0.2,0.4 -p dataset digits --metric accuracy --metric loss --seeds 5-7"
    assert kept["command"] == f"{told} --also 'two: half' --record noisy"
    assert kept["metric"] == "accuracy" and kept["further"] == ["loss"]
    assert compare.mean(kept, "one: ONE", 0.2, "loss")["mean"] == 1
    assert compare.mean(kept, "two: half", 0.2, "loss")["mean"] is None
    assert kept["fixed"] == {"dataset": "digits"} and kept["also"] == ["two: half"]
    assert compare.values(kept) == [0.2, 0.4] and len(kept["rows"]) == 2 * 3 * 7
    assert compare.arms(kept)[0] == "one: cross-entropy"
    better = compare.difference(kept, "two: TWO", "one: ONE", 0.4)
    assert better["n"] == 3 and better["mean"] == pytest.approx(0.05)
    assert compare.mean(kept, "two: TWO", 0.2, "seconds")["mean"] == 3.5
    assert compare.mean(kept, "two: clean labels", 0.2, "seconds")["mean"] is None
    assert set(kept["source_sha256"]) == {"one", "two"}


def test_methods_for_all_labels_or_none_can_be_given_few(chapters):
    few = chapters["few"]
    for kinds, task in [(("all",), "classification"), (("none",), "representation")]:
        chapters["one"].labels, chapters["one"].task = kinds, task
        compare.check([few, chapters["one"]], ["rate"])
