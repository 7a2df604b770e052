"""Results: intervals, what is recorded of the seeds, and the ledger that is read from it."""

import json
import math
from pathlib import Path

import pytest
from scipy import stats

from lefcourse import catalogue
from lefcourse.cli import main
from lefcourse.cli import reproduce as command
from lefcourse.ledger import results, statistics
from lefcourse.page import plot


def run_record(seed: int, accuracy: float, holds: bool | None = True, **more) -> dict:
    """A record as a chapter writes it."""
    claim = {"name": "it helps", "relation": ">=", "threshold": 0.7, "paper": "80 % (Table 1)"}
    return {
        "chapter": "elr",
        "parameters": {"seed": seed, "rate": 0.6},
        "seed": seed,
        "device": "cpu",
        "budget": "standard",
        "source_sha256": {"notebook": "n", "package": "p"},
        "wall_s": 10.0 + seed,
        "arms": {
            "plain": {
                "role": "baseline",
                "accuracy": 0.5,
                "curve": [0.1] * 100,
                "three": [1, 2, 3],
            },
            "ELR": {"role": "method", "accuracy": accuracy, "flag": True},
        },
        "gap_closed": accuracy,
        "gap_metric": "accuracy",
        "claims": [claim | {"measured": accuracy, "holds": holds}],
    } | more


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder in the place of assets/results."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "source_sha256", lambda slug: {"notebook": "n", "package": "p"})
    return tmp_path


def record(folder: Path, name: str, chapter: str = "elr", **more) -> dict:
    runs = [run_record(5, 0.8), run_record(6, 0.6, False), run_record(7, 0.9)]
    content = {"chapter": chapter, "command": f"lefcourse reproduce {name}", "made": "2026-01-01"}
    content |= results.summarise(runs) | more
    (folder / f"{name}.json").write_text(json.dumps(content))
    return content


# --- numbers -------------------------------------------------------------------------------------


def test_interval_is_students():
    values = [0.8, 0.6, 0.9]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert results.interval(values) == {
        "mean": pytest.approx(0.7667, abs=1e-4),
        "low": pytest.approx(low),
        "high": pytest.approx(high),
        "n": 3,
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None, None, 0)),
        ([None, 0.5], (0.5, None, None, 1)),
        ([0.0, 0.0], (0.0, 0.0, 0.0, 2)),
    ],
)
def test_interval_of_few_values(values, expected):
    assert tuple(results.interval(values).values()) == expected


def test_paired_difference_is_scipys():
    a, b = [0.8, 0.6, 0.9, 0.7], [0.7, 0.55, 0.75, 0.68]
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    assert results.paired(a, b) == {
        "difference": pytest.approx(0.08),
        "difference_low": pytest.approx(low),
        "difference_high": pytest.approx(high),
        "p": pytest.approx(test.pvalue),
    }
    assert results.paired([1.0, 2.0], [0.0, 1.0])["p"] is None
    assert results.paired([1.0], [0.5])["difference_low"] is None


def test_summary_of_records():
    made = results.summarise([run_record(5, 0.8), run_record(6, 0.6, False), run_record(7, 0.9)])
    assert made["parameters"] == {"rate": 0.6}
    assert made["summary"]["arms"]["ELR"]["role"] == "method"
    assert made["summary"]["arms"]["ELR"]["accuracy"] == results.interval([0.8, 0.6, 0.9])
    assert [*made["summary"]["arms"]["ELR"]] == ["role", "accuracy"]
    assert made["summary"]["gap_closed"]["n"] == 3
    assert made["summary"]["gap_metric"] == "accuracy"
    (claim,) = made["summary"]["claims"]
    assert claim["verdict"] == "undecided" and claim["holds"] == [True, False, True]
    assert claim["measured"]["mean"] == pytest.approx(0.7667, abs=1e-4)
    assert (claim["relation"], claim["threshold"], claim["paper"]) == (">=", 0.7, "80 % (Table 1)")
    assert "curve" not in made["runs"][0]["arms"]["plain"]
    assert made["runs"][0]["arms"]["plain"]["three"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("low", "high", "relation", "expected"),
    [
        (0.7, 0.9, ">=", "holds"),  # touching counts
        (0.71, 0.9, ">=", "holds"),
        (0.5, 0.69, ">=", "fails"),
        (0.5, 0.7, ">=", "undecided"),
        (0.6, 0.8, ">=", "undecided"),
        (0.5, 0.7, "<=", "holds"),
        (0.71, 0.9, "<=", "fails"),
        (0.6, 0.8, "<=", "undecided"),
        (0.7, 0.7, ">=", "holds"),
        (0.7, 0.7, "<=", "holds"),
        (None, None, ">=", "undecided"),  # one seed leaves no interval
    ],
)
def test_verdicts_are_by_interval(low, high, relation, expected):
    measured = {"mean": 0.7, "low": low, "high": high, "n": 5}
    assert statistics.verdict(measured, relation, 0.7) == expected


def test_a_mean_on_the_right_side_is_no_success():
    verdict = lambda *records: results.summarise(records)["summary"]["claims"][0]["verdict"]  # noqa: E731
    assert verdict(run_record(5, 0.71), run_record(6, 0.75)) == "undecided"
    assert verdict(*(run_record(s, 0.75 + 0.01 * s) for s in range(5))) == "holds"
    assert verdict(*(run_record(s, 0.5 + 0.01 * s, False) for s in range(5))) == "fails"
    assert verdict(run_record(5, 0.9, None), run_record(6, 0.9, None)) == "not judged"
    diverged = run_record(9, 0.9, None)
    assert verdict(*(run_record(s, 0.75 + 0.01 * s) for s in range(5)), diverged) == "undecided"


def test_more_seeds_are_counted():
    made = results.summarise([run_record(s, 0.8 + 0.001 * s) for s in range(5, 15)])
    (claim,) = made["summary"]["claims"]
    assert results.told(claim).startswith("holds: 0.8") and results.told(claim).endswith("10 seeds")


def test_claims_are_counted_by_verdict():
    claims = [{"verdict": v} for v in ("holds", "fails", "holds", "undecided", "fails")]
    assert results.count(claims) == "2 hold, 1 undecided, 2 fail"
    assert results.count(claims[:2]) == "1 holds, 1 fails"
    assert results.count([]) == "no claims"


def test_what_chapters_say_of_a_recorded_result(folder):
    record(folder, "elr")
    recorded = results.load("elr")
    assert results.sentence("elr", recorded).startswith(
        "Recorded over 3 seeds (cpu, standard budget)"
    )
    assert "ELR 0.767 (" in results.recorded_arms("elr", "accuracy", ["ELR", "absent"])
    assert "16 s on cpu (mean of 3 runs)" in results.run_time(recorded)
    run = type("Run", (), {"record": run_record(5, 0.8)})
    fig = plot.gap_closed(run, "accuracy", recorded)
    assert len(fig.axes[0].lines) == 2 * 3


# --- the ledger ----------------------------------------------------------------------------------


def test_a_chapter_without_result_says_so(folder, capsys):
    assert main(["results", "elr"]) == 0
    assert "elr: nothing is recorded yet; lefcourse reproduce elr" in capsys.readouterr().out


def test_ledger_as_a_table(folder, capsys):
    record(folder, "elr")
    record(folder, "elr-mnist", source_sha256={"notebook": "older", "package": "p"})
    assert main(["results"]) == 0
    said = capsys.readouterr().out
    head, main_line, variant = said.splitlines()[:3]
    assert head.split()[:3] == ["chapter", "claim", "verdict"]
    for part in ("elr ", "it helps", "undecided", "0.767 (0.387 to 1.146)", "≥ 0.7"):
        assert part in main_line
    for part in ("0.77 (0.39 to 1.15)", "16 s", "cpu", "recorded", "80 % (Table 1)"):
        assert part in main_line
    assert "elr (mnist)" in variant and "stale" in variant
    assert "chapters are planned, but not written yet" in said


def test_ledger_as_json_has_every_number(folder, capsys):
    record(folder, "elr")
    assert main(["results", "elr", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["state"] == "recorded"
    assert entry["claims"][0]["measured"]["n"] == 3
    assert entry["seeds"] == [5, 6, 7]
    assert entry["command"] == "lefcourse reproduce elr"
    assert math.isclose(entry["wall_s"]["mean"], 16)


def test_variants_of_a_chapter_are_told_from_chapters(folder):
    record(folder, "clip-cifar10", "clip")
    record(folder, "clip-pseudolabels", "clip-pseudolabels")
    assert results.variants("clip") == ["cifar10"]
    assert results.variants("clip-pseudolabels") == [""]


def test_differences_of_a_variant(folder):
    assert "is not recorded yet" in results.differences("elr", "accuracy", "ELR", ["plain"], "big")
    record(folder, "elr-big", "elr")
    told = results.differences("elr", "accuracy", "ELR", ["plain"], "big")
    assert told.startswith("| big, accuracy |") and "| ELR − plain | " in told


def test_metrics_are_written_as_in_the_field():
    assert [results.measure(m) for m in ("cf1_chosen", "map", "real", "real_error")] == [
        "CF1 chosen", "mAP", "ReaL accuracy", "real error",
    ]  # fmt: skip


def two_arms(*pairs):
    return {"runs": [{"arms": {"a": {"x": a}, "b": {"x": b} if b else {}}} for a, b in pairs]}


@pytest.mark.parametrize(
    ("pairs", "side", "stands"),
    [
        ([(2.0, 1.0), (2.1, 1.0), (2.0, 1.1)], "higher", "ahead of b"),
        ([(1.0, 2.0), (1.0, 2.1), (1.1, 2.0)], "lower", "behind b"),
        ([(2.0, 1.0), (1.0, 2.0), (2.0, 1.9)], "not told apart by these seeds", "not told apart from b"),
        ([(2.0, 1.0)], "measured once", "not told apart from b"),
        ([(2.0, None)], "not measured", "not told apart from b"),
    ],
)  # fmt: skip
def test_where_an_arm_stands_is_said_by_interval(pairs, side, stands):
    recorded = two_arms(*pairs)
    assert results.side(recorded, "x", "a", "b") == side
    assert results.stands(recorded, "x", "a", "b") == stands


def test_seeds_without_an_arm_do_not_count():
    recorded = two_arms((2.0, 1.0), (9.0, None), (3.0, 1.0))
    assert results.apart(recorded, "x", "a", "b")["difference"] == 1.5


def test_where_nothing_is_recorded_this_run_speaks(folder):
    run = type("Run", (), {"record": run_record(5, 0.8)})
    assert results.summary(run, None, "ELR", "accuracy") == {"mean": 0.8, "low": None, "high": None}
    assert math.isnan(results.summary(run, None, "ELR", "loss")["mean"])
    record(folder, "elr")
    kept = results.summary(run, results.load("elr"), "ELR", "accuracy")
    assert kept["mean"] == pytest.approx(0.7667, abs=1e-4) and kept["low"] < kept["mean"]


# --- reproduce -----------------------------------------------------------------------------------


def reproduce(*words: str) -> int:
    return main(["reproduce", "tiny", *words, "--device", "cpu", "--out", "results", "--jobs", "2"])


def test_reproduce_records_five_seeds_with_all_arms(stub, capsys, tmp_path):
    assert reproduce() == 0
    assert sorted(r["seed"] for r in stub.ran) == [5, 6, 7, 8, 9]
    assert {r["arms"] for r in stub.ran} == {"all"}
    made = json.loads(Path("results/tiny.json").read_text())
    assert made["chapter"] == "tiny"
    assert made["command"] == "lefcourse reproduce tiny --device cpu"
    assert [run["seed"] for run in made["runs"]] == [5, 6, 7, 8, 9]
    assert made["summary"]["arms"]["tiny"]["accuracy"]["n"] == 5
    assert made["source_sha256"] == made["runs"][0]["source_sha256"]
    assert {p.name for p in (tmp_path / "runs/reproduce").iterdir()} == {"tiny"}
    assert "tiny: no claims; gap closed 0.50" in capsys.readouterr().out
    assert not [p for p in Path("results").iterdir() if p.name != "tiny.json"]


def test_reproduce_goes_on_and_keeps_the_old_result_until_all_is_done(stub, capsys):
    assert reproduce("--seeds", "5,6") == 0
    before = Path("results/tiny.json").read_bytes()
    stub.problems[7] = "cell 1: ValueError: no"
    assert reproduce("--seeds", "5-7") == 1
    said = capsys.readouterr().err
    assert "tiny: not recorded, 1 of 3 runs are not done" in said
    assert Path("results/tiny.json").read_bytes() == before
    stub.problems.clear()
    stub.ran.clear()
    assert reproduce("--seeds", "5-7") == 0
    assert [r["seed"] for r in stub.ran] == [7]
    assert json.loads(Path("results/tiny.json").read_text())["summary"]["gap_closed"]["n"] == 3


def test_reproduce_only_what_is_stale(stub, tiny, capsys):
    assert reproduce("--seeds", "5") == 0
    stub.ran.clear()
    assert reproduce("--seeds", "5", "--stale") == 0
    assert "every result is up to date" in capsys.readouterr().out
    tiny.path.write_text(tiny.path.read_text().replace('"1"', '"2"'))
    assert reproduce("--seeds", "5", "--stale") == 0
    assert len(stub.ran) == 1


def test_reproduce_a_variant(stub):
    assert reproduce("--seeds", "5", "--variant", "noisy", "-p", "rate", "0.8") == 0
    made = json.loads(Path("results/tiny-noisy.json").read_text())
    assert made["command"] == (
        "lefcourse reproduce tiny --variant noisy -p rate 0.8 --seeds 5 --device cpu"
    )
    assert made["chapter"] == "tiny" and made["parameters"]["rate"] == 0.8


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-p rate 0.8", "--variant NAME and -p go together"),
        ("--variant noisy", "--variant NAME and -p go together"),
        ("--variant Noisy! -p rate 0.8", "variant 'Noisy!': write it in lower-case"),
        ("--variant noisy -p raet 0.8", "unknown parameter 'raet'"),
        ("--seeds x", "seeds 'x'"),
    ],
)
def test_bad_input_of_reproduce_is_one_line(stub, capsys, words, expected):
    assert reproduce(*words.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and expected in said
    assert not stub.ran and not Path("results").exists()


def test_smoke_results_are_not_published(stub, capsys):
    assert main(["reproduce", "tiny", "--budget", "smoke", "--device", "cpu"]) == 2
    assert "the smoke budget measures nothing" in capsys.readouterr().err
    assert reproduce("--budget", "smoke", "--seeds", "5") == 0


def test_the_name_of_a_chapter_is_no_variant(monkeypatch):
    asked = type("Asked", (), {"chapter": catalogue.get("clip"), "budget": "standard"})
    with pytest.raises(command.UsageError, match="'clip-pseudolabels' is a chapter"):
        command._check([asked], "pseudolabels", ["x=1"], Path("out"))
