"""Executed copies of the chapters, kept as long as nothing changes that they were made from."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lefcourse import catalogue
from lefcourse.catalogue import Chapter
from lefcourse.chapter import notebook
from lefcourse.files import write_json
from lefcourse.ledger import results
from lefcourse.running.record import versions
from lefcourse.running.runner import RECORD, Progress, execute, executed

STAMP = "copy.json"
# Rooms that no notebook enters, so that they cannot change its outputs.
APART = ("sweep", "book", "cli")


@dataclass(frozen=True)
class Copy:
    """An executed copy of a chapter: its folder, and how the execution ended."""

    chapter: Chapter
    folder: Path
    error: str = ""
    fresh: bool = False

    @property
    def notebook(self) -> Path:
        return executed(self.chapter, self.folder)

    @property
    def record(self) -> dict:
        return json.loads((self.folder / RECORD).read_text())


def written() -> list[Chapter]:
    """Return the start page and the chapters that exist, in reading order."""
    return [c for c in (catalogue.START, *catalogue.chapters()) if c.exists]


def content_sha256(chapter: Chapter, budget: str) -> str:
    """Hash everything that an executed copy is made from.

    That is the notebook, the chapters whose methods it imports, the package, the recorded results that it shows,
    its entry in the catalogue, the versions of what computes, and the budget.
    """
    package = Path(catalogue.__file__).parent
    modules = [p for p in sorted(package.rglob("*.py")) if not _apart(p.relative_to(package))]
    slugs = notebook.borrowed(notebook.code_cells(chapter.path))
    borrowed = [catalogue.get(slug).path for slug in slugs]
    recorded = [
        results.path_of(chapter.slug, variant) for variant in results.variants(chapter.slug)
    ]
    digest = hashlib.sha256(f"{chapter!r} {budget} {versions()}".encode())
    for path in [chapter.path, *borrowed, *modules, *recorded]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _apart(path: Path) -> bool:
    return path.parts[0] in APART


def make(
    chapters: Sequence[Chapter],
    budget: str,
    root: Path,
    jobs: int,
    threads: int,
    watch: Callable[[Chapter], Progress],
    ended: Callable[[Copy], None],
) -> list[Copy]:
    """Execute the `chapters` whose copy below `root` is absent or out of date, `jobs` at a time.

    `watch` gives each execution its progress function, and `ended` hears of every copy, reused ones too.
    Returns a copy for every chapter, in order.
    """
    copies = {chapter.slug: _kept(chapter, budget, root) for chapter in chapters}
    for copy in filter(None, copies.values()):
        ended(copy)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(_execute, chapter, budget, root, threads, watch)
            for chapter in chapters
            if copies[chapter.slug] is None
        ]
        try:
            for future in as_completed(futures):
                copy = future.result()
                copies[copy.chapter.slug] = copy
                ended(copy)
        except BaseException:
            _stop(futures, [root / slug for slug in copies])
            raise
    return [copies[chapter.slug] for chapter in chapters]


def _kept(chapter: Chapter, budget: str, root: Path) -> Copy | None:
    """Return the copy that is there, if it was made from what is there now and ended well."""
    copy = Copy(chapter, root / chapter.slug)
    stamp = copy.folder / STAMP
    if not (stamp.exists() and copy.notebook.exists()):
        return None
    made_from = json.loads(stamp.read_text())["sha256"]
    return copy if made_from == content_sha256(chapter, budget) else None


def _execute(chapter: Chapter, budget: str, root: Path, threads: int, watch: Callable) -> Copy:
    folder = root / chapter.slug
    sha256 = content_sha256(chapter, budget)  # of what is read now: it may change while we run
    (folder / STAMP).unlink(missing_ok=True)
    record = execute(chapter, {}, folder, budget, progress=watch(chapter), threads=threads)
    if record["status"] != "done":
        return Copy(chapter, folder, error=record["error"], fresh=True)
    write_json(folder / STAMP, {"sha256": sha256})
    return Copy(chapter, folder, fresh=True)


def _stop(futures: list, folders: Sequence[Path]) -> None:
    from lefcourse.sweep.pool import kill_kernels  # imports Dask

    for future in futures:
        future.cancel()
    kill_kernels([folder.resolve() for folder in folders])
