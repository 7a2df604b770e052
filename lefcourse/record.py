"""The record of a run: what was run, from which source, how it ended, what was measured. No torch in here."""

import ast
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from . import catalogue, notebook
from .paths import ASSETS

# The modules whose code can change a measured number; plots, pages and commands cannot.
SCIENCE = (
    "augment", "data", "detection", "evaluate", "labels", "miniclip", "nets", "segmentation", "training",
)  # fmt: skip
# What a module always draws and reads, besides the modules that it imports.
NEEDS = {
    "miniclip": (
        Path(__file__).parent / "worlds" / "shapes.py",
        ASSETS / "clip" / "mini.safetensors",
    )
}
# What `import lefcourse as lc` offers under another name than its module's.
OFFERED = {"load": "data", "Data": "data", "few_labels": "data", "fit": "training"} | {
    "batches": "training",
    "predict": "evaluate",
    "accuracy": "evaluate",
}


def source_sha256(chapter: str) -> dict[str, str]:
    """Hash what a chapter's numbers depend on: its code cells, and the modules and methods that they name.

    A module that a chapter does not use can change, and a world can come into being, without making
    the chapter's recorded results stale.
    """
    path = catalogue.get(chapter).path
    cells = notebook.code_cells(path)
    parts = [source.read_bytes() for source in sources(cells)]
    parts += ["\n\n".join(_method_cells(slug)).encode() for slug in notebook.borrowed(cells)]
    return {
        "notebook": hashlib.sha256("\n\n".join(cells).encode()).hexdigest(),
        "package": hashlib.sha256(b"".join(parts)).hexdigest(),
    }


def sources(cells: Sequence[str]) -> list[Path]:
    """Return the package's files that code `cells` use: modules in SCIENCE, with what these import; worlds; stored weights."""
    here = Path(__file__).parent
    code = "\n\n".join(
        [*cells, *(c for slug in notebook.borrowed(cells) for c in _method_cells(slug))]
    )
    used = _used(code)
    found = {here / "run.py"}
    waiting = {name for name in used | {OFFERED.get(name) for name in used} if name in SCIENCE}
    while waiting:
        module = here / f"{waiting.pop()}.py"
        found.add(module)
        imports = _imports(module.read_text()) & set(SCIENCE)
        waiting |= {name for name in imports if here / f"{name}.py" not in found}
    worlds = [w for w in (here / "worlds").glob("*.py") if w.stem in used | _strings(code)]
    needs = [file for name in NEEDS if here / f"{name}.py" in found for file in NEEDS[name]]
    return sorted({*found, *worlds, *needs})


def _used(code: str) -> set[str]:
    """Return what `code` takes from `lc` or from this package; comments do not count."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Attribute(value=ast.Name(id="lc"), attr=name):
                found.add(name)
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="lc"), attr="worlds"), attr=name
            ):
                found.add(name)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "lefcourse":
                found |= {*module.split("."), *(alias.name for alias in node.names)}
    return found


def _strings(code: str) -> set[str]:
    """Return the string constants of `code`: a world is used by its name, too."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    return {node.value for node in nodes if isinstance(node.value, str)}


def _imports(code: str) -> set[str]:
    """Return the modules of this package that a module's `code` imports."""
    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom) and n.level]
    return {name for n in nodes for name in [n.module or "", *(a.name for a in n.names)]}


def _method_cells(slug: str) -> list[str]:
    path = catalogue.get(slug).path
    return [
        cell.source for cell in notebook.read(path).cells if cell.code and "method" in cell.tags
    ]


def versions() -> dict[str, str]:
    """Return the versions that matter for repeating a number."""
    packages = ("lefcourse", "torch", "torchvision", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


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
        "peak_mb": None,
        "arms": {},
        "gap_closed": None,
        "claims": [],
    }
