"""Did the numbers move? Equal on the same processor, within the seeds' spread on another one, or named."""

import json
from pathlib import Path

import pytest

from lefcourse.cli import main
from lefcourse.ledger import results
from lefcourse.ledger.confirm import compare


def run(seed: int, accuracy: float | None, processor: str | None = "one", **parameters) -> dict:
    arms = {"tiny": {"role": "method", "accuracy": accuracy, "always": 1.0, "curve": [1, 2]}}
    record = {"seed": seed, "device": "cpu", "threads": 1, "versions": {"torch": "2"}, "arms": arms}
    return record | {"processor": processor, "parameters": {"seed": seed, "rate": 0.6} | parameters}


THEN = [run(5, 0.80), run(6, 0.90), run(7, 0.84)]


def test_equal_numbers_are_confirmed_anywhere():
    for processor in ("one", "another", None):
        found = compare(THEN, run(5, 0.80, processor))
        assert (found.compared, found.exact, found.moved) == (2, True, ())


def test_the_same_processor_repeats_to_the_last_digit():
    assert compare(THEN, run(5, 0.8000001)).moved == ("tiny, accuracy: 0.8, now 0.8",)
    assert compare(THEN, run(5, 0.7)).moved == ("tiny, accuracy: 0.8, now 0.7",)


def test_another_processor_may_move_a_number_as_far_as_the_seeds_do():
    assert compare(THEN, run(5, 0.89, "another")).moved == ()
    assert not compare(THEN, run(5, 0.89, "another")).exact
    assert compare(THEN, run(5, 0.91, "another")).moved == ("tiny, accuracy: 0.8, now 0.91",)
    old = [run(s, a, None) for s, a in ((5, 0.8), (6, 0.9))]  # who knows where
    assert compare(old, run(5, 0.75)).moved == ()


def test_what_is_gone_or_undefined_has_moved():
    assert compare(THEN, run(5, None, "another")).moved == ("tiny, accuracy: 0.8, now none",)
    now = run(5, 0.8)
    now["arms"] = {}
    assert len(compare(THEN, now).moved) == 2


def test_another_default_is_another_experiment():
    assert compare(THEN, run(5, 0.8, rate=0.4)).moved == ("parameter rate: 0.6, now 0.4",)
    assert compare(THEN, run(5, 0.8, new=1)).moved == ()


# --- the command ---------------------------------------------------------------------------------


def reproduce(*words: str) -> int:
    return main(["reproduce", *words, "--device", "cpu", "--jobs", "2", "--out", "results"])


@pytest.fixture
def stale(stub):
    """A recorded result whose chapter has changed since."""
    assert reproduce("tiny") == 0
    path = Path("results/tiny.json")
    recorded = json.loads(path.read_text())
    recorded["source_sha256"] = {"notebook": "older", "package": "older"}
    path.write_text(json.dumps(recorded))
    stub.ran.clear()
    return path


def test_one_seed_is_run_again_and_the_result_is_stamped(stub, stale, capsys):
    assert results.stale("tiny", json.loads(stale.read_text()))
    assert reproduce("tiny", "--confirm") == 0
    assert [(r["seed"], r["arms"]) for r in stub.ran] == [(5, "all")]
    recorded = json.loads(stale.read_text())
    assert not results.stale("tiny", recorded)
    stamp = recorded["confirmed"]
    assert (stamp["seed"], stamp["how"]) == (5, "equal to the last digit")
    assert stamp["compared"] > 0 and stamp["date"]
    assert "tiny: confirmed" in capsys.readouterr().out


def test_what_moved_is_named_and_stays_stale(stub, stale, capsys):
    recorded = json.loads(stale.read_text())
    for record in recorded["runs"]:
        record["arms"]["tiny"]["accuracy"] += 0.5
    stale.write_text(json.dumps(recorded))
    assert reproduce("tiny", "--confirm") == 1
    said = capsys.readouterr().out
    assert "tiny: not confirmed, 1 of 3 numbers moved at seed 5" in said
    assert "  tiny, accuracy: " in said
    assert results.stale("tiny", json.loads(stale.read_text()))


def test_what_is_up_to_date_need_not_be_confirmed(stub, capsys):
    assert reproduce("tiny") == 0
    stub.ran.clear()
    assert reproduce("--stale", "--confirm") == 0
    assert not stub.ran and "every result is up to date" in capsys.readouterr().out


def test_a_variant_is_confirmed_by_its_own_command(stub, capsys):
    assert reproduce("tiny", "--variant", "half", "-p", "rate", "0.3") == 0
    stub.ran.clear()
    assert reproduce("tiny", "--confirm") == 0
    assert [(r["seed"], r["rate"]) for r in stub.ran] == [(5, 0.3)]
    assert "tiny-half: confirmed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tiny --confirm -p rate 0.2", "give it no -p and no --seeds"),
        ("tiny --confirm --seeds 5", "give it no -p and no --seeds"),
        ("tiny --confirm", "nothing is recorded that could be confirmed"),
        ("tiny --confirm --variant x", "nothing is recorded as 'x'"),
    ],
)
def test_what_cannot_be_confirmed_is_one_line(stub, capsys, words, message):
    assert reproduce(*words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
