"""What each chapter costs the tests, in seconds of CPU time, at the end of every run of them.

A chapter may cost 22: about 12 for the smoke run in a kernel, 5 on the simulated accelerator, 5 for its own tests.
"""

import json
import re
import time
from collections import defaultdict
from pathlib import Path

import pytest

from lefcourse import catalogue

SLUGS = {catalogue.START.slug, *(chapter.slug for chapter in catalogue.chapters())}
KINDS = ("kernel", "accelerator", "tests")
CHAPTERS, LIMIT, SUITE_MINUTES = 61, 22, 15
_costs: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(KINDS, 0.0))
_other = {"seconds": 0.0}
_clock = {"last": time.process_time()}


def whose(item: pytest.Item) -> tuple[str, str] | None:
    """Return the chapter that a test is about, and the kind of test; None for the rest of the course."""
    path = Path(item.path)
    if path.suffix == ".ipynb":
        return path.stem, "kernel"
    group = item.get_closest_marker("xdist_group")
    if group and group.args[0] in SLUGS:
        return group.args[0], "accelerator" if "accelerator" in item.name else "tests"
    if path.parent.name == "notebooks" and (found := re.fullmatch(r"test_(.+)", path.stem)):
        return found[1].replace("_", "-"), "tests"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Note what a test's phase took since the last one ended, and what its kernel did."""
    report = yield
    begun, _clock["last"] = _clock["last"], time.process_time()
    used = _clock["last"] - begun
    if call.when == "call":
        used += getattr(item, "kernel_cpu_s", 0.0)  # a process of its own, whose record says it
    report.user_properties.append(("cpu", (whose(item), used)))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "cpu":
            _add(*value)
    report.user_properties = [p for p in report.user_properties if p[0] != "cpu"]


def _add(about, used: float) -> None:
    if about:
        slug, kind = about
        _costs[slug][kind] += used
    else:
        _other["seconds"] += used


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not _costs or not config.option.nbmake:
        return
    rows = sorted(_costs.items(), key=lambda row: -sum(row[1].values()))
    write = terminalreporter.write_line
    terminalreporter.section("CPU seconds by chapter")
    write(f"{'':<24}" + "".join(f"{kind:>13}" for kind in (*KINDS, "all")))
    for slug, cost in rows:
        total = sum(cost.values())
        over = f"  over {LIMIT}" if total > LIMIT else ""
        write(f"{slug:<24}" + "".join(f"{cost[k]:13.1f}" for k in KINDS) + f"{total:13.1f}{over}")
    each = sum(sum(c.values()) for c in _costs.values()) / len(_costs)
    whole = (each * CHAPTERS + _other["seconds"]) / 2 / 60
    write(
        f"all else {_other['seconds']:.0f} s; with {CHAPTERS} chapters of {each:.1f} s: "
        f"{whole:.1f} minutes on two cores (at most {SUITE_MINUTES})"
    )
    path = config.rootpath / "runs" / "tests" / "costs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"chapters": _costs, "other": _other["seconds"]}, indent=1))
