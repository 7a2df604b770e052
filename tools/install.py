"""Set up the course's virtual environment: `python tools/install.py VENV`. Needs nothing but Python.

It may be interrupted at any moment, and the same call goes on: what was half installed is installed again.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)
READY = ".lefcourse-ready"


def main(
    venv: Path, requirements: Path = ROOT / "requirements.txt", project: str | None = str(ROOT)
) -> int:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"Python 3.11 to 3.13 is needed, this is {version}: make PYTHON=python3.12 ...")
        return 1
    start, uv = time.monotonic(), shutil.which("uv")
    pins = [line for line in requirements.read_text().splitlines() if line[:1].isalnum()]
    print(
        f"Setting up {venv}: {len(pins)} packages, about 5 GB, most of it PyTorch with CUDA (it runs on a CPU, too).\n"
        f"This takes {'one to five' if uv else 'three to ten'} minutes, once. "
        "Interrupt it whenever you like: the same command goes on.",
        flush=True,
    )
    make(venv, uv)
    for folder in forget_halves(venv):
        print(f"{folder} was left half installed, and is installed again", flush=True)
    python = str(venv / "bin" / "python")
    install = [uv, "pip", "install", "--python", python] if uv else [python, *PIP]
    run([*install, "-r", str(requirements)])
    if project:
        run([*install, "--no-deps", "-e", project])
    (venv / READY).touch()
    print(f"{venv} is ready after {time.monotonic() - start:.0f} s", flush=True)
    return 0


PIP = ("-m", "pip", "install", "--disable-pip-version-check")


def run(command: Sequence[str]) -> None:
    """Run an installer and let it show its own progress; end as it ends."""
    done = subprocess.run(command)
    if done.returncode:
        print(f"the installer stopped ({' '.join(command[:4])} ...); the same command goes on")
        sys.exit(done.returncode)


def make(venv: Path, uv: str | None) -> None:
    """Make the environment, anew if an earlier call was interrupted while it made it."""
    python = venv / "bin" / "python"
    works = [str(python), "-c", "pass" if uv else "import pip._internal"]
    if python.exists() and subprocess.run(works, capture_output=True).returncode == 0:
        return
    own = [uv, "venv", "--clear", "--python", sys.executable, str(venv)]
    run(own if uv else [sys.executable, "-m", "venv", "--clear", str(venv)])


def forget_halves(venv: Path) -> list[str]:
    """Drop the marks of packages whose installation was interrupted, or an installer would take them for whole.

    An installer writes INSTALLER when everything else of a package is there, and moves what it replaces to `~name`.
    """
    found = []
    for folder in venv.glob("lib/python*/site-packages/*"):
        half = folder.suffix == ".dist-info" and not (folder / "INSTALLER").exists()
        if half or folder.name.startswith("~"):
            shutil.rmtree(folder)
            found.append(folder.name)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
