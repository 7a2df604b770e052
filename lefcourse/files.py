"""Files that are whole or absent: JSON written so that no reader sees a part of it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


def plain(value):
    """Turn tensors, NumPy values and non-finite floats into what JSON can say (NaN becomes null)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, content: Mapping) -> None:
    """Write `content` so that a reader of `path` sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    partial.replace(path)
