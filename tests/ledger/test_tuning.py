"""The choices of the chapters: what may be tried, how the best is found, and that the chapters keep to it."""

import json

import pytest

from lefcourse import catalogue
from lefcourse.errors import UsageError
from lefcourse.ledger import tuning


def record(*scores):
    tried = [{"setting": {"lam": k}, "score": score} for k, score in enumerate(scores)]
    entry = {"metric": "accuracy", "val": 20, "chapter": {"lam": 1}, "why": "", "tried": tried}
    return {"tuning": {"ours": entry}}


def test_the_best_mean_over_the_seeds_is_chosen():
    arm = tuning.summarise([record(0.5, 0.9, 0.6), record(0.8, 0.2, 0.9)])["ours"]
    assert arm["chosen"] == {"lam": 2}
    assert arm["settings"][2] == {"setting": {"lam": 2}, "scores": [0.6, 0.9], "mean": 0.75}
    assert arm["val"] == 20


def test_of_equals_the_first_is_chosen_and_what_diverged_never():
    assert tuning.summarise([record(None, 0.5, 0.5)])["ours"]["chosen"] == {"lam": 1}
    assert tuning.summarise([record(0.9, 0.1), record(None, 0.1)])["ours"]["chosen"] == {"lam": 1}


def test_a_grid_is_a_product_of_at_most_twelve():
    assert tuning.settings("ours", {"a": [1, 2], "b": [3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    with pytest.raises(UsageError, match="16 settings of 'ours': at most 12"):
        tuning.settings("ours", {"a": range(4), "b": range(4)})
    for nothing in ({}, {"a": []}):
        with pytest.raises(UsageError, match="the grid of 'ours' is empty"):
            tuning.settings("ours", nothing)


def test_the_page_says_what_was_tried_and_what_the_chapter_takes_instead():
    recorded = {"seeds": [0, 1], "arms": tuning.summarise([record(0.5, 0.9), record(0.8, 0.7)])}
    said = tuning.told(recorded, "ours", {"lam": 1}, "")
    assert "2 settings tried on seeds 0 to 1 with 20 validation samples; taken: lam = 1" in said
    assert "| lam = 1 | 0.800 | 0.900, 0.700 |" in said
    said = tuning.told(recorded, "ours", {"lam": 0}, "it costs half")
    assert "taken: lam = 0, not the best (lam = 1): it costs half" in said
    assert "not recorded yet" in tuning.told(None, "ours", {"lam": 0}, "")


@pytest.mark.parametrize("path", sorted(tuning.FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_what_is_recorded_was_chosen_by_the_rules(path):
    recorded = json.loads(path.read_text())
    assert catalogue.get(recorded["chapter"]).exists and recorded["chapter"] == path.stem
    assert not set(recorded["seeds"]) & set(range(5, 10)), "chosen on seeds that results are from"
    for arm in recorded["arms"].values():
        assert arm["chosen"] in [row["setting"] for row in arm["settings"]]
        assert len(arm["settings"]) <= tuning.MOST and arm["val"] > 0
