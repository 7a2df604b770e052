"""Scores for images with several labels: what they count, how they weigh, and what they are deaf to.

Brief sources: abstracts of both versions of arXiv:2412.18409, and ReaL's public code (google-research/reassessed-imagenet).
"""

import json

import numpy as np
import pytest
import torch
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs
from sklearn.metrics import label_ranking_average_precision_score

import lefcourse as lc
from lefcourse.catalogue import get
from lefcourse.chapter import params

ml = lc.methods("multilabel-imagenet")
C = 12


def world(n=2000, several=0.5, seed=0):
    """Random label sets Y (n, C), single labels y (n,) out of them, and scores (n, C) that know a little."""
    g = torch.Generator().manual_seed(seed)
    k = torch.where(torch.rand(n, generator=g) < several, torch.randint(2, 5, (n,), generator=g), 1)
    order = torch.rand(n, C, generator=g).argsort(1)
    Y = torch.zeros(n, C, dtype=torch.bool).scatter(1, order, torch.arange(C) < k[:, None])
    y = torch.multinomial(Y.double(), 1, generator=g)[:, 0]
    return Y, y, Y + 0.8 * torch.randn(n, C, generator=g)


Y, y, SCORES = world()
K = Y.sum(1)
COUNTED = ml.per_image(ml.ranking(SCORES), y, Y)
SHARES = torch.tensor([0.84, 0.06, 0.06, 0.04], dtype=torch.float64)


def mean(what, counted=COUNTED):
    return counted[what].mean().item()


# --- what is counted -------------------------------------------------------------------------------


def test_by_hand():
    Y = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]]).bool()
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.4, 0.3, 0.2, 0.1]])
    counted = ml.per_image(ml.ranking(scores), torch.tensor([0, 0]), Y)
    expected = {
        "top-1": [0, 1],
        "ReaL": [1, 1],
        "variable top-k": [1 / 2, 2 / 3],
        "exact set": [0, 0],
    }
    assert {k: v.tolist() for k, v in counted.items()} == {
        k: pytest.approx(v) for k, v in expected.items()
    }


def test_with_one_label_each_all_scores_agree():
    _, y, scores = world()
    alone = torch.nn.functional.one_hot(y, C).bool()
    counted = ml.per_image(ml.ranking(scores), y, alone)
    found = ml.weigh(counted, alone.sum(1), torch.ones(1, dtype=torch.float64))
    assert len(set(found.values())) == 1
    assert counted["exact set"].equal(counted["top-1"])


def test_order_of_the_scores():
    """ReaL forgives, so it is at least top-1 where y is valid; the exact set asks for more than A."""
    assert Y.gather(1, y[:, None]).all()
    assert (COUNTED["ReaL"] >= COUNTED["top-1"]).all()
    assert (COUNTED["exact set"] <= COUNTED["variable top-k"]).all()
    assert mean("ReaL") > mean("top-1")
    assert mean("exact set") < mean("variable top-k")


def test_random_scores_find_k_of_C():
    Y, y, _ = world(60_000)
    g = torch.Generator().manual_seed(1)
    A = ml.per_image(ml.ranking(torch.rand(Y.shape, generator=g)), y, Y)["variable top-k"]
    means, _ = ml.group_means(A, Y.sum(1), 4)
    assert means.tolist() == pytest.approx([k / C for k in (1, 2, 3, 4)], abs=0.01)


def test_a_perfect_ranking_has_all_labels_and_yet_not_top_1():
    """It cannot know the annotator's choice: top-1 is the mean of 1 / k, up to chance."""
    g = torch.Generator().manual_seed(2)
    perfect = Y + 0.1 * torch.rand(Y.shape, generator=g)
    counted = ml.per_image(ml.ranking(perfect), y, Y)
    assert mean("variable top-k", counted) == mean("exact set", counted) == 1
    assert mean("top-1", counted) == pytest.approx((1 / K).mean().item(), abs=0.03)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_ceiling_is_the_best_guess_of_one_who_knows_the_areas(power):
    g = torch.Generator().manual_seed(3)
    area = torch.rand(50, 4, generator=g) * (
        torch.arange(4) < torch.randint(1, 5, (50, 1), generator=g)
    )
    best = []
    for row in area:
        weight = [a.item() ** power for a in row if a > 0]
        best.append(max(weight) / sum(weight))
    assert ml.ceiling(area, power) == pytest.approx(np.mean(best))
    if power == 0:
        assert ml.ceiling(area, 0.0) == pytest.approx((1 / (area > 0).sum(1)).mean().item())


def test_ties_are_broken_at_random():
    flat = torch.zeros(1, C)
    firsts = {ml.ranking(flat, torch.Generator().manual_seed(s))[0, 0].item() for s in range(60)}
    assert len(firsts) > 6
    assert ml.ranking(SCORES, torch.Generator().manual_seed(5)).equal(
        SCORES.argsort(1, descending=True)
    )


def test_ranking_precision_is_the_librarys():
    ours = ml.ranking_precision(ml.ranking(SCORES), Y).mean().item()
    assert ours == pytest.approx(label_ranking_average_precision_score(Y, SCORES))


# --- how groups are weighed ------------------------------------------------------------------------


def test_groups_pool_what_is_too_small():
    k = torch.tensor([1] * 60 + [2] * 30 + [3] * 20 + [4] * 4)
    assert ml.group_edges(k, smallest=4).tolist() == [1, 2, 3]
    assert ml.group_edges(k, smallest=20).tolist() == [1, 2]  # the 24 with three and more
    assert ml.group_edges(k, smallest=30).tolist() == [1]
    assert ml.group_edges(k, smallest=100).tolist() == []
    other = torch.tensor([1] * 90 + [2] * 10 + [3] * 40)
    assert ml.group_edges(k, other, smallest=20).tolist() == [1]
    assert ml.group_of(k, torch.tensor([1, 2])).tolist() == k.clamp_max(3).tolist()


def test_a_gap_between_numbers_of_labels_makes_no_empty_group():
    k = torch.tensor([2] * 60 + [5] * 60 + [9] * 60)
    edges = ml.group_edges(k, smallest=50)
    group = ml.group_of(k, edges)
    assert torch.bincount(group)[1:].tolist() == [60, 60, 60]
    means, _ = ml.group_means(k.double(), group, len(edges) + 1)
    assert means.tolist() == [2, 5, 9]


def test_group_means_and_shares():
    group = torch.tensor([1, 1, 2, 3, 3, 3])
    means, shares = ml.group_means(torch.tensor([0, 1, 1, 0, 0, 0.6]).double(), group, 3)
    assert means.tolist() == pytest.approx([0.5, 1, 0.2])
    assert shares.tolist() == pytest.approx([2 / 6, 1 / 6, 3 / 6])


def test_asma_is_the_mean_of_the_group_means():
    means, own = ml.group_means(COUNTED["variable top-k"], K, 4)
    found = ml.weigh(COUNTED, K, SHARES)
    assert found["ASMA"] == pytest.approx(means.mean().item())
    assert found["variable top-k"] == pytest.approx(mean("variable top-k"))
    assert found["top-1"] == pytest.approx(mean("top-1"))
    standard = (ml.group_means(COUNTED["top-1"], K, 4)[0] * SHARES).sum().item()
    assert found["top-1, fixed shares"] == pytest.approx(standard)
    assert abs(found["ASMA"] - found["variable top-k"]) > 0.01
    assert own.sum() == pytest.approx(1)


def test_a_group_twice_moves_means_but_not_fixed_weights():
    twice = torch.cat([torch.arange(len(K)), torch.nonzero(K == 3)[:, 0]])
    before = ml.weigh(COUNTED, K, SHARES)
    after = ml.weigh({k: v[twice] for k, v in COUNTED.items()}, K[twice], SHARES)
    for name in ("ASMA", "top-1, fixed shares", "ReaL, fixed shares"):
        assert after[name] == pytest.approx(before[name])
    for name in ("top-1", "variable top-k"):
        assert abs(after[name] - before[name]) > 1e-3


def test_the_parts_of_a_drop_add_up():
    g = torch.Generator().manual_seed(4)
    m1, m2, p1, p2 = (torch.rand(4, generator=g, dtype=torch.float64) for _ in range(4))
    p1, p2 = p1 / p1.sum(), p2 / p2.sum()
    assert sum(ml.decompose(m1, p1, m2, p2)) == pytest.approx(
        ((p1 * m1).sum() - (p2 * m2).sum()).item()
    )
    assert ml.decompose(m1, p1, m2, p1)[0] == 0
    assert ml.decompose(m1, p1, m1, p2)[1] == 0
    back = ml.decompose(m2, p2, m1, p1)
    assert back == pytest.approx([-part for part in ml.decompose(m1, p1, m2, p2)])


# --- files -----------------------------------------------------------------------------------------


def write(
    folder,
    rows="0,1,1,0,2\n1,2,0,2,1\n2,0,2,1,0\n",
    labels=((0, 1), (2,), ()),
    head="image,label,p1,p2,p3",
):
    csv, real = folder / "mine.csv", folder / "real.json"
    csv.write_text(f"{head}\n{rows}")
    real.write_text(json.dumps(labels) if not isinstance(labels, str) else labels)
    return str(csv), str(real)


def test_files_are_counted_and_images_without_a_label_left_out(tmp_path):
    counted, k = ml.count_files(*write(tmp_path))
    assert k.tolist() == [2, 1]
    assert counted["top-1"].tolist() == [1, 0]
    assert counted["variable top-k"].tolist() == [1, 0]
    assert counted["ReaL"].tolist() == [1, 0]


def test_the_order_of_the_lines_and_the_names_of_imagenet_do(tmp_path):
    counted, k = ml.count_files(*write(tmp_path))
    named = (
        "ILSVRC2012_val_00000002.JPEG,2,0,2,1\n"
        "ILSVRC2012_val_00000001.JPEG,1,1,0,2\n"
        "ILSVRC2012_val_00000003.JPEG,0,2,1,0\n"
    )
    other, there = ml.count_files(*write(tmp_path, named))
    assert there.tolist() == k.tolist()[::-1]
    for what, values in counted.items():
        assert other[what].tolist() == values.tolist()[::-1]


def test_class_1000_of_imagenet_and_twenty_answers_do(tmp_path):
    head = "image,label," + ",".join(f"p{r}" for r in range(1, 21))
    row = "49999,999," + ",".join(str(999 - r) for r in range(20)) + "\n"
    labels = [[] for _ in range(49_999)] + [[999, 980]]
    counted, k = ml.count_files(*write(tmp_path, row, labels, head))
    assert (k.tolist(), counted["variable top-k"].tolist()) == ([2], [0.5])


BROKEN = {
    "no such column": (dict(head="image,label,first,second,third"), "no column 'p1'"),
    "a gap in the columns": (dict(head="image,label,p1,p2,p4"), "no column 'p3'"),
    "no label": (dict(head="image,truth,p1,p2,p3"), "no column 'label'"),
    "names instead of numbers": (dict(rows="0,1,cat,0,2\n"), "line 2: p1 is no number"),
    "a negative class": (dict(rows="0,1,1,0,2\n1,-1,0,2,1\n"), "line 3: label is no number"),
    "a name without a number": (dict(rows="dog.png,1,1,0,2\n"), "line 2: image is no number"),
    "a class twice": (dict(rows="0,1,1,1,2\n"), "line 2: a class is ranked twice"),
    "an image twice": (dict(rows="0,1,1,0,2\n0,1,1,0,2\n"), "image 0 comes twice"),
    "an image too many": (dict(rows="3,1,1,0,2\n"), "image 3, but .* ends with image 2"),
    "too few answers": (
        dict(rows="0,1,1\n", head="image,label,p1"),
        "has 2 valid labels: give p1 to p2",
    ),
    "broken JSON": (dict(labels="[[0,1],"), "is not JSON"),
    "a dictionary": (dict(labels='{"0": [1]}'), "a list with a list"),
    "names in JSON": (dict(labels='[["cat"], [1], [2]]'), "image 0: 'cat' is no class number"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    how, said = BROKEN[name]
    with pytest.raises(lc.DataError, match=said):
        ml.count_files(*write(tmp_path, **how))


# --- exercises and budget --------------------------------------------------------------------------


def chances(A):
    return torch.arange(1, len(A) + 1, dtype=A.dtype) / C


def largest(Y, size):
    return Y & (size == size.amax(1, keepdim=True))


def errors(values, group):
    parts = [values[group == g] for g in (1, 2)]
    return [part.var() for part in parts], [len(part) for part in parts]


def in_place(Y, size):
    Y &= ~(largest(Y, size) & (Y.sum(1, keepdim=True) > 1))
    return Y


WRONG = {
    "check_corrected": [
        (lambda A, C: A.mean().item(), "chance still scores as before"),
        (lambda A, C: (A - chances(A)).mean().item(), "divide by what is left above chance"),
        (
            lambda A, C: ((A - 1 / C) / (1 - 1 / C)).mean().item(),
            "chance differs from group to group",
        ),
        (
            lambda A, C: ((A.mean() - chances(A).mean()) / (1 - chances(A).mean())).item(),
            "correct each group first",
        ),
        (lambda A, C: (((A - chances(A)) / (1 - chances(A))).prod() ** 0.25).item(), "you say"),
    ],
    "check_worst": [
        (lambda Y, size: Y, "nothing was left out"),
        (largest, "you kept the largest"),
        (lambda Y, size: Y & ~largest(Y, size), "keep one"),
        (lambda Y, size: ~Y, "invented"),
        (in_place, "changed in place"),
        (
            lambda Y, size: Y & (size == torch.where(size > 0, size, 99).amin(1, keepdim=True)),
            "leave out the largest only",
        ),
        (
            lambda Y, size: (
                Y
                & ~(
                    (size == torch.where(size > 0, size, 99).amin(1, keepdim=True))
                    & (Y.sum(1, keepdim=True) > 1)
                )
            ),
            "is what a network names first: leave that one out",
        ),
    ],
    "check_error": [
        (lambda v, g, K: (v.std() / len(v) ** 0.5).item(), "the plain mean"),
        (
            lambda v, g, K: sum(s / n for s, n in zip(*errors(v, g), strict=True)).sqrt().item(),
            "divide by K",
        ),
        (
            lambda v, g, K: sum(s / n for s, n in zip(*errors(v, g), strict=True)).item() / 4,
            "take the root",
        ),
        (
            lambda v, g, K: (
                sum((s / n) ** 0.5 for s, n in zip(*errors(v, g), strict=True)).item() / 2
            ),
            "by their squares",
        ),
        (lambda v, g, K: sum(errors(v, g)[0]).sqrt().item() / 2, "falls with the group's size"),
        (lambda v, g, K: 0.0, "you say 0.0000"),
    ],
}


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("multilabel-imagenet", WRONG, name, k)


PAPER = {
    "multi": (
        [0.16, 0.48],
        "shares of multi-label images in ImageNet's test set and ImageNetV2 (summary of version 1)",
    )
}


def test_the_full_budget_keeps_the_papers_composition():
    assert_papers(full_budget("multilabel-imagenet"), PAPER)


def test_files_are_asked_for_in_pairs_and_by_path():
    spec = params.read(get("multilabel-imagenet").path)
    for name in ("predictions", "labels", "other_predictions", "other_labels"):
        assert "PATH" in "".join(spec[name].choices)


@pytest.mark.realdata
def test_it_runs_on_mnist(tmp_path):
    assert_runs("multilabel-imagenet", "mnist", tmp_path)
