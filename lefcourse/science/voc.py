"""Folders in the format of Pascal VOC: pictures, an XML file with the objects of each, and lists of what belongs where.

A folder holds `JPEGImages/NAME.jpg`, `Annotations/NAME.xml` and `ImageSets/Main/{trainval,test}.txt`. Annotations are
taken apart by torchvision. Whatever is absent or damaged is named by a DataError, before anything is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from lefcourse.errors import DataError

FOLDERS = "its folders JPEGImages, Annotations and ImageSets"


@dataclass(frozen=True)
class Noted:
    """A picture's file, its width and height, and name and corners (in its own pixels) of every object."""

    picture: Path
    extent: tuple[int, int]
    objects: list[tuple[str, list[float]]]


def files(listed: Path) -> list[tuple[Path, Path]]:
    """Return picture and annotation of each image that `ROOT/ImageSets/Main/PART.txt` lists; all of them are there."""
    root = listed.parents[2]
    try:
        names = listed.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as problem:
        raise DataError(f"{listed} is broken: it is no text ({problem.reason})") from None
    if not names:
        raise DataError(f"{listed} is broken: it lists no image; replace it")
    pairs = [
        (root / "JPEGImages" / f"{name}.jpg", root / "Annotations" / f"{name}.xml")
        for name in names
    ]
    for file in (file for pair in pairs for file in pair):
        if not file.is_file():
            raise DataError(f"{root.name} is incomplete: {file} is listed in {listed} but absent")
    return pairs


def read(listed: Path, known: Sequence[str] | None = None) -> list[Noted]:
    """Return what is known of each image of a list, pictures not decoded; objects have names among `known`, if given.

    Raises DataError, which names the file, if one is absent or damaged, and if no image has an object.
    """
    found = [_read(picture, notes, known) for picture, notes in files(listed)]
    if not any(noted.objects for noted in found):
        raise DataError(f"{listed} is broken: no image that it lists has an object; replace it")
    return found


def _extent(picture: Path) -> tuple[int, int]:
    """Return width and height of a picture, from its header."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            return image.size
    except Exception as problem:  # Pillow's plug-ins report a damaged file in many ways
        raise DataError(f"{picture} is broken ({problem}): replace it") from None


def _parse(notes: Path) -> dict:
    """Return an annotation as nested dictionaries, with a list of its objects."""
    from torchvision.datasets import VOCDetection

    try:
        root = ElementTree.parse(notes).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as problem:
        raise DataError(f"{notes} is broken: it is no whole XML ({problem}); replace it") from None
    if root.tag != "annotation":
        raise DataError(f"{notes} is broken: it is about <{root.tag}>, not <annotation>")
    content = VOCDetection.parse_voc_xml(root).get("annotation")
    return content if isinstance(content, dict) else {"object": []}  # it has no objects


def _inner(node: object, *path: str) -> object:
    """What stands at `path` in an annotation, None if nothing does."""
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _read(picture: Path, notes: Path, known: Sequence[str] | None) -> Noted:
    content, (width, height) = _parse(notes), _extent(picture)
    noted = tuple(str(_inner(content, "size", s) or 0).strip() for s in ("width", "height"))
    if noted not in ((str(width), str(height)), ("0", "0")):
        raise DataError(
            f"{notes} is broken: it is about a picture of {' x '.join(noted)} pixels, but {picture.name} has {width} x {height}"
        )
    objects = []
    for number, note in enumerate(content["object"], start=1):
        where = f"{notes} is broken: object {number}"
        name = str(_inner(note, "name") or "").strip()
        if not name or (known is not None and name not in known):
            told = f"; {notes.parents[1].name} has {', '.join(known)}" if known is not None else ""
            raise DataError(f"{where} is called {name!r}{told}")
        objects.append((name, _corners(note, where, width, height)))
    return Noted(picture, (width, height), objects)


def _corners(note: object, where: str, width: int, height: int) -> list[float]:
    corners = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = _inner(note, "bndbox", side)
        try:
            corners.append(float(text))
        except (TypeError, ValueError):
            raise DataError(f"{where} has {side} = {text!r}, which is no number") from None
    x1, y1, x2, y2 = corners
    # NaN fails too. A box may end one pixel beyond the picture: annotators count from 1.
    if not (0 <= x1 <= x2 <= width + 1 and 0 <= y1 <= y2 <= height + 1):
        raise DataError(
            f"{where} has the box {corners}, which is not in the picture of {width} x {height} pixels"
        )
    return corners
