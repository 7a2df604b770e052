"""The world of volumes: scans of something like a heart, with a label for every voxel.

A scan is a stack of slices across the long axis. In each slice the left ventricle is a disc, its wall a
ring around the disc, and the right ventricle a crescent beside the ring; all three taper towards the apex.
Elsewhere lie *distractors*, round vessels as bright as blood, so that brightness alone does not tell what
belongs to the heart. Patients differ in pose and in contrast; a scan has a bias field and Rician noise.

    scans = volumes.make(12, seed=0)                # 12 patients: image, mask
    x, y = scans.slices(4)                          # 48 slices (48, 1, 48, 48), and their labels
    few = volumes.make(4, seed=1, spread=0.2)       # patients that hardly differ from each other

P patients, D slices of H x H pixels. Coordinates run from -1 to 1 over the stack and over a slice.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lefcourse.errors import UsageError

CLASSES = ("background", "right ventricle", "wall", "left ventricle")
# What differs between patients: middle and half of the range, which `spread` scales.
PATIENTS = dict(
    right=(0.0, 0.32), down=(0.0, 0.32),  # where the heart lies
    angle=(0.0, 1.2),  # radians, where the right ventricle lies around it
    radius=(0.24, 0.07), wall=(0.115, 0.035),  # of the left ventricle in the middle slice
    crescent=(1.0, 0.25),  # size of the right ventricle over that of the left
    tilt=(0.0, 0.15),  # how far the axis drifts from base to apex
    blood=(0.78, 0.14), muscle=(0.42, 0.10), body=(0.25, 0.10),  # brightness
    bias=(0.0, 0.35),  # strength of the bias field
)  # fmt: skip


@dataclass
class Scans:
    """P scans with their labels, on one device."""

    image: Tensor  # (P, 1, D, H, H) float32, about 0 to 1
    mask: Tensor  # (P, D, H, H) int64, indices into CLASSES

    def __len__(self) -> int:
        return len(self.image)

    def slices(self, per_scan: int) -> tuple[Tensor, Tensor]:
        """Return `per_scan` slices of every scan, evenly spaced: (P * per_scan, 1, H, H) and labels (P * per_scan, H, H).

        Slices of one patient lie together. Raises UsageError for more slices than there are.
        """
        depth = self.mask.shape[1]
        if not 1 <= per_scan <= depth:
            raise UsageError(f"{per_scan} slices per scan: a scan has 1 to {depth}")
        at = ((torch.arange(per_scan) + 0.5) * depth / per_scan).long().to(self.mask.device)
        return self.image[:, :, at].transpose(1, 2).flatten(0, 1), self.mask[:, at].flatten(0, 1)


def make(n: int, *, seed: int = 0, device: str | torch.device = "cpu", **description) -> Scans:
    """Draw `n` scans by a seed; `description` as in `sample`."""
    return sample(n, generator=torch.Generator(device=device).manual_seed(seed), **description)


def sample(
    n: int,
    *,
    size: int = 48,
    depth: int = 16,
    spread: float = 1.0,
    noise: float = 0.06,
    distractors: int = 4,
    generator: torch.Generator,
) -> Scans:
    """Draw `n` scans on the generator's device.

    Args:
        size, depth: pixels of a slice's side, number of slices.
        spread: how much patients differ in pose and contrast: 1 is the whole range, 0 one patient.
        noise: standard deviation of each of the two parts of the Rician noise.
        distractors: round vessels per scan.

    Raises UsageError for a spread outside [0, 1] or a slice of less than 16 pixels.
    """
    if not 0 <= spread <= 1:
        raise UsageError(f"spread {spread} is outside [0, 1]")
    if size < 16 or depth < 1:
        raise UsageError(f"{depth} slices of {size} pixels: at least one slice of 16 pixels")
    at = {"generator": generator, "device": generator.device}
    u = 2 * torch.rand(len(PATIENTS), n, **at) - 1
    patient = {
        name: (middle + spread * half * u[k]).view(n, 1, 1, 1)
        for k, (name, (middle, half)) in enumerate(PATIENTS.items())
    }
    z, y, x = _coordinates(depth, size, generator.device)
    wall_and_blood, right = _heart(patient, z, y, x)
    mask = torch.where(right < 0, 1, 0)
    mask = torch.where(wall_and_blood < 0, 2, mask)
    mask = torch.where(wall_and_blood < -patient["wall"], 3, mask)
    vessels = _vessels(n, distractors, z, y, x, torch.minimum(wall_and_blood, right), at)
    return Scans(_photograph(patient, mask, vessels, noise, at)[:, None], mask)


def _coordinates(depth: int, size: int, device: torch.device) -> list[Tensor]:
    """Centres of the voxels along each axis, for (P, D, H, H)."""
    ends = [(torch.arange(k, device=device) + 0.5) / k * 2 - 1 for k in (depth, size, size)]
    return [axis.view([-1 if k == d else 1 for k in range(4)]) for d, axis in enumerate(ends, 1)]


def _heart(patient: dict, z: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distances (P, D, H, H), negative inside: to the outside of the left wall, and to the right ventricle."""
    taper = (1 - (0.45 * (z + 1)) ** 2).sqrt()  # 1 at the base, 0.44 at the apex
    dx = x - 0.55 * patient["right"] - patient["tilt"] * z
    dy = y - 0.55 * patient["down"]
    cos, sin = patient["angle"].cos(), patient["angle"].sin()
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    radius = patient["radius"] * taper
    outer = radius + patient["wall"]
    left = (along**2 + across**2).sqrt() - outer
    # A larger disc that lies to one side, without what the left ventricle covers.
    big = outer * (0.6 + 0.55 * patient["crescent"])
    beside = ((along + 0.95 * outer) ** 2 + across**2).sqrt() - big
    return left, torch.maximum(beside, 0.03 - left)


def _vessels(
    n: int, count: int, z: Tensor, y: Tensor, x: Tensor, heart: Tensor, at: dict
) -> Tensor:
    """Where round vessels run that keep away from the heart: (P, D, H, H) bool."""
    where = torch.rand(count, 4, n, 1, 1, 1, **at)
    inside = torch.zeros_like(heart, dtype=torch.bool)
    for right, down, drift, thick in where:
        angle = 2 * math.pi * right
        distance = 0.62 + 0.3 * down
        dx = x - distance * angle.cos() - 0.4 * (drift - 0.5) * z
        dy = y - distance * angle.sin()
        inside |= (dx**2 + dy**2).sqrt() < 0.07 + 0.09 * thick
    return inside & (heart > 0.08)


def _photograph(patient: dict, mask: Tensor, vessels: Tensor, noise: float, at: dict) -> Tensor:
    """Turn tissue into brightness (P, D, H, H): contrast, texture, blur, bias field, Rician noise."""
    n, depth, size, _ = mask.shape
    blood, muscle, body = (patient[k].expand(mask.shape) for k in ("blood", "muscle", "body"))
    coarse = torch.randn(n, 1, 4, 8, 8, **at)
    texture = F.interpolate(coarse, (depth, size, size), mode="trilinear", align_corners=False)[
        :, 0
    ]
    image = torch.where((mask == 1) | (mask == 3) | vessels, blood, body + 0.06 * texture)
    image = torch.where(mask == 2, muscle, image)
    image = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)  # partial volumes
    slope = torch.rand(3, n, 1, 1, 1, **at) * 2 - 1
    field = sum(
        s * axis for s, axis in zip(slope, _coordinates(depth, size, image.device), strict=True)
    )
    image = image * (patient["bias"] * field / 1.7).exp()
    parts = torch.randn(2, *image.shape, **at) * noise
    return ((image + parts[0]) ** 2 + parts[1] ** 2).sqrt()
