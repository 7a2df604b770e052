"""Corrupted labels: what a careless annotator leaves behind."""

import torch
from torch import Tensor

from lefcourse.errors import UsageError

# The confusions of Patrini et al. (2017), "Making deep neural networks robust to label noise".
PAIRS = {
    "cifar10": {9: 1, 2: 0, 3: 5, 5: 3, 4: 7},  # truck, bird, cat, dog, deer
    "digits": {2: 7, 3: 8, 5: 6, 6: 5, 7: 1},
}
PAIRS["mnist"] = PAIRS["digits"]


def flip_symmetric(
    y: Tensor,
    rate: float,
    n_classes: int,
    generator: torch.Generator | None = None,
    *,
    exclude_true: bool = False,
) -> Tensor:
    """Give a random label to exactly `round(rate * N)` of the samples; return the new labels (N,).

    The random label is uniform over all classes, the true one included, so that about a share
    `rate * (1 - 1 / n_classes)` of the result is wrong (the convention of Liu et al. (2020) and of
    DivideMix). With `exclude_true` it is always another class. The generator is on the device of `y`.
    """
    _check_rate(rate)
    at = {"device": y.device, "generator": generator}
    n = int(rate * len(y) + 0.5)
    chosen = torch.randperm(len(y), **at)[:n]
    noisy = y.clone()
    if exclude_true:
        noisy[chosen] = (y[chosen] + torch.randint(1, n_classes, (n,), **at)) % n_classes
    else:
        noisy[chosen] = torch.randint(n_classes, (n,), **at)
    return noisy


def flip_pairs(
    y: Tensor, rate: float, mapping: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Change class `c` into `mapping[c]` for exactly `round(rate * N_c)` of its `N_c` samples.

    `mapping` (C,) is int64; a class that maps to itself stays clean. Returns new labels (N,).
    """
    _check_rate(rate)
    counts = torch.bincount(y, minlength=len(mapping))
    quota = (rate * counts.double() + 0.5).floor().long()
    flipped = random_ranks(y, generator) < quota[y]
    return torch.where(flipped, mapping.to(y.device)[y], y)


def pair_mapping(name: str, n_classes: int) -> Tensor:
    """Return the confusions (C,) usual for the data set `name`: 2 to 7 on digits, cat to dog on CIFAR-10.

    A class that no one confuses maps to itself; for a set without known confusions `c` becomes `c + 1`.
    """
    if name not in PAIRS:
        return (torch.arange(n_classes) + 1) % n_classes
    mapping = torch.arange(n_classes)
    for true, wrong in PAIRS[name].items():
        mapping[true] = wrong
    return mapping


def random_ranks(y: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Number the samples of each class 0, 1, ... in random order: (N,) int64.

    `random_ranks(y) < k` are `k` random samples of every class.
    """
    order = torch.randperm(len(y), device=y.device, generator=generator)
    order = order[y[order].argsort(stable=True)]
    counts = torch.bincount(y)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(y)
    ranks[order] = torch.arange(len(y), device=y.device) - first[y[order]]
    return ranks


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise UsageError(f"noise rate {rate} is outside [0, 1]")
