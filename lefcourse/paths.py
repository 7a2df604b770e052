"""Where things lie: the course (a checkout, or what comes with the package), the reader's runs and data."""

import os
from pathlib import Path

REPOSITORY = "https://github.com/lefcourse/lefcourse"
PACKAGE = Path(__file__).resolve().parent
CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file() and (PACKAGE.parent / "notebooks").is_dir()
# In an installed package setup.py has put notebooks and assets into its folder `course`.
ROOT = PACKAGE.parent if CHECKOUT else PACKAGE / "course"
NOTEBOOKS = ROOT / "notebooks"
ASSETS = ROOT / "assets"
RESULTS = ASSETS / "results"


def runs_root() -> Path:
    """Folder of executed notebooks: `LEFCOURSE_RUNS`, or `runs/` in the checkout.

    Where there is no checkout it is `lefcourse-runs/` in the current folder: nothing is written beside the package.
    """
    own = ROOT / "runs" if CHECKOUT else Path.cwd() / "lefcourse-runs"
    return Path(os.environ.get("LEFCOURSE_RUNS") or own)


def measured_root() -> Path:
    """Folder of the results that `reproduce` measures: the course's own in a checkout, else `results/` in the runs."""
    return RESULTS if CHECKOUT else runs_root() / "results"


def cache_root() -> Path:
    """Folder of what can be made again: `LEFCOURSE_CACHE`, or `lefcourse` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LEFCOURSE_CACHE") or Path(base) / "lefcourse")


def data_root() -> Path:
    """Folder of the real data sets: `LEFCOURSE_DATA`, or `data` in the cache folder."""
    return Path(os.environ.get("LEFCOURSE_DATA") or cache_root() / "data")
