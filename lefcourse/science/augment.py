"""Random changes of images, in batches on the device, another one for every sample.

All functions take images `x` (N, C, H, W) in [0, 1] and return new ones of the same shape. Their
randomness is `draws` (N, k), uniform in [0, 1): taken from `generator` (on the device of `x`), or
given, so that a change can be repeated, tested, and applied to a mask as well.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Generator = torch.Generator | None


def uniform(x: Tensor, k: int, generator: Generator, draws: Tensor | None) -> Tensor:
    """Return the `k` draws of each sample as (k, N): the given ones (N, k), or new ones."""
    if draws is None:
        draws = torch.rand(len(x), k, generator=generator, device=x.device)
    return draws.T


def shift(
    x: Tensor,
    max_px: int,
    *,
    mode: str = "constant",
    generator: Generator = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Move each image by up to `max_px` whole pixels down and right, or up and left.

    `mode`: how `torch.nn.functional.pad` fills the gap (`constant` is black). Draws (N, 2): vertical
    and horizontal; 0 is `max_px` up or left, 0.5 no move.
    """
    n, channels, height, width = x.shape
    moves = (uniform(x, 2, generator, draws) * (2 * max_px + 1)).long() - max_px
    padded = F.pad(x, (max_px,) * 4, mode=mode)
    rows = torch.arange(height, device=x.device) + max_px - moves[0, :, None]  # (N, H)
    columns = torch.arange(width, device=x.device) + max_px - moves[1, :, None]  # (N, W)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (N, H, W)
    places = places.view(n, 1, -1).expand(n, channels, -1)
    return padded.flatten(2).gather(2, places).view_as(x)


def crop_pad(
    x: Tensor, pad: int, *, generator: Generator = None, draws: Tensor | None = None
) -> Tensor:
    """Mirror `pad` pixels at each border and cut out an image of the old size (usual for CIFAR-10)."""
    return shift(x, pad, mode="reflect", generator=generator, draws=draws)


def flip(
    x: Tensor, p: float = 0.5, *, generator: Generator = None, draws: Tensor | None = None
) -> Tensor:
    """Mirror each image left to right with probability `p`. Draws (N, 1): below `p` it is mirrored."""
    (u,) = uniform(x, 1, generator, draws)
    return torch.where(per_sample(u < p), x.flip(-1), x)


def cutout(
    x: Tensor,
    size: int,
    *,
    fill: float = 0.0,
    generator: Generator = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Paint a square of `size` pixels in each image with `fill`: DeVries and Taylor (2017).

    Its centre is any pixel, so that the square may stick out. Draws (N, 2): row and column.
    """
    height, width = x.shape[2:]
    row, column = uniform(x, 2, generator, draws)
    top = (row * height).long() - size // 2
    left = (column * width).long() - size // 2
    return torch.where(_box(x, top, left, size, size), fill, x)


def affine(
    x: Tensor,
    degrees: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    translate: float = 0.0,
    *,
    generator: Generator = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Turn, zoom and move each image (bilinear, black outside).

    The angle is within +-`degrees` (counter-clockwise), the factor log-uniform in `scale`, the move
    within +-`translate` of the side. Draws (N, 4): angle, factor, right, down; 0.5 is the middle.
    """
    angle, zoom, right, down = uniform(x, 4, generator, draws)
    low, high = (math.log(s) for s in scale)
    matrix = affine_matrix(
        math.radians(degrees) * (2 * angle - 1),
        (low + (high - low) * zoom).exp(),
        translate * (2 * right - 1),
        translate * (2 * down - 1),
    )
    return warp(x, matrix)


def affine_matrix(angle: Tensor, zoom: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return the matrices (N, 2, 3) that `warp` takes: turn by `angle` (radians), zoom, then move.

    All arguments are (N,), the moves in sides of the image. The matrices lead from places in the new image to places in the old one, in half sides from the centre.
    """
    c, s = angle.cos() / zoom, angle.sin() / zoom
    dx, dy = 2 * right, 2 * down
    rows = [c, -s, s * dy - c * dx, s, c, -s * dx - c * dy]
    return torch.stack(rows, 1).view(-1, 2, 3)


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Resample each image (square, bilinear, black outside) through its matrix (N, 2, 3)."""
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def colour_jitter(
    x: Tensor,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    *,
    generator: Generator = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Scale brightness, contrast and saturation by factors within 1 +- the value given, in this order.

    Draws (N, 3); 0.5 is the factor 1. Saturation leaves grey images alone.
    """
    ranges = torch.tensor([brightness, contrast, saturation], device=x.device)
    factors = 1 + ranges[:, None] * (2 * uniform(x, 3, generator, draws) - 1)
    x = (x * per_sample(factors[0])).clamp(0, 1)
    x = _away_from(_grey(x).mean((2, 3), keepdim=True), x, factors[1])
    return _away_from(_grey(x), x, factors[2])


def randaugment(
    x: Tensor,
    n: int = 2,
    magnitude: float = 1.0,
    *,
    generator: Generator = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Apply `n` operations of OPERATIONS to each image, each of random kind, strength and direction.

    The operations of FixMatch (Sohn et al., 2020, Table 12), after Cubuk et al. (2020). The strength is
    uniform from 0 to `magnitude` (at most 1, which is: factors 0.05 and 1.95, 30 degrees, 0.3 of the
    side, 4 bits). Draws (N, 2 n): kind and signed strength, in turn; 0.5 is strength 0. FixMatch and
    UDA put `cutout` after it.
    """
    draws = uniform(x, 2 * n, generator, draws)
    for layer in range(n):
        kinds = (draws[2 * layer] * len(OPERATIONS)).long()
        strengths = magnitude * (2 * draws[2 * layer + 1] - 1)
        changed = x.clone()
        for kind, operation in enumerate(OPERATIONS.values()):
            mine = (kinds == kind).nonzero().flatten()
            if len(mine):
                changed[mine] = operation(x[mine], strengths[mine])
        x = changed
    return x


def mixup(
    x: Tensor,
    targets: Tensor,
    alpha: float,
    *,
    generator: Generator = None,
    lam: Tensor | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Blend each image and its target (N, K) with those of a random partner: Zhang et al. (2018).

    `lam` (N,): the share of the sample itself, one for each, from Beta(alpha, alpha); `order` (N,): the
    partners, a random permutation. Give them, or let them be drawn.
    """
    if lam is None:
        lam = beta(alpha, len(x), x.device, generator)
    if order is None:
        order = torch.randperm(len(x), generator=generator, device=x.device)
    share = per_sample(lam)
    mixed = share * x + (1 - share) * x[order]
    return mixed, lam[:, None] * targets + (1 - lam[:, None]) * targets[order]


def beta(alpha: float, n: int, device: torch.device, generator: Generator = None) -> Tensor:
    """Draw `n` numbers from Beta(alpha, alpha). (`torch.distributions` takes no generator.)"""
    # In double precision the gamma variates of a small alpha do not underflow to 0 / 0.
    shape = torch.full((2, n), alpha, dtype=torch.float64, device=device)
    a, b = torch._standard_gamma(shape, generator=generator)
    return (a / (a + b)).float()


def cutmix_box(
    x: Tensor, lam: Tensor, *, generator: Generator = None, draws: Tensor | None = None
) -> Tensor:
    """Draw a box of about the share `1 - lam` (N,) of each image: a mask (N, 1, H, W), true inside.

    Yun et al. (2019), but the box always lies within the image. Draws (N, 2): its row and column.
    """
    height, width = x.shape[2:]
    row, column = uniform(x, 2, generator, draws)
    tall, wide = (((1 - lam).sqrt() * side).round().long() for side in (height, width))
    top = (row * (height - tall + 1)).long()
    left = (column * (width - wide + 1)).long()
    return _box(x, top, left, tall, wide)


def per_sample(values: Tensor) -> Tensor:
    """Shape one value for each sample (N,) so that it multiplies images: (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def _box(x: Tensor, top: Tensor, left: Tensor, tall: Tensor | int, wide: Tensor | int) -> Tensor:
    """Mask (N, 1, H, W) that is true in one rectangle for each sample (in pixels)."""
    row = torch.arange(x.shape[2], device=x.device)
    column = torch.arange(x.shape[3], device=x.device)
    inside_rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
    inside_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device)
    return (x * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def _away_from(reference: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """Blend: factor 0 gives the reference, 1 the image, more than 1 exaggerates."""
    return (reference + per_sample(factor) * (x - reference)).clamp(0, 1)


# The operations of randaugment: images and strengths s (N,) in [-1, 1] to images.


def _autocontrast(x: Tensor, s: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x)


def _equalize(x: Tensor, s: Tensor) -> Tensor:
    # As in Pillow, an image of fewer than 255 pixels stays as it is.
    from torchvision.transforms.v2.functional import equalize

    return equalize((x * 255).round().to(torch.uint8)).float() / 255


def _posterize(x: Tensor, s: Tensor) -> Tensor:
    step = per_sample(2 ** (4 * s.abs()).round())  # 8 bits at s = 0, 4 bits at |s| = 1
    return ((x * 255).round() / step).floor() * step / 255


def _sharpness(x: Tensor, s: Tensor) -> Tensor:
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=x.device) / 13
    kernel = kernel.expand(x.shape[1], 1, 3, 3)
    smooth = F.conv2d(F.pad(x, (1,) * 4, mode="replicate"), kernel, groups=x.shape[1])
    return _away_from(smooth, x, 1 + 0.95 * s)


def _solarize(x: Tensor, s: Tensor) -> Tensor:
    return torch.where(x > per_sample(1 - s.abs()), 1 - x, x)


def _shear(x: Tensor, s: Tensor, vertical: bool) -> Tensor:
    matrix = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    matrix[:, int(vertical), 1 - int(vertical)] = 0.3 * s
    return warp(x, matrix)


def _turn(x: Tensor, s: Tensor) -> Tensor:
    return warp(x, affine_matrix(math.radians(30) * s, torch.ones_like(s), 0 * s, 0 * s))


def _move(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    return warp(x, affine_matrix(0 * right, torch.ones_like(right), 0.3 * right, 0.3 * down))


OPERATIONS = {
    "identity": lambda x, s: x,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "brightness": lambda x, s: (x * per_sample(1 + 0.95 * s)).clamp(0, 1),
    "contrast": lambda x, s: _away_from(_grey(x).mean((2, 3), keepdim=True), x, 1 + 0.95 * s),
    "colour": lambda x, s: _away_from(_grey(x), x, 1 + 0.95 * s),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "rotate": _turn,
    "shear_x": lambda x, s: _shear(x, s, vertical=False),
    "shear_y": lambda x, s: _shear(x, s, vertical=True),
    "translate_x": lambda x, s: _move(x, s, 0 * s),
    "translate_y": lambda x, s: _move(x, 0 * s, s),
}
