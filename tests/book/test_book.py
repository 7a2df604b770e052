"""The book: what is executed again and what is reused, the generated pages, and links that lead nowhere."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tinybook import code, text, write

from lefcourse import catalogue
from lefcourse.book import build, copies, links, pages, pictures, plots
from lefcourse.ledger import results
from lefcourse.paths import REPOSITORY, ROOT

PARAMETERS = code(
    "seed = 5  # draws everything\ndevice = 'auto'  # auto | cpu | cuda", "parameters"
)


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A course of two notebooks, the start page and ELR, in a folder of its own."""
    notebooks = tmp_path / "notebooks"
    monkeypatch.setattr(catalogue, "NOTEBOOKS", notebooks)
    for chapter in (catalogue.START, catalogue.get("elr")):
        chapter.path.parent.mkdir(parents=True)
        chapter_text(chapter, "print('it runs')")
    return tmp_path


def chapter_text(chapter, *sources: str) -> None:
    write(chapter.path, text(f"# {chapter.title}"), PARAMETERS, *map(code, sources))


@pytest.fixture
def display():
    said, ended = [], []
    watch = lambda chapter: lambda *_: None  # noqa: E731
    return SimpleNamespace(watch=watch, ended=ended.append, say=said.append, said=said, heard=ended)


def executed(display) -> list[str]:
    """The chapters that were executed since the last call."""
    slugs = sorted(copy.chapter.slug for copy in display.heard if copy.fresh)
    display.heard.clear()
    return slugs


def test_a_book_is_built_again_only_where_something_changed(course, display):
    elr = catalogue.get("elr")
    chapter_text(elr, "print('before')", "1 / 0")

    def make():
        return build("smoke", course / "site", 2, display, work=course / "work")

    built = make()
    assert executed(display) == ["elr", "start"]
    (problem,) = built.problems
    assert problem.startswith("elr failed in cell 3: ZeroDivisionError: division by zero")
    assert "it runs" in (course / "site/00-start/start.html").read_text()
    assert "did not execute" in (course / "site/04-noisy-labels/elr.html").read_text()

    chapter_text(elr, "print('mended')")
    assert not make().problems
    assert executed(display) == ["elr"]
    page = (course / "site/04-noisy-labels/elr.html").read_text()
    assert "mended" in page and "Run it yourself" in page
    assert page.count(f'href="{pages.colab(elr)}"') == 2  # the button, and the box at the end
    assert page.count(f'href="{pages.binder(elr)}"') == 2
    part = (course / "site/04-noisy-labels/index.html").read_text()
    assert "colab" not in part and "mybinder" not in part

    assert not make().problems
    assert executed(display) == []
    assert display.said[-1] == "nothing changed since the site was built"


def test_what_an_executed_copy_depends_on(course, monkeypatch):
    start, elr = catalogue.START, catalogue.get("elr")
    seen = {copies.content_sha256(start, "smoke")}

    def changes(budget: str = "smoke") -> bool:
        before = len(seen)
        seen.add(copies.content_sha256(start, budget))
        return len(seen) > before

    assert not changes()
    assert changes("standard")
    chapter_text(start, "print('other')")
    assert changes()
    chapter_text(elr, "print('other')")
    assert not changes()
    chapter_text(start, "lc.methods('elr')")
    assert changes()
    chapter_text(elr, "print('another')")
    assert changes()
    monkeypatch.setattr(results, "RESULTS", course)
    (course / "start.json").write_text('{"chapter": "start"}')
    assert changes()


def test_the_package_counts_but_its_commands_do_not():
    package = Path(catalogue.__file__).parent
    inside = [p.relative_to(package) for p in package.rglob("*.py")]
    counted = {p.as_posix() for p in inside if not copies._apart(p)}
    assert {
        "page/plot.py",
        "page/explore.py",
        "science/worlds/shapes.py",
        "running/run.py",
    } <= counted
    assert not counted & {"cli/run.py", "book/pages.py", "sweep/pool.py"}


# --- links ---------------------------------------------------------------------------------------


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "index.html").write_text('<h2 id="there">x</h2><a href="../">up</a>')
    (tmp_path / "index.html").write_text(
        '<a href="part/#there">1</a><a href="part/index.html">2</a><a href="https://a.org">3</a>'
        '<a href="#here">4</a><p id="here"><a href="mailto:a@b.org">5</a>'
        '<a href="part/#gone">6</a><a href="gone.html">7</a><a href="#gone">8</a><img src="no.png">'
        '<script src="https://cdn.org/x.js"></script><link rel="stylesheet" href="//cdn.org/x.css">'
    )
    assert links.broken(tmp_path) == [
        "index.html: loads https://cdn.org/x.js from another host",
        "index.html: loads //cdn.org/x.css from another host",
        "index.html: broken link to part/#gone: no such place on the page",
        "index.html: broken link to gone.html",
        "index.html: broken link to #gone: no such place on the page",
        "index.html: broken link to no.png",
    ]


def test_a_chapter_is_opened_elsewhere_from_the_repository():
    theme = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["sphinx"]["config"]
    theme = theme["html_theme_options"]
    assert theme["repository_url"] == REPOSITORY
    for chapter in copies.written():
        name = f"{theme['path_to_docs']}/{pages.docname(chapter)}.ipynb"
        assert (ROOT / name).is_file()
        host, branch = theme["launch_buttons"]["colab_url"], theme["repository_branch"]
        owner = REPOSITORY.partition("github.com/")[2]
        assert pages.colab(chapter) == f"{host}/github/{owner}/blob/{branch}/{name}"
        host = theme["launch_buttons"]["binderhub_url"]
        assert pages.binder(chapter) == f"{host}/v2/gh/{owner}/{branch}?urlpath=lab/tree/{name}"
        box = pages.run_it(copies.Copy(chapter, Path()))
        assert pages.colab(chapter) in box and pages.binder(chapter) in box


# --- pages ---------------------------------------------------------------------------------------


def made(*slugs: str, error: str = "") -> list[copies.Copy]:
    return [copies.Copy(catalogue.get(slug), Path(slug), error) for slug in slugs]


def test_the_table_of_contents_holds_every_part_and_every_written_chapter():
    begin, chapters, about = pages.contents(made("start", "elr"))["parts"]
    assert begin["chapters"][0] == {"file": "00-start/start"}
    assert [c["file"] for c in chapters["chapters"]] == [
        f"{p.folder}/index" for p in catalogue.parts()
    ]
    listed = [s for c in chapters["chapters"] for s in c.get("sections", [])]
    assert listed == [{"file": "04-noisy-labels/elr", "title": "ELR"}]
    own = {f"{entry['file']}.md" for entry in about["chapters"]}
    by_hand = {path.name for path in (ROOT / "book").glob("*.md")} - {"index.md"}
    assert by_hand <= own


def test_a_part_page_links_what_is_written_and_lists_what_is_planned(course):
    part = next(p for p in catalogue.parts() if p.folder == "04-noisy-labels")
    page = pages.part_page(part, made("start", "elr"))
    assert "[ELR](elr.ipynb)" in page and part.question in page and part.shared in page
    assert page.count("(planned)") == len(part.chapters) - 1
    assert page.count(".ipynb)") == 2  # read first, and the table
    assert all(chapter.idea in page and f"`{chapter.key}`" in page for chapter in part.chapters)
    assert "failed in this build" in pages.part_page(part, made("elr", error="cell 3"))
    empty = pages.part_page(catalogue.parts()[1], made("start", "elr"))
    assert ".ipynb" not in empty and "It is planned" in empty


def test_every_part_has_a_picture():
    assert list(pictures.PICTURES) == [part.folder for part in catalogue.parts()]
    for part in catalogue.parts():
        drawn = pictures.svg(part.folder)
        assert drawn.count("<g transform") == 10 and 'role="img"' in drawn


def test_the_label_map_knows_every_chapter_and_every_kind(course):
    page = pages.label_map()
    assert page.count("<li ") == len(catalogue.chapters())
    for kind in catalogue.LABEL_KINDS:
        assert f'name="labels" value="{kind}"' in page
    assert page.count("<a href=") == 1 and 'href="04-noisy-labels/elr.html"' in page


def entry(**changes) -> dict:
    summary = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 5}
    claim = {
        "name": "it | helps", "measured": summary, "relation": ">=", "threshold": 0.1,
        "verdict": "fails", "paper": "Table 1",
    }  # fmt: skip
    return {
        "chapter": "elr", "variant": "", "state": "recorded", "claims": [claim], "gap_closed": summary,
        "gap_metric": "accuracy", "seeds": [5, 6, 7, 8, 9], "wall_s": summary | {"mean": 41.0},
        "device": "cpu", "budget": "standard", "made": "2026-11-23", "command": "lefcourse reproduce elr",
    } | changes  # fmt: skip


def test_the_results_say_what_failed_and_what_is_missing(monkeypatch):
    nothing = {"chapter": "grokking", "variant": "", "state": "none"}
    monkeypatch.setattr(results, "ledger", lambda: [entry(), nothing])
    page = pages.results_page()
    assert "0.50 (0.40 to 0.60) | 1 fails |" in page
    assert "| it \\| helps | 0.500 (0.400 to 0.600) | ≥ 0.1 | **fails** | Table 1 |" in page
    assert "*not recorded yet*" in page and page.count("## ") == 1
    monkeypatch.setattr(results, "ledger", lambda: [entry(state="stale")])
    assert "has changed since" in pages.results_page()


def test_the_moving_result_is_drawn_from_the_record(tmp_path):
    import json

    copy = copies.Copy(catalogue.get("elr"), tmp_path)
    curves = {"wrong_true": [0.2, 0.8, 0.5], "wrong_given": [0.1, 0.1, 0.4]}
    arms = {"cross-entropy": {"role": "baseline"} | curves, "oracle": {"role": "oracle"}}
    parameters = {"dataset": "digits", "rate": 0.6, "seed": 5}
    (tmp_path / "record.json").write_text(json.dumps({"arms": arms, "parameters": parameters}))
    page = pages.hero([copy])
    assert page.count("<svg") == 1 and page.count("<polyline") == 2
    assert "at the end 50% named correctly, 40% memorised" in page
    assert 'max="3"' in page and "Digits, 60% of the labels" in page
    assert pages.hero([]) == "" == pages.hero(made("elr", error="cell 3"))


def test_the_citation_is_that_of_the_file():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert about["title"] in pages.cite() and about["version"] in pages.cite()


def test_a_part_page_ends_in_its_comparison(course, monkeypatch):
    rows = [
        {"arm": arm, "role": role, "per_class": k, "seed": seed, "accuracy": base + k / 100 + seed / 1000, "seconds": cost}
        for arm, role, base, cost in [
            ("uda: supervised, weak", "baseline", 0.5, None),
            ("uda: UDA", "method", 0.7, 6.0),
            ("sla: SLA+AG", "method", 0.6, 3.0),
            ("uda: oracle", "oracle", 0.9, 4.0),
            ("sla: oracle", "oracle", 0.9, 4.0),
        ]
        for k in (1, 2)
        for seed in (5, 6)
    ]  # fmt: skip
    record = {"command": "lefcourse compare uda sla", "made": "2026-01-01", "by": "per_class"}
    record |= {"metric": "accuracy", "rows": rows, "source_sha256": {"uda": {}, "sla": {}}}
    record |= {"fixed": {"dataset": "digits", "net": "mlp"}, "also": []}
    monkeypatch.setattr(
        pages.compare, "kept", lambda name: record if name == "few-labels" else None
    )
    two, three = catalogue.parts()[1:3]
    monkeypatch.setattr(two, "compare", ("few-labels",))
    monkeypatch.setattr(two, "take", "Take the first.")
    page = pages.part_page(two, [])
    assert "## Which one should I take?" in page and "Take the first." in page
    assert "| UDA | 0.716 (" in page and "| SLA+AG | -0.100 (-0.100 to -0.100)" in page
    assert "supervised, weak" not in page and page.count("| oracle |") == 2
    assert "<polyline" in page and "lefcourse compare uda sla" in page
    assert "[Few labels](../02-few-labels/index.md)" in pages.part_page(three, [])
    assert "Which one" not in pages.part_page(catalogue.parts()[3], [])
    monkeypatch.setitem(record, "also", ["uda: supervised, weak"])
    assert "| supervised, weak |" in pages.part_page(two, []), "asked for by name"
    assert "judged by loss" not in page
    monkeypatch.setitem(record, "further", ["loss"])
    monkeypatch.setitem(
        record, "rows", [r | {"loss": 2.5} for r in rows if "UDA" in r["arm"]] + rows[12:]
    )
    page = pages.part_page(two, [])
    assert "judged by loss" in page and "| UDA | 2.500 (" in page
    monkeypatch.setattr(two, "compare", ("few-labels", "other"))
    other = record | {"fixed": {"dataset": "digits", "net": "cnn", "lost": "small", "tail": 3.0}}
    both = {"few-labels": record, "other": other}
    monkeypatch.setattr(pages.compare, "kept", both.get)
    page = pages.part_page(two, [])
    assert (
        "### Net mlp\n" in page
        and "### Net cnn, labels of small objects lost first, tail 3\n" in page
    ), "told apart by what differs"


def test_long_names_stand_below_the_curves():
    line = [{"mean": 0.5, "low": 0.4, "high": 0.6}] * 2
    short, long = (
        plots.curves([0.0, 0.2], {name: line, "other": line}, "x", "y")
        for name in ("one", "a name that is longer than the margin is wide")
    )
    places = [
        {name: float(x) for x, name in re.findall(r'<text x="([\d.]+)"[^>]*>([^<]+)</text>', drawn)}
        for drawn in (short, long)
    ]
    assert places[0]["other"] > 500
    assert (
        places[1]["a name that is longer than the margin is wide"] < 100
        and places[1]["other"] < 500
    )


def test_curves_over_shares_have_a_straight_axis_and_over_counts_a_logarithmic_one():
    def places(xs):
        line = [{"mean": 0.5, "low": 0.4, "high": 0.6} for _ in xs]
        drawn = plots.curves(xs, {"one": line}, "x", "y")
        points = re.search(r'<polyline[^>]* points="([^"]*)"', drawn)[1].split()
        return [float(p.split(",")[0]) for p in points]

    a, b, c = places([0.0, 0.2, 0.4])
    assert b - a == pytest.approx(c - b, abs=0.2)
    a, b, c = places([1, 10, 100])
    assert b - a == pytest.approx(c - b, abs=0.2)
