"""The record of a run: what was run, from which source, how it ended, what was measured. No torch in here."""

import platform
from collections.abc import Mapping
from importlib.metadata import version

from lefcourse.chapter.sources import source_sha256


def versions() -> dict[str, str]:
    """Return the versions that matter for repeating a number."""
    packages = ("lefcourse", "torch", "torchvision", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def new_record(chapter: str, parameters: Mapping, device: str, budget: str) -> dict:
    """Return the record of a run that has just begun. It says `interrupted` until a run ends well."""
    return {
        "chapter": chapter,
        "parameters": dict(parameters),
        "seed": parameters.get("seed"),
        "device": device,
        "budget": budget,
        "versions": versions(),
        "source_sha256": source_sha256(chapter),
        "status": "interrupted",
        "wall_s": None,
        "cpu_s": None,
        "peak_mb": None,
        "arms": {},
        "seconds": {},
        "gap_closed": None,
        "claims": [],
    }
