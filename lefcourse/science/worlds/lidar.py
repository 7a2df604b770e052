"""The world of range scans: street objects as a laser scanner on a car sees them, a cloud of points for each.

An object stands on the ground at some distance and heading. Rays leave the sensor over a window that holds the object,
row by row of elevation (the *beams*), and each ends on the first surface it meets: only the side that faces the sensor is seen, and
of a far object few rays meet anything. All clouds have the same number of points: with fewer hits, points repeat.

    clouds = lidar.make(100, seed=0)      # points, labels, how many are distinct
    clouds.x                              # (100, 128, 3) metres, (away, left, up) from the mean of the points

An object is made of boxes, upright cylinders and ellipsoids; its length, width and height vary on their own.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lefcourse.errors import UsageError

CLASSES = ("car", "van", "truck", "pedestrian", "cyclist", "pole", "tree", "wall")
SENSOR = 1.8  # metres above the ground
BEAMS, ACROSS = 24, 32  # rows and columns of rays over the window
LEAST = 8  # distinct points of an object, however far
BOX, CYLINDER, ELLIPSOID = range(3)
# Parts of each class: kind, centre (forward, left, up) and half sizes, in metres.
PARTS = {
    "car": ((BOX, (0, 0, 0.7), (2.1, 0.9, 0.4)), (BOX, (-0.2, 0, 1.3), (1.1, 0.8, 0.3))),
    "van": ((BOX, (-0.3, 0, 1.25), (2.2, 0.95, 0.95)), (BOX, (2.25, 0, 0.75), (0.35, 0.9, 0.45))),
    "truck": ((BOX, (3.2, 0, 1.6), (0.9, 1.2, 1.3)), (BOX, (-1.0, 0, 2.0), (3.0, 1.25, 1.4))),
    "pedestrian": (
        (CYLINDER, (0, 0, 0.4), (0.15, 0.15, 0.4)),
        (CYLINDER, (0, 0, 1.13), (0.22, 0.25, 0.33)),
        (ELLIPSOID, (0, 0, 1.6), (0.13, 0.13, 0.16)),
    ),
    "cyclist": (
        (BOX, (0, 0, 0.5), (0.85, 0.05, 0.4)),
        (CYLINDER, (-0.1, 0, 1.2), (0.2, 0.22, 0.4)),
        (ELLIPSOID, (0.05, 0, 1.75), (0.13, 0.13, 0.16)),
    ),
    "pole": ((CYLINDER, (0, 0, 2.0), (0.1, 0.1, 2.0)),),
    "tree": ((CYLINDER, (0, 0, 1.0), (0.18, 0.18, 1.0)), (ELLIPSOID, (0, 0, 3.0), (1.3, 1.3, 1.2))),
    "wall": ((BOX, (0, 0, 1.2), (3.0, 0.12, 1.2)),),
}
MOST = max(map(len, PARTS.values()))


@dataclass
class Clouds:
    """Scans of N objects, on one device."""

    x: Tensor  # (N, P, 3) metres: away from the sensor, to the left, up; the mean of a cloud is the origin
    label: Tensor  # (N,) int64, index into CLASSES
    beam: Tensor  # (N, P) int64, the row of rays a point came by: 0 (lowest) to BEAMS - 1
    distinct: Tensor  # (N,) int64, points that are not repeated ones
    distance: Tensor  # (N,) metres along the ground
    heading: Tensor  # (N,) radians, counter-clockwise; 0: the object looks away from the sensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, which) -> "Clouds":
        """Return the clouds of a slice, mask or index tensor."""
        if isinstance(which, int):
            which = slice(which, which + 1 or None)
        fields = dataclasses.fields(self)
        return Clouds(**{field.name: getattr(self, field.name)[which] for field in fields})


def make(n: int, *, seed: int = 0, device: str | torch.device = "cpu", **description) -> Clouds:
    """Scan `n` objects by a seed; `description` as in `sample`."""
    return sample(n, generator=torch.Generator(device=device).manual_seed(seed), **description)


def sample(
    n: int,
    *,
    points: int = 128,
    labels: Tensor | None = None,
    distance: tuple[float, float] = (6.0, 30.0),
    density: float = 12.0,
    variety: float = 0.15,
    noise: float = 0.02,
    generator: torch.Generator,
) -> Clouds:
    """Scan `n` objects on the generator's device.

    Args:
        points: of each cloud, distinct or repeated.
        labels: (n,) indices into CLASSES; left out, each class is as likely as any other.
        distance: metres between which an object's distance is uniform.
        density: rays in a square degree; more than the window holds change nothing.
        variety: share by which length, width and height vary, each on its own.
        noise: standard deviation of the measured range, in metres.

    Raises UsageError for labels of another number or outside the classes, a distance under 4 metres or in the
    wrong order, fewer than 8 points, a density that is not above 0, a variety outside [0, 0.5] or negative noise.
    """
    _check(points, distance, density, variety, noise)
    at = {"generator": generator, "device": generator.device}
    drawn = torch.randint(len(CLASSES), (n,), **at)
    label = drawn if labels is None else _labels(labels, n).to(generator.device)
    away = distance[0] + (distance[1] - distance[0]) * torch.rand(n, **at)
    heading = 2 * math.pi * torch.rand(n, **at)
    scale = 1 + variety * (2 * torch.rand(n, 3, **at) - 1)
    kind, centre, half = (table.to(generator.device)[label] for table in _tables())
    centre, half = centre * scale[:, None], half * scale[:, None]
    origin, rays, area = _rays(centre, half, away, heading, at)
    reach = _nearest(kind, centre, half, origin, rays)  # (n, R)
    order, distinct = _kept(reach, area * density, points, at)
    chosen = reach.gather(1, order) + noise * torch.randn(n, points, **at)
    turned = (
        origin[:, None] + rays.gather(1, order[..., None].expand(-1, -1, 3)) * chosen[..., None]
    )
    first = (torch.arange(points, device=label.device) % distinct[:, None])[..., None]
    x = _turn(turned.gather(1, first.expand(-1, -1, 3)), heading)
    return Clouds(x - x.mean(1, keepdim=True), label, order // ACROSS, distinct, away, heading)


def _check(points, distance, density, variety, noise) -> None:
    low, high = distance
    if not 4 <= low <= high:
        raise UsageError(f"distance from {low} to {high} m: at least 4, the smaller one first")
    if points < LEAST:
        raise UsageError(f"{points} points a cloud: at least {LEAST}")
    if not density > 0:
        raise UsageError(f"density {density} is not above 0")
    if not 0 <= variety <= 0.5:
        raise UsageError(f"variety {variety}: between 0 and 0.5")
    if noise < 0:
        raise UsageError(f"noise {noise} is negative")


def _labels(labels: Tensor, n: int) -> Tensor:
    if labels.shape != (n,):
        raise UsageError(f"{n} objects need labels of shape ({n},), not {tuple(labels.shape)}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        raise UsageError(
            f"labels from {int(labels.min())} to {int(labels.max())}: classes are 0 to {len(CLASSES) - 1}"
        )
    return labels


def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """Kinds (K, MOST), centres and half sizes (K, MOST, 3) of all classes' parts; the last part fills up."""
    full = [(*parts, *[parts[-1]] * (MOST - len(parts))) for parts in PARTS.values()]
    kind = torch.tensor([[part[0] for part in parts] for parts in full])
    centre, half = (
        torch.tensor([[part[k] for part in parts] for parts in full], dtype=torch.float32)
        for k in (1, 2)
    )
    return kind, centre, half


def _turn(v: Tensor, angle: Tensor) -> Tensor:
    """Turn vectors (n, ..., 3) about the vertical by angles (n,)."""
    c, s = (f(angle).view(-1, *[1] * (v.ndim - 2)) for f in (torch.cos, torch.sin))
    a, b, up = v.unbind(-1)
    return torch.stack([c * a - s * b, s * a + c * b, up.expand_as(a)], -1)


def _rays(centre, half, away, heading, at) -> tuple[Tensor, Tensor, Tensor]:
    """In each object's frame: the sensor (n, 3), unit rays (n, BEAMS * ACROSS, 3); and the window in square degrees (n,)."""
    n = len(away)
    corner = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)], device=away.device)
    flat = (centre[:, :, None, :2] + half[:, :, None, :2] * corner).flatten(1, 2)  # (n, 4 parts, 2)
    seen = _turn(torch.cat([flat, flat[..., :1] * 0], -1), heading)  # as the sensor sees it
    depth, left = away[:, None] + seen[..., 0], seen[..., 1]
    azimuth = torch.atan2(left, depth)
    top = (centre[..., 2] + half[..., 2]).amax(1)
    near = depth.amin(1)
    low = torch.atan2(torch.full_like(top, -SENSOR), near)
    high = torch.atan2(top - SENSOR, torch.where(top > SENSOR, near, depth.amax(1)))
    spread = [(azimuth.amin(1), azimuth.amax(1), ACROSS), (low, high, BEAMS)]
    # A ray somewhere in each cell of the window, so that no two scans are alike.
    row, column = torch.meshgrid(
        torch.arange(BEAMS, device=away.device),
        torch.arange(ACROSS, device=away.device),
        indexing="ij",
    )
    u = torch.rand(2, n, BEAMS * ACROSS, **at)
    a, e = (
        lo[:, None] + (hi - lo)[:, None] * (cell.flatten() + u[k]) / count
        for k, ((lo, hi, count), cell) in enumerate(zip(spread, (column, row), strict=True))
    )
    ray = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    area = (spread[0][1] - spread[0][0]) * (high - low) * (180 / math.pi) ** 2
    sensor = torch.stack([-away, torch.zeros_like(away), torch.full_like(away, SENSOR)], -1)
    return _turn(sensor, -heading), _turn(ray, -heading), area


def _nearest(kind, centre, half, origin, rays) -> Tensor:
    """How far each ray flies to the first part it meets: (n, R); infinity for one that meets nothing."""
    reach = torch.full(rays.shape[:2], math.inf, device=rays.device)
    for part in range(MOST):
        # In units of the part's half sizes every part is a unit cube, cylinder or ball.
        o = ((origin - centre[:, part]) / half[:, part])[:, None]
        d = rays / half[:, part, None]
        met = torch.stack([_cube(o, d), _cylinder(o, d), _ball(o, d)])
        which = kind[:, part].view(1, -1, 1).expand(1, *reach.shape)
        reach = reach.minimum(met.gather(0, which)[0])
    return reach


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave -1 to 1 along each axis."""
    d = torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)
    a, b = (-1 - o) / d, (1 - o) / d
    return a.minimum(b), a.maximum(b)


def _first(enter: Tensor, leave: Tensor) -> Tensor:
    return torch.where((enter <= leave) & (enter > 0), enter, math.inf)


def _cube(o: Tensor, d: Tensor) -> Tensor:
    enter, leave = _slab(o, d)
    return _first(enter.amax(-1), leave.amin(-1))


def _round(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the unit circle or ball of the given axes; never, if the discriminant is negative."""
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    root = b * b - a * c
    miss = root < 0
    s = root.clamp(min=0).sqrt()
    a = a.clamp(min=1e-12)
    return torch.where(miss, math.inf, (-b - s) / a), torch.where(miss, -math.inf, (-b + s) / a)


def _cylinder(o: Tensor, d: Tensor) -> Tensor:
    side, caps = _round(o[..., :2], d[..., :2]), _slab(o[..., 2], d[..., 2])
    return _first(side[0].maximum(caps[0]), side[1].minimum(caps[1]))


def _ball(o: Tensor, d: Tensor) -> Tensor:
    return _first(*_round(o, d))


def _kept(reach: Tensor, rays: Tensor, points: int, at: dict) -> tuple[Tensor, Tensor]:
    """Rays (n, points) whose hits make the cloud, in random order, and how many are distinct (n,).

    `rays` (n,): how many of the window's rays the sensor really sends. A cloud is never empty: at least LEAST hits stay.
    """
    hit, R = reach.isfinite(), reach.shape[1]
    lot = torch.rand(reach.shape, **at)
    sent = lot.argsort(1).argsort(1) < rays.round().clamp(max=R)[:, None]
    order = (lot + 2.0 * ~hit + 1.0 * ~sent).argsort(1)  # sent hits, hits, what met nothing
    count = (hit & sent).sum(1).clamp(min=LEAST).minimum(hit.sum(1)).clamp(1, points)
    place = torch.arange(points, device=reach.device) % count[:, None]
    return order.gather(1, place), count
