"""Folders that can be written, and files that are whole or absent: no reader sees a part of them."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from lefcourse.errors import UsageError


def plain(value):
    """Turn tensors, NumPy values and non-finite floats into what JSON can say (NaN becomes null)."""
    return _python(value, lambda number: number if math.isfinite(number) else None)


def numbers(value):
    """Turn tensors and NumPy values into Python's own; NaN stays NaN, so that what follows from it is NaN too."""
    return _python(value, lambda number: number)


def _python(value, number: Callable[[float], float | None]):
    if isinstance(value, Mapping):
        return {str(key): _python(item, number) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_python(item, number) for item in value]
    if hasattr(value, "tolist"):
        return _python(value.tolist(), number)
    return number(value) if isinstance(value, float) else value


def writable(folder: Path) -> Path:
    """Return `folder`, made if it is not there. Raises UsageError if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # on a read-only disk a folder may be there all the same
    except OSError as problem:
        exists = isinstance(problem, FileExistsError)
        reason = "it is a file" if exists else problem.strerror or problem
        raise UsageError(
            f"cannot write into the folder {str(folder)!r} ({reason}): choose another by --out or LEFCOURSE_RUNS"
        ) from None
    return folder


def write_json(path: Path, content: Mapping) -> None:
    """Write `content` so that a reader of `path` sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    partial.replace(path)
