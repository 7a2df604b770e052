"""Corrupted labels: exact counts, and nothing but the promised confusions."""

import pytest
import torch

from lefcourse.errors import UsageError
from lefcourse.science import labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.randint(10, (1000,), generator=generator(42))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.1234, 0.6, 1.0])
def test_symmetric_flips_are_counted_exactly(rate):
    noisy = labels.flip_symmetric(LABELS, rate, 10, generator(), exclude_true=True)
    assert (noisy != LABELS).sum() == round(rate * 1000)
    assert noisy.min() >= 0 and noisy.max() <= 9


def test_the_true_class_is_among_the_random_labels_by_default():
    y = torch.randint(10, (100_000,), generator=generator(1))
    noisy = labels.flip_symmetric(y, 0.6, 10, generator())
    assert (noisy != y).float().mean() == pytest.approx(0.6 * 0.9, abs=0.005)


def test_wrong_labels_are_uniform_over_the_other_classes():
    y = torch.full((90_000,), 3)
    noisy = labels.flip_symmetric(y, 1.0, 10, generator(), exclude_true=True)
    counts = torch.bincount(noisy, minlength=10)
    assert counts[3] == 0
    others = counts[torch.arange(10) != 3]
    assert (others - 10_000).abs().max() < 500


def test_pair_flips_are_counted_exactly_in_each_class():
    mapping = labels.pair_mapping("digits", 10)
    noisy = labels.flip_pairs(LABELS, 0.4, mapping, generator())
    for c in range(10):
        n = int((c == LABELS).sum())
        expected = int(0.4 * n + 0.5) if mapping[c] != c else 0
        assert (noisy[c == LABELS] != c).sum() == expected
        assert set(noisy[c == LABELS].tolist()) <= {c, int(mapping[c])}


def test_full_rate_applies_the_mapping_and_zero_rate_nothing():
    mapping = labels.pair_mapping("anything", 10)
    assert torch.equal(labels.flip_pairs(LABELS, 1.0, mapping), (LABELS + 1) % 10)
    assert torch.equal(labels.flip_pairs(LABELS, 0.0, mapping), LABELS)


def test_labels_are_not_changed_in_place_and_seeds_repeat():
    before = LABELS.clone()
    for flip in (
        lambda g: labels.flip_symmetric(LABELS, 0.5, 10, g),
        lambda g: labels.flip_pairs(LABELS, 0.5, labels.pair_mapping("cifar10", 10), g),
    ):
        assert torch.equal(flip(generator(1)), flip(generator(1)))
        assert not torch.equal(flip(generator(1)), flip(generator(2)))
    assert torch.equal(LABELS, before)


def test_known_confusions():
    assert labels.pair_mapping("mnist", 10).tolist() == [0, 1, 7, 8, 4, 6, 5, 1, 8, 9]
    assert labels.pair_mapping("cifar10", 10).tolist() == [0, 1, 0, 5, 7, 3, 6, 7, 8, 1]
    assert labels.pair_mapping("shapes", 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_outside_the_unit_interval_is_refused(rate):
    with pytest.raises(UsageError, match="noise rate"):
        labels.flip_symmetric(LABELS, rate, 10)
    with pytest.raises(UsageError, match="noise rate"):
        labels.flip_pairs(LABELS, rate, labels.pair_mapping("digits", 10))


def test_random_ranks_number_each_class_from_zero():
    ranks = labels.random_ranks(LABELS, generator())
    for c in range(10):
        assert sorted(ranks[c == LABELS].tolist()) == list(range(int((c == LABELS).sum())))
