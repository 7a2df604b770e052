"""What a chapter's numbers depend on: its own code, the science that it names, and the methods that it borrows.

Everything that can change a number lies in the room `science` (and below `assets`, where it is stored), so a file
counts if it lies there and if the chapter's code, or code that it uses, names it.
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import resolve_name
from pathlib import Path

import lefcourse
from lefcourse import catalogue
from lefcourse.chapter import notebook
from lefcourse.paths import ASSETS
from lefcourse.science.worlds import WORLDS

PACKAGE = Path(lefcourse.__file__).parent
SCIENCE = f"{lefcourse.__name__}.science"
ALWAYS = f"{SCIENCE}.seeds"  # every run draws by it
TABLES = (f"{SCIENCE}.worlds", SCIENCE)  # packages say what there is; no number comes from them


def source_sha256(chapter: str) -> dict[str, str]:
    """Hash what a chapter's numbers depend on: its code cells, and the science and methods that they name.

    Comments, docstrings, blank lines and imports of the course's own modules do not count: they change no number.
    A module that a chapter does not use can change, and a world can come into being, without making the chapter's
    recorded results stale.
    """
    cells = notebook.code_cells(catalogue.get(chapter).path)
    parts = [_content(path) for path in sources(cells)]
    parts += [
        essence(cell).encode() for slug in notebook.borrowed(cells) for cell in _methods(slug)
    ]
    return {
        "notebook": _sha256(essence(cell).encode() for cell in cells),
        "package": _sha256(parts),
    }


def _sha256(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n\n".join(parts)).hexdigest()


def _content(path: Path) -> bytes:
    return essence(path.read_text()).encode() if path.suffix == ".py" else path.read_bytes()


def sources(cells: Sequence[str]) -> list[Path]:
    """Return the files that code `cells` use: modules of the science, with what these use; stored weights."""
    borrowed = [cell for slug in notebook.borrowed(cells) for cell in _methods(slug)]
    found: dict[str, str] = {}
    waiting = {ALWAYS, *(m for cell in [*cells, *borrowed] for m in _names(notebook.parse(cell)))}
    while waiting:
        module = waiting.pop()
        found[module] = text = _file(module).read_text()
        waiting |= _names(notebook.parse(text), module) - found.keys()
    stored = {path for text in found.values() for path in _assets(notebook.parse(text))}
    return sorted({*map(_file, found), *stored})


def _methods(slug: str) -> list[str]:
    return [cell.source for cell in notebook.read(catalogue.get(slug).path).tagged("method")]


def _file(module: str) -> Path:
    """Return the file of a module, of a package its `__init__`."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _names(tree: ast.AST, inside: str = "") -> set[str]:
    """Return the science's modules that code names: as `lc.NAME`, in an import, or, in a chapter, a world as a text.

    `inside` is the module that the code stands in; a world's name there is no use of the world (the
    table of the data sets names them all).
    """
    named = {name for node in ast.walk(tree) for name in _candidates(node, inside)}
    if not inside:
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        named |= {f"{SCIENCE}.worlds.{name}" for name in WORLDS if name in texts}
    ours = {name for name in named if name.startswith(SCIENCE + ".")} - {*TABLES}
    return {name for name in ours if _file(name).is_file()}


def _candidates(node: ast.AST, inside: str) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="lc"), attr=name):
            yield _offered(name)
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="lc"), attr="worlds"), attr=name):
            yield f"{SCIENCE}.worlds.{name}"
        case ast.ImportFrom(module=module, names=names, level=level):
            origin = resolve_name("." * level + (module or ""), _parent(inside))
            origin = origin.replace("lefcourse.worlds", f"{SCIENCE}.worlds")
            yield origin
            for alias in names:
                yield _offered(alias.name) if origin == "lefcourse" else f"{origin}.{alias.name}"
        case ast.Import(names=names):
            for alias in names:
                yield alias.name


def _parent(module: str) -> str:
    """Return the package that relative imports in `module` start from."""
    return module if module and _file(module).name == "__init__.py" else module.rpartition(".")[0]


def _offered(name: str) -> str:
    """Return the module behind a public name of the course."""
    if name in lefcourse.MODULES:
        return f"lefcourse.{lefcourse.MODULES[name]}.{name}"
    return f"lefcourse.{lefcourse.OFFERED.get(name, name)}"


def _assets(tree: ast.AST) -> set[Path]:
    """Return the stored files that code names by their path below `assets`."""
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    named = {
        ASSETS / text for text in texts if isinstance(text, str) and "/" in text and " " not in text
    }
    return {path for path in named if path.is_file()}


# --- what of a text can change a number ----------------------------------------------------------


def essence(code: str) -> str:
    """Return `code` without comments, docstrings, blank lines and imports of the course's own modules."""
    lines = code.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(notebook.parse(code)):
        for part in _idle(node):
            lines[part.lineno - 1 : part.end_lineno] = [""] * (part.end_lineno - part.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _idle(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statement at or in `node` that does nothing to a number."""
    match node:
        case ast.ImportFrom(module=module, level=level) if level or (module or "").startswith(
            "lefcourse"
        ):
            yield node
        case ast.Module() | ast.ClassDef() | ast.FunctionDef() if (
            ast.get_docstring(node) is not None
        ):
            yield node.body[0]
