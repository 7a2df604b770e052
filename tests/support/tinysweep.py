"""A tiny chapter to sweep over, and runs that are function calls."""

import threading

import pytest
from tinybook import chapter, code, write

from lefcourse import catalogue
from lefcourse.files import write_json
from lefcourse.running import runner
from lefcourse.running.record import new_record
from lefcourse.sweep import pool

PARAMETERS = """\
seed = 5  # of every draw
rate = 0.6  # share of wrong labels
labels = 4  # labels per class
noise = "symmetric"  # symmetric | asymmetric: kind of noise
layers = [1, 2]  # units of each layer
arms = "core"  # core | all: what is run
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A catalogue with one written chapter, `tiny`, and `elr`, which is planned; runs go to an empty folder."""
    written = chapter(write(tmp_path / "tiny.ipynb", code(PARAMETERS, "parameters"), code("1")))
    written.task, written.labels, written.exists = "classification", ("noisy",), True
    planned = type("Planned", (), {"slug": "elr", "exists": False})()
    chapters = {"tiny": written, "elr": planned}

    def get(slug):
        from lefcourse.errors import choice

        return chapters[choice("chapter", slug, chapters)]

    monkeypatch.setattr(catalogue, "get", get)
    monkeypatch.setattr(catalogue, "chapters", lambda: [*chapters.values()])
    monkeypatch.setenv("LEFCOURSE_RUNS", str(tmp_path / "runs"))
    for name in ("LEFCOURSE_BUDGET", "LEFCOURSE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return written


@pytest.fixture
def stub(tiny, monkeypatch):
    """Workers are threads, and a run is a function call. Return what was run: a list of parameters."""
    ran = []

    def execute(chapter, parameters, out_dir, budget, device, threads=None):
        ran.append(dict(parameters))
        defaults = {"seed": 5, "rate": 0.6, "labels": 4, "noise": "symmetric", "layers": [1, 2]}
        record = new_record(chapter.slug, defaults | dict(parameters), "cpu", budget)
        if problem := stub_problem.get(parameters["seed"]):
            if isinstance(problem, Exception):
                raise problem
            record |= {"status": "failed", "error": problem, "wall_s": 1.0}
        else:
            rate, seed = record["parameters"]["rate"], parameters["seed"]
            arms = {
                "cross-entropy": {"role": "baseline", "accuracy": 0.9 - rate + 0.001 * seed},
                "tiny": {
                    "role": "method",
                    "accuracy": 0.9 - rate / 2 + 0.002 * seed,
                    "curve": [1, 2],
                },
                "clean labels": {"role": "oracle", "accuracy": 0.95},
            }
            record |= {"status": "done", "arms": arms, "gap_closed": 0.5, "wall_s": 1.0}
            record["gap_metric"] = "accuracy"
        write_json(out_dir / "record.json", record)
        return record

    stub_problem = {}
    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(pool, "local_cluster", in_process)
    return type("Stub", (), {"ran": ran, "problems": stub_problem})


STARTING = threading.Lock()


def in_process(jobs: int):
    from distributed import LocalCluster

    # A starting cluster imports parts of Dask: two threads that do it at once see half-loaded modules.
    with STARTING:
        return LocalCluster(
            n_workers=jobs, threads_per_worker=1, processes=False, dashboard_address=":0"
        )
