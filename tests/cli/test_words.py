"""Every `lefcourse ...` line that a reader finds is one that works: checked up to where a kernel would start."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from lefcourse import catalogue, cli
from lefcourse.chapter import notebook
from lefcourse.cli import book, common, compare, doctor, lab, main, new, reproduce, run, sweep
from lefcourse.errors import UsageError
from lefcourse.paths import ROOT
from lefcourse.running import needs
from lefcourse.sweep import grid

TEXTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "book").glob("*.md"),
    *(ROOT / "book" / "templates").rglob("*.*"),
    *(ROOT / ".github").rglob("*.y*ml"),
    *(ROOT / "lefcourse").rglob("*.py"),
]
NAMES = "|".join(cli.COMMANDS)
# A line of a shell, a word in backticks (which may be broken over two lines), or a known command in a sentence.
FOUND = re.compile(
    r"^[ \t#$>]*lefcourse +(?P<line>[a-z-].*)$"
    r"|`lefcourse\s+(?P<ticks>[^`]+)`"
    rf"|(?<!`)\blefcourse (?P<plain>(?:{NAMES})\b(?:\{{[^}}]*\}}|[^`\"'.,;:()&|\n{{])*)",
    re.MULTILINE,
)
# What stands for something else, and what it is here. `{...}` and `{{...}}` are of templates, `$...` of a shell.
STANDS_FOR = (
    (r"-p NAME VALUE", "-p seed 7"),
    (r"(?<=new )(SLUG|CHAPTER)", "PLANNED"),
    (r"^\{command\}", "list"),
    (r"SLUG|CHAPTER|\{+[\w.]+\}+|\"?\$\w+\"?", "elr"),
    (r"DIR|FILE|FOLDER", "there"),
    (r"ANOTHER", "another"),  # a chapter about the same labels: see `catalogue_with_another`
)


def command(text: str) -> str:
    """Cut off what a line says about its command, in a comment or behind two spaces, and fill in its placeholders."""
    text = re.split(r"\s#|\\n| {2,}|\s*(?:&&|;|\|)\s", text.replace("\n", " ").strip())[0]
    for placeholder, filling in STANDS_FOR:
        text = re.sub(placeholder, filling, text)
    words = text.strip()
    return f"{words} --help" if words in cli.COMMANDS else words  # its name alone is no call of it


def texts():
    """Yield a name and a text for everything that readers read."""
    for path in TEXTS:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for chapter in [catalogue.START, *catalogue.chapters()]:
        if chapter.exists:
            for cell in notebook.read(chapter.path).cells:
                yield f"{chapter.slug}, cell {cell.number}", cell.source


def commands(text: str) -> list[str]:
    return [command(next(filter(None, found.groups()))) for found in FOUND.finditer(text)]


ALL = {words: where for where, text in texts() for words in commands(text)}


@pytest.fixture
def catalogue_with_another(monkeypatch):
    """A catalogue with a chapter that can be compared with `elr`: there may be none yet."""
    get, elr = catalogue.get, catalogue.get("elr")
    fields = {name: getattr(elr, name) for name in elr.__dataclass_fields__}
    another = SimpleNamespace(**fields | {"slug": "another"}, path=elr.path, exists=True)
    monkeypatch.setattr(catalogue, "get", lambda s: another if s == "another" else get(s))


@pytest.fixture
def stops_short(catalogue_with_another, tmp_path, monkeypatch):
    """Let every command check what it was told, and do nothing: no kernel, no server, no file, no data looked for."""

    def nothing(*_, **__):
        return 0

    for owner, name in [
        (run, "run"), (sweep, "report"), (grid, "claim"), (compare, "_report"),
        (reproduce, "_run"), (reproduce, "_confirm"), (reproduce, "writable"), (book, "_build"),
        (lab, "_open"), (common, "_check_folder"),
    ]:  # fmt: skip
        monkeypatch.setattr(owner, name, nothing)
    monkeypatch.setattr(needs, "look", lambda *_, **__: {})
    monkeypatch.setattr(sweep, "run", here_it_would_start)
    monkeypatch.setenv("LEFCOURSE_TUNE", "")  # `tune` sets it; this puts it back
    monkeypatch.setattr(new, "write", not_yet_written)
    monkeypatch.setattr(reproduce, "source_sha256", lambda slug: {})
    monkeypatch.setattr(reproduce._Plan, "outdated", lambda plan: True)
    monkeypatch.setattr(lab, "writable", lambda folder: folder)
    monkeypatch.setattr(lab, "copy", lambda folder: lab.Copied())
    monkeypatch.setattr(book, "writable", lambda folder: folder)
    for check in ("python", "course", "packages", "device", "machine", "data", "book"):
        monkeypatch.setattr(doctor, check, lambda: iter(()))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for variable in ("LEFCOURSE_BUDGET", "LEFCOURSE_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LEFCOURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def here_it_would_start(*_, **__):
    raise typer.Exit(0)


def not_yet_written(chapter):
    if chapter.exists:
        raise UsageError("it is written")
    return chapter.path


def understood(words: str) -> bool:
    planned = next(c.slug for c in catalogue.chapters() if not c.exists)
    return main(shlex.split(words.replace("PLANNED", planned))) == 0


@pytest.mark.parametrize("words", sorted(ALL))
def test_a_line_that_readers_find_is_understood(words, stops_short, capsys):
    ok = understood(words)
    assert ok, f"{ALL[words]}: lefcourse {words}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(
    "words",
    [
        "run elr -p noise 0.4",
        "run elr -p rate 2",
        "run elr -p dataset mnits",
        "run erl",
        "run modular-vision",
        "run elr --fast",
        "sweep elr -p rate 0.2,3",
        "sweep elr --seeds 9-5",
        "compare elr uda -p rate 0.4",
        "reproduce elr -p dataset mnist",
        "book --budget smok",
        "new elr",
        "publish",
        "list --labels nosy",
    ],
)
def test_a_line_that_is_wrong_is_found(words, stops_short):
    assert not understood(words)


def test_lines_are_found_wherever_they_stand():
    readme = Path(ROOT, "README.md").read_text()
    assert "run elr -p rate 0.4 -p seed 7" in commands(readme)
    assert "new PLANNED" in ALL
    assert commands("```bash\nlefcourse run a -p b 1   # c\n```") == ["run a -p b 1"]
    assert commands("say `lefcourse\nrun CHAPTER -p NAME VALUE`, or") == ["run elr -p seed 7"]
    assert commands('f"see lefcourse reproduce {chapter.slug}."') == ["reproduce elr"]
    assert commands("  lefcourse list --part 4    what there is") == ["list --part 4"]
    assert commands("`lefcourse.detection`, and `lefcourse` alone") == []
    # every command, and every chapter, is in some line
    assert {*cli.COMMANDS} <= {words.split()[0] for words in ALL}
    slugs = {c.slug for c in catalogue.chapters() if c.exists}
    assert slugs <= {word for words in ALL for word in words.split()}
