"""Test set-up: notebooks run at the smoke budget, leave a record, and are judged by it."""

import json
import os
from pathlib import Path

import pytest

from lefcourse import catalogue

pytest_plugins = ["tinysweep", "costs"]  # fixtures of several rooms; what a chapter costs
pytest.register_assert_rewrite("exercise_checks", "realdata")  # so that failures show the values

os.environ.setdefault("LEFCOURSE_BUDGET", "smoke")
# Two workers on two cores: one thread each, or they would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Notebooks get kernels that have imported already what all of them import."""
    works = "PYTEST_XDIST_WORKER" in os.environ or not session.config.option.numprocesses
    if works and not session.config.option.collectonly and session.config.option.nbmake:
        import zygote

        zygote.start(session.config.rootpath / "runs" / "tests" / "kernels")


RECORDS: dict[str, dict] = {}  # slug -> record of the notebook executed by nbmake in this process


def is_notebook(item: pytest.Item) -> bool:
    return getattr(item, "nbmake", False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chapter", metavar="SLUG", help="only what concerns this chapter")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a chapter's execution and the tests that read its record on one worker, in this order."""
    for item in items:
        if is_notebook(item):
            slug = Path(item.filename).stem
            item.add_marker(pytest.mark.notebook)
            item.add_marker(pytest.mark.xdist_group(slug))
            if os.environ.get("LEFCOURSE_DEVICE") == "cuda":
                item.add_marker(pytest.mark.gpu)
    if one := config.option.chapter:
        import costs

        catalogue.get(one)
        items[:] = [item for item in items if (costs.whose(item) or ("",))[0] == one]
    items.sort(key=lambda item: not is_notebook(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """After nbmake has executed a notebook: is there a record, is it done, did CUDA really compute?"""
    if not is_notebook(item):
        return (yield)
    slug = Path(item.filename).stem
    folder = Path(item.config.rootpath / "runs" / "tests" / slug)
    os.environ["LEFCOURSE_RUN_DIR"] = str(folder)
    try:
        result = yield
    finally:
        del os.environ["LEFCOURSE_RUN_DIR"]
    record = json.loads((folder / "record.json").read_text())
    RECORDS[slug] = record
    item.kernel_cpu_s = record["cpu_s"]
    assert record["status"] == "done", f"{slug}: the run's record says {record['status']!r}"
    if os.environ.get("LEFCOURSE_DEVICE") == "cuda":
        assert record["device"] == "cuda" and record["cuda_peak_mb"] > 0, (
            f"{slug} did not compute on CUDA"
        )
    return result


@pytest.fixture
def executed() -> dict[str, dict]:
    """Records of the chapters that this process has executed so far."""
    return RECORDS
