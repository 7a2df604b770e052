"""Sweeps: what is asked for, what runs and what does not run again, and what happens when something dies."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import tinybook
from tinybook import code, heed_ctrl_c, write
from tinysweep import PARAMETERS

from lefcourse import catalogue
from lefcourse.cli import main
from lefcourse.errors import UsageError
from lefcourse.running import runner
from lefcourse.sweep import grid as grids
from lefcourse.sweep import pool, report


def sweep(*words: str, out: str = "out") -> int:
    return main(["sweep", "tiny", *words, "--out", out, "--device", "cpu", "--jobs", "2"])


def records(out: str = "out") -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted(Path(out).glob("*/record.json"))]


# --- what is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["-1", "4294967296", "99999999999", "0-4294967295", "-3--1"])
def test_seeds_out_of_range_are_refused_in_one_line(text):
    with pytest.raises(UsageError) as refused:
        grids.parse_seeds(text)
    assert "\n" not in str(refused.value)


def test_seeds_are_ranges_and_lists():
    assert grids.parse_seeds("5-9") == [5, 6, 7, 8, 9]
    assert grids.parse_seeds("0,3, 7") == [0, 3, 7]
    assert grids.parse_seeds("0-2,7") == [0, 1, 2, 7]


def test_the_whole_grid_comes_with_the_first_seed_first(tiny):
    made = grids.Sweep(tiny, {"rate": [0.2, 0.4]}, [5, 6], "standard", "cpu", Path("out"))
    assert [(c.seed, c.parameters["rate"]) for c in made.cells()] == [
        (5, 0.2), (5, 0.4), (6, 0.2), (6, 0.4),
    ]  # fmt: skip
    names = [c.folder.name for c in made.cells()]
    assert len(set(names)) == 4 and names[0].startswith("rate-0.2_seed-5_")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-p rate=", "parameter 'rate' lacks a value"),
        ("-p rate=0.2,,0.4", "parameter 'rate' lacks a value"),
        ("-p rate", "parameter 'rate' lacks a value"),
        ("-p rate=0.2,0.20", "parameter 'rate' has the value 0.20 twice"),
        ("-p rate=0.2 -p rate=0.4", "parameter 'rate' is given twice"),
        ("-p raet=0.2,0.4", "unknown parameter 'raet': did you mean 'rate'?"),
        ("-p rate=0.2,high", "parameter 'rate' takes a number (default 0.6), not 'high'"),
        ("-p noise=symmetric,asymetric", "did you mean 'asymmetric'?"),
        ("-p seed=1,2", "the seeds are given by --seeds"),
        ("--seeds 9-5", "seeds '9-5': write a range such as 5-9"),
        ("--seeds=", "seeds '': write a range such as 5-9"),
        ("--seeds 1,1", "seed 1 is given twice"),
        ("--jobs 0", "Invalid value for '--jobs'"),
        ("--budget huge", "unknown budget 'huge'"),
        ("--scheduler tcp://127.0.0.1:1", "no Dask scheduler answers at 'tcp://127.0.0.1:1'"),
        ("--scheduler nonsense://x", "no Dask scheduler answers at 'nonsense://x'"),
    ],
)
def test_bad_input_is_one_line(stub, capsys, monkeypatch, words, expected):
    monkeypatch.setattr(pool, "TIMEOUT", 1)
    assert main(["sweep", "tiny", *words.split(), "--device", "cpu", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("lefcourse: ") and expected in said
    assert not stub.ran
    assert not records()


def test_values_are_typed_and_brackets_keep_their_commas(stub):
    assert sweep("-p", "layers", "[1,2],[3]", "-p", "labels=1,2", "--seeds", "5") == 0
    assert sorted((r["layers"], r["labels"]) for r in stub.ran) == [
        ([1, 2], 1), ([1, 2], 2), ([3], 1), ([3], 2),
    ]  # fmt: skip
    table = pd.read_parquet("out/sweep.parquet")
    assert set(table["layers"]) == {"[1, 2]", "[3]"}


def test_folder_of_another_sweep_stays_as_it_is(stub, capsys):
    assert sweep("-p", "rate=0.2,0.4", "--seeds", "5") == 0
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert sweep("-p", "rate=0.2,0.6", "--seeds", "5") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'out'" in said.replace(str(Path.cwd()) + "/", "")
    assert "another sweep (tiny rate=0.2,0.4 seeds=5 standard)" in said
    assert {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()} == before
    assert len(stub.ran) == 2


def test_folder_with_anything_else_is_refused(stub, capsys):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("precious")
    assert sweep("-p", "rate=0.2,0.6") == 2
    assert "holds something else" in capsys.readouterr().err
    assert [p.name for p in Path("out").iterdir()] == ["thesis.tex"]
    assert sweep("-p", "rate=0.2,0.6", out="tiny.ipynb") == 2
    assert "is a file" in capsys.readouterr().err


# --- what runs, and what is left behind ----------------------------------------------------------


def test_a_sweep_ends_in_tables_and_a_plot(stub, capsys):
    assert sweep("-p", "rate", "0.2,0.4,0.6", "-p", "labels=2", "--seeds", "5-7") == 0
    assert len(stub.ran) == 9
    assert {"rate": 0.2, "labels": 2, "seed": 5} in stub.ran
    table = pd.read_csv("out/sweep.csv")
    expected = "chapter rate labels seed arm role metric value wall_s gap_closed"
    assert [*table.columns] == expected.split()
    assert len(table) == 9 * 3  # the curve is no number
    pd.testing.assert_frame_equal(table, pd.read_parquet("out/sweep.parquet"))
    summary = pd.read_csv("out/summary.csv").set_index(["rate", "metric", "arm"])
    method = summary.loc[0.2, "accuracy", "tiny"]
    assert method["mean"] == pytest.approx(0.812)
    assert method["low"] < 0.812 < method["high"] and method["n"] == 3
    baseline = summary.loc[0.2, "accuracy", "cross-entropy"]
    assert baseline["difference"] == pytest.approx(0.106)
    assert baseline["difference_low"] > 0 and baseline["p"] < 0.001
    assert summary.loc[0.2, "gap_closed", "tiny"]["mean"] == 0.5
    assert Path("out/sweep.png").stat().st_size > 1000
    assert "<svg" in Path("out/sweep.svg").read_text()
    said = capsys.readouterr()
    assert "9 of 9 ended" in said.out and "left" in said.out
    assert "tiny           method" in said.out
    assert said.err == ""


def test_only_what_is_missing_or_failed_runs_again(stub, capsys):
    words = ("-p", "rate=0.2,0.4", "--seeds", "5-7")
    stub.problems[6] = "cell 3: ValueError: too few labels"
    assert sweep(*words) == 1
    said = capsys.readouterr().err
    assert "failed: tiny, rate=0.2, seed=6: cell 3: ValueError: too few labels" in said
    assert "2 of 6 runs failed" in said
    assert len(pd.read_csv("out/sweep.csv")["seed"].unique()) == 2
    done = {p: p.stat().st_mtime_ns for p in Path("out").glob("*seed-[57]*/record.json")}
    assert len(done) == 4
    stub.problems.clear()
    stub.ran.clear()
    assert sweep(*words) == 0
    assert [r["seed"] for r in stub.ran] == [6, 6]
    assert "4 of 6 are done, 2 failed before and are run again" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in done} == done
    stub.ran.clear()
    assert sweep(*words) == 0
    assert stub.ran == []


def test_a_changed_chapter_is_run_again_and_named(stub, tiny, capsys):
    assert sweep("--seeds", "5,6") == 0
    write(tiny.path, code(PARAMETERS, "parameters"), code("2"))
    stub.ran.clear()
    assert sweep("--seeds", "5,6") == 0
    assert len(stub.ran) == 2
    said = capsys.readouterr().out
    assert "2 run again, because the chapter has changed: tiny, seed=5; tiny, seed=6" in said


def test_a_record_of_other_parameters_does_not_count(stub):
    assert sweep("--seeds", "5") == 0
    (path,) = Path("out").glob("*/record.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"budget": "smoke"}))
    stub.ran.clear()
    assert sweep("--seeds", "5") == 0
    assert len(stub.ran) == 1


def test_a_full_disk_ends_the_sweep_and_keeps_what_is_done(stub, capsys):
    stub.problems[7] = OSError(errno.ENOSPC, "No space left on device")
    assert sweep("--seeds", "5-8") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no space left" in said and "same command continues" in said
    done = {r["seed"] for r in records() if r["status"] == "done"}
    assert {5, 6} <= done
    stub.problems.clear()
    stub.ran.clear()
    assert sweep("--seeds", "5-8") == 0
    assert {r["seed"] for r in stub.ran} == {5, 6, 7, 8} - done


def test_a_full_disk_at_the_start_is_one_line(stub, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "out")

    monkeypatch.setattr(grids, "write_json", full)
    assert sweep("--seeds", "5") == 1
    assert capsys.readouterr().err == "lefcourse: No space left on device: out\n"
    assert not stub.ran


def test_two_sweeps_in_one_folder_share_the_work(stub, monkeypatch):
    quick = runner.execute

    def execute(*args, **options):
        time.sleep(0.05)
        return quick(*args, **options)

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(pool, "BUSY_WAIT", 0.05)
    made = grids.Sweep(
        catalogue.get("tiny"),
        {"rate": [0.2, 0.4]},
        [5, 6, 7, 8],
        "standard",
        "cpu",
        Path("out").resolve(),
    )
    ended = []

    def one():
        grids.claim(made.folder, made.manifest())
        with pool.connect(None, 2, []) as client:
            pool.run(made.cells(), client, watch=ended.append)

    both = [threading.Thread(target=one) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(stub.ran) == 8  # no cell twice
    assert len(ended) == 16 and {e.state for e in ended} == {"done"}
    assert sum(e.fresh for e in ended) == 8


def test_a_gpu_for_each_worker(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plugin = pool.LocalWorker(["4", "7"])
    for name, gpu in [(0, "4"), (1, "7"), (2, "4")]:
        plugin.setup(type("Worker", (), {"name": name}))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu


def test_axis_is_logarithmic_for_values_that_grow_by_factors():
    assert report.geometric([1, 2, 4, 8])
    assert report.geometric([1, 2, 5, 10, 20])
    assert not report.geometric([0.2, 0.4, 0.6, 0.8])
    assert not report.geometric([0, 1, 10, 100])
    assert not report.geometric([1, 10])


# --- real kernels, real workers ------------------------------------------------------------------

# `lefcourse sweep tiny`, with a catalogue that knows that one notebook, here and in the workers.
CATALOGUE = """\
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tinybook import chapter
from lefcourse import catalogue
catalogue.get = lambda slug: chapter(Path({path!r}))
"""
COMMAND = "from lefcourse.cli import main\nimport sys\nif __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n"
RUN = """\
import json, os, time
from pathlib import Path

folder = Path(os.environ["LEFCOURSE_RUN_DIR"])
with open(folder.parent / f"attempts-{seed}", "a") as file:
    print(os.getppid(), os.getpid(), file=file)
attempts = len((folder.parent / f"attempts-{seed}").read_text().splitlines())
"""
FINISH = """\
record = json.loads((folder / "record.json").read_text())
record["arms"] = {"m": {"role": "method", "accuracy": 0.5}}
(folder / "record.json").write_text(json.dumps(record))
"""


class Sweeping:
    """A sweep of a tiny notebook in a process of its own."""

    def __init__(self, folder: Path, middle: str):
        path = write(
            folder / "tiny.ipynb",
            code("seed = 5  # of every draw", "parameters"),
            code(RUN),
            code(middle),
            code(FINISH),
        )
        text = CATALOGUE.format(tests=str(Path(tinybook.__file__).parent), path=str(path))
        (folder / "known.py").write_text(text)
        (folder / "command.py").write_text(text + COMMAND)
        self.folder, self.out = folder, folder / "out"

    def start(self, *words: str) -> subprocess.Popen:
        self.out.mkdir(exist_ok=True)
        env = os.environ | {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(self.folder / "known.py")}
        command = [sys.executable, self.folder / "command.py", "sweep", "tiny", "--device", "cpu"]
        self.process = subprocess.Popen(
            [*command, "--jobs", "2", "--out", self.out, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            preexec_fn=heed_ctrl_c,
            start_new_session=True,  # a terminal sends Ctrl-C to all processes of the command
        )
        return self.process

    def end(self) -> tuple[int, str, str]:
        said, complained = self.process.communicate(timeout=240)
        return self.process.returncode, said, complained

    def attempts(self, seed: int) -> list[list[int]]:
        """Return [worker's process, kernel's process] of each attempt at the run of `seed`."""
        path = self.out / f"attempts-{seed}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [[int(number) for number in line.split()] for line in lines]

    def wait_for(self, what) -> None:
        deadline = time.time() + 120
        while not what() and self.process.poll() is None and time.time() < deadline:
            time.sleep(0.05)
        assert what(), self.process.stderr.read() if self.process.poll() is not None else "too slow"

    def records(self) -> dict[int, dict]:
        found = [json.loads(p.read_text()) for p in self.out.glob("*/record.json")]
        return {record["seed"]: record for record in found}

    def kernels(self) -> list[int]:
        import psutil

        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("LEFCOURSE_RUN_DIR", "").startswith(str(self.out)):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@posix
def test_runs_of_a_killed_worker_are_run_elsewhere(tmp_path):
    sweeping = Sweeping(
        tmp_path,
        "import signal\n"
        "if seed == 2:\n    os.kill(os.getppid(), signal.SIGKILL)  # whoever runs this one dies\n"
        "if seed == 0 and attempts == 1:\n    time.sleep(100)",
    )
    sweeping.start("--seeds", "0-4")
    sweeping.wait_for(lambda: sweeping.attempts(0) and 1 in sweeping.records())
    worker, _ = sweeping.attempts(0)[0]
    os.kill(worker, signal.SIGKILL)
    status, said, complained = sweeping.end()
    assert status == 1, complained
    records = sweeping.records()
    assert [records[s]["status"] for s in range(5)] == ["done", "done", "failed", "done", "done"]
    assert len(sweeping.attempts(0)) == 2
    assert sweeping.attempts(0)[1][0] != worker
    assert len(sweeping.attempts(2)) == 3
    assert [len(sweeping.attempts(s)) for s in (1, 3, 4)] == [1, 1, 1]
    assert "failed: tiny, seed=2: its worker died 3 times" in complained
    assert "Traceback" not in complained
    (notebook,) = sweeping.out.glob("seed-2*/tiny.ipynb")
    assert "attempts" in notebook.read_text()
    assert not sweeping.kernels()
    assert "5 of 5 ended" in said


@posix
def test_a_killed_kernel_fails_its_run_and_nothing_else(tmp_path):
    sweeping = Sweeping(tmp_path, "if seed == 0 and attempts == 1:\n    time.sleep(100)")
    sweeping.start("--seeds", "0-2")
    sweeping.wait_for(lambda: sweeping.attempts(0) and sweeping.records().get(1))
    os.kill(sweeping.attempts(0)[0][1], signal.SIGKILL)
    status, _, complained = sweeping.end()
    assert status == 1
    assert "failed: tiny, seed=0: cell 4: DeadKernelError: the kernel died" in complained
    records = sweeping.records()
    assert [records[s]["status"] for s in range(3)] == ["failed", "done", "done"]
    sweeping.start("--seeds", "0-2")
    status, said, complained = sweeping.end()
    assert status == 0, complained
    assert "2 of 3 are done, 1 failed before and are run again" in said
    assert [len(sweeping.attempts(s)) for s in range(3)] == [2, 1, 1]
    after = sweeping.records()
    assert after[1] == records[1] and after[2] == records[2]
    assert len(pd.read_csv(sweeping.out / "sweep.csv")) == 3


@posix
def test_ctrl_c_stops_cleanly_and_the_same_command_continues(tmp_path):
    sweeping = Sweeping(tmp_path, "if seed > 0 and attempts == 1:\n    time.sleep(100)")
    sweeping.start("--seeds", "0-2")
    sweeping.wait_for(lambda: sweeping.attempts(1) and sweeping.attempts(2))
    begun = time.time()
    os.killpg(sweeping.process.pid, signal.SIGINT)
    status, _, complained = sweeping.end()
    assert time.time() - begun < 30
    assert status == 130
    assert complained == "interrupted; the same command continues\n"
    assert not sweeping.kernels()
    records = sweeping.records()
    assert [records[s]["status"] for s in range(3)] == ["done", "interrupted", "interrupted"]
    sweeping.start("--seeds", "0-2")
    status, _, complained = sweeping.end()
    assert status == 0, complained
    assert [len(sweeping.attempts(s)) for s in range(3)] == [1, 2, 2]
