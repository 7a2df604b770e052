"""In every chapter, a value that makes no sense is refused in one line, by what the parameter's comment declares."""

import pytest

from lefcourse import catalogue
from lefcourse.chapter import params, ranges
from lefcourse.errors import UsageError
from lefcourse.sweep.grid import parse_seeds

EVERY = [catalogue.START, *(c for c in catalogue.chapters() if c.exists)]
SPECS = {chapter.slug: params.read(chapter.path) for chapter in EVERY}
ALL = [
    pytest.param(spec, id=f"{slug}-{spec.name}") for slug in SPECS for spec in SPECS[slug].values()
]


def nonsense(spec):
    """Values of a parameter that nobody can mean."""
    if isinstance(spec.default, bool):
        return ["", "2", "maybe"]
    if isinstance(spec.default, str):
        return ["", "nonsense", "-1", "nonsense:", "nonsense:x"]
    values = ["", "x", "nan", "inf", "-inf", "1e999", "true", "1,2", "--", "0x", "1 2"]
    if isinstance(spec.default, list | tuple):
        return [*values, "[]", "1", "[[1]]", "['x']", "[true]"] + (
            ["[1]", "[1, 1, 1]"] if spec.pair else []
        )
    values.append("[1]")
    return values + (["1.5", "2.0"] if isinstance(spec.default, int) else [])


def refused(spec, value):
    with pytest.raises(UsageError) as error:
        params.parse({spec.name: spec}, [f"{spec.name}={value}"])
    return str(error.value)


@pytest.mark.parametrize("spec", ALL)
def test_nonsense_is_refused_in_one_line_that_names_it(spec):
    for value in nonsense(spec):
        message = refused(spec, value)
        assert "\n" not in message and len(message) < 250
        assert spec.name in message or spec.name == "dataset"


NUMBERS = [p for p in ALL if params.is_numeric(p.values[0].default) and not p.values[0].choices]


@pytest.mark.parametrize("spec", NUMBERS)
def test_every_number_declares_what_it_may_be(spec):
    assert spec.range, f"{spec.name}: the comment begins with no range: {spec.comment!r}"
    several = isinstance(spec.default, list | tuple)
    defaults = list(spec.default) if several else [spec.default]
    assert all(value in spec.range for value in defaults)
    for value in (-1e30, -1, 0, 1, 2, 1e30):
        value = int(value) if isinstance(defaults[0], int) else value
        given = type(spec.default)([value] * (2 if spec.pair else 1)) if several else value
        if value in spec.range and isinstance(value, int) and value > params.LARGEST:
            assert f"no more than {params.LARGEST}" in refused(spec, given)
        elif value in spec.range:
            params.check({spec.name: spec}, {spec.name: given})
        else:
            assert f"allowed: {spec.range.text}" in refused(spec, given)
    # Nothing that is counted, shared out or weighed is as small as this.
    assert -1e30 not in spec.range


@pytest.mark.parametrize("text", ["-1", "4294967296", "1.5", "x", "", "5-", "9-5", "0-99999999999", "5,5", "nan"])  # fmt: skip
def test_seeds_are_whole_numbers_within_the_range(text):
    with pytest.raises(UsageError) as error:
        parse_seeds(text)
    assert "\n" not in str(error.value)


def test_the_range_of_the_seeds():
    assert parse_seeds("0,4294967295") == [0, 4294967295]
    assert ranges.SEEDS.text == "0 to 4294967295"


def test_a_number_of_many_digits_is_refused_at_once():
    assert 10**60 + 7 not in ranges.Range("a prime, at most 499")
