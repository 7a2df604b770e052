"""How sure the recorded seeds make us: means with 95 % intervals, and paired differences."""

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to import, in every kernel

HOLDS, FAILS, UNDECIDED, NOT_JUDGED = "holds", "fails", "undecided", "not judged"
VERDICTS = (HOLDS, UNDECIDED, FAILS, NOT_JUDGED)


def interval(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Return mean and 95 % interval (Student's t) of `values`, one per seed; with one value, no interval."""
    values = [v for v in values if v is not None]
    n = len(values)
    if not n:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = sum(values) / n
    if n == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    reach = float(stdtrit(n - 1, 0.975)) * _error(values)
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "n": n}


def verdict(measured: Mapping, relation: str, threshold: float) -> str:
    """Judge `measured relation threshold` by the 95 % interval over seeds: one of VERDICTS.

    It holds where the whole interval lies on the right side (touching counts), fails where it lies on the wrong side,
    and is undecided where the threshold lies inside, or where one seed leaves no interval.
    """
    if measured["mean"] is None:
        return NOT_JUDGED
    if measured["low"] is None:
        return UNDECIDED
    low, high = measured["low"] - threshold, measured["high"] - threshold
    if relation == "<=":
        low, high = -high, -low
    return HOLDS if low >= 0 else FAILS if high < 0 else UNDECIDED


def paired(values: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of `values` minus `others`, one of each per seed, its 95 % interval and p (paired t test).

    With one seed, or where all differences are equal, there is no test.
    """
    difference = [a - b for a, b in zip(values, others, strict=True)]
    summary = interval(difference)
    p = None
    if len(set(difference)) > 1:
        t = summary["mean"] / _error(difference)
        p = float(2 * stdtr(len(difference) - 1, -abs(t)))
    low, high = summary["low"], summary["high"]
    return {"difference": summary["mean"], "difference_low": low, "difference_high": high, "p": p}


def _error(values: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    if len(set(values)) == 1:
        return 0.0  # and not what is left of rounding
    return float(np.std(values, ddof=1)) / sqrt(len(values))
