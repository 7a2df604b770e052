"""Did the numbers move? A recorded seed, run again after a change, beside what is recorded of it.

On the processor that the result was recorded on a run repeats to the last digit. On another one sums are added in
another order, so a number may move, but by no more than the recorded seeds differ among themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lefcourse.ledger.results import is_number


@dataclass(frozen=True)
class Comparison:
    """What one seed gave, then and now: how many metrics were compared, how, and those that moved."""

    compared: int
    exact: bool  # every metric had to be equal, or was
    moved: tuple[str, ...]

    @property
    def how(self) -> str:
        return (
            "equal to the last digit" if self.exact else "within the spread of the recorded seeds"
        )


def metrics(record: Mapping) -> dict[tuple[str, str], float | None]:
    """Return every number that a run measured, by arm and metric."""
    return {
        (arm, metric): value
        for arm, measured in record["arms"].items()
        for metric, value in measured.items()
        if is_number(value) or (value is None and metric != "role")
    }


def compare(then: Sequence[Mapping], now: Mapping) -> Comparison:
    """Compare the run `now` with the recorded run of its seed among the runs `then`."""
    old = next(run for run in then if run["seed"] == now["seed"])
    recorded, measured = metrics(old), metrics(now)
    moved = [
        f"parameter {name}: {value!r}, now {now['parameters'].get(name)!r}"
        for name, value in old["parameters"].items()
        if name != "device" and now["parameters"].get(name) != value
    ]
    same = [key for key in recorded if key in measured and recorded[key] == measured[key]]
    exact = _place(old) == _place(now) or len(same) == len(recorded)
    moved += [_moved(key, recorded[key], None) for key in recorded.keys() - measured.keys()]
    for key in recorded.keys() & measured.keys() - {*same}:
        reach = 0.0 if exact else _spread(key, then)
        a, b = recorded[key], measured[key]
        if a is None or b is None or abs(a - b) > reach:
            moved.append(_moved(key, a, b))
    return Comparison(len(recorded), exact, tuple(sorted(moved)))


def _place(run: Mapping) -> tuple | None:
    """What makes a run repeat to the last digit; an old record does not know it, and so is nowhere."""
    processor = run.get("processor")
    return processor and (processor, run.get("threads"), run["versions"]["torch"], run["device"])


def _spread(key: tuple[str, str], runs: Sequence[Mapping]) -> float:
    """Return how far apart the recorded seeds are in one metric."""
    values = [metrics(run).get(key) for run in runs]
    values = [value for value in values if value is not None]
    return max(values) - min(values)


def _moved(key: tuple[str, str], then: float | None, now: float | None) -> str:
    return f"{key[0]}, {key[1].replace('_', ' ')}: {_number(then)}, now {_number(now)}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
