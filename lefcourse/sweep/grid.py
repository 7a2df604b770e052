"""What a sweep consists of: its grid, its cells (one run each), its folder, and what of it is done."""

import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lefcourse.catalogue import Chapter
from lefcourse.chapter.ranges import SEEDS
from lefcourse.errors import UsageError
from lefcourse.files import plain, writable, write_json

MANIFEST = "sweep.json"
# States of a cell. Only `done` is not run again.
DONE, STALE, FAILED, MISSING = "done", "stale", "failed", "missing"
MAX_SEEDS = 10_000
COMMA = re.compile(r",(?![^\[(]*[\])])")  # outside of brackets


class SweepError(RuntimeError):
    """The sweep as a whole cannot go on; the message is one line for the reader."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the parameters given to the chapter (the seed among them), and its folder."""

    chapter: Chapter
    parameters: dict[str, object]
    budget: str
    device: str
    folder: Path

    @property
    def seed(self) -> int:
        return self.parameters["seed"]

    @property
    def name(self) -> str:
        """`elr, rate=0.6, seed=5`, for messages."""
        return ", ".join([self.chapter.slug, *(f"{n}={v}" for n, v in self.parameters.items())])

    def record(self) -> dict | None:
        """Return the record of the run as it stands, None where there is none."""
        path = self.folder / "record.json"
        return json.loads(path.read_text()) if path.exists() else None

    def state(self, source: Mapping) -> str:
        """Return DONE, STALE (done, but from other sources than `source`), FAILED or MISSING."""
        record = self.record()
        if record is None or record["status"] == "interrupted" or not self._made(record):
            return MISSING
        if record["status"] == "failed":
            return FAILED
        return DONE if record["source_sha256"] == source else STALE

    def _made(self, record: Mapping) -> bool:
        """Was `record` made by a run of these parameters, at this budget, on this device?"""
        given = plain(self.parameters)
        return (
            given == {n: record["parameters"].get(n) for n in given}
            and record["budget"] == self.budget
            and self.device in ("auto", record["device"])
        )


@dataclass(frozen=True)
class Sweep:
    """A chapter over the product of `grid` (name -> values) and `seeds`, in one folder."""

    chapter: Chapter
    grid: dict[str, list]
    seeds: list[int]
    budget: str
    device: str
    folder: Path

    @property
    def swept(self) -> list[str]:
        """The parameters with more than one value."""
        return [name for name, values in self.grid.items() if len(values) > 1]

    def cells(self) -> list[Cell]:
        """Return all runs. The first seed comes first, so that an early look sees the whole grid."""
        points = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        return [
            self._cell(point | {"seed": seed})
            for seed, point in itertools.product(self.seeds, points)
        ]

    def _cell(self, parameters: dict) -> Cell:
        shown = {n: v for n, v in parameters.items() if n in (*self.swept, "seed")}
        readable = "_".join(f"{name}-{value}" for name, value in shown.items())
        readable = re.sub(r"[^\w.+-]+", "-", readable)[:80]
        key = fingerprint([parameters, self.budget, self.device])
        folder = self.folder / f"{readable}_{key}"
        return Cell(self.chapter, parameters, self.budget, self.device, folder)

    def manifest(self) -> dict:
        """Return what identifies this sweep: the same command makes the same manifest."""
        return plain(
            {
                "chapter": self.chapter.slug,
                "grid": self.grid,
                "seeds": self.seeds,
                "budget": self.budget,
                "device": self.device,
            }
        )


def claim(folder: Path, manifest: Mapping) -> None:
    """Make `folder` the one of the sweep of this manifest, or find that it is.

    Raises UsageError if it is another sweep's, or holds anything else.
    """
    path = folder / MANIFEST
    if folder.is_file():
        raise UsageError(f"{str(folder)!r} is a file: choose another --out")
    if not path.exists() and _occupied(folder):
        raise UsageError(f"folder {str(folder)!r} holds something else: choose another --out")
    with FileLock(writable(folder) / ".lock"):
        if not path.exists():
            write_json(path, manifest)
        elif (other := json.loads(path.read_text())) != manifest:
            raise UsageError(
                f"folder {str(folder)!r} holds another sweep ({describe(other)}): "
                "choose another --out"
            )


def _occupied(folder: Path) -> bool:
    """Does `folder` hold anything but the lock of a sweep that begins at this moment?"""
    return folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())


def describe(manifest: Mapping) -> str:
    """Write a manifest in one line."""
    grid = [f"{n}={','.join(map(str, v))}" for n, v in manifest["grid"].items()]
    seeds = ",".join(map(str, manifest["seeds"]))
    return " ".join([manifest["chapter"], *grid, f"seeds={seeds}", manifest["budget"]])


def fingerprint(content: object) -> str:
    """Return eight hexadecimal digits that name `content`."""
    text = json.dumps(plain(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def parse_grid(
    given: Iterable[str], parse: Callable[[str], Mapping[str, object]]
) -> dict[str, list]:
    """Turn `name=v1,v2` texts into {name: [values]}; `parse` checks one `name=value`.

    A comma inside brackets belongs to the value. Raises UsageError for a parameter without values, one
    given twice, a value that occurs twice, and `seed`.
    """
    grid: dict[str, list] = {}
    for text in given:
        name, _, values = text.partition("=")
        if name == "seed":
            raise UsageError("the seeds are given by --seeds 5-9, not by -p seed")
        if name in grid:
            raise UsageError(f"parameter {name!r} is given twice: write -p {name} V1,V2")
        grid[name] = []
        for value in COMMA.split(values):
            if not value.strip():
                raise UsageError(f"parameter {name!r} lacks a value: write -p {name} V1,V2")
            parsed = parse(f"{name}={value.strip()}")[name]
            if parsed in grid[name]:
                raise UsageError(f"parameter {name!r} has the value {value.strip()} twice")
            grid[name].append(parsed)
    return grid


def parse_seeds(text: str) -> list[int]:
    """Turn `5-9` or `0,3,7` (or `0-2,7`) into a list. Raises UsageError for anything else."""
    seeds = list(_seeds(text))
    if twice := [seed for k, seed in enumerate(seeds) if seed in seeds[:k]]:
        raise UsageError(f"seed {twice[0]} is given twice in {text!r}")
    return seeds


def _seeds(text: str) -> Iterator[int]:
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise UsageError(
                f"seeds {text!r}: write a range such as 5-9 or a list such as 0,3,7, "
                f"of numbers {SEEDS.text}"
            )
        if last not in SEEDS:
            raise UsageError(f"seeds {text!r}: {last} is no seed; allowed: {SEEDS.text}")
        if last - first >= MAX_SEEDS:
            raise UsageError(f"seeds {text!r}: more than {MAX_SEEDS} seeds")
        yield from range(first, last + 1)


class Clock:
    """Estimates the time that is left from the pace so far."""

    def __init__(self, total: int):
        self.start, self.total, self.ended = time.perf_counter(), total, 0

    def left(self) -> float | None:
        """Seconds left, None before anything has ended."""
        if not self.ended:
            return None
        return (time.perf_counter() - self.start) / self.ended * (self.total - self.ended)
