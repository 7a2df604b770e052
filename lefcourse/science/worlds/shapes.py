"""The world of shapes: one description of a scene gives the picture and every label one could ask for.

A scene is a list of objects (shape, colour, texture, size, place, rotation, depth) on a background, in a
style. The picture is drawn from signed distance functions; class, super-class, attributes, caption,
boxes, masks, panoptic map, matte, keypoints and depth come from the same description, so they are exact.

    world = shapes.make(64, objects=(2, 5), size=96, seed=0)
    world.image, world.boxes, world.captions

Lengths are in pixels, x to the right and y down, with the origin at the top left corner of the image (the
centre of the first pixel is at 0.5, 0.5). N scenes, K objects at most per scene, images H x H.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lefcourse.errors import UsageError, choice

SHAPES = (
    "circle",
    "ring",
    "crescent",
    "square",
    "rectangle",
    "triangle",
    "hexagon",
    "star",
    "cross",
    "heart",
    "semicircle",
    "drop",
    "diamond",
    "pentagon",
    "arrow",
    "bolt",
)
CLASSES = SHAPES
COUNTS = {"train": 2_000, "val": 500, "test": 1_000}  # what `lc.load("shapes")` draws by default
SUPERCLASSES = {
    "round": ("circle", "ring", "crescent", "semicircle", "drop"),
    "polygon": ("square", "rectangle", "triangle", "hexagon", "diamond", "pentagon"),
    "emblem": ("star", "cross", "heart", "arrow", "bolt"),
}
COLOURS = {
    "red": (0.84, 0.15, 0.16),
    "orange": (0.96, 0.55, 0.09),
    "yellow": (0.95, 0.86, 0.22),
    "green": (0.10, 0.58, 0.32),
    "turquoise": (0.22, 0.75, 0.76),
    "blue": (0.10, 0.33, 0.76),
    "purple": (0.52, 0.24, 0.66),
    "pink": (0.96, 0.58, 0.76),
}
TEXTURES = ("solid", "striped", "dotted", "checked")
SIZES = ("small", "large")
STYLES = ("flat", "real", "sketch", "noisy")
ATTRIBUTES = (*SHAPES, *COLOURS, *TEXTURES, *SIZES)
# Radius (of the circle around an object) as a share of the image's side: one object, several objects.
RADIUS_ALONE, RADIUS_AMONG = (0.26, 0.44), (0.11, 0.22)
CHUNK = 2**20  # object pixels rendered at once: what fits into a processor's cache


@dataclass(frozen=True)
class Scenes:
    """The description of N scenes with up to K objects each; everything else follows from it.

    `scenes[index]` are some of them (a number gives one scene, still with N = 1): they render to the
    same pixels alone as among others.
    """

    shape: Tensor  # (N, K) int64, index into SHAPES
    colour: Tensor  # (N, K) int64, index into COLOURS
    texture: Tensor  # (N, K) int64, index into TEXTURES
    radius: Tensor  # (N, K) pixels, of the circle around the object
    centre: Tensor  # (N, K, 2) pixels, (x, y)
    angle: Tensor  # (N, K) radians, clockwise as seen
    depth: Tensor  # (N, K) from 0 (near) to 1 (far); a nearer object hides a farther one
    valid: Tensor  # (N, K) bool: is there such an object?
    large: Tensor  # (N, K) bool: larger than the middle of the range of sizes
    style: Tensor  # (N,) int64, index into STYLES
    background: Tensor  # (N, 3) red, green, blue
    light: Tensor  # (N, 4) direction (2), strength, and gain of the exposure
    noise: Tensor  # (N,) int64, seed of the scene's own noise
    size: int  # side of the image, pixels

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index) -> "Scenes":
        index = torch.arange(len(self), device=self.device)[index].reshape(-1)
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Scenes(**{k: v[index] if isinstance(v, Tensor) else v for k, v in parts.items()})

    @property
    def device(self) -> torch.device:
        """Where the scenes lie."""
        return self.shape.device


# Drawing a description at random


def sample(
    n: int,
    *,
    objects: int | tuple[int, int] = 1,
    size: int = 32,
    style: str | Mapping[str, float] = "flat",
    long_tail: float = 1.0,
    frequencies: Sequence[float] | None = None,
    radius: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    shapes: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    exclude: Sequence[tuple[str, str]] = (),
    overlap: float = 0.3,
    seed: int = 0,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> Scenes:
    """Draw `n` scenes.

    Args:
        objects: how many in each scene, a number or an inclusive range.
        size: side of the images in pixels.
        style: `flat` (plain background, even light), `real` (textured, lit, noisy), `sketch` (outlines on
            paper), `noisy` (blurred and grainy) or `mixed` (flat and real, half each); or the share of
            each: `{"flat": 0.7, "sketch": 0.3}`.
        long_tail: how many times more frequent the first of `shapes` is than the last; the others lie
            between on an exponential.
        frequencies: relative frequency of each of `shapes`, instead of `long_tail`.
        radius: smallest and largest radius as a share of the image's side, the same for all objects or
            one range for each (default: 0.26 to 0.44 for one object, 0.11 to 0.22 for several).
        shapes, colours: the only ones to appear (default: all). Leave some out to hold classes out.
        exclude: pairs (colour, shape) that never appear together: held-out compositions.
        overlap: how far two objects may reach into each other, as a share of the smaller radius. Each
            object takes the first of 16 random places that respects this, or the freest of them. This
            is no guarantee: of 54,000 objects in sixes 0.35 % showed less than half and 0.02 % less
            than a quarter; of 18,000 in twelves six were hidden wholly (still valid; zeros in `boxes`).
        seed, generator: the source of randomness; the generator, if given, is on `device`.

    Raises UsageError for unknown names, for ranges and frequencies that do not fit, and if `exclude`
    leaves a shape without a colour.
    """
    generator = generator or torch.Generator(device=device).manual_seed(seed)
    low, high = (objects, objects) if isinstance(objects, int) else objects
    if not 1 <= low <= high:
        raise UsageError(f"objects={objects!r}: a number from 1, or a range (low, high)")
    shapes = tuple(shapes or SHAPES)
    if frequencies is None:
        frequencies = [long_tail ** (-k / max(len(shapes) - 1, 1)) for k in range(len(shapes))]
    if len(frequencies) != len(shapes):
        raise UsageError(
            f"{len(frequencies)} frequencies for {len(shapes)} shapes: give one for each"
        )
    styles = _style_shares(style).to(device)
    shape, colour = _composition(
        n * high, frequencies, shapes, colours or tuple(COLOURS), exclude, generator
    )

    def uniform(*dims: int, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*dims, generator=generator, device=device)

    smallest, largest = _radius_range(radius, high).to(device)
    share = uniform(n, high, low=smallest, high=largest)
    count = torch.randint(low, high + 1, (n, 1), generator=generator, device=device)
    light = uniform(n) * 2 * math.pi
    grey, tint = uniform(n, 1, low=0.82, high=0.97), uniform(n, 3, low=-0.05, high=0.03)
    return Scenes(
        shape=shape.view(n, high),
        colour=colour.view(n, high),
        texture=torch.randint(len(TEXTURES), (n, high), generator=generator, device=device),
        radius=share * size,
        centre=_places(share * size, size, overlap, uniform),
        angle=uniform(n, high, low=-math.pi / 6, high=math.pi / 6),
        depth=uniform(n, high, low=0.05, high=0.95),
        valid=torch.arange(high, device=device) < count,
        large=share > (smallest + largest) / 2,
        style=torch.searchsorted(styles.cumsum(0), 1 - uniform(n)).clamp_max(len(STYLES) - 1),
        background=(grey + tint).clamp(0, 1),
        light=torch.stack(
            [
                light.cos(),
                light.sin(),
                uniform(n, low=0.1, high=0.35),
                uniform(n, low=0.8, high=1.05),
            ],
            dim=1,
        ),
        noise=torch.randint(2**31, (n,), generator=generator, device=device),
        size=size,
    )


def _style_shares(style: str | Mapping[str, float]) -> Tensor:
    """Return the share of each of STYLES."""
    if isinstance(style, str):
        choice("style", style, (*STYLES, "mixed"))
        style = {"flat": 0.5, "real": 0.5} if style == "mixed" else {style: 1.0}
    for name in style:
        choice("style", name, STYLES)
    shares = torch.tensor([float(style.get(name, 0.0)) for name in STYLES])
    if shares.min() < 0 or shares.sum() <= 0:
        raise UsageError(f"style={dict(style)}: the shares must be positive")
    return shares / shares.sum()


def _radius_range(radius, objects: int) -> Tensor:
    """Return the smallest and the largest radius of each object, as shares of the side: (2, K)."""
    ranges = torch.tensor(radius or (RADIUS_ALONE if objects == 1 else RADIUS_AMONG))
    if ranges.ndim == 1:
        ranges = ranges.expand(objects, 2)
    if (
        ranges.shape != (objects, 2)
        or not ((ranges[:, 0] > 0) & (ranges[:, 0] <= ranges[:, 1]) & (ranges[:, 1] <= 0.5)).all()
    ):
        raise UsageError(
            f"radius={radius!r}: a range (low, high) of shares up to 0.5, or one for each of {objects} objects"
        )
    return ranges.T


def _composition(n, frequencies, shapes, colours, exclude, generator) -> tuple[Tensor, Tensor]:
    """Draw shape and colour of n objects (n,), from their joint distribution."""
    names = list(COLOURS)
    rows = [SHAPES.index(choice("shape", name, SHAPES)) for name in shapes]
    columns = [names.index(choice("colour", name, names)) for name in colours]
    allowed = torch.zeros(len(SHAPES), len(names), device=generator.device)
    allowed[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1
    for colour, shape in exclude:
        allowed[
            SHAPES.index(choice("shape", shape, SHAPES)),
            names.index(choice("colour", colour, names)),
        ] = 0
    for row in rows:
        if not allowed[row].any():
            raise UsageError(f"no colour is left for the shape {SHAPES[row]!r}")
    weights = torch.zeros(len(SHAPES), device=generator.device)
    weights[rows] = torch.tensor(frequencies, dtype=torch.float, device=generator.device)
    joint = allowed / allowed.sum(1, keepdim=True).clamp_min(1) * weights[:, None]
    if n == 0:
        return (torch.zeros(0, dtype=torch.long, device=generator.device),) * 2
    drawn = torch.multinomial(joint.flatten(), n, replacement=True, generator=generator)
    return drawn // len(names), drawn % len(names)


def _places(
    radius: Tensor, size: int, overlap: float, uniform: Callable, tries: int = 16
) -> Tensor:
    """Place the objects of each scene (N, K) one after the other: (N, K, 2)."""
    n, objects = radius.shape
    centre = torch.zeros(n, objects, 2, device=radius.device)
    for k in range(objects):
        margin = radius[:, k, None, None]
        candidates = margin + uniform(n, tries, 2) * (size - 2 * margin)
        gap = torch.full((n, tries), math.inf, device=radius.device)
        for j in range(k):  # how far from object j, counted from edge to edge
            distance = (candidates - centre[:, None, j]).norm(dim=2)
            reach = (
                radius[:, j] + radius[:, k] - overlap * torch.minimum(radius[:, j], radius[:, k])
            )
            gap = torch.minimum(gap, distance - reach[:, None])
        best = gap.clamp_max(0).argmax(1)  # the first that fits, else the freest
        centre[:, k] = candidates[torch.arange(n, device=radius.device), best]
    return centre


# Signed distance functions: x, y in units of the object's radius, y down; negative inside.
# All are exact, except the cross inside and the crescent outside, which are lower bounds (exact near the edge
# but for the corners).


def _polar_fold(x: Tensor, y: Tensor, corners: int) -> tuple[Tensor, Tensor]:
    """Fold the plane so that one edge of a regular figure with a corner at the top stands for all."""
    half = math.pi / corners
    turned = torch.remainder(torch.atan2(x, -y), 2 * half) - half
    length = torch.hypot(x, y)
    return length * turned.cos(), length * turned.sin().abs()


def regular_star(x: Tensor, y: Tensor, corners: int, sharpness: float) -> Tensor:
    """Distance to a regular star in the unit circle; `sharpness` 2 is the convex polygon."""
    half, edge = math.pi / corners, math.pi / sharpness
    u, v = _polar_fold(x, y, corners)
    u, v = u - math.cos(half), v - math.sin(half)
    c, s = math.cos(edge), math.sin(edge)
    along = (-(u * c + v * s)).clamp(0, math.sin(half) / s)
    u, v = u + along * c, v + along * s
    return torch.hypot(u, v) * u.sign()


def box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    """Distance to an upright rectangle."""
    u, v = x.abs() - half_width, y.abs() - half_height
    return torch.hypot(u.clamp_min(0), v.clamp_min(0)) + torch.maximum(u, v).clamp_max(0)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a heart: two half discs on a square that stands on its corner."""
    scale = 1.12 / 0.70  # the heart's own unit is the diagonal of that square
    u, v = x.abs() / scale, -y / scale + 0.55
    lobe = torch.hypot(u - 0.25, v - 0.75) - math.sqrt(2) / 4
    middle = (u + v).clamp_min(0) / 2
    side = torch.minimum(torch.hypot(u, v - 1), torch.hypot(u - middle, v - middle))
    return scale * torch.where(u + v > 1, lobe, side * (u - v).sign())


def polygon(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Distance to a polygon with the given corners, in order."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey, u, v = bx - ax, by - ay, x - ax, y - ay
        along = ((u * ex + v * ey) / (ex**2 + ey**2)).clamp(0, 1)
        nearest = torch.minimum(nearest, (u - along * ex) ** 2 + (v - along * ey) ** 2)
        # A ray to the right crosses this edge: an odd number of crossings is inside.
        crosses = ((ay <= y) != (by <= y)) & ((u * ey - v * ex) * (1 if ey > 0 else -1) < 0)
        inside = inside ^ crosses
    return nearest.sqrt() * torch.where(inside, -1.0, 1.0)


def semicircle(x: Tensor, y: Tensor, radius: float = 0.9, bottom: float = 0.4) -> Tensor:
    """Distance to the upper half of a disc that rests on the line y = bottom."""
    up = bottom - y
    above = torch.maximum(torch.hypot(x, up) - radius, -up)
    return torch.where(up < 0, torch.hypot((x.abs() - radius).clamp_min(0), up), above)


def drop(
    x: Tensor, y: Tensor, radius: float = 0.6, centre: float = 0.36, tip: float = -0.96
) -> Tensor:
    """Distance to a disc around (0, centre) with its two tangents up to the tip (0, tip)."""
    height = centre - tip
    sine = radius / height
    cosine = math.sqrt(1 - sine**2)
    u, v = x.abs(), centre - y
    along = v * cosine - u * sine  # along the tangent, from where it touches the disc
    side = torch.where(along < 0, torch.hypot(u, v), u * cosine + v * sine) - radius
    return torch.where(along > height * cosine, torch.hypot(u, v - height), side)


_ARROW = [(0, -0.95), (0.7, -0.12), (0.26, -0.12), (0.26, 0.9), (-0.26, 0.9), (-0.26, -0.12), (-0.7, -0.12)]  # fmt: skip
_BOLT = [(0.30, -0.93), (-0.58, 0.14), (-0.08, 0.14), (-0.30, 0.93), (0.58, -0.14), (0.08, -0.14)]
_DIAMOND = [(0, -0.96), (0.6, 0), (0, 0.96), (-0.6, 0)]

SDF: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: torch.hypot(x, y) - 0.95,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.70).abs() - 0.26,
    "crescent": lambda x, y: torch.maximum(
        torch.hypot(x, y) - 0.97, 0.72 - torch.hypot(x - 0.42, y + 0.12)
    ),
    "square": lambda x, y: box(x, y, 0.70, 0.70),
    "rectangle": lambda x, y: box(x, y, 0.90, 0.42),
    "triangle": lambda x, y: regular_star(x, y, 3, 2),
    "hexagon": lambda x, y: regular_star(x, y, 6, 2),
    "star": lambda x, y: regular_star(x, y, 5, 3.2),
    "cross": lambda x, y: torch.minimum(box(x, y, 0.93, 0.30), box(x, y, 0.30, 0.93)),
    "heart": heart,
    "semicircle": semicircle,
    "drop": drop,
    "diamond": lambda x, y: polygon(x, y, _DIAMOND),
    "pentagon": lambda x, y: regular_star(x, y, 5, 2),
    "arrow": lambda x, y: polygon(x, y, _ARROW),
    "bolt": lambda x, y: polygon(x, y, _BOLT),
}

# Five canonical points of each shape, in the same units: named by number, the first is the top or the tip.
_STAR = [(math.sin(2 * math.pi * k / 5), -math.cos(2 * math.pi * k / 5)) for k in range(5)]
KEYPOINTS = {
    "circle": [(0, -0.9), (0.9, 0), (0, 0.9), (-0.9, 0), (0, 0)],
    "ring": [(0, -0.7), (0.7, 0), (0, 0.7), (-0.7, 0), (0.495, -0.495)],
    "crescent": [(0, -0.85), (-0.60, -0.60), (-0.75, 0.1), (-0.45, 0.70), (0.25, 0.80)],
    "square": [(-0.66, -0.66), (0.66, -0.66), (0.66, 0.66), (-0.66, 0.66), (0, 0)],
    "rectangle": [(-0.86, -0.38), (0.86, -0.38), (0.86, 0.38), (-0.86, 0.38), (0, 0)],
    "triangle": [(0, -0.9), (0.78, 0.45), (-0.78, 0.45), (0, 0.45), (0, 0)],
    "hexagon": [(0, -0.92), (0.79, -0.46), (0.79, 0.46), (0, 0.92), (0, 0)],
    "star": [(0.86 * x, 0.86 * y) for x, y in _STAR],
    "cross": [(0, -0.85), (0.85, 0), (0, 0.85), (-0.85, 0), (0, 0)],
    "heart": [(0, 0.82), (0.45, -0.75), (-0.45, -0.75), (0, -0.45), (0, 0)],
    "semicircle": [(0, -0.45), (0.82, 0.36), (0, 0.36), (-0.82, 0.36), (0, 0)],
    "drop": [(0, -0.85), (0.55, 0.36), (0, 0.92), (-0.55, 0.36), (0, 0.36)],
    "diamond": [(0, -0.88), (0.54, 0), (0, 0.88), (-0.54, 0), (0, 0)],
    "pentagon": [(0.92 * x, 0.92 * y) for x, y in _STAR],
    "arrow": [(0, -0.86), (0.56, -0.16), (0.2, 0.84), (-0.2, 0.84), (-0.56, -0.16)],
    "bolt": [(0.24, -0.80), (-0.45, 0.09), (0, 0), (0.45, -0.09), (-0.24, 0.80)],
}


# From the description to coverage


def _local(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Return every pixel in every object's own frame, in radii: x and y, (N, K, H, H)."""
    at = torch.arange(scenes.size, device=scenes.device) + 0.5
    dx = at[None, None, None, :] - scenes.centre[..., 0, None, None]
    dy = at[None, None, :, None] - scenes.centre[..., 1, None, None]
    c, s = ((f(scenes.angle) / scenes.radius)[..., None, None] for f in (torch.cos, torch.sin))
    return dx * c + dy * s, dy * c - dx * s


def _distance(scenes: Scenes, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of each pixel to each object's edge, in pixels: (N, K, H, H)."""
    distance = torch.full_like(x, math.inf)
    for index, name in enumerate(SHAPES):
        mine = (scenes.shape == index) & scenes.valid
        if mine.any():
            distance[mine] = SDF[name](x[mine], y[mine])
    return distance * scenes.radius[..., None, None]


def _coverage(distance: Tensor) -> Tensor:
    """How much of each pixel an object covers, if nothing hides it, from the distance to its edge."""
    return (0.5 - distance).clamp(0, 1)


def _visible(scenes: Scenes, coverage: Tensor) -> Tensor:
    """How much of each pixel shows each object, and the background (last): (N, K + 1, H, H), sum 1."""
    order = scenes.depth.argsort(1)  # near to far
    spread = order[..., None, None].expand_as(coverage)
    sorted_coverage = coverage.gather(1, spread)
    left = (1 - sorted_coverage).cumprod(1)  # what is still to be seen behind each
    before = torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], 1)
    shown = torch.zeros_like(coverage).scatter(1, spread, sorted_coverage * before)
    return torch.cat([shown, left[:, -1:]], 1)


def _in_chunks(scenes: Scenes, function: Callable[[Scenes], Tensor]) -> Tensor:
    step = max(1, CHUNK // (scenes.shape.shape[1] * scenes.size**2))
    parts = [function(scenes[i : i + step]) for i in range(0, max(len(scenes), 1), step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def coverage(scenes: Scenes) -> Tensor:
    """Soft, amodal coverage of each object, hidden parts included: (N, K, H, H) in [0, 1]."""
    return _in_chunks(scenes, lambda s: _coverage(_distance(s, *_local(s))))


def visible(scenes: Scenes) -> Tensor:
    """Soft visible share of each object and of the background (last): (N, K + 1, H, H), sums to 1."""
    return _in_chunks(scenes, lambda s: _visible(s, _coverage(_distance(s, *_local(s)))))


# The picture


def render(scenes: Scenes) -> Tensor:
    """Draw the scenes: (N, 3, H, H) in [0, 1], on the scenes' device."""
    return _in_chunks(scenes, _render)


def _render(scenes: Scenes) -> Tensor:
    x, y = _local(scenes)
    distance = _distance(scenes, x, y)
    shown = _visible(scenes, _coverage(distance))
    palette = torch.tensor(list(COLOURS.values()), device=scenes.device)
    colour = palette[scenes.colour]  # (N, K, 3)
    light = colour.mean(2, keepdim=True) > 0.42
    second = torch.where(light, colour * 0.45, 1 - 0.6 * (1 - colour))
    pattern = _texture(scenes, x, y)  # (N, K, H, H): share of the second colour
    mix = pattern * shown[:, :-1]
    image = torch.einsum("nkhw,nkc->nchw", shown[:, :-1] - mix, colour)
    image += torch.einsum("nkhw,nkc->nchw", mix, second)
    image += shown[:, -1:] * scenes.background[..., None, None]
    real, sketch, noisy = (scenes.style == STYLES.index(s) for s in ("real", "sketch", "noisy"))
    if real.any():
        image[real] = _photograph(scenes[real], image[real], shown[real][:, -1:])
    if sketch.any():
        image[sketch] = _drawing(
            scenes[sketch], colour[sketch], distance[sketch], pattern[sketch], shown[sketch]
        )
    if noisy.any():
        image[noisy] = _blur(scenes[noisy], image[noisy])
    return image.clamp_(0, 1)


def _texture(scenes: Scenes, x: Tensor, y: Tensor) -> Tensor:
    """Share of the second colour (N, K, H, H), with edges about a pixel wide."""
    pattern = torch.zeros_like(x)
    sharp = scenes.radius / 6  # radii -> pixels, so that edges stay soft at every size
    for name in TEXTURES[1:]:
        mine = (scenes.texture == TEXTURES.index(name)) & scenes.valid
        if mine.any():
            u, v = 9.0 * x[mine], 9.0 * y[mine]
            wave = {
                "striped": lambda u, v: u.sin(),
                "dotted": lambda u, v: u.cos() + v.cos() - 0.55,
                "checked": lambda u, v: (0.75 * u).sin() * (0.75 * v).sin() * 1.6,
            }[name](u, v)
            pattern[mine] = (0.5 + sharp[mine][:, None, None] * wave).clamp(0, 1)
    return pattern


def _photograph(scenes: Scenes, image: Tensor, behind: Tensor) -> Tensor:
    """Give a flat picture what a camera would: a textured background, a lamp, exposure and noise."""
    n, side = len(scenes), scenes.size
    coarse = _hash(scenes.noise, 3 * 36).view(n, 3, 6, 6)
    coarse = 0.6 * coarse[:, :1] + 0.4 * coarse  # mostly grey
    clutter = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
    image = image + behind * 0.6 * (clutter - 1)
    at = (torch.arange(side, device=scenes.device) + 0.5) / side - 0.5
    lx, ly, strength, gain = (scenes.light[:, i, None, None] for i in range(4))
    lamp = gain * (1 + 2 * strength * (lx * at[None, None, :] + ly * at[None, :, None]))
    grain = _hash(scenes.noise + 1, side * side).view(n, 1, side, side) - 0.5
    return image * lamp[:, None] + 0.14 * grain


def _drawing(
    scenes: Scenes, colour: Tensor, distance: Tensor, pattern: Tensor, shown: Tensor
) -> Tensor:
    """Draw outlines with a pen in each object's colour on paper; textures become faint hatching."""
    pen = max(1.0, scenes.size / 28)  # width of the stroke in pixels, inside the edge
    ink = torch.maximum((0.5 + distance + pen).clamp(0, 1), 0.45 * pattern) * shown[:, :-1]
    paper = 0.5 + 0.5 * scenes.background
    image = (1 - ink.sum(1, keepdim=True)) * paper[..., None, None]
    return image + torch.einsum("nkhw,nkc->nchw", ink, 0.85 * colour)


def _blur(scenes: Scenes, image: Tensor) -> Tensor:
    """Take a bad picture: out of focus and grainy, each scene to a degree of its own."""
    n, side = len(scenes), scenes.size
    reach = max(1, round(side / 32))
    blurred = image
    for _ in range(2):  # twice a moving average is nearly a Gaussian
        blurred = F.avg_pool2d(blurred, 2 * reach + 1, 1, reach, count_include_pad=False)
    focus, strength = _hash(scenes.noise + 2, 2).T[..., None, None, None]
    grain = _hash(scenes.noise + 1, side * side).view(n, 1, side, side) - 0.5
    return image.lerp(blurred, 0.4 + 0.6 * focus) + (0.15 + 0.45 * strength) * grain


def _hash(seed: Tensor, count: int) -> Tensor:
    """Uniform noise in [0, 1) (N, count) that depends on each scene's own seed alone."""
    bits = seed[:, None] * 0x9E3779B1 + torch.arange(count, device=seed.device) * 0x85EBCA6B
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    return (bits ^ (bits >> 16)).float() / 2**32


# The labels


def classes(scenes: Scenes) -> Tensor:
    """Index into SHAPES of every object: (N, K) int64, -1 where there is none."""
    return torch.where(scenes.valid, scenes.shape, -1)


def superclasses(scenes: Scenes) -> Tensor:
    """Index into SUPERCLASSES of every object: (N, K) int64, -1 where there is none."""
    group = [next(i for i, g in enumerate(SUPERCLASSES.values()) if s in g) for s in SHAPES]
    return torch.where(scenes.valid, torch.tensor(group, device=scenes.device)[scenes.shape], -1)


def attributes(scenes: Scenes) -> Tensor:
    """Which of ATTRIBUTES some object of the scene has: (N, 30) float, 0 or 1."""
    parts = [
        (scenes.shape, len(SHAPES)),
        (scenes.colour, len(COLOURS)),
        (scenes.texture, len(TEXTURES)),
        (scenes.large.long(), len(SIZES)),
    ]
    hot = torch.cat([F.one_hot(index, count) for index, count in parts], dim=2)
    return (hot * scenes.valid[..., None]).amax(1).float()


def segments(scenes: Scenes) -> Tensor:
    """Number of the object that shows most in each pixel, from 1, or 0 for the background: (N, H, H) int64."""
    objects = scenes.shape.shape[1]
    return _in_chunks(scenes, lambda s: (visible(s).argmax(1) + 1) % (objects + 1))


def masks(scenes: Scenes, ids: Tensor | None = None) -> Tensor:
    """Visible pixels of each object: (N, K, H, H) bool. They do not overlap.

    Here and below `ids` are the scenes' `segments`, if they are known already.
    """
    ids = segments(scenes) if ids is None else ids
    numbers = torch.arange(1, scenes.shape.shape[1] + 1, device=ids.device)
    return ids[:, None] == numbers[None, :, None, None]


def boxes(scenes: Scenes, ids: Tensor | None = None) -> Tensor:
    """Tight boxes around the visible pixels (as in COCO): (N, K, 4) float, x1 y1 x2 y2.

    x2 and y2 are exclusive, so that x2 - x1 is the width. An object of which nothing shows has zeros.
    """
    return boxes_of(masks(scenes, ids))


def boxes_of(mask: Tensor) -> Tensor:
    """Tight boxes (..., 4) around the true pixels of masks (..., H, W); zeros around none."""
    sides = []
    for dim in (-2, -1):  # columns, then rows
        hit = mask.any(dim)
        first = hit.int().argmax(-1)
        last = hit.shape[-1] - hit.flip(-1).int().argmax(-1)
        sides.append((first, torch.where(hit.any(-1), last, 0)))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], -1).float()


def semantic(scenes: Scenes, ids: Tensor | None = None) -> Tensor:
    """Class of each pixel: (N, H, H) int64, 0 is background, c + 1 is SHAPES[c]."""
    return _paint(
        torch.cat([torch.zeros_like(scenes.shape[:, :1]), scenes.shape + 1], 1), scenes, ids
    )


def _paint(table: Tensor, scenes: Scenes, ids: Tensor | None) -> Tensor:
    """Give every pixel the value of its segment: table (N, K + 1), background first -> (N, H, H)."""
    ids = segments(scenes) if ids is None else ids
    return table.gather(1, ids.flatten(1)).view_as(ids)


def panoptic(scenes: Scenes, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Segment ids (N, H, H), 0 is the background (stuff), and the class of each segment (N, K + 1).

    A class is 0 for the background, c + 1 for SHAPES[c], and -1 for a segment without an object.
    """
    things = torch.where(scenes.valid, scenes.shape + 1, -1)
    ids = segments(scenes) if ids is None else ids
    return ids, torch.cat([torch.zeros_like(things[:, :1]), things], 1)


def alpha(scenes: Scenes) -> Tensor:
    """Matte of the foreground: (N, 1, H, H) in [0, 1], soft over about a pixel at the edges."""
    return 1 - _in_chunks(scenes, lambda s: visible(s)[:, -1:])


def depth(scenes: Scenes, ids: Tensor | None = None) -> Tensor:
    """Depth of what each pixel shows: (N, H, H), from 0 (near) to 1 (the background)."""
    return _paint(torch.cat([torch.ones_like(scenes.depth[:, :1]), scenes.depth], 1), scenes, ids)


def keypoints(scenes: Scenes, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Five canonical points of each object: (N, K, 5, 2) pixels (x, y), and whether each is seen (N, K, 5).

    A point is seen if it lies in the image and no nearer object shows in its pixel. At a sharp corner
    that pixel may belong to the background in `masks`, as the object covers less than half of it.
    """
    points = torch.tensor([KEYPOINTS[name] for name in SHAPES], device=scenes.device)[scenes.shape]
    x, y = (points * scenes.radius[..., None, None]).unbind(-1)
    c, s = scenes.angle.cos()[..., None], scenes.angle.sin()[..., None]
    turned = torch.stack([x * c - y * s, x * s + y * c], -1) + scenes.centre[..., None, :]
    column, row = turned.floor().long().unbind(-1)
    inside = (turned >= 0).all(-1) & (turned < scenes.size).all(-1)
    place = (row * scenes.size + column).clamp(0, scenes.size**2 - 1)
    front = depth(scenes, ids).flatten(1).gather(1, place.flatten(1)).view_as(place)
    return turned, inside & (front >= scenes.depth[..., None]) & scenes.valid[..., None]


def captions(scenes: Scenes) -> list[str]:
    """Say in English what is there, from left to right: `a small striped red star left of a blue circle`."""
    rows = zip(*(getattr(scenes, name).tolist() for name in _SPOKEN), strict=True)
    return [_caption(*row) for row in rows]


_SPOKEN = ("valid", "centre", "large", "texture", "colour", "shape")


def _caption(valid, centre, large, texture, colour, shape) -> str:
    names, words = list(COLOURS), []
    there = sorted((k for k in range(len(valid)) if valid[k]), key=lambda k: centre[k][0])
    for before, k in zip([None, *there], there, strict=False):
        if before is not None:
            dx, dy = (b - a for a, b in zip(centre[before], centre[k], strict=True))
            words.append("left of" if dx >= abs(dy) else "above" if dy > 0 else "below")
        pattern = "" if texture[k] == 0 else f"{TEXTURES[texture[k]]} "
        words.append(f"a {SIZES[large[k]]} {pattern}{names[colour[k]]} {SHAPES[shape[k]]}")
    return " ".join(words)


# All at once


class World:
    """Scenes with their picture and all labels; each is computed when it is first asked for."""

    def __init__(self, scenes: Scenes):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    image = cached_property(lambda self: render(self.scenes))
    classes = cached_property(lambda self: classes(self.scenes))
    superclasses = cached_property(lambda self: superclasses(self.scenes))
    attributes = cached_property(lambda self: attributes(self.scenes))
    captions = cached_property(lambda self: captions(self.scenes))
    segments = cached_property(lambda self: segments(self.scenes))
    masks = cached_property(lambda self: masks(self.scenes, self.segments))
    boxes = cached_property(lambda self: boxes_of(self.masks))
    semantic = cached_property(lambda self: semantic(self.scenes, self.segments))
    panoptic = cached_property(lambda self: panoptic(self.scenes, self.segments))
    alpha = cached_property(lambda self: alpha(self.scenes))
    depth = cached_property(lambda self: depth(self.scenes, self.segments))
    keypoints = cached_property(lambda self: keypoints(self.scenes, self.segments))


def make(n: int, **description) -> World:
    """Draw `n` scenes (see `sample` for the knobs) and return them with picture and labels."""
    return World(sample(n, **description))


def classification(n: int, **description) -> tuple[Tensor, Tensor]:
    """Return `n` images of one object each (n, 3, H, H) and their classes (n,), indices into CLASSES."""
    scenes = sample(n, objects=1, **description)
    return render(scenes), scenes.shape[:, 0]
