"""What chapters on segmentation share: a small U-Net for slices and for volumes, and how masks are compared.

N images, C channels, K classes (0 is the background); spatial shape (H, W) or (D, H, W).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from lefcourse.errors import UsageError, choice
from lefcourse.science import evaluate

KINDS = {2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d), 3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)}
NORMS = ("batch", "group")
GROUPS = 4  # of channels, in group normalisation


class UNet(nn.Module):
    """A U-Net with two normalised convolutions on each level, and nearest upsampling.

    `norm`: `batch`, or `group` (four groups of channels), which does not depend on who else is in the batch.

    Ronneberger, Fischer, Brox: U-Net (MICCAI 2015); Çiçek et al.: 3D U-Net (MICCAI 2016).
    """

    def __init__(
        self, channels: int, n_classes: int, widths=(12, 24, 48), dims: int = 2, norm: str = "batch"
    ):
        super().__init__()
        choice("norm", norm, NORMS)
        if dims not in KINDS:
            raise UsageError(f"a U-Net has 2 or 3 dimensions, not {dims}")
        self.dims = dims
        conv, batch_norm, pool = KINDS[dims]

        def level(inputs: int, outputs: int) -> nn.Sequential:
            layers = []
            for a, b in ((inputs, outputs), (outputs, outputs)):
                normal = batch_norm(b) if norm == "batch" else nn.GroupNorm(GROUPS, b)
                layers += [conv(a, b, 3, padding=1, bias=False), normal, nn.ReLU()]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList(level(a, b) for a, b in pairwise((channels, *widths)))
        self.up = nn.ModuleList(level(a + b, b) for a, b in reversed(list(pairwise(widths[::-1]))))
        self.up = self.up[::-1]  # from the coarsest level to the finest
        self.pool, self.grow = pool(2), nn.Upsample(scale_factor=2, mode="nearest")
        self.head = conv(widths[0], n_classes, 1)
        if dims == 2 and norm == "batch":  # faster on a CPU, where group normalisation is slower
            self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer (N, widths[0], ...) of images x (N, C, ...).

        Raises UsageError if a side cannot be halved once per level.
        """
        halved = 2 ** (len(self.down) - 1)
        if x.ndim != self.dims + 2 or any(side % halved for side in x.shape[2:]):
            raise UsageError(
                f"a U-Net in {self.dims} dimensions takes (N, C, ...) with sides divisible by {halved}, not {tuple(x.shape)}"
            )
        seen = []
        for k, level in enumerate(self.down):
            x = level(self.pool(x) if k else x)
            seen.append(x)
        for level, finer in zip(self.up, reversed(seen[:-1]), strict=True):
            x = level(torch.cat([self.grow(x), finer], 1))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K, ...) of images x (N, C, ...)."""
        return self.head(self.features(x))


def predict(model: nn.Module, x: Tensor, batch: int = 32) -> Tensor:
    """Return the class of every pixel, (N, ...) int64, in evaluation mode; the model's mode is restored."""
    return evaluate.predict(model, x, batch).argmax(1)


def dice(predicted: Tensor, truth: Tensor, n_classes: int) -> Tensor:
    """Mean Dice coefficient of each foreground class over the images: (K - 1,), from torchmetrics.

    predicted, truth: (N, ...) int64. An image in which neither shows a class does not count for it.
    """
    from torchmetrics.functional.segmentation import dice_score

    scores = dice_score(
        predicted.flatten(1), truth.flatten(1), n_classes, include_background=False,
        average="none", input_format="index",
    )  # fmt: skip
    shown = torch.stack(
        [((predicted == k) | (truth == k)).flatten(1).any(1) for k in range(1, n_classes)], 1
    )
    return (scores.nan_to_num() * shown).sum(0) / shown.sum(0).clamp(min=1)


def hausdorff95(predicted: Tensor, truth: Tensor, n_classes: int) -> Tensor:
    """Mean 95 % Hausdorff distance in pixels of each foreground class: (K - 1,).

    The larger of two 95th percentiles: of the distances from the border of the one to the border of the
    other, and back. A class that only one of both shows counts as the image's diagonal, and one
    that neither shows does not count.
    """
    distances = torch.full((len(truth), n_classes - 1), torch.nan, dtype=torch.float64)
    for i, (a, b) in enumerate(zip(predicted.cpu().numpy(), truth.cpu().numpy(), strict=True)):
        for k in range(1, n_classes):
            distances[i, k - 1] = _hausdorff95(a == k, b == k)
    return distances.nanmean(0)


def _hausdorff95(a, b) -> float:
    import numpy as np
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not a.any() or not b.any():
        return float(np.linalg.norm(a.shape)) if a.any() or b.any() else np.nan
    rims = [mask & ~binary_erosion(mask) for mask in (a, b)]
    ways = [distance_transform_edt(~rim)[other] for rim, other in (rims, rims[::-1])]
    return float(max(np.percentile(way, 95) for way in ways))
