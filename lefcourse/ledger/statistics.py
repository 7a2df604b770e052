"""How sure the recorded seeds make us: means with 95 % intervals, and paired differences."""

from collections.abc import Sequence


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean and 95 % interval (Student's t) of `values`, one per seed; with one value, no interval."""
    from scipy import stats

    values = [v for v in values if v is not None]
    if not values:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = sum(values) / len(values)
    if len(values) == 1 or len(set(values)) == 1:
        low, high = (mean, mean) if len(values) > 1 else (None, None)
    else:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values))
    return {"mean": mean, "low": low and float(low), "high": high and float(high), "n": len(values)}


def paired(values: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of `values` minus `others`, one of each per seed, its 95 % interval and p (paired t test).

    With one seed, or where all differences are equal, there is no test.
    """
    from scipy import stats

    difference = [a - b for a, b in zip(values, others, strict=True)]
    summary = interval(difference)
    p = float(stats.ttest_rel(values, others).pvalue) if len(set(difference)) > 1 else None
    low, high = summary["low"], summary["high"]
    return {"difference": summary["mean"], "difference_low": low, "difference_high": high, "p": p}
