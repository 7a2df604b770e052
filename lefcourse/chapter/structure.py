"""The structural check: what keeps a notebook from being a chapter."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.chapter.notebook import INSTALL_TAG, Cell, Notebook, parse, read
from lefcourse.errors import UsageError
from lefcourse.page.exercise import blank
from lefcourse.paths import REPOSITORY

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
# The first code cell of every notebook, word for word. It is plain Python, so that it also runs where there are no
# magics, and it is no part of the chapter: its tag keeps it off the site and out of what a result depends on.
INSTALL = f"""\
# Installs the course where it is absent, as in Colab. Where it is installed, this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("lefcourse") is None:
    course = "git+{REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", course], check=True)
    importlib.invalidate_caches()"""
INSTALL_TAGS = (INSTALL_TAG, "remove-cell")
MEDIAN_LINES, LONG_LINES, LONG_SHARE = 12, 30, 0.03
WORDS = (600, 2500)  # of prose; a good chapter has at least 800
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~<-])/(?!path/)[A-Za-z]+/\w|\b[A-Z]:\\(?:Users|Program)")


def problems(path: Path | str) -> list[str]:
    """Return what keeps the notebook at `path` from being a chapter, one line each; [] if nothing.

    The start page is no chapter: it is exempt from what concerns sections and the parts of an experiment.
    """
    book = read(path)
    checks = [_stored, _installs, _plain, _figures, _exercises, _sizes]
    chapter = book.path.stem != catalogue.START.slug
    if chapter or book.tagged("parameters"):
        checks.append(_parameters)
    if chapter:
        checks += [_sections, _experiment, _prose]
    return [problem for check in checks for problem in check(book)]


def _stored(book: Notebook) -> Iterator[str]:
    kernel = book.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"the kernelspec is {kernel!r}, not 'python3'"
    for cell in book.cells:
        if cell.outputs or cell.execution_count is not None:
            yield f"cell {cell.number}: stored with outputs or an execution count (run nbstripout)"


def _installs(book: Notebook) -> Iterator[str]:
    first = next((cell for cell in book.cells if cell.code), None)
    tagged = book.tagged(INSTALL_TAG)
    if first is None or tagged != [first] or first.tags != INSTALL_TAGS:
        yield f"the first code cell, and only that, must have the tags {', '.join(INSTALL_TAGS)}"
    elif first.source != INSTALL:
        yield f"cell {first.number}: not word for word the cell INSTALL of lefcourse/chapter/structure.py"


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
        return parse(cell.source)
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
    counted = [c for c in book.cells if c.code and not {INSTALL_TAG, "parameters"} & {*c.tags}]
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
        if parameter.choices and str(parameter.default) not in parameter.choices:
            yield f"{where}: the default of {parameter.name} is none of its choices"
        yield from _range(parameter, where)
    for name in ("seed", "device"):
        if name not in spec:
            yield f"{where}: no parameter {name}"


def _range(parameter: params.Parameter, where: str) -> Iterator[str]:
    """A number without a range fails in the middle of a run, or computes nonsense without a word."""
    if not params.is_numeric(parameter.default) or parameter.choices:
        return
    if parameter.range is None:
        yield (
            f"{where}: the comment of {parameter.name} does not begin with its range, "
            "such as `at least 1: ...` (see lefcourse/chapter/ranges.py)"
        )
        return
    try:
        params.check({parameter.name: parameter}, {parameter.name: parameter.default})
    except UsageError as error:
        yield f"{where}: {error}"


def _experiment(book: Notebook) -> Iterator[str]:
    code = [cell for cell in book.cells if cell.code and INSTALL_TAG not in cell.tags]
    if len(book.tagged("setup")) != 1:
        yield f"{len(book.tagged('setup'))} cells are tagged `setup`, not one"
    elif book.tagged("setup") != code[1:2]:
        yield "the setup cell is not the code cell after the parameters"
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
