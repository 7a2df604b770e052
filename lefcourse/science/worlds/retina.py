"""The world of eyes: one anatomy, seen as a fundus photograph (2-D) or as an OCT volume (3-D).

An eye has an optic disc with a cup, a fovea and six vessels that arch from the disc around the fovea. It is normal or has
one of three diseases, each more or less severe: *drusen* (deposits under the retina around the fovea), *bleeding* (blots beside
vessels) or *glaucoma* (a wide cup, a thin layer of nerve fibres). Both views show all of this, each in its own way. Up to
four spots of either kind are no disease: drusen and bleeding are a matter of how many.

    eyes = retina.make(100, seed=0)                 # anatomy, labels, severity
    x = eyes.fundus(48, generator=g)                # photographs (100, 3, 48, 48), in [0, 1]
    v = eyes.oct(24, generator=g)                   # volumes (100, 1, 24, 24, 24), depth first, in [0, 1]

Coordinates are (right, down), from -1 to 1 over the field of view. Views of the same eyes are pairs; for views without pairs
draw the eyes of each by a generator of its own.
"""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lefcourse.errors import UsageError

CLASSES = ("normal", "drusen", "bleeding", "glaucoma")
NORMAL, DRUSEN, BLEEDING, GLAUCOMA = range(4)
DISC = 0.14  # radius of the optic disc
VESSELS, POINTS, LESIONS = 6, 12, 14
RADII = (0.035, 0.06)  # smallest and largest radius of a lesion
# How far each vessel rises from the line through disc and fovea, and how far it reaches across.
ARCS = ((-0.95, 0.75), (-0.62, 1.45), (-0.36, 0.85), (0.36, 0.85), (0.62, 1.45), (0.95, 0.75))
# Red, green and blue of tissue.
GROUND, BRIGHT, CUP = (0.70, 0.36, 0.20), (0.93, 0.70, 0.45), (1.00, 0.92, 0.72)
VESSEL, BLOOD, DEPOSIT = (0.42, 0.13, 0.09), (0.34, 0.07, 0.05), (0.95, 0.80, 0.42)


_PLACES = ("disc", "fovea", "vessels", "lesions")  # what a mirror moves


@dataclass
class Eyes:
    """The anatomy of N eyes, on one device."""

    label: Tensor  # (N,) int64, index into CLASSES
    severity: Tensor  # (N,) of the disease, in (0, 1]; 0 for a normal eye
    side: Tensor  # (N,) 1: a right eye, whose disc lies to the right; -1: a left one
    disc: Tensor  # (N, 2) centre of the optic disc
    cup: Tensor  # (N,) radius of the cup over that of the disc
    fovea: Tensor  # (N, 2)
    fibres: Tensor  # (N,) thickness of the nerve-fibre layer, in 1/24 of the depth of a volume
    vessels: Tensor  # (N, VESSELS, POINTS, 2) polylines from the disc outwards
    bright: Tensor  # (N,) bool: the eye's lesions are drusen, which are bright; otherwise blots of blood
    lesions: Tensor  # (N, LESIONS, 2) places of drusen or blots
    radius: Tensor  # (N, LESIONS) of each; 0 where there is none

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, which) -> "Eyes":
        """Return the eyes of a slice, mask or index tensor."""
        if isinstance(which, int):
            which = slice(which, which + 1 or None)
        fields = dataclasses.fields(self)
        return Eyes(**{field.name: getattr(self, field.name)[which] for field in fields})

    def mirrored(self) -> "Eyes":
        """Return the same eyes as a mirror shows them: left ones for right ones."""
        flip = torch.tensor([-1.0, 1.0], device=self.side.device)
        places = {name: getattr(self, name) * flip for name in _PLACES}
        return dataclasses.replace(self, side=-self.side, **places)

    def fundus(self, size: int = 48, *, noise: float = 0.025, generator: torch.Generator) -> Tensor:
        """Photograph the eyes: (N, 3, size, size) in [0, 1].

        The generator, on the eyes' device, draws the camera: shading, gain, hue, blur, vignette and noise of standard
        deviation `noise`. Raises UsageError for fewer than 16 pixels or negative noise.
        """
        _check(size, 16, "pixels", noise)
        at = {"generator": generator, "device": self.label.device}
        return _camera(self._in_colour(size, at), noise, at)

    def oct(self, size: int = 24, *, noise: float = 0.25, generator: torch.Generator) -> Tensor:
        """Scan the eyes: (N, 1, size, size, size), depth first, in [0, 1].

        The generator, on the eyes' device, draws tilt and depth of the retina, the depth of blots, the grain of the
        choroid and the speckle, whose standard deviation is `noise` times the signal. Raises UsageError for fewer than 12 voxels
        or negative noise.
        """
        _check(size, 12, "voxels", noise)
        at = {"generator": generator, "device": self.label.device}
        layers = self._layers(size, at)
        speckle = 1 + noise * torch.randn(layers.shape, **at)
        return (layers * speckle + 0.1 * noise * torch.randn(layers.shape, **at)).clamp(0, 1)[
            :, None
        ]

    def _in_colour(self, size: int, at: dict) -> Tensor:
        """Colours of the retina before the camera: (N, 3, size, size)."""
        n, pixel = len(self), 2 / size
        shading = F.interpolate(torch.randn(n, 1, 4, 4, **at), (size, size), mode="bicubic")
        image = _colour(GROUND, at) * (1 + 0.03 * shading)
        yellow = torch.exp(-(self._distance(self.fovea, size) ** 2) / (2 * 0.13**2))
        image = image * (1 - 0.28 * yellow[:, None])
        to_disc = self._distance(self.disc, size)
        image = _paint(image, _inside(to_disc, DISC, pixel), _colour(BRIGHT, at))
        cup = _inside(to_disc, (DISC * self.cup).view(-1, 1, 1), pixel)
        image = _paint(image, cup, _colour(CUP, at))
        image = _paint(image, 0.75 * self.vessel_map(size), _colour(VESSEL, at))
        drusen = self.bright.view(-1, 1, 1)
        blots = self._spots(size)
        image = _paint(image, 0.75 * blots * drusen, _colour(DEPOSIT, at))
        return _paint(image, 0.80 * blots * ~drusen, _colour(BLOOD, at))

    def _distance(self, place: Tensor, size: int) -> Tensor:
        """Distance of every pixel to one place (N, 2) of each eye: (N, size, size)."""
        axis = _axis(size, place.device)
        right, down = (place[:, k, None, None] for k in (0, 1))
        return ((axis - right) ** 2 + (axis[:, None] - down) ** 2).sqrt()

    def _spots(self, size: int) -> Tensor:
        """Share of each pixel that lesions cover: (N, size, size)."""
        covered = torch.zeros(len(self), size, size, device=self.label.device)
        for k in range(LESIONS):
            radius = self.radius[:, k].view(-1, 1, 1)
            covered = covered.maximum(
                _inside(self._distance(self.lesions[:, k], size), radius, 2 / size)
            )
        return covered

    def vessel_map(self, size: int) -> Tensor:
        """Share of each pixel that a vessel covers: (N, size, size). Vessels narrow from 0.035 to 0.012."""
        few = max(1, 600_000 // (size**2 * VESSELS * (POINTS - 1)))  # eyes at once, for the cache
        return torch.cat([_along(part, size) for part in self.vessels.split(few)])

    def _layers(self, size: int, at: dict) -> Tensor:
        """Brightness of every voxel without speckle: (N, size, size, size)."""
        n, unit = len(self), size / 24
        z = (torch.arange(size, device=at["device"]) + 0.5).view(1, -1, 1, 1) / unit
        axis = _axis(size, at["device"])
        tilt = 4 * torch.rand(2, n, 1, 1, **at) - 2
        plane = (
            4.5
            + 0.3 * torch.rand(n, 1, 1, **at)
            + 0.15 * (tilt[0] * axis + tilt[1] * axis[:, None])
        )
        pit = torch.exp(-(self._distance(self.fovea, size) ** 2) / (2 * 0.16**2))
        pigment = plane + 13 - self._lift(size)
        top, plane, pigment, pit = (t[:, None] for t in (plane + 2.5 * pit, plane, pigment, pit))
        fibres = self.fibres.view(-1, 1, 1, 1) * (1 - 0.8 * pit)
        vessels = self.vessel_map(size)[:, None].sqrt()
        grain = F.interpolate(torch.randn(n, 1, 12, 12, 12, **at), (size,) * 3, mode="trilinear")[
            :, 0
        ]

        def below(edge: Tensor) -> Tensor:
            return (0.5 + (z - edge) * unit).clamp(0, 1)

        value = 0.06 + 0.34 * below(top) + 0.35 * (below(top) - below(top + fibres))
        value = value - 0.24 * (below(plane + 9) - below(pigment))
        value = value + 0.50 * (below(pigment) - below(pigment + 2))
        deep = below(plane + 15)
        value = value + deep * (0.10 * grain - 0.03 * (z - plane - 15).clamp_min(0))
        value = value + 0.35 * vessels * (below(top) - below(top + 2.5))
        return self._blots(value * (1 - 0.4 * vessels * below(top + 2.5)), top, z, at)

    def _lift(self, size: int) -> Tensor:
        """How far drusen lift the pigment layer, up to 3 of 24 voxels: (N, size, size)."""
        lifted = torch.zeros(len(self), size, size, device=self.label.device)
        for k in range(LESIONS):
            radius = self.radius[:, k].view(-1, 1, 1)
            bump = torch.exp(-(self._distance(self.lesions[:, k], size) ** 2) / (2 * 0.09**2))
            lifted = lifted.maximum(3 * (radius / RADII[1]) * bump)
        return lifted * self.bright.view(-1, 1, 1)

    def _blots(self, value: Tensor, top: Tensor, z: Tensor, at: dict) -> Tensor:
        """Volumes `value` with balls of blood of 1.5 (of 24) voxels in them, and the shadows below these."""
        depth = 2.5 + 6 * torch.rand(LESIONS, len(self), 1, 1, 1, **at)
        ball, shadow = torch.zeros_like(value), torch.zeros_like(value)
        for k in range(LESIONS):
            there = ((self.radius[:, k] > 0) & ~self.bright).view(-1, 1, 1, 1)
            away = 12 * self._distance(self.lesions[:, k], value.shape[-1])[:, None]
            across = z - top - depth[k]
            ball = ball.maximum((2 - (away**2 + across**2).sqrt()).clamp(0, 1) * there)
            shadow = shadow.maximum((2 - away).clamp(0, 1) * (there & (across > 1.5)))
        return (value * (1 - 0.4 * shadow)).lerp(torch.full_like(value, 0.85), ball)


def make(n: int, *, seed: int = 0, device: str | torch.device = "cpu", **description) -> Eyes:
    """Draw `n` eyes by a seed; `description` as in `sample`."""
    return sample(n, generator=torch.Generator(device=device).manual_seed(seed), **description)


def sample(
    n: int,
    *,
    labels: Tensor | None = None,
    severity: tuple[float, float] = (0.15, 1.0),
    generator: torch.Generator,
) -> Eyes:
    """Draw `n` eyes on the generator's device.

    Args:
        labels: (n,) indices into CLASSES; left out, each class is as likely as any other.
        severity: between which the severity of a disease is uniform.

    Raises UsageError for labels of another number or outside the classes, or a severity outside (0, 1].
    """
    low, high = severity
    if not 0 < low <= high <= 1:
        raise UsageError(f"severity from {low} to {high}: it lies in (0, 1], the smaller one first")
    at = {"generator": generator, "device": generator.device}
    drawn = torch.randint(len(CLASSES), (n,), **at)
    label = drawn if labels is None else _labels(labels, n).to(generator.device)
    s = (low + (high - low) * torch.rand(n, **at)) * (label != NORMAL)
    side = torch.randint(2, (n,), **at) * 2.0 - 1
    u = torch.rand(6, n, **at) * 2 - 1
    disc = torch.stack([0.55 + 0.04 * u[0], 0.06 * u[1]], 1)
    fovea = torch.stack([-0.05 + 0.05 * u[2], 0.05 + 0.06 * u[3]], 1)
    wide, thin = label == GLAUCOMA, 2 * s * (label == GLAUCOMA)
    cup = torch.where(wide, 0.45 + 0.4 * s, 0.40 + 0.15 * u[4])
    vessels = _vessels(disc, at)
    bright, lesions, radius = _lesions(label, s, fovea, vessels, at)
    right = Eyes(
        label,
        s,
        torch.ones_like(side),
        disc,
        cup,
        fovea,
        3 + 0.4 * u[5] - thin,
        vessels,
        bright,
        lesions,
        radius,
    )
    left, choose = right.mirrored(), {}
    for name in ("side", *_PLACES):
        a, b = getattr(right, name), getattr(left, name)
        choose[name] = torch.where((side > 0).view(-1, *[1] * (a.ndim - 1)), a, b)
    return dataclasses.replace(right, **choose)


def _labels(labels: Tensor, n: int) -> Tensor:
    if labels.shape != (n,):
        raise UsageError(f"{n} eyes need labels of shape ({n},), not {tuple(labels.shape)}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        raise UsageError(
            f"labels from {int(labels.min())} to {int(labels.max())}: classes are 0 to {len(CLASSES) - 1}"
        )
    return labels


def _check(size: int, least: int, what: str, noise: float) -> None:
    if size < least:
        raise UsageError(f"{size} {what} a side: at least {least}")
    if noise < 0:
        raise UsageError(f"noise {noise} is negative")


def _vessels(disc: Tensor, at: dict) -> Tensor:
    """Cubic arcs of right eyes (n, VESSELS, POINTS, 2) from the disc (n, 2) to the left, above or below the fovea."""
    n = len(disc)
    t = torch.linspace(0, 1, POINTS, device=disc.device)
    rise, reach = torch.tensor(ARCS, device=disc.device).T[:, None, :, None]
    u = torch.rand(3, n, VESSELS, 1, **at) * 2 - 1
    rise, reach = rise * (1 + 0.15 * u[0]), reach * (1 + 0.15 * u[1])
    left = reach * t**2 * (1.6 - 0.6 * t)  # leaves upright, then turns across
    # Up or down at first, level later, back towards the middle at the end: a cubic.
    up = rise * t * (2.2 - 1.5 * t + 0.3 * t**2) * (1 + 0.12 * u[2] * t)
    return torch.stack([disc[:, 0, None, None] - left, disc[:, 1, None, None] + up], -1)


def _lesions(
    label: Tensor, s: Tensor, fovea: Tensor, vessels: Tensor, at: dict
) -> tuple[Tensor, Tensor, Tensor]:
    """Kind (n,), places (n, LESIONS, 2) and radii (n, LESIONS): drusen around the fovea, blots beside vessels.

    There are 2 + 12 s of them, and none to four, of either kind, where they are no disease.
    """
    n = len(label)
    ill = (label == DRUSEN) | (label == BLEEDING)
    harmless = torch.randint(5, (n,), **at)
    bright = torch.where(ill, label == DRUSEN, torch.rand(n, **at) < 0.5)
    around = fovea[:, None] + 0.2 * torch.randn(n, LESIONS, 2, **at).clamp(-2, 2)
    of = torch.randint(VESSELS * (POINTS - 4), (n, LESIONS, 1), **at)
    point = vessels[:, :, 3:-1].flatten(1, 2).gather(1, of.expand(-1, -1, 2))
    angle = 2 * torch.pi * torch.rand(n, LESIONS, **at)
    beside = point + 0.09 * torch.stack([angle.cos(), angle.sin()], -1)
    places = torch.where(bright.view(-1, 1, 1), around, beside)
    count = torch.where(ill, (2 + 12 * s).round().long(), harmless)
    radius = RADII[0] + (RADII[1] - RADII[0]) * torch.rand(n, LESIONS, **at)
    there = torch.arange(LESIONS, device=label.device) < count[:, None]
    return bright, places.clamp(-0.95, 0.95), radius * there


def _axis(size: int, device: torch.device) -> Tensor:
    """Centres of the pixels along an axis."""
    return (torch.arange(size, device=device) + 0.5) / size * 2 - 1


def _inside(distance: Tensor, radius: Tensor | float, pixel: float) -> Tensor:
    """Share of a pixel that a disc or a line covers, about: of one as wide as the pixel, across the rim."""
    radius = torch.as_tensor(radius, device=distance.device)
    return (0.5 + (radius - distance) / pixel).minimum(2 * radius / pixel).clamp(0, 1)


def _along(vessels: Tensor, size: int) -> Tensor:
    """Share of each pixel that polylines (n, V, P, 2) cover: (n, size, size)."""
    n, device = len(vessels), vessels.device
    a = vessels[:, :, :-1].flatten(1, 2)  # (n, S, 2) where segments start
    d = vessels[:, :, 1:].flatten(1, 2) - a
    length = d.norm(dim=-1, keepdim=True)
    d = d / length
    axis = _axis(size, device)
    p = torch.stack([axis.repeat(size), axis.repeat_interleave(size)])  # (2, size^2)
    # How far along the segment's line a pixel is nearest, and the same kept on the segment.
    free = torch.baddbmm(-(d * a).sum(-1, keepdim=True), d, p.expand(n, 2, -1))
    t = free.clamp_min(0).minimum(length)
    to_start = torch.baddbmm(
        (a**2).sum(-1, keepdim=True) + (p**2).sum(0), -2 * a, p.expand(n, 2, -1)
    )
    distance = to_start.addcmul_(t, t - 2 * free).clamp_min_(0).sqrt_()
    step = torch.arange(POINTS - 1, device=device).repeat(VESSELS).view(-1, 1)
    width = (0.035 - 0.023 * step / (POINTS - 1)) - t.mul_(0.023 / (POINTS - 1) / length)
    covered = (
        (width + 1 / size - distance).minimum(2 * width).amax(1)
    )  # as `_inside`, the best first
    return (covered * (size / 2)).clamp_(0, 1).view(n, size, size)


def _colour(rgb: tuple[float, float, float], at: dict) -> Tensor:
    return torch.tensor(rgb, device=at["device"]).view(1, 3, 1, 1)


def _paint(image: Tensor, cover: Tensor, colour: Tensor) -> Tensor:
    """Lay a colour over images where `cover` (N, H, W) is 1."""
    return image + cover[:, None] * (colour - image)


def _camera(image: Tensor, noise: float, at: dict) -> Tensor:
    """Blur, vignette, gain, hue and noise, others for every photograph."""
    n, _, size, _ = image.shape
    u = torch.rand(8, n, 1, 1, 1, **at)
    blurred = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    image = image + 0.7 * u[0] * (blurred - image)
    axis = _axis(size, at["device"])
    away2 = (axis - 0.15 * (u[1] - 0.5)) ** 2 + (axis[:, None] - 0.15 * (u[2] - 0.5)) ** 2
    image = image * (1 - (0.2 + 0.1 * u[3]) * away2 / 2) * (0.95 + 0.1 * u[4])
    image = image * (1 + 0.08 * (torch.cat([u[5], u[6], u[7]], 1) - 0.5))
    return (image + noise * torch.randn(image.shape, **at)).clamp(0, 1)
