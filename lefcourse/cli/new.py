"""`lefcourse new`: a chapter's skeleton."""

from pathlib import Path
from typing import Annotated

import typer

from lefcourse import catalogue
from lefcourse.cli.common import need_checkout, readable
from lefcourse.errors import UsageError

TEMPLATE = Path(__file__).parent / "templates" / "chapter.py"


def command(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Slug of a planned chapter.")],
) -> None:
    """Write the skeleton of a planned chapter.

    It has every section and tag in place, and knows what the catalogue knows. What is left to write is marked TODO; the tests say what is still missing.
    This needs a checkout of the course.
    """
    need_checkout("new")
    path = write(catalogue.get(slug))
    print(f"{readable(path)} is ready to be written: search it for TODO")


def write(chapter: catalogue.Chapter) -> Path:
    """Write the skeleton of `chapter` and return its path. Raises UsageError if there is a notebook."""
    if chapter.exists:
        raise UsageError(f"chapter {chapter.slug!r} is written already: {readable(chapter.path)}")
    import jupytext
    import nbformat

    book = jupytext.reads(fill(TEMPLATE.read_text(encoding="utf-8"), chapter), fmt="py:percent")
    book.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    chapter.path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, chapter.path)
    return chapter.path


def fill(template: str, chapter: catalogue.Chapter) -> str:
    """Put what the catalogue knows of `chapter` into the template's `{{...}}`."""
    arxiv = (
        f", [arXiv:{chapter.arxiv}](https://arxiv.org/abs/{chapter.arxiv})" if chapter.arxiv else ""
    )
    known = {
        "slug": chapter.slug,
        "short": chapter.short,
        "title": chapter.title,
        "idea": chapter.idea,
        "authors": _names(chapter.authors),
        "venue": f"{chapter.venue} {chapter.year}",
        "arxiv": arxiv,
        "key": chapter.key,
        "labels": ", ".join(f"*{catalogue.LABEL_KINDS[kind]}*" for kind in chapter.labels),
    }
    template = template[template.index("# %%") :]
    for name, value in known.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def _names(authors: list[str]) -> str:
    return f"{authors[0]} et al." if len(authors) > 3 else ", ".join(authors)
