"""Exercises that answer back: one source for blank and solution, checks that name the mistake."""

import functools
import re
from collections.abc import Callable

BEGIN, END = "# solution", "# end of solution"


def blank(solution: str) -> str:
    """Derive the blank that the reader fills in from the source of a solution cell.

    What stands between the lines `# solution` and `# end of solution` becomes one line that says
    that it is the reader's turn; what follows the last `# end of solution` (the solution's own
    check) is dropped, because the check has a cell of its own.
    """
    kept, inside = [], False
    lines = solution.rstrip().splitlines()
    last = max(i for i, line in enumerate(lines) if line.strip() == END)
    for line in lines[: last + 1]:
        if line.strip() == BEGIN:
            inside = True
            indent = re.match(r"\s*", line).group()
            kept.append(f'{indent}raise NotImplementedError("your turn")')
        elif line.strip() == END:
            inside = False
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def checker(check: Callable) -> Callable:
    """Turn a function of assertions into a check that answers in one line.

    An exercise that is still blank says so; a failed assertion is printed as the probable mistake.
    A solution is checked with `strict=True`: there a failure is an error, so that a wrong solution
    can never be shipped.
    """

    @functools.wraps(check)
    def answer(attempt, strict: bool = False) -> None:
        if strict:
            check(attempt)
            return print("The solution passes its check.")
        try:
            check(attempt)
        except NotImplementedError:
            print("Not written yet: fill in the cell above and run it, then this one.")
        except AssertionError as mistake:
            print(f"Not yet: {mistake}")
        else:
            print("Correct.")

    return answer
