"""A chapter's parameters: read from its `parameters` cell, and checked before anything runs."""

import ast
import io
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lefcourse.chapter import notebook, ranges
from lefcourse.errors import UsageError, choice
from lefcourse.settings import DEVICES

# `a | b | c`, or `a | b | c: what they mean`; an entry `name:PATH` admits any path, and `name:NAME`
# any name that is published somewhere, or a path.
ENTRY = r"[\w.+-]+(?::PATH|:NAME)?"
CHOICES = re.compile(rf"({ENTRY}(?: \| {ENTRY})+)(?::?$|: )")
LARGEST = 10_000_000  # of whatever a chapter counts: steps, images, neurons
TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell: `name = default  # comment`."""

    name: str
    default: object
    comment: str
    choices: tuple[str, ...] = ()
    range: ranges.Range | None = None

    @property
    def pair(self) -> bool:
        """Does its comment say, after the range, that it holds `two numbers`?"""
        return ": two numbers" in self.comment

    def admits(self, text: str) -> str:
        """Say whether a choice admits `text` as what stands behind `name:`: "PATH", "NAME" or ""."""
        prefix, _, rest = text.partition(":")
        kinds = ("PATH", "NAME") if rest else ()
        return next((kind for kind in kinds if f"{prefix}:{kind}" in self.choices), "")


def read(path: Path | str) -> dict[str, Parameter]:
    """Return the parameters of the notebook at `path`, by name, in order.

    A notebook without a `parameters` cell has none. Raises ValueError if the cell holds anything
    but assignments of literals.
    """
    cells = notebook.code_cells(path, tag="parameters")
    return parse_cell(cells[0], where=Path(path).name) if cells else {}


def presets(path: Path | str) -> dict[str, dict[str, object]]:
    """Return what the budgets `smoke` and `full` replace, as the setup cell says: `lc.Run(..., smoke=dict(...), full=...)`."""
    cells = notebook.code_cells(path, tag="setup")
    calls = [n for cell in cells for n in ast.walk(notebook.parse(cell)) if isinstance(n, ast.Call)]
    return {
        word.arg: {k.arg: ast.literal_eval(k.value) for k in word.value.keywords}
        for call in calls
        for word in call.keywords
        if word.arg in ("smoke", "full") and isinstance(word.value, ast.Call)
    }


def resolved(
    spec: Mapping[str, Parameter], preset: Mapping[str, object], given: Mapping[str, object]
) -> dict[str, object]:
    """Return the values of all parameters of a run: those given, else a budget's preset, else the defaults."""
    return {name: p.default for name, p in spec.items()} | dict(preset) | dict(given)


def parse_cell(source: str, where: str = "parameters cell") -> dict[str, Parameter]:
    """Return the parameters that the source of a `parameters` cell declares."""
    comments = _comments(source)
    spec = {}
    for node in notebook.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                default = _literal(value, f"{where}, line {node.lineno}: {name}")
            case _:
                raise ValueError(f"{where}, line {node.lineno}: not of the form `name = literal`")
        comment = comments.get(node.end_lineno) or comments.get(node.lineno, "")
        spec[name] = Parameter(
            name, default, comment, _choices(name, default, comment), _range(name, default, comment)
        )
    return spec


def parse(spec: Mapping[str, Parameter], given: Iterable[str]) -> dict[str, object]:
    """Turn `name=value` texts into checked values of the parameters' types.

    A relative path after `name:` (as in `imagefolder:photos`) is made absolute, because a notebook
    does not run in the reader's folder; where a published name may stand too (`hf:owner/model`), only
    what exists is taken for a path. Raises UsageError as `check` does.
    """
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"parameter {name!r} has no value: write -p {name}=VALUE")
        choice("parameter", name, spec)
        values[name] = _value(spec[name], value)
    check(spec, values)
    return values


def check(spec: Mapping[str, Parameter], values: Mapping[str, object]) -> None:
    """Raise UsageError for a value of an unknown name, of the wrong type, or outside choices or range.

    A bool is no integer here; an integer will do for a float; a parameter whose default is None
    takes anything.
    """
    for name, value in values.items():
        choice("parameter", name, spec)
        default = spec[name].default
        if default is not None and not _fits(value, default):
            raise UsageError(_wrong_type(spec[name], value))
        if spec[name].choices:
            _check_choice(spec[name], value)
        elif isinstance(default, int | float | list | tuple) and not isinstance(default, bool):
            _check_range(spec[name], value)
        elif name == "dataset":
            from lefcourse.science.data import check_name  # imports torch

            check_name(value)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _literal(node: ast.expr, where: str) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{where} is not a literal") from None


def _choices(name: str, default: object, comment: str) -> tuple[str, ...]:
    if name == "device":
        return DEVICES
    found = CHOICES.match(comment) if isinstance(default, str | int) else None
    return tuple(found[1].split(" | ")) if found else ()


def _range(name: str, default: object, comment: str) -> ranges.Range | None:
    if name == "seed":
        return ranges.SEEDS
    return ranges.read(comment) if is_numeric(default) else None


def is_numeric(default: object) -> bool:
    """Is this a number, or a list of numbers? (True and False are none.)"""
    values = default if isinstance(default, list | tuple) else [default]
    return bool(values) and all(type(value) in (int, float) for value in values)


def _value(parameter: Parameter, text: str) -> object:
    """Read `text` as the type of the parameter's default."""
    default = parameter.default
    if isinstance(default, str):
        return _absolute(parameter, text)
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(default, float):
        text = text.lower()
        return float(text) if _is_number(text) else text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _absolute(parameter: Parameter, text: str) -> str:
    prefix, _, rest = text.partition(":")
    path = Path(rest).expanduser()
    kind = parameter.admits(text)
    if kind == "PATH" or (kind == "NAME" and path.exists()):
        return f"{prefix}:{path.resolve()}"
    return text


def _fits(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, list | tuple):
        sample = default[:1]
        return type(value) is type(default) and all(_fits(v, d) for v in value for d in sample)
    return type(value) is type(default)


def _wrong_type(parameter: Parameter, value: object) -> str:
    default = parameter.default
    expected = TYPE_NAMES.get(type(default), f"a {type(default).__name__}")
    return f"parameter {parameter.name!r} takes {expected} (default {default!r}), not {value!r}"


def _check_choice(parameter: Parameter, value: object) -> None:
    text = str(value)
    if parameter.admits(text):
        return
    # The names that a reader knows these by: "unknown data set 'mnits'".
    kind = {"dataset": "data set", "device": "device"}.get(parameter.name)
    choice(kind or f"value of {parameter.name!r}", text, parameter.choices)


def _check_range(parameter: Parameter, value: object) -> None:
    numbers = value if isinstance(value, list | tuple) else [value]
    allowed = parameter.range
    if not numbers and parameter.default:
        raise UsageError(f"parameter {parameter.name!r} has no value in it: {value!r}")
    if parameter.pair and len(numbers) != 2:
        raise UsageError(f"parameter {parameter.name!r} takes two numbers, not {value!r}")
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"parameter {parameter.name!r} is {number}, which is no finite number")
        if allowed and number not in allowed:
            raise UsageError(f"parameter {parameter.name!r} is {number}; allowed: {allowed.text}")
        if isinstance(number, int) and number > LARGEST and allowed != ranges.SEEDS:
            raise UsageError(
                f"parameter {parameter.name!r} is {number}; allowed: {allowed.text if allowed else 'any number'}, "
                f"and no more than {LARGEST}: such a run would not end"
            )
