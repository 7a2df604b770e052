"""The loader of `method` cells: a chapter's method as a module, without its experiment."""

import linecache
import sys
from pathlib import Path
from types import ModuleType

from lefcourse import catalogue
from lefcourse.chapter import notebook

_loaded: dict[Path, tuple[int, ModuleType]] = {}


def methods(chapter: str | Path) -> ModuleType:
    """Return a module made of the `method` cells, and only those, of a chapter (slug or path).

    The module is made once and again when the file changes. Its tracebacks show the cells' code.
    Raises UsageError for an unknown chapter, and whatever the cells raise.
    """
    path = (chapter if isinstance(chapter, Path) else catalogue.get(chapter).path).resolve()
    changed = path.stat().st_mtime_ns
    if path not in _loaded or _loaded[path][0] != changed:
        _loaded[path] = changed, _execute_methods(path)
    return _loaded[path][1]


def _execute_methods(path: Path) -> ModuleType:
    slug = path.stem
    module = ModuleType(f"lefcourse.chapters.{slug}", f"The method cells of the chapter {slug}.")
    sys.modules[module.__name__] = module  # dataclasses and pickle look the module up
    for cell in notebook.read(path).tagged("method"):
        filename = f"<{slug}.ipynb, cell {cell.number}>"
        # A time of None tells linecache that there is no file to compare these lines with.
        lines = cell.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(cell.source), None, lines, filename)
        exec(compile(cell.source, filename, "exec"), module.__dict__)
    return module
