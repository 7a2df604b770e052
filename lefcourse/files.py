"""Files that are whole or absent: JSON written so that no reader sees a part of it."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path


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


def write_json(path: Path, content: Mapping) -> None:
    """Write `content` so that a reader of `path` sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    partial.replace(path)
