"""The run: parameters and budgets, seeds, the record, the gap closed, the claims."""

import json

import pytest
import torch

from lefcourse import catalogue
from lefcourse.errors import UsageError
from lefcourse.running import run
from lefcourse.running.run import Run


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Build a Run of the ELR chapter in a folder of its own."""
    monkeypatch.setenv("LEFCOURSE_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("LEFCOURSE_DEVICE", "cpu")

    def build(budget="standard", smoke=None, full=None, **values):
        monkeypatch.setenv("LEFCOURSE_BUDGET", budget)
        spec = run.params.read(catalogue.get("elr").path)
        namespace = {name: p.default for name, p in spec.items()} | values
        made = Run("elr", namespace, smoke=smoke or {"epochs": 2}, full=full or {})
        return made, namespace

    return build


def test_record_says_interrupted_until_it_is_finished(make, tmp_path):
    r, _ = make()
    read = lambda: json.loads((tmp_path / "record.json").read_text())  # noqa: E731
    assert read()["status"] == "interrupted"
    r.finish()
    record = read()
    assert record["status"] == "done"
    assert record["wall_s"] > 0 and record["peak_mb"] > 0
    wanted = "chapter parameters seed device budget versions source_sha256 status wall_s peak_mb arms gap_closed claims"
    assert set(wanted.split()) <= set(record)


def test_budget_replaces_only_what_the_reader_left_alone(make):
    r, namespace = make("smoke", smoke={"epochs": 2, "batch": 8}, batch=16)
    assert namespace["epochs"] == r.parameters["epochs"] == 2
    assert namespace["batch"] == r.parameters["batch"] == 16


def test_budget_does_not_replace_what_was_given(make, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_GIVEN", "seed,epochs")
    r, _ = make("smoke", smoke={"epochs": 2, "batch": 8})
    assert r.parameters["epochs"] == 100
    assert r.parameters["batch"] == 8


def test_budget_cannot_name_a_parameter_that_does_not_exist(make):
    with pytest.raises(UsageError, match="epochs"):
        make("smoke", smoke={"epoch": 2})


@pytest.mark.parametrize(
    "bad", [{"epochs": 1.5}, {"epochs": True}, {"noise": "symetric"}, {"dataset": "mnits"}]
)
def test_bad_parameters_are_refused(make, bad):
    with pytest.raises(UsageError):
        make(**bad)


def test_unknown_budget_names_the_choices(make):
    with pytest.raises(UsageError, match="smoke, standard, full"):
        make("tiny")


@pytest.mark.parametrize(("method", "closed"), [(0.5, 0.0), (0.9, 1.0), (0.7, 0.5), (0.4, -0.25)])
def test_gap_closed(make, method, closed):
    r, _ = make()
    for name, role, value in [
        ("b", "baseline", 0.5),
        ("m", "method", method),
        ("o", "oracle", 0.9),
    ]:
        r.arm(name, role, accuracy=value)
    assert r.gap_closed("accuracy") == pytest.approx(closed)


@pytest.mark.parametrize(
    ("floor", "baseline", "closed"),
    [(0.1, 0.5, 0.5), (0.5, 0.5, None), (0.6, 0.5, None), (0.1, 0.81, 0.5), (0.1, 0.85, None)],
)
def test_a_gap_needs_a_baseline_above_the_floor_and_clearly_below_the_oracle(
    make, floor, baseline, closed
):
    r, _ = make()
    r.arm("constant", "floor", accuracy=floor)
    r.arm("plain", "baseline", accuracy=baseline)
    r.arm("new", "method", accuracy=(baseline + 0.92) / 2)
    r.arm("all labels", "oracle", accuracy=0.92)
    assert r.gap_closed("accuracy") == (closed and pytest.approx(closed))


def test_gap_closed_of_an_error_rate_and_where_there_is_no_gap(make):
    r, _ = make()
    for name, role, value in [("b", "baseline", 0.5), ("m", "method", 0.2), ("o", "oracle", 0.1)]:
        r.arm(name, role, error=value)
    assert r.gap_closed("error", higher_is_better=False) == pytest.approx(0.75)
    assert r.gap_closed("error") is None


def test_gap_needs_exactly_one_method(make):
    r, _ = make()
    r.arm("b", "baseline", accuracy=0.1)
    with pytest.raises(UsageError, match="method"):
        r.gap_closed("accuracy")


def test_an_arm_gathers_its_metrics(make):
    r, _ = make()
    r.arm("m", "method", accuracy=torch.tensor(0.5))
    r.arm("m", "method", f1=float("nan"))
    kept = json.loads((r.folder / "record.json").read_text())["arms"]["m"]
    assert kept == {"role": "method", "accuracy": 0.5, "f1": None}  # undefined, not diverged
    with pytest.raises(UsageError, match="baseline"):
        r.arm("m", "basline")


def held(r, name, *asked):
    """Make a claim, and return what is recorded of it."""
    # Or every cell that ends with a claim would print a verdict of one run.
    assert r.claim(name, *asked) is None
    return next(c["holds"] for c in r.record["claims"] if c["name"] == name)


def test_claims_are_judged_at_standard_and_not_at_smoke(make):
    r, _ = make()
    assert held(r, "a", 0.2, ">=", 0.1, "paper") is True
    assert held(r, "b", 0.2, "<=", 0.1, "paper") is False
    assert held(r, "c", float("nan"), ">=", 0.1, "paper") is None
    r.claim("a", 0.05, ">=", 0.1, "paper")
    assert [c["holds"] for c in r.record["claims"]] == [False, None, False]
    smoke, _ = make("smoke")
    assert held(smoke, "a", 0.2, ">=", 0.1, "paper") is None


def test_streams_are_reproducible_and_do_not_disturb_each_other(make):
    a, b = make()[0], make()[0]
    torch.rand(5, generator=a.generator("noise"))
    draws = [torch.rand(5, generator=r.generator("batches")) for r in (a, b)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(5, generator=a.generator("noise")))
    other = make(seed=6)[0]
    assert not torch.equal(draws[0], torch.rand(5, generator=other.generator("batches")))
    weights = []
    for r in (a, b):
        torch.rand(3)
        r.fresh("weights")
        weights.append(torch.rand(4))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "said",
    [
        {"accuracy": float("nan")},
        {"accuracy": 0.1, "loss": float("inf")},
        {"diverged": True, "accuracy": 0.1},
    ],
)
def test_an_arm_that_diverged_says_so_and_nothing_is_concluded_from_it(make, capsys, said):
    r, _ = make()
    r.arm("b", "baseline", accuracy=0.2)
    r.arm("o", "oracle", accuracy=0.9)
    r.arm("m", "method", **said)
    r.arm("m", "method", f1=0.3)
    assert capsys.readouterr().out.count("m has diverged") == 1
    kept = json.loads((r.folder / "record.json").read_text())["arms"]["m"]
    assert kept["diverged"] is True and kept["accuracy"] is None and kept["f1"] is None
    assert r.gap_closed("accuracy") is None
    over = r.record["arms"]["m"]["accuracy"] - r.record["arms"]["b"]["accuracy"]
    assert held(r, "over", over, ">=", -1.0, "paper") is None
    assert held(r, "something finite", 0.5, ">=", 0.0, "paper") is None
    assert r.record["claims"][0]["not_judged"] == "m diverged"
    r.verdict()


def test_a_diverged_alternative_leaves_the_other_claims_alone(make):
    r, _ = make()
    r.arm("m", "method", accuracy=0.5)
    r.arm("a", "alternative", accuracy=float("nan"))
    assert held(r, "of m", 0.5, ">=", 0.1, "paper") is True
    assert held(r, "over a", 0.5 - float("nan"), ">=", 0.1, "paper") is None


def test_the_setup_cell_without_the_parameters_cell(make, tmp_path):
    with pytest.raises(UsageError, match=r"run the parameters cell first.*seed"):
        Run("elr", {}, smoke={}, full={})


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
def test_a_seed_out_of_range_is_refused_at_once(make, seed):
    with pytest.raises(UsageError, match=r"'seed' is .* allowed: 0 to 4294967295"):
        make(seed=seed)


def test_a_count_out_of_range_is_refused_in_a_notebook_too(make):
    with pytest.raises(UsageError, match="'epochs' is 0; allowed: at least 1"):
        make(epochs=0)


def test_one_run_shows_its_value_and_the_recorded_verdict(make, monkeypatch):
    """Near a threshold, one seed is no refutation: .0201 where .02 was asked, and five seeds say .015 (.005 to .025)."""
    said = []
    monkeypatch.setattr(run.plot, "say", said.append)
    seeds = {"mean": 0.015, "low": 0.005, "high": 0.025, "n": 5}
    recorded = {
        "summary": {"claims": [{"name": "falls", "verdict": "undecided", "measured": seeds}]}
    }
    monkeypatch.setattr(run.results, "load", lambda slug: recorded)
    r, _ = make()
    r.claim("falls", 0.0201, "<=", 0.02, "Table 1")
    r.claim("new", 0.5, ">=", 0.1, "Table 2")
    r.verdict()
    assert (
        "| falls | ≤ 0.02 | 0.020 | **undecided**: 0.015 (0.005 to 0.025), 5 seeds | Table 1 |"
        in said[0]
    )
    assert "| new | ≥ 0.1 | 0.500 | not yet | Table 2 |" in said[0]
    assert "does not hold" not in said[0] and "one draw (seed 5)" in said[0]


@pytest.mark.parametrize(
    ("budget", "values", "words"),
    [
        ("standard", {"rate": 0.3}, "another experiment than the recorded one: rate differs"),
        ("full", {}, "the budget is full"),
        ("smoke", {}, "nothing is judged"),
        ("standard", {"seed": 11}, "one draw (seed 11)"),
    ],
)
def test_a_run_says_how_it_is_to_be_read(make, monkeypatch, budget, values, words):
    said = []
    monkeypatch.setattr(run.plot, "say", said.append)
    r, _ = make(budget, **values)
    r.claim("a", 0.2, ">=", 0.1, "Table 1")
    r.verdict()
    assert words in said[0]


def test_the_record_names_the_processor(make):
    r, _ = make()
    assert torch.backends.cpu.get_cpu_capability() in r.record["processor"]
    assert r.record["threads"] == torch.get_num_threads()
