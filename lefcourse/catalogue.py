"""What the course contains: its parts and chapters, in reading order, from `catalogue.toml`."""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lefcourse.errors import choice
from lefcourse.paths import NOTEBOOKS


@dataclass(frozen=True)
class Chapter:
    """One notebook and the paper it teaches; `number` is the paper's number in the syllabus."""

    number: int
    slug: str
    title: str
    short: str
    authors: list[str] = field(hash=False)
    year: int
    venue: str
    arxiv: str | None
    key: str
    part: str
    labels: tuple[str, ...]
    task: str
    idea: str

    @property
    def path(self) -> Path:
        """Where the chapter's notebook is, written or not."""
        return NOTEBOOKS / self.part / f"{self.slug}.ipynb"

    @property
    def exists(self) -> bool:
        """True when the notebook is written."""
        return self.path.exists()


@dataclass
class Part:
    """A part of the course: the question it answers, what its chapters share, which to read first, which to take."""

    folder: str
    title: str
    question: str
    shared: str
    first: str
    chapters: list[Chapter]
    compare: tuple[str, ...] = ()  # the names of the recorded comparisons of its methods
    take: str = ""  # what to take when, in words


@cache
def _read() -> dict:
    return tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8"))


def _chapter(row: dict) -> Chapter:
    return Chapter(**{"arxiv": None} | row | {"labels": tuple(row["labels"])})


@cache
def parts() -> list[Part]:
    """Return the parts in order, each with its chapters in reading order."""
    written = [_chapter(row) for row in _read()["chapter"]]
    return [
        Part(
            **row | {"compare": tuple(row.get("compare", ()))},
            chapters=[chapter for chapter in written if chapter.part == row["folder"]],
        )
        for row in _read()["part"]
    ]


def chapters() -> list[Chapter]:
    """Return all chapters in reading order, without the start page."""
    return [chapter for part in parts() for chapter in part.chapters]


def get(slug: str) -> Chapter:
    """Return the chapter (or the start page) called `slug`; UsageError with the nearest name."""
    known = {chapter.slug: chapter for chapter in [*chapters(), START]}
    return known[choice("chapter", slug, known)]


LABEL_KINDS: dict[str, str] = _read()["label_kinds"]
"""Kind of label -> one line that says what it means."""

START = Chapter(
    number=0,
    slug="start",
    title="Start here",
    short="start",
    authors=[],
    year=0,
    venue="",
    arxiv=None,
    key="",
    part="00-start",
    labels=(),
    task="",
    idea="",
)
"""The start page: it can be run like a chapter, but teaches no paper and is not in `chapters()`."""
