"""What a run needs besides the course: looked for before anything is computed, at every budget."""

import importlib.util
import pickle
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from lefcourse.errors import DataError, UsageError
from lefcourse.paths import data_root
from lefcourse.science import folders

PARTS = folders.PARTS
# The parameters whose values name data or weights.
NAMES = ("dataset", "source", "task", "clip_model")
PACKAGES = {"hf": ("transformers", "transformers"), "open_clip": ("open_clip", "open_clip_torch")}


def look(
    parameters: Mapping[str, object], given: Collection[str] = (), *, load: bool = False
) -> dict[str, int]:
    """Find the data and the weights that `parameters` name; what is absent is downloaded now, if it can be.

    Returns how many pictures of a reader's own folder go where (see `folders.counts`; `given` names the parameters
    that are not to be changed), nothing for other data. `load`: read published weights too, which takes seconds.
    Raises DataError for what is absent, broken or cannot be downloaded, UsageError for counts that do not fit.
    """
    for name in NAMES:
        kind, _, which = str(parameters.get(name, "")).partition(":")
        if which and kind in PACKAGES:
            _weights(kind, which, load)
        elif kind in SETS and not which:
            SETS[kind]()
    return pictures(parameters, given)


def pictures(parameters: Mapping[str, object], given: Collection[str] = ()) -> dict[str, int]:
    """Return the counts of pictures that fit the reader's own folder, if that is the data set."""
    kind, _, path = str(parameters.get("dataset", "")).partition(":")
    usual = {part: parameters[part] for part in PARTS if part in parameters}
    if kind not in OWN or not path:
        return {}
    folder = OWN[kind](Path(path).expanduser())
    if "train" not in usual:
        return {}
    return folders.counts(folder, usual, {part: n for part, n in usual.items() if part in given})


def _voc(path: Path) -> folders.Folder:
    """Look through a folder in the format of Pascal VOC."""
    from lefcourse.science import manylabels

    found = manylabels.find(f"voc:{path}")
    listed = {part: [(noted.picture, 0) for noted in those] for part, those in found.items()}
    return folders.Folder(path, manylabels.named(found), {"train": listed.pop("pool"), **listed})


# A reader's own folder: the kind -> what looks through it.
OWN: dict[str, Callable[[Path], folders.Folder]] = {"imagefolder": folders.survey, "voc": _voc}


def _fetch(name: str) -> Callable[[], object]:
    def fetch() -> None:
        from lefcourse.science import data

        data.fetch(name)

    return fetch


def _graph(name: str) -> Callable[[], object]:
    def read() -> None:
        from lefcourse.science.worlds import graphs

        graphs.planetoid(name)

    return read


def _annotated(name: str) -> Callable[[], object]:
    def find() -> None:
        from lefcourse.science import manylabels

        manylabels.find(name)

    return find


def _cells() -> None:
    from lefcourse.science import detection

    detection.bccd_files()


def _newsgroups() -> None:
    from sklearn.datasets import fetch_20newsgroups

    path = data_root() / "20news-bydate_py3.pkz"
    if not path.exists():
        try:
            with warnings.catch_warnings(action="ignore"):  # of every attempt
                fetch_20newsgroups(data_home=data_root(), n_retries=1, delay=0.1)
        except OSError as problem:
            raise DataError(
                f"20 Newsgroups is not in {data_root()} and cannot be downloaded ({problem}): put scikit-learn's {path.name} there"
            ) from None
    try:
        subsets = pickle.loads(zlib.decompress(path.read_bytes()))
        whole = all(
            len(subsets[part].data) == len(subsets[part].target) for part in ("train", "test")
        )
    except Exception as problem:  # a pickle fails in many ways
        raise DataError(f"{path} is broken ({problem}): delete it, or replace it") from None
    if not whole:
        raise DataError(f"{path} is broken (texts and groups differ in number): replace it")


def _openml(name: str, version: int) -> Callable[[], object]:
    def fetch() -> None:
        from sklearn.datasets import fetch_openml

        try:
            with warnings.catch_warnings(action="ignore"):
                fetch_openml(name, version=version, data_home=data_root(), n_retries=1, delay=0.1)
        except (
            Exception
        ) as problem:  # no network, or a file in the cache that is damaged in some way
            reason = (str(problem) or type(problem).__name__).splitlines()[0]
            raise DataError(
                f"{name} cannot be read from {data_root() / 'openml'} nor downloaded from OpenML ({reason}): "
                "run once with a network"
            ) from None

    return fetch


# A value of one of NAMES -> what finds it. What is not here needs no files.
SETS: dict[str, Callable[[], object]] = {
    **{name: _fetch(name) for name in ("mnist", "fashion_mnist", "cifar10")},
    **{name: _graph(name) for name in ("cora", "citeseer", "pubmed")},
    **{name: _annotated(name) for name in ("voc2007", "voc2012")},
    "bccd": _cells,
    "newsgroups": _newsgroups,
    "adult": _openml("adult", 2),
    "bank-marketing": _openml("bank-marketing", 1),
}


def _weights(kind: str, which: str, load: bool) -> None:
    module, distribution = PACKAGES[kind]
    if importlib.util.find_spec(module) is None:
        raise DataError(
            f"{kind}:{which} needs the package {distribution}: pip install {distribution}"
        )
    if kind == "open_clip" and which.count("/") != 1:
        raise UsageError(f"unknown CLIP {kind}:{which!r}: write open_clip:ARCHITECTURE/WEIGHTS")
    if load:
        from lefcourse.science import miniclip

        miniclip.load(f"{kind}:{which}")
