"""Put the notebooks and what they need stored (results, small weights) into the built package.

They stay where they are in a checkout; in a wheel they lie in `lefcourse/course/`. See `lefcourse/paths.py`.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SHIPPED = ("notebooks", "assets")
NOT_SHIPPED = shutil.ignore_patterns(".*", "__pycache__")  # checkpoints of JupyterLab


class WithCourse(build_py):
    """`build_py`, and then a copy of the course beside the modules."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        course = Path(self.build_lib) / "lefcourse" / "course"
        shutil.rmtree(course, ignore_errors=True)  # an earlier build may have left other notebooks
        for name in SHIPPED:
            shutil.copytree(HERE / name, course / name, ignore=NOT_SHIPPED)


setup(cmdclass={"build_py": WithCourse})
