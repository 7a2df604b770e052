"""Chapters as files: their cells, and whose methods they borrow."""

import ast
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lefcourse.errors import UsageError

INSTALL_TAG = "install"  # of the first code cell, which installs the course where it is absent
# CPython 3.11 fails now and then when two threads parse at a time, and a sweep's workers may be threads.
_PARSER = threading.Lock()
METHODS = re.compile(r"lc\.methods\(\s*[\"']([\w-]+)[\"']")


@dataclass(frozen=True)
class Cell:
    """One cell; `number` counts all cells of the notebook from 1."""

    number: int
    kind: str
    source: str
    tags: tuple[str, ...]
    metadata: dict
    outputs: tuple
    execution_count: int | None

    @property
    def code(self) -> bool:
        return self.kind == "code"


@dataclass(frozen=True)
class Notebook:
    """A notebook file as it stands on disk."""

    path: Path
    cells: list[Cell]
    metadata: dict

    def tagged(self, tag: str) -> list[Cell]:
        """Return the cells that carry `tag`, in order."""
        return [cell for cell in self.cells if tag in cell.tags]


def read(path: Path | str) -> Notebook:
    """Read the notebook at `path`. Raises OSError or ValueError if it is absent or no notebook."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    cells = [_cell(k, raw) for k, raw in enumerate(content["cells"], 1)]
    return Notebook(Path(path), cells, content["metadata"])


def _cell(number: int, raw: dict) -> Cell:
    return Cell(
        number=number,
        kind=raw["cell_type"],
        source="".join(raw["source"]),
        tags=tuple(raw["metadata"].get("tags", ())),
        metadata=raw["metadata"],
        outputs=tuple(raw.get("outputs", ())),
        execution_count=raw.get("execution_count"),
    )


def parse(code: str) -> ast.Module:
    """Return the syntax tree of `code`; any thread may ask. Raises SyntaxError if it is not plain Python."""
    with _PARSER:
        return ast.parse(code)


def code_cells(path: Path | str, tag: str | None = None) -> list[str]:
    """Return the chapter's code as plain Python, cell by cell: all but the cell that installs the course; only `tag`, if given.

    Raises UsageError for a cell that is not Python, with its number and line.
    """
    cells = [c for c in read(path).cells if c.code and INSTALL_TAG not in c.tags]
    return [_plain(c, Path(path).name) for c in cells if tag is None or tag in c.tags]


def _plain(cell: Cell, file: str) -> str:
    """Return the cell's source; where a reader has used magics or shell commands, as IPython would run it."""
    try:
        parse(cell.source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        try:
            source = TransformerManager().transform_cell(cell.source)
            parse(source)
        except SyntaxError as error:
            line = (error.text or "").strip()
            raise UsageError(
                f"{file}, cell {cell.number}, line {error.lineno}: not Python: {error.msg}: {line}"
            ) from None
        return source
    return cell.source


def borrowed(cells: Sequence[str]) -> list[str]:
    """Return the slugs of the chapters whose methods the code `cells` load."""
    return sorted(set(METHODS.findall("\n\n".join(cells))))
