"""Setting up the environment: killed at any moment, the same call goes on to the end."""

import os
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lefcourse.paths import REPOSITORY, ROOT

FILES = 3_000  # of the package whose installation is interrupted
CALL = "import sys; sys.path.insert(0, {tools!r}); import install; from pathlib import Path; sys.exit(install.main(Path({venv!r}), Path({pins!r}), None))"


def wheel(folder: Path, name: str, files: int) -> None:
    """Make a wheel of a package that counts its own modules."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as made:
        # As in a careless wheel, what describes the package comes first.
        made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        made.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{name}/__init__.py", "")
        for k in range(files):
            made.writestr(f"{name}/m{k}.py", f"x = {k}\n")
        made.writestr(f"{info}/RECORD", "")


class Setting:
    def __init__(self, folder: Path):
        self.venv = folder / "env"
        wheel(folder, "small", 1)
        wheel(folder, "large", FILES)
        pins = folder / "requirements.txt"
        pins.write_text(f"--no-index\n--find-links {folder}\nsmall==1.0\nlarge==1.0\n")
        code = CALL.format(tools=str(ROOT / "tools"), venv=str(self.venv), pins=str(pins))
        self.command = [sys.executable, "-c", code]
        self.environment = {**os.environ, "PATH": "/usr/bin:/bin"}  # without uv

    def packages(self, pattern: str) -> list[Path]:
        return [*self.venv.glob(f"lib/python*/site-packages/{pattern}")]

    def kill_when(self, seen) -> None:
        """Start, and kill everything as soon as `seen()`."""
        call = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=self.environment, start_new_session=True,
        )  # fmt: skip
        while not seen():
            assert call.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.005)
        os.killpg(call.pid, signal.SIGKILL)
        call.wait()

    def finish(self) -> str:
        done = subprocess.run(self.command, capture_output=True, text=True, env=self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="kills process groups")
def test_what_was_interrupted_goes_on(tmp_path):
    setting = Setting(tmp_path)
    setting.kill_when(lambda: (setting.venv / "bin" / "python").exists())
    assert not setting.packages("pip/__main__.py"), "the environment was whole already"
    setting.kill_when(lambda: len(setting.packages("large/m*.py")) > FILES // 10)
    assert len(setting.packages("large/m*.py")) < FILES
    said = setting.finish()
    assert len(setting.packages("large/m*.py")) == FILES
    assert setting.packages("small/m0.py") and setting.packages("large-1.0.dist-info/INSTALLER")
    assert "2 packages" in said and "same command goes on" in said
    assert "is ready after" in said and (setting.venv / ".lefcourse-ready").exists()


def test_half_installed_packages_are_forgotten(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    import install

    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, files in {
        "a-1.dist-info": ["METADATA"],
        "b-1.dist-info": ["INSTALLER"],
        "~c": [],
    }.items():
        (site / name).mkdir(parents=True)
        for file in files:
            (site / name / file).touch()
    assert sorted(install.forget_halves(tmp_path)) == ["a-1.dist-info", "~c"]
    assert [p.name for p in site.iterdir()] == ["b-1.dist-info"]


# --- what is installed -----------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, list[Requirement]]:
    """The lines of requirements.txt by package; some packages have one for each system or Python."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = {}
    for pin in (Requirement(line) for line in lines if line[:1].isalnum()):
        found.setdefault(pin.name.replace("_", "-").lower(), []).append(pin)
    return found


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_the_package_asks_for_lower_bounds_only(line):
    assert [bound.operator for bound in Requirement(line).specifier] == [">="]


@pytest.mark.parametrize(
    "line", [line for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
)
def test_the_pins_are_within_the_bounds(line):
    wanted = Requirement(line)
    for pin in pins()[wanted.name.replace("_", "-").lower()]:
        (exact,) = pin.specifier
        assert exact.operator == "==" and wanted.specifier.contains(exact.version)


def test_the_image_for_binder_has_the_pinned_torch_without_cuda():
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    asked = [line for line in lines if line[:1].isalnum()]
    exact = {name: str(pins()[name][0].specifier) for name in ("torch", "torchvision")}
    assert asked == [f"{name}{version}+cpu" for name, version in exact.items()]
    assert lines[-1] == "."


def test_the_repository_has_one_address():
    assert PROJECT["urls"]["Homepage"] == REPOSITORY
