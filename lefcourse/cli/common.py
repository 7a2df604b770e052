"""What several commands share: a request to run a chapter, checked before anything starts."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.errors import UsageError, choice
from lefcourse.paths import CHECKOUT, REPOSITORY
from lefcourse.settings import BUDGETS, DEVICES

ChapterName = Annotated[
    str, typer.Argument(metavar="CHAPTER", help="Slug of a written chapter; see lefcourse list.")
]
Param = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--param",
        metavar="NAME VALUE",
        help="Set a parameter (NAME=VALUE does too); repeat for more.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="BUDGET", help="smoke, standard or full [default: LEFCOURSE_BUDGET or standard]"
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="auto, cpu or cuda [default: LEFCOURSE_DEVICE or auto]"),
]


@dataclass(frozen=True)
class Request:
    """A chapter, the parameters that differ from its defaults, a budget and a device; all checked."""

    chapter: catalogue.Chapter
    parameters: dict[str, object]
    budget: str
    device: str


def request(
    slug: str, given: Iterable[str], budget: str | None, device: str | None, *, look: bool = True
) -> Request:
    """Check what the reader asked for, and (`look`) that the data for it are there.

    Raises UsageError or DataError for the first thing that cannot be had.
    """
    chapter = written(slug)
    parameters = params.parse(params.read(chapter.path), given)
    budget = choice("budget", budget or os.environ.get("LEFCOURSE_BUDGET") or "standard", BUDGETS)
    device = choice("device", device or os.environ.get("LEFCOURSE_DEVICE") or "auto", DEVICES)
    _check_folder(parameters.get("dataset", ""))
    if "cuda" in (device, parameters.get("device")):
        from lefcourse.science.seeds import resolve_device  # imports torch

        resolve_device("cuda")
    asked = Request(chapter, parameters, budget, device)
    if look:
        look_for_data(asked, parameters)
    return asked


def look_for_data(asked: Request, parameters: Mapping[str, object]) -> None:
    """Find what a run of these parameters needs, before a kernel starts. Raises DataError, or UsageError for its counts."""
    from lefcourse.running import needs

    spec, preset = params.read(asked.chapter.path), params.presets(asked.chapter.path)
    values = params.resolved(spec, preset.get(asked.budget, {}), parameters)
    params.check(spec, needs.look(values, parameters))


def need_checkout(command: str) -> None:
    """Raise UsageError where the course is installed as a package, without what `command` works on."""
    if not CHECKOUT:
        raise UsageError(
            f"`lefcourse {command}` needs a checkout of the course: git clone {REPOSITORY}, "
            "then `make help` in its folder"
        )


def written(slug: str) -> catalogue.Chapter:
    """Return the chapter called `slug`. Raises UsageError if it is unknown or not yet written."""
    chapter = catalogue.get(slug)
    if not chapter.exists:
        there = ", ".join(c.slug for c in catalogue.chapters() if c.exists) or "none"
        raise UsageError(f"chapter {slug!r} is planned, but not written yet; written: {there}")
    return chapter


def _check_folder(dataset: str) -> None:
    kind, colon, path = dataset.partition(":")
    if colon and not Path(path).is_dir():
        raise UsageError(f"data set {kind!r}: there is no folder {path}")


def readable(path: Path) -> Path:
    """Return `path` as the reader would write it: relative where it lies below the current folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
