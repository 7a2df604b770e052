"""Run a chapter, as it is, on a published data set that lies below LEFCOURSE_DATA."""

import os

import pytest

from lefcourse import catalogue
from lefcourse.running import runner
from lefcourse.science import data


def assert_runs(slug, name, folder, **parameters):
    """Assert that the chapter runs at the smoke budget on the data set `name`; skip, with the reason, where it is absent."""
    if "LEFCOURSE_DATA" not in os.environ:
        pytest.skip("LEFCOURSE_DATA is not set: no folder of real data sets")
    present, hint = data.available()[name]
    if not present:
        pytest.skip(f"{name} is absent: {hint}")
    chosen = {"dataset": name} | parameters
    record = runner.execute(catalogue.get(slug), chosen, folder, budget="smoke")
    assert record["status"] == "done", record.get("error")
    assert record["parameters"]["dataset"] == name
