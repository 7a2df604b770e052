"""Print what the course costs: the import, and the ELR chapter at two budgets. Run by `make bench`."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lefcourse import catalogue
from lefcourse.running import runner


def import_seconds(code: str, repeats: int = 5) -> float:
    """Return the median time in seconds that a fresh interpreter takes for `code`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    torch_alone = import_seconds("import torch")
    both = import_seconds("import torch, lefcourse")
    used = import_seconds("import torch, lefcourse as lc; lc.Run; lc.load; lc.fit; lc.show")
    print(f"import lefcourse over torch's own import   {both - torch_alone:6.2f} s   (at most 0.5)")
    print(f"... and with the names of a chapter used   {used - torch_alone:6.2f} s")
    for budget, wall_limit in [("smoke", 15), ("standard", 60)]:
        with tempfile.TemporaryDirectory() as folder:
            record = runner.execute(catalogue.get("elr"), {}, Path(folder), budget)
        wall, peak = record["wall_s"], record["peak_mb"]
        print(
            f"elr at {budget:8}                          {wall:6.1f} s   (at most {wall_limit}), kernel start included"
        )
        print(f"                                         {peak:8.0f} MiB (under 2048)")


if __name__ == "__main__":
    main()
