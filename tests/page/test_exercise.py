"""Exercises: the blank comes from the solution, and the check answers in one line."""

import pytest

from lefcourse.page.exercise import blank, checker

SOLUTION = '''def double(x):
    """Twice x."""
    # solution
    # Adding is enough.
    return x + x
    # end of solution


check_double(double, strict=True)'''


@checker
def check_double(f):
    assert f(2) != 2, "you return x unchanged"
    assert f(2) == 4, f"f(2) should be 4, not {f(2)}"


def test_blank_keeps_the_signature_and_drops_solution_and_check():
    assert (
        blank(SOLUTION)
        == 'def double(x):\n    """Twice x."""\n    raise NotImplementedError("your turn")'
    )


def test_check_answers(capsys):
    space = {}
    exec(blank(SOLUTION), space)
    check_double(space["double"])
    check_double(lambda x: x)
    check_double(lambda x: 2 * x)
    lines = capsys.readouterr().out.splitlines()
    assert "Not written yet" in lines[0]
    assert lines[1] == "Not yet: you return x unchanged"
    assert lines[-1] == "Correct."


def test_a_wrong_solution_cannot_ship():
    with pytest.raises(AssertionError, match="unchanged"):
        check_double(lambda x: x, strict=True)
