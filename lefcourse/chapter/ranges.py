"""What a number may be, read from the comment of its parameter: `epochs = 100  # at least 1: passes over the data`.

A comment that declares a range begins with it, and goes on after a colon with what the number means:

    at least 1          above 0             at most 10          below 1
    0 to 1              both ends included
    between 0 and 1     both ends excluded
    at least 0, below 1      an odd prime      even, at least 2      any number

A parameter that holds several numbers (a list) declares the range of each; where it must hold two, the meaning begins
with that: `travel = [4.0, 8.0]  # 1 to 10: two numbers, the shortest and the longest path`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

NUMBER = r"(-?\d[\d_]*(?:\.\d+)?(?:e-?\d+)?)"
KINDS: dict[str, Callable[[float], bool]] = {
    "a prime": lambda n: is_prime(n),
    "an odd prime": lambda n: n != 2 and is_prime(n),
    "even": lambda n: n % 2 == 0,
    "odd": lambda n: n % 2 == 1,
    "any number": lambda n: True,
}
BOUNDS: dict[str, Callable[..., bool]] = {
    rf"at least {NUMBER}": lambda n, low: n >= low,
    rf"above {NUMBER}": lambda n, low: n > low,
    rf"at most {NUMBER}": lambda n, high: n <= high,
    rf"below {NUMBER}": lambda n, high: n < high,
    rf"{NUMBER} to {NUMBER}": lambda n, low, high: low <= n <= high,
    rf"between {NUMBER} and {NUMBER}": lambda n, low, high: low < n < high,
}


@dataclass(frozen=True)
class Range:
    """The numbers that a parameter may be: `text` says it to a reader."""

    text: str

    def __contains__(self, value: float) -> bool:
        # Bounds first: whether a number of forty digits is a prime takes too long to ask.
        parts = sorted(self.text.split(", "), key=KINDS.__contains__)
        return math.isfinite(value) and all(_test(part)(value) for part in parts)


# NumPy and scikit-learn take no other seeds.
SEEDS = Range("0 to 4294967295")


def read(comment: str) -> Range | None:
    """Return the range with which a comment begins, None if it begins with none."""
    head = comment.split(":")[0]
    return Range(head) if all(_test(part) for part in head.split(", ")) else None


def _test(part: str) -> Callable[[float], bool] | None:
    if part in KINDS:
        return KINDS[part]
    for pattern, holds in BOUNDS.items():
        if found := re.fullmatch(pattern, part):
            ends = [_number(text) for text in found.groups()]
            return lambda n: holds(n, *ends)
    return None


def _number(text: str) -> float:
    # Not always a float: 2**32 - 1 and its neighbours must stay apart.
    return float(text) if re.search(r"[.e]", text) else int(text)


def is_prime(n: float) -> bool:
    """Is `n` a prime number?"""
    return n >= 2 and n == int(n) and all(n % k for k in range(2, math.isqrt(int(n)) + 1))
