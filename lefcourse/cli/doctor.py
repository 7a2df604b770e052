"""`lefcourse doctor`: what this machine has for the course, what it lacks, and how to get it."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import typer

from lefcourse.paths import CHECKOUT, REPOSITORY, ROOT, data_root, runs_root

OK, NOTE, MISSING = "ok", "note", "missing"
COLOURS = {OK: typer.colors.GREEN, NOTE: typer.colors.YELLOW, MISSING: typer.colors.RED}
PYTHONS = ((3, 11), (3, 14))  # from, and below
# Without one of these the default runs fail; the others serve tests, sweeps or the book.
NEEDED = {
    "torch", "torchvision", "numpy", "scikit-learn", "matplotlib",
    "ipykernel", "ipywidgets", "nbformat", "papermill", "tqdm", "psutil",
}  # fmt: skip
GIB = 2**30
NEEDED_MEMORY, NEEDED_DISK = 2 * GIB, 0.5 * GIB

Finding = tuple[str, str, str]  # state, subject, text


def command() -> None:
    """Say what this machine has and what it lacks.

    Python, the course, packages, GPU, memory, disk, real data sets, and what the book needs; for what is absent,
    how to get it. Packages are compared with the pins of a checkout, or with what the installed course asks for. Exit code 1 if something is missing that the default runs need; real data sets, a GPU and a
    browser are not among that.
    """
    found = []
    for check in (python, course, packages, device, machine, data, book):
        for finding in check():
            found.append(finding)
            state, subject, text = finding
            typer.secho(f"{state:<9}", fg=COLOURS[state], nl=False)
            print(f"{subject:<14}{text}", flush=True)
    raise typer.Exit(1 if any(state == MISSING for state, _, _ in found) else 0)


def python() -> Iterator[Finding]:
    fits = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield OK if fits else MISSING, "python", text if fits else f"{text}; needed: 3.11 to 3.13"


def course() -> Iterator[Finding]:
    if CHECKOUT:
        yield OK, "course", f"a checkout: {ROOT}"
        return
    yield OK, "course", f"lefcourse {version('lefcourse')}, installed in {ROOT}"
    yield (NOTE, "checkout", f"none; only `book` and `new` need one: git clone {REPOSITORY}")


def packages() -> Iterator[Finding]:
    """Compare what is installed with the pins of requirements.txt; without a checkout, with what the package asks for."""
    if CHECKOUT:
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        wanted = [line for line in lines if line.strip() and not line.startswith(("#", "-"))]
        yield from _compare(wanted, "pinned", "python -m pip install -r requirements.txt")
    else:
        wanted = requires("lefcourse") or []
        yield from _compare(wanted, "asked", "python -m pip install -U lefcourse")


def _compare(wanted: list[str], verb: str, fix: str) -> Iterator[Finding]:
    """Compare the installed packages with the lines of requirements `wanted`."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    pins = [Requirement(line) for line in wanted]
    # what an extra asks for serves a checkout only
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"extra": ""})]
    absent, other = [], []
    for pin in pins:
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            absent.append(pin.name)
            continue
        # a local version such as 2.11.0+cu130 is the same release
        if not pin.specifier.contains(Version(installed).public, prereleases=True):
            other.append(f"{pin.name} {installed} ({verb} {pin.specifier})")
    if absent:
        state = MISSING if NEEDED.intersection(absent) else NOTE
        yield state, "packages", f"not installed: {', '.join(absent)}; {fix}"
    if other:
        yield NOTE, "packages", f"not as {verb}: {', '.join(other)}; {fix}"
    if not absent and not other:
        yield OK, "packages", f"all {len(pins)} as {verb}"


def device() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield MISSING, "torch", str(error)
        return
    yield OK, "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    if why := _why_no_cuda():
        yield NOTE, "cuda", f"{why}; everything runs on the CPU (the budget `full` wants a GPU)"
    for k in range(torch.cuda.device_count() if not why else 0):
        gpu = torch.cuda.get_device_properties(k)
        yield OK, f"cuda:{k}", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB"


def _why_no_cuda() -> str | None:
    """Return why torch cannot compute on a GPU here, in torch's own words; None if it can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        # "Found no NVIDIA driver ...", "The NVIDIA driver on your system is too old ...", and then advice
        return str(error).split(". ")[0].strip().rstrip(".")
    return None


def machine() -> Iterator[Finding]:
    import psutil

    # where the system lets a process be confined to some cores, those count
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield OK, "cores", str(cores)
    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB"
    enough = memory.available >= NEEDED_MEMORY
    yield (OK, "memory", text) if enough else (NOTE, "memory", f"{text}; a chapter may take 2 GiB")
    runs = runs_root().resolve()
    free = shutil.disk_usage(next(p for p in (runs, *runs.parents) if p.exists())).free
    text = f"{free / GIB:.1f} GiB free for {runs}"
    enough = free >= NEEDED_DISK
    yield (OK, "disk", text) if enough else (MISSING, "disk", f"{text}; needed: half a GiB")


def data() -> Iterator[Finding]:
    from lefcourse.science.data import available

    yield OK, "data folder", f"{data_root()} (LEFCOURSE_DATA)"
    for name, (present, hint) in available().items():
        yield OK if present else NOTE, name, "present" if present else f"absent: {hint}"


def book() -> Iterator[Finding]:
    """What the figures need besides Python packages and, in a checkout, the tests of the book."""
    if CHECKOUT:
        browser = _chromium()
        absent = (
            "absent; only the tests of the book need it: install it with your system's packages"
        )
        yield OK if browser else NOTE, "chromium", browser or absent
    from matplotlib import font_manager

    fonts = {font.name for font in font_manager.fontManager.ttflist}
    needed = ("DejaVu Sans", "STIXGeneral")  # of the figures; matplotlib brings both
    absent = [name for name in needed if name not in fonts]
    text = (
        f"absent: {', '.join(absent)}; reinstall matplotlib" if absent else f"{', '.join(needed)}"
    )
    yield NOTE if absent else OK, "fonts", text


def _chromium() -> str | None:
    """Return the browser that the tests of the book would start."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)
