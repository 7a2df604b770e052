"""Chapters as files: their cells, the loader of `method` cells, and the structural check."""

import ast
import json
import linecache
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from . import catalogue

SECTIONS = (
    "title",
    "parameters",
    "problem",
    "method",
    "experiment",
    "results",
    "knob",
    "claim",
    "full-size",
    "exercises",
    "references",
)
MEDIAN_LINES, LONG_LINES, LONG_SHARE = 12, 30, 0.03
WORDS = (600, 2500)  # of prose; a good chapter has at least 800
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~<-])/(?!path/)[A-Za-z]+/\w|\b[A-Z]:\\(?:Users|Program)")

METHODS = re.compile(r"lc\.methods\(\s*[\"']([\w-]+)[\"']")

_loaded: dict[Path, tuple[int, ModuleType]] = {}


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


def code_cells(path: Path | str) -> list[str]:
    """Return the sources of the code cells of the notebook at `path`."""
    return [cell.source for cell in read(path).cells if cell.code]


def borrowed(cells: Sequence[str]) -> list[str]:
    """Return the slugs of the chapters whose methods the code `cells` load."""
    return sorted(set(METHODS.findall("\n\n".join(cells))))


# --- the loader of method cells ------------------------------------------------------------------


def load_methods(chapter: str | Path) -> ModuleType:
    """Return a module made of the `method` cells, and only those, of a chapter (slug or path).

    The module is made once and again when the file changes. Its tracebacks show the cells' code.
    Raises UsageError for an unknown chapter, and whatever the cells raise.
    """
    path = (chapter if isinstance(chapter, Path) else catalogue.get(chapter).path).resolve()
    changed = path.stat().st_mtime_ns
    if path not in _loaded or _loaded[path][0] != changed:
        _loaded[path] = changed, _execute_methods(path)
    return _loaded[path][1]


methods = load_methods  # in a notebook: lc.methods("elr")


def _execute_methods(path: Path) -> ModuleType:
    slug = path.stem
    module = ModuleType(f"lefcourse.chapters.{slug}", f"The method cells of the chapter {slug}.")
    sys.modules[module.__name__] = module  # dataclasses and pickle look the module up
    for cell in read(path).tagged("method"):
        filename = f"<{slug}.ipynb, cell {cell.number}>"
        # A time of None tells linecache that there is no file to compare these lines with.
        lines = cell.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(cell.source), None, lines, filename)
        exec(compile(cell.source, filename, "exec"), module.__dict__)
    return module


# --- the structural check ------------------------------------------------------------------------


def problems(path: Path | str) -> list[str]:
    """Return what keeps the notebook at `path` from being a chapter, one line each; [] if nothing.

    The start page is no chapter: it is exempt from what concerns sections and the parts of an experiment.
    """
    book = read(path)
    checks = [_stored, _plain, _figures, _exercises, _sizes]
    if book.path.stem != catalogue.START.slug:
        checks += [_sections, _parameters, _experiment, _prose]
    return [problem for check in checks for problem in check(book)]


def _stored(book: Notebook) -> Iterator[str]:
    kernel = book.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"the kernelspec is {kernel!r}, not 'python3'"
    for cell in book.cells:
        if cell.outputs or cell.execution_count is not None:
            yield f"cell {cell.number}: stored with outputs or an execution count (run nbstripout)"


def _plain(book: Notebook) -> Iterator[str]:
    for cell in book.cells:
        if found := ABSOLUTE_PATH.search(cell.source):
            yield f"cell {cell.number}: holds an absolute path ({found[0]}...)"
        if re.search(r"\bTODO\b", cell.source):
            yield f"cell {cell.number}: TODO"
        if cell.code and _tree(cell) is None:
            yield f"cell {cell.number}: not plain Python (no magics, no shell commands)"


def _tree(cell: Cell) -> ast.Module | None:
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return None


def _calls(cell: Cell, name: str) -> list[ast.Call]:
    """Return the calls of `name` (as in "run.finish") in a code cell."""
    tree = _tree(cell) if cell.code else None
    nodes = ast.walk(tree) if tree else ()
    return [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def _figures(book: Notebook) -> Iterator[str]:
    for cell in book.cells:
        for name in ("lc.show", "lc.explore"):
            for call in _calls(cell, name):
                for word in ("alt", "caption"):
                    if not _says_something(call, word, name):
                        yield f"cell {cell.number}: {name} without a text in {word}="


def _says_something(call: ast.Call, word: str, name: str) -> bool:
    for keyword in call.keywords:
        if keyword.arg == word:
            match keyword.value:
                case ast.Constant(value=text):
                    return isinstance(text, str) and bool(text.strip())
                case ast.JoinedStr():
                    return True
                case _:  # a knob's alt text may be a function of its values
                    return name == "lc.explore" and word == "alt"
    return False


def _exercises(book: Notebook) -> Iterator[str]:
    from .exercise import blank

    solutions = book.tagged("solution")
    for cell in book.tagged("exercise"):
        solution = next((s for s in solutions if s.number > cell.number), None)
        if solution is None:
            yield f"cell {cell.number}: an exercise without a solution after it"
        elif "# solution" not in solution.source or "# end of solution" not in solution.source:
            yield f"cell {solution.number}: a solution without `# solution` ... `# end of solution`"
        elif blank(solution.source) != cell.source:
            yield f"cell {cell.number}: not the blank that exercise.blank derives from its solution"
    for cell in solutions:
        folded = cell.metadata.get("jupyter", {}).get("source_hidden")
        if "hide-cell" not in cell.tags or not folded:
            yield (
                f"cell {cell.number}: a solution that is not folded "
                "(tag hide-cell, metadata jupyter.source_hidden: true)"
            )


def _sizes(book: Notebook) -> Iterator[str]:
    counted = [c for c in book.cells if c.code and "parameters" not in c.tags]
    lines = {cell.number: _lines(cell) for cell in counted}
    if lines and statistics.median(lines.values()) > MEDIAN_LINES:
        yield f"the median code cell has {statistics.median(lines.values()):g} lines, over {MEDIAN_LINES}"
    long = [number for number, count in lines.items() if count > LONG_LINES]
    if len(long) > max(1, LONG_SHARE * len(lines)):
        yield f"more than {LONG_LINES} lines in cells {', '.join(map(str, long))}"


def _lines(cell: Cell) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def _sections(book: Notebook) -> Iterator[str]:
    opened = []
    for cell in book.cells:
        for tag in cell.tags:
            if tag.startswith("section:"):
                opened.append(tag.removeprefix("section:"))
                if cell.code or not cell.source.lstrip().startswith("#"):
                    yield f"cell {cell.number}: {tag} must stand on a text cell that begins with a heading"
    missing = [section for section in SECTIONS if section not in opened]
    if missing:
        yield f"sections missing (tags section:NAME): {', '.join(missing)}"
    elif tuple(opened) != SECTIONS:
        yield f"sections out of order: {', '.join(opened)}; the order is {', '.join(SECTIONS)}"


def _parameters(book: Notebook) -> Iterator[str]:
    from . import params

    cells = book.tagged("parameters")
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged `parameters`, not one"
        return
    where = f"cell {cells[0].number}"
    try:
        spec = params.parse_cell(cells[0].source, where)
    except (ValueError, SyntaxError) as error:
        yield str(error)
        return
    for parameter in spec.values():
        if not parameter.comment:
            yield f"{where}: parameter {parameter.name} has no comment"
        if (
            " | " in parameter.comment
            and not parameter.choices
            and isinstance(parameter.default, str)
        ):
            yield f"{where}: the comment of {parameter.name} is not `a | b | c` or `a | b | c: why`"
        if parameter.choices and parameter.default not in parameter.choices:
            yield f"{where}: the default of {parameter.name} is none of its choices"
    for name in ("seed", "device"):
        if name not in spec:
            yield f"{where}: no parameter {name}"


def _experiment(book: Notebook) -> Iterator[str]:
    code = [cell for cell in book.cells if cell.code]
    if len(book.tagged("setup")) != 1:
        yield f"{len(book.tagged('setup'))} cells are tagged `setup`, not one"
    elif book.tagged("setup") != code[1:2]:
        yield "the setup cell is not the second code cell"
    for tag in ("method", "figure", "knob", "claim", "exercise", "check", "solution"):
        if not book.tagged(tag):
            yield f"no cell is tagged `{tag}`"
    if not code or not _calls(code[-1], "run.finish"):
        yield "the last code cell does not call run.finish()"


def _prose(book: Notebook) -> Iterator[str]:
    words = prose_words(book)
    low, high = WORDS
    if not low <= words <= high:
        yield f"{words} words of prose, not between {low} and {high}"


def prose_words(book: Notebook) -> int:
    """Count the words a reader reads: text cells without code, formulas, link targets and markup."""
    text = "\n".join(cell.source for cell in book.cells if cell.kind == "markdown")
    for markup in (r"```.*?```", r"\$\$.*?\$\$", r"\$[^$\n]+\$", r"<[^>]+>", r"\]\([^)]*\)"):
        text = re.sub(markup, " ", text, flags=re.DOTALL)
    return len(re.findall(r"\w[\w'’-]*", text))
