"""Run a chapter, as it is, on a published data set that lies below LEFCOURSE_DATA."""

import os
from pathlib import Path

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
    _assert_runs(slug, folder, {"dataset": name} | parameters)


def voc_cells():
    """Return BCCD, the blood cells, as a reader's own folder in the format of Pascal VOC; skip where it is absent."""
    root = Path(os.environ.get("LEFCOURSE_DATA", "absent")) / "BCCD"
    if not (root / "ImageSets" / "Main").is_dir():
        pytest.skip("BCCD is not below LEFCOURSE_DATA")
    return f"voc:{root}"


def assert_runs_on_a_voc_folder(slug, folder, **parameters):
    """Assert that the chapter runs at the smoke budget on a reader's folder of annotated photographs."""
    _assert_runs(slug, folder, {"dataset": voc_cells()} | parameters)


def _assert_runs(slug, folder, chosen):
    record = runner.execute(catalogue.get(slug), chosen, folder, budget="smoke")
    assert record["status"] == "done", record.get("error")
    assert record["parameters"]["dataset"] == chosen["dataset"]
