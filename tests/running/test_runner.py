import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tinybook
from tinybook import chapter, code, heed_ctrl_c, text, write

from lefcourse import catalogue
from lefcourse.chapter import notebook
from lefcourse.running import runner

REPORT = """\
import json, os
from pathlib import Path

path = Path(os.environ["LEFCOURSE_RUN_DIR"], "record.json")
record = json.loads(path.read_text())
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Return a function that executes a notebook of the given cells; it keeps folder and record."""

    def execute(*cells, parameters=(), **options):
        execute.chapter = chapter(write(tmp_path / "tiny.ipynb", *cells))
        execute.out = tmp_path / "out"
        monkeypatch.setattr(catalogue, "get", lambda slug: execute.chapter)
        record = runner.execute(execute.chapter, dict(parameters), execute.out, **options)
        assert record == json.loads((execute.out / "record.json").read_text())
        return record

    return execute


def outputs(folder: Path) -> str:
    cells = notebook.read(folder / "tiny.ipynb").cells
    return "".join("".join(o.get("text", "")) for cell in cells for o in cell.outputs)


def test_a_run_is_done(tiny):
    seen = []
    before = dict(os.environ)
    record = tiny(
        code("a = 1  # one\nb = 'x'  # two", "parameters"),
        text("# First"),
        code(REPORT + "record['arms'] = {'m': {'role': 'method', 'accuracy': 0.5}}"),
        code("path.write_text(json.dumps(record))"),
        text("Some text\n\n# no heading"),
        text("## Second"),
        code(
            "import sys\n"
            "print(a, b, Path.cwd(), sys.executable)\n"
            "print(*[os.environ[n] for n in ('LEFCOURSE_BUDGET', 'LEFCOURSE_DEVICE', 'OMP_NUM_THREADS')])"
        ),
        parameters={"a": 2},
        budget="smoke",
        device="cpu",
        threads=1,
        progress=lambda *args: seen.append(args),
    )
    assert record["status"] == "done"
    assert record["parameters"] == {"a": 2, "b": "x"}
    assert record["arms"]["m"]["accuracy"] == 0.5
    assert 0 < record["wall_s"] < 60
    assert "error" not in record
    here = tiny.out.parent
    assert outputs(tiny.out) == f"2 x {here} {sys.executable}\nsmoke cpu 1\n"
    assert [s[0] for s in seen] == [1, 2, 3, 4, 5]  # the injected parameters are a cell
    assert {s[1] for s in seen} == {5}
    assert [s[2] for s in seen] == ["", "", "First", "First", "Second"]
    assert dict(os.environ) == before
    metadata = notebook.read(tiny.out / "tiny.ipynb").metadata["papermill"]
    assert str(here) not in json.dumps(metadata)


def test_a_failing_cell_is_named_and_the_rest_is_not_run(tiny):
    record = tiny(
        code("print('before')"),
        text("# A heading"),
        code("raise ValueError('too few labels\\nsecond line')"),
        code("print('after')"),
    )
    assert record["status"] == "failed"
    assert record["error"] == "cell 2: ValueError: too few labels"
    assert outputs(tiny.out) == "before\n"


def test_a_dead_kernel_is_a_failure(tiny):
    record = tiny(code("print('before', flush=True)"), code("import os\nos._exit(9)"), code("1"))
    assert record["status"] == "failed"
    assert record["error"].startswith("cell 2: DeadKernelError: the kernel died")
    assert (tiny.out / "tiny.ipynb").exists()


def test_a_notebook_that_cannot_be_read_is_a_failure(tiny, tmp_path, monkeypatch):
    broken = tmp_path / "broken.ipynb"
    broken.write_text('{"cells": [')
    monkeypatch.setattr(catalogue, "get", lambda slug: chapter(broken))
    with pytest.raises(ValueError, match="Expecting value"):
        runner.execute(chapter(broken), {}, tmp_path / "out")


def test_chapters_can_be_executed_side_by_side(tmp_path, monkeypatch):
    source = 'import os\nprint(os.environ["LEFCOURSE_BUDGET"])'
    one = chapter(write(tmp_path / "tiny.ipynb", code(source)))
    monkeypatch.setattr(catalogue, "get", lambda slug: one)
    threads = [
        threading.Thread(target=runner.execute, args=(one, {}, tmp_path / budget, budget))
        for budget in ("smoke", "full")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outputs(tmp_path / b) for b in ("smoke", "full")] == ["smoke\n", "full\n"]


# `lefcourse run tiny`, with a catalogue that knows that one notebook
COMMAND = """\
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tinybook import chapter
from lefcourse import catalogue
catalogue.get = lambda slug: chapter(Path({path!r}))
from lefcourse.cli import main
sys.exit(main(["run", "tiny", "--out", {out!r}]))
"""


def kernels_of(out: Path) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LEFCOURSE_RUN_DIR") == str(out):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a child")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_leaves_no_kernel(tmp_path, sent):
    path = write(
        tmp_path / "tiny.ipynb",
        code("print('before', flush=True)"),
        code("from pathlib import Path\nPath('begun').touch()"),
        code("import time\ntime.sleep(60)"),
    )
    out = tmp_path / "out"
    script = COMMAND.format(tests=str(Path(tinybook.__file__).parent), path=str(path), out=str(out))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    deadline = time.time() + 60
    while not (tmp_path / "begun").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    assert kernels_of(out)
    assert json.loads((out / "record.json").read_text())["status"] == "interrupted"
    process.send_signal(sent)
    said, complained = process.communicate(timeout=30)
    assert process.returncode == 130, complained
    assert "Traceback" not in complained
    assert complained.startswith("tiny was interrupted; what was done by then: ")
    assert complained.count("\n") == 1
    assert "starting the kernel" in said
    record = json.loads((out / "record.json").read_text())
    assert record["status"] == "interrupted"
    assert record["wall_s"] > 0
    assert outputs(out) == "before\n"
    assert not kernels_of(out)
