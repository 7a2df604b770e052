import pytest

from lefcourse.errors import UsageError, choice


def test_choice_puts_the_nearest_spelling_first():
    with pytest.raises(
        UsageError, match=r"unknown chapter 'ellr': did you mean 'elr'\? choices: elr, uda"
    ):
        choice("chapter", "ellr", ["uda", "elr"])
