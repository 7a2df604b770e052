"""Print what the course costs: each chapter's CPU time at the standard budget and in the tests. Run by `make bench`.

Give chapters to measure these alone. One thread, one thing at a time; seconds of CPU time, kernel start included.
Machines differ, so a calibration stands beside the times.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F

from lefcourse import catalogue
from lefcourse.files import write_json
from lefcourse.ledger.results import COSTS
from lefcourse.paths import ROOT
from lefcourse.running import runner
from lefcourse.science import nets

LIMIT = 60  # seconds of a chapter at the standard budget
REFERENCE = 3_500  # images a second of the machine that the limit was set on


def images_per_second(batches: int = 30) -> float:
    """Return how fast a fixed network (three layers, width 32, images of 16 x 16) runs forward and backward."""
    torch.manual_seed(0)
    net, x, y = nets.convnet(1, 10, 32, size=16), torch.rand(128, 1, 16, 16), torch.arange(128) % 10
    for batch in range(batches + 3):
        if batch == 3:  # the first ones warm up
            start = time.process_time()
        F.cross_entropy(net(x), y).backward()
    return batches * len(x) / (time.process_time() - start)


def standard_seconds(slug: str) -> float:
    """Run a chapter at the standard budget; return its kernel's CPU seconds, and note them for its page."""
    with tempfile.TemporaryDirectory() as folder:
        record = runner.execute(catalogue.get(slug), {}, Path(folder), "standard", "cpu", threads=1)
    assert record["status"] == "done", f"{slug}: {record.get('error')}"
    known = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    known[slug] = {"cpu_s": record["cpu_s"], "processor": record["processor"]}
    write_json(COSTS, dict(sorted(known.items())))
    return record["cpu_s"]


def in_the_tests(slugs: list[str]) -> None:
    """Run the tests of chapters on one core; they print their own table."""
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "-n", "1", "--dist", "loadgroup"]
    for slug in slugs if len(slugs) == 1 else [None]:
        only = ["--chapter", slug] if slug else []
        subprocess.run([*command, *only, "tests/notebooks", "notebooks"], cwd=ROOT, check=True)


def main() -> None:
    slugs = sys.argv[1:] or [c.slug for c in catalogue.chapters() if c.exists]
    speed = images_per_second()
    print(
        f"calibration: {speed:,.0f} images a second (the limits were set at {REFERENCE:,})",
        flush=True,
    )
    costs = {}
    for slug in slugs:
        costs[slug] = standard_seconds(slug)
        fair = costs[slug] * speed / REFERENCE
        note = "" if costs[slug] <= LIMIT else f"  over {LIMIT}"
        print(
            f"{slug:<24}{costs[slug]:8.1f} s standard  ({fair:5.1f} at the reference speed){note}",
            flush=True,
        )
    (ROOT / "runs").mkdir(exist_ok=True)
    (ROOT / "runs" / "standard.json").write_text(
        json.dumps({"images_per_second": speed, "seconds": costs})
    )
    in_the_tests(slugs)


if __name__ == "__main__":
    main()
