"""Scenes of several objects of `shapes`: the set of their classes is the label.

Every object of a scene is of another class, and a class is present if enough of it shows. The share of the picture that
shows of each class is known, so that labels can be lost as annotators lose them: the small and hidden ones first
(`lefcourse.manylabels.observe`). A class is a coloured shape ("red star") or a shape ("star"); a long tail makes the
first many times more frequent than the last.

    seen = scenes.make(64, classes=12, objects=(1, 4), tail=20.0, seed=0)
    seen.image, seen.labels, seen.area

N scenes, K objects at most per scene, C classes, images H x H.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lefcourse.errors import UsageError, choice
from lefcourse.science.worlds import shapes

# By default the classes are the first so many of these. None is told by its colour alone, or by its shape.
_SHAPES, _COLOURS = ("circle", "square", "star", "cross"), ("red", "yellow", "green", "blue")
CLASSES = tuple(f"{_COLOURS[(k + k // 4) % 4]} {_SHAPES[k % 4]}" for k in range(16))
RADIUS = (0.13, 0.24)  # of an object, as a share of the image's side
SEEN = 0.008  # share of the picture that must show of a class, if it is to count as present


@dataclass(frozen=True)
class Gathering:
    """N scenes and the class of each object; picture, labels and masks follow from them when they are first asked for.

    `gathering[index]` are some of them, with the same pixels and labels.
    """

    scenes: shapes.Scenes
    kind: Tensor  # (N, K) int64, index into `classes`; -1 where there is no object
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index) -> "Gathering":
        rows = torch.arange(len(self), device=self.kind.device)[index].reshape(-1)
        return Gathering(self.scenes[rows], self.kind[rows], self.classes)

    image = cached_property(lambda self: shapes.render(self.scenes))
    segments = cached_property(lambda self: shapes.segments(self.scenes))

    @cached_property
    def area(self) -> Tensor:
        """Share of the picture in which each class shows: (N, C)."""
        pixels = shapes.masks(self.scenes, self.segments).flatten(2).float().mean(2)  # (N, K)
        hot = F.one_hot(self.kind.clamp_min(0), len(self.classes)) * (self.kind >= 0)[..., None]
        return (pixels[..., None] * hot).sum(1)

    @property
    def labels(self) -> Tensor:
        """1 for each class of which at least the share SEEN of the picture shows, else 0: (N, C) float."""
        return (self.area >= SEEN).float()

    @property
    def masks(self) -> Tensor:
        """The pixels in which each class shows: (N, C, H, H) bool."""
        return _masks(self.kind, self.segments, len(self.classes))

    def cover(self, grid: int) -> Tensor:
        """Share of each cell of a grid in which each class shows: (N, C, grid, grid)."""
        few = zip(
            self.kind.split(256), self.segments.split(256), strict=True
        )  # all masks are large
        masks = (_masks(kind, ids, len(self.classes)).float() for kind, ids in few)
        return torch.cat([F.adaptive_avg_pool2d(part, grid) for part in masks])


def _masks(kind: Tensor, segments: Tensor, classes: int) -> Tensor:
    """The pixels in which each class shows, (N, C, H, H) bool, from the objects' kinds (N, K) and segments (N, H, H)."""
    numbers = torch.arange(classes, device=kind.device)
    none = torch.full_like(kind[:, :1], -1)
    shown = torch.cat([none, kind], 1).gather(1, segments.flatten(1))
    return shown.view_as(segments)[:, None] == numbers[None, :, None, None]


def names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the first so many CLASSES, or those given. Raises UsageError for one that cannot be drawn."""
    if isinstance(classes, int):
        if not 2 <= classes <= len(CLASSES):
            raise UsageError(f"classes={classes}: from 2 to {len(CLASSES)}, or names")
        return CLASSES[:classes]
    for name in classes:
        colour, _, shape = name.rpartition(" ")
        choice("shape", shape, shapes.SHAPES)
        if colour:
            choice("colour", colour, shapes.COLOURS)
    return tuple(classes)


def frequencies(classes: int, tail: float) -> Tensor:
    """How often each class is drawn, relative to the last: (C,), falling exponentially by the factor `tail` in all."""
    if not tail >= 1:
        raise UsageError(f"tail={tail}: at least 1, which is no tail")
    return tail ** torch.linspace(1, 0, classes, dtype=torch.float64)


def sample(
    n: int,
    *,
    classes: int | Sequence[str] = 12,
    objects: int | tuple[int, int] = (1, 4),
    size: int = 32,
    tail: float = 1.0,
    radius: tuple[float, float] = RADIUS,
    overlap: float = 0.9,
    seed: int = 0,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
    **description,
) -> Gathering:
    """Draw `n` scenes of objects that are all of different classes.

    Args:
        classes: how many of CLASSES, or names of coloured shapes ("red star") or shapes ("star").
        objects: how many in each scene, a number or an inclusive range; no more than there are classes.
        tail: how many times more often the first class is drawn than the last, for the first object of a scene.
        radius, overlap, description: as for `shapes.sample` (and style, ...). By default objects may hide parts of each other.
        seed, generator: the source of randomness; the generator, if given, is on `device`.

    Raises UsageError for names, numbers and ranges that do not fit.
    """
    called = names(classes)
    most = objects if isinstance(objects, int) else max(objects)
    if most > len(called):
        raise UsageError(f"objects={objects!r}: no more than there are classes, {len(called)}")
    generator = generator or torch.Generator(device=device).manual_seed(seed)
    how = description | dict(objects=objects, size=size, radius=radius, overlap=overlap)
    drawn = shapes.sample(n, generator=generator, device=device, **how)
    often = frequencies(len(called), tail).float().to(generator.device).expand(n, -1)
    kind = torch.multinomial(often, most, generator=generator) if n else drawn.shape
    return dressed(drawn, torch.where(drawn.valid, kind, -1), called)


def dressed(scenes: shapes.Scenes, kind: Tensor, classes: Sequence[str]) -> Gathering:
    """Give each object of `scenes` the shape, and the colour if it has one, of its class `kind` (N, K); -1 removes it."""
    parts = [name.rpartition(" ") for name in classes]
    of = kind.clamp_min(0)
    shape = torch.tensor([shapes.SHAPES.index(p[2]) for p in parts], device=kind.device)
    palette = [*shapes.COLOURS]
    own = [palette.index(p[0]) if p[0] else -1 for p in parts]
    colour = torch.tensor(own, device=kind.device)[of]
    colour = torch.where(colour < 0, scenes.colour, colour)
    there = replace(scenes, shape=shape[of], colour=colour, valid=kind >= 0)
    return Gathering(there, kind, tuple(classes))


def make(n: int, **description) -> Gathering:
    """Draw `n` scenes (see `sample` for the knobs) and return them with picture, labels and masks."""
    return sample(n, **description)
