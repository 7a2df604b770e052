"""A reader's own images: how a folder of them is read, and how many of them go where. No torch in here."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lefcourse.errors import DataError, UsageError

PARTS = ("train", "val", "test")
SHARES = {"train": 12, "val": 3, "test": 5}  # what is proposed where a reader's numbers do not fit
# How people call the parts; `training_set` and `val2017` are recognised by their first word.
CALLED = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
# What systems leave in folders, besides names that begin with a dot.
HIDDEN = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__", "thumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
# fmt: off
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp", ".jp2", ".avif")
# fmt: on
Labelled = list[tuple[Path, int]]


@dataclass(frozen=True)
class Folder:
    """What lies in a reader's folder: classes, and for each part its pictures with their class; `train` is always there.

    Without `val` or `test` these are drawn from `train`. `unused` are folders of pictures that are no part.
    """

    path: Path
    classes: list[str]
    parts: dict[str, Labelled]
    unused: tuple[str, ...] = ()

    def count(self, part: str) -> int:
        """Number of pictures in a part's own folder, 0 if it has none."""
        return len(self.parts.get(part, ()))


def survey(path: Path) -> Folder:
    """Look through `PATH/CLASS/*.jpg`, or `PATH/{train,val,test}/CLASS/*.jpg` (val or test may be absent).

    Raises DataError if the folder is absent, a class has no picture, or parts are not what they seem.
    """
    if not path.is_dir():
        raise DataError(
            f"no folder {path}: put images there, as {path}/CLASS/*.jpg or as {path}/train/CLASS/*.jpg "
            f"and {path}/test/CLASS/*.jpg"
        )
    named = {name: part for name in subfolders(path) if (part := part_of(name))}
    pictured = [name for name in subfolders(path) if any(pictures(path / name))]
    others = [name for name in pictured if name not in named]
    nested = [name for name in named if _has_classes(path / name)]
    if not named or (others and not nested):  # trains may be a class, beside planes
        classes, found = labelled(path)
        return Folder(path, classes, {"train": found})
    return _with_parts(path, named, tuple(others))


def _with_parts(path: Path, named: Mapping[str, str], others: tuple[str, ...]) -> Folder:
    folders: dict[str, str] = {}
    for name, part in named.items():
        if part in folders:
            raise DataError(
                f"{path} has two folders for one part, {folders[part]}/ and {name}/: keep one"
            )
        folders[part] = name
    if "train" not in folders or len(folders) == 1:
        has = ", ".join(f"{name}/" for name in folders.values())
        lacks = "test/ (or val/)" if "train" in folders else "train/"
        raise DataError(
            f"{path} looks like the parts of a data set: it has a folder {has} but no {lacks}; add it, "
            f"or put the classes into {path}"
        )
    read = {part: labelled(path / folders[part]) for part in PARTS if part in folders}
    classes = read["train"][0]
    for part, (own, _) in read.items():
        if own != classes:
            differing = ", ".join(sorted(set(classes) ^ set(own)))
            raise DataError(
                f"{path / folders['train']} and {path / folders[part]} do not have the same classes: {differing}"
            )
    return Folder(path, classes, {part: found for part, (_, found) in read.items()}, others)


def part_of(name: str) -> str | None:
    """Return the part that a folder's name means, None if it means none."""
    first = re.match(r"[a-z]*", name.lower())[0]
    return next((part for part, names in CALLED.items() if first in names), None)


def hidden(name: str) -> bool:
    """Is this a file or folder that the system or Jupyter keeps there?"""
    return name.startswith(".") or name.lower() in HIDDEN


def subfolders(path: Path) -> list[str]:
    """Return the names of the visible folders in `path`, sorted."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not hidden(p.name))


def pictures(path: Path) -> Iterator[Path]:
    """Yield the pictures in `path` and below, in a fixed order."""
    for folder, inner, files in sorted(_walk(path)):
        del inner
        for name in sorted(files):
            if not hidden(name) and name.lower().endswith(PICTURES):
                yield Path(folder, name)


def _walk(path: Path) -> Iterator:
    for folder, inner, files in os.walk(path, followlinks=True):
        inner[:] = [name for name in inner if not hidden(name)]
        yield folder, inner, files


def _has_classes(path: Path) -> bool:
    return any(any(pictures(path / name)) for name in subfolders(path))


def labelled(path: Path) -> tuple[list[str], Labelled]:
    """Return the classes in `path/CLASS/` and all pictures with their class. Raises DataError for a class without any."""
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: put images there as CLASS/*.jpg")
    classes = subfolders(path)
    if not classes:
        loose = " (it holds pictures, but in no folder of a class)" if any(pictures(path)) else ""
        raise DataError(f"{path} has no folders of classes{loose}: put images there as CLASS/*.jpg")
    found = [(file, k) for k, name in enumerate(classes) for file in pictures(path / name)]
    counts = Counter(k for _, k in found)
    if empty := [name for k, name in enumerate(classes) if not counts[k]]:
        raise DataError(
            f"{path / empty[0]} holds no picture ({', '.join(PICTURES)}): put some there, or remove the folder"
        )
    return classes, found


# --- how many go where ---------------------------------------------------------------------------


def counts(
    folder: Folder, usual: Mapping[str, int], given: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return how many pictures to train on, validate and test with: `train`, `val`, `test`.

    `usual` are a chapter's numbers; where the folder has fewer pictures, they become shares of it in the same
    proportions. `given` are a reader's, which are kept. Raises UsageError, with numbers that fit, if these exceed the
    folder, and if there is but one class.
    """
    given = dict(given or {})
    if len(folder.classes) < 2:
        raise UsageError(
            f"{folder.path} has one class only, {folder.classes[0]!r}: it needs one folder for each of two or more classes"
        )
    fitting = _fit(folder, usual, given)
    if fitting is None:
        n = folder.count("train")
        free = _fit(folder, {part: SHARES[part] * n for part in usual}, {}) or {}
        told = " ".join(f"-p {part} {n}" for part, n in free.items()) or "more pictures"
        asked = ", ".join(f"{part} {n}" for part, n in given.items()) or "anything"
        raise UsageError(f"{_has(folder)}, too few for {asked}; what fits: {told}")
    return fitting


def _has(folder: Folder) -> str:
    own = ", ".join(f"{len(found)} in {part}" for part, found in folder.parts.items())
    n = sum(map(len, folder.parts.values()))
    return f"{folder.path} has {n} pictures" + (f" ({own})" if len(folder.parts) > 1 else "")


def _fit(folder: Folder, usual: Mapping, given: Mapping) -> dict[str, int] | None:
    wanted = {part: given.get(part, usual[part]) for part in usual}
    for part in ("val", "test"):
        if part in folder.parts and part in wanted:
            if part not in given:
                wanted[part] = min(wanted[part], folder.count(part))
            elif wanted[part] > folder.count(part):
                return None
    pooled = [part for part in wanted if part == "train" or part not in folder.parts]
    room = folder.count("train") - sum(wanted[part] for part in pooled if part in given)
    free = {part: wanted[part] for part in pooled if part not in given}
    if sum(free.values()) > room:
        if room < len(free):
            return None
        scaled = {
            part: max(1, n * room // sum(free.values()))
            for part, n in free.items()
            if part != "train"
        }
        if "train" in free:
            scaled["train"] = room - sum(scaled.values())
        wanted |= scaled
    fits = sum(wanted[part] for part in pooled) <= folder.count("train") and wanted["train"] >= 1
    return wanted if fits else None


# --- one picture ---------------------------------------------------------------------------------


def decode(file, size: int, what: object) -> np.ndarray:
    """Read an image as a viewer shows it: shorter side to `size` (bilinear, antialiased), then the central square.

    Returns (size, size, 3) uint8. Transparent pictures lie on white, 16 bits become 8, and of several frames the first
    is taken. Raises DataError, which names the file, if it is damaged or cannot be shown so.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            # A large JPEG is decoded at the smallest scale that still has twice the pixels asked for.
            image.draft("RGB", (2 * size, 2 * size))
            image = ImageOps.exif_transpose(image)
            image.load()
    except Exception as problem:  # Pillow's plug-ins report a damaged file in many ways
        raise DataError(f"{what} is broken ({problem}): replace or remove it") from None
    try:
        shown = _as_shown(image)
    except ValueError as problem:
        raise DataError(
            f"{what} cannot be shown ({problem}): save it as RGB with 8 bits, or remove it"
        ) from None
    return np.asarray(ImageOps.fit(shown, (size, size), Image.Resampling.BILINEAR))


def _as_shown(image):
    """Return `image` as 8-bit RGB. Raises ValueError if it can be no such picture."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        paper = Image.new("RGBA", clear.size, "white")
        shown = Image.alpha_composite(paper, clear).convert("RGB")
        if _flat(shown) and not _flat(clear):
            raise ValueError("it is one colour on a white page, because it is transparent")
        return shown
    return image.convert("RGB")


def _flat(image) -> bool:
    return all(low == high for low, high in np.atleast_2d(image.getextrema()))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Map grey values of 16 bits (0 to 65535), or floats (0 to 1, or 0 to 255), to bytes."""
    low, high = float(values.min()), float(values.max())
    top = 65535 if values.dtype.kind in "iu" else 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):  # NaN too
        raise ValueError(f"its grey values go from {low:g} to {high:g}; read are 0 to {top}")
    grey = np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    if low < high and grey.min() == grey.max():
        raise ValueError(f"its grey values go from {low:g} to {high:g} of {top}: it looks flat")
    return grey
