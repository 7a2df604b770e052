"""Detection in miniature: a small two-stage detector, boxes under transformations, matching, average precision.

Everything is batched with a fixed number of slots per image, so that no loop over images is needed:
the objects of B images are `boxes` (B, G, 4), corners x1 y1 x2 y2 in pixels, and `labels` (B, G), class
indices with -1 in empty slots. Classes are 0 ... C - 1; the background is class C.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lefcourse.errors import DataError
from lefcourse.paths import data_root
from lefcourse.science import voc

STRIDE = 4  # pixels of the image per cell of the detector's feature map
HEAD_STD = (
    0.1,
    0.1,
    0.2,
    0.2,
)  # usual spread of the second stage's deltas: they are learned in this unit
BCCD_CLASSES = ("RBC", "WBC", "Platelets")


# --- boxes ---------------------------------------------------------------------------------------


def encode(boxes: Tensor, references: Tensor) -> Tensor:
    """Express boxes (..., 4) as deltas (..., 4) to references (..., 4): shifts in widths, logs of ratios."""
    size, ref_size = _sides(boxes), _sides(references)
    shift = (boxes[..., :2] + boxes[..., 2:] - references[..., :2] - references[..., 2:]) / 2
    return torch.cat([shift / ref_size, (size / ref_size).log()], -1)


def decode(deltas: Tensor, references: Tensor) -> Tensor:
    """Undo `encode`. A side grows by a factor of 8 at most, so that an untrained network stays finite."""
    ref_size = _sides(references)
    centre = (references[..., :2] + references[..., 2:]) / 2 + deltas[..., :2] * ref_size
    half = deltas[..., 2:].clamp(max=math.log(8)).exp() * ref_size / 2
    return torch.cat([centre - half, centre + half], -1)


def _sides(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(1.0)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (..., 4) off at the borders of an image of `size` (height, width)."""
    height, width = size
    return torch.stack([side.clamp(0, limit) for side, limit in zip(
        boxes.unbind(-1), (width, height, width, height), strict=True)], -1)  # fmt: skip


def transport(boxes: Tensor, M: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Move boxes (B, G, 4) by the matrices M (B, 3, 3): the four corners, their upright hull, clipped to `size`.

    M maps a point (x, y, 1) of the old image to the new one. The hull is exact for flips, shifts and
    scales; under a rotation it can only grow.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    corners = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], -1).unflatten(-1, (4, 2))
    moved = torch.einsum("bij,bgcj->bgci", M, F.pad(corners, (0, 1), value=1.0))
    moved = moved[..., :2] / moved[..., 2:]
    hull = torch.cat([moved.amin(-2), moved.amax(-2)], -1)
    return clip(hull, size) if size else hull


def affine(
    size: tuple[int, int],
    *,
    mirrored: Tensor,
    shift: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    angle: Tensor | float = 0.0,
) -> Tensor:
    """Build matrices (B, 3, 3) in pixels: mirror left to right, scale and rotate about the middle, then shift.

    `mirrored` (B,) bool, `shift` (B, 2) pixels right and down, `scale` (B,), `angle` (B,) radians.
    """
    height, width = size
    n, device = len(mirrored), mirrored.device
    sign = torch.where(mirrored, -1.0, 1.0)
    scale = torch.as_tensor(scale, device=device).expand(n)
    angle = torch.as_tensor(angle, device=device).expand(n)
    turn = torch.stack([angle.cos() * sign, -angle.sin(), angle.sin() * sign, angle.cos()], -1)
    turn = turn.view(n, 2, 2) * scale[:, None, None]
    middle = torch.tensor([width / 2, height / 2], device=device)
    moved = middle - turn @ middle + shift
    M = torch.eye(3, device=device).repeat(n, 1, 1)
    M[:, :2, :2], M[:, :2, 2] = turn, moved
    return M


def warp(x: Tensor, M: Tensor, fill: float = 0.5) -> Tensor:
    """Draw the images x (B, C, H, W) moved by M (B, 3, 3), bilinearly; `fill` is what comes in from outside."""
    height, width = x.shape[2:]
    # Pixels to the square [-1, 1] of grid_sample, which wants for each new pixel its place in the old image.
    to_unit = x.new_tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
    theta = to_unit @ torch.linalg.inv(M) @ torch.linalg.inv(to_unit)
    grid = F.affine_grid(theta[:, :2], list(x.shape), align_corners=False)
    return F.grid_sample(x - fill, grid, align_corners=False) + fill


# --- assignment ----------------------------------------------------------------------------------


def match(candidates: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find for each candidate (B, P, 4) the object it overlaps most.

    Returns the overlap (B, P; -1 where an image has no object), the object's slot (B, P), and all
    overlaps (B, P, G) with -1 in empty slots. Overlap is intersection over union.
    """
    from torchvision.ops import box_iou

    iou = torch.where(labels[:, None] >= 0, box_iou(candidates, boxes), -1.0)
    overlap, slot = iou.max(-1)
    return overlap, slot, iou


def take(values: Tensor, slot: Tensor) -> Tensor:
    """Pick `values` (B, G) or (B, G, D) at `slot` (B, P): (B, P) or (B, P, D)."""
    if values.dim() == 2:
        return values.gather(1, slot)
    return values.gather(1, slot[..., None].expand(-1, -1, values.shape[2]))


def sample(
    kind: Tensor,
    size: int,
    positives: int,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw at most `size` candidates of each image, among them at most `positives` positive ones.

    `kind` (B, P): 1 positive, 0 negative, -1 ignored. `noise` (B, P) in [0, 1) replaces the draw.
    Returns their indices (B, size), positives first, and which of these slots are used (B, size).
    """
    if noise is None:
        noise = torch.rand(kind.shape, generator=generator, device=kind.device)
    best = (noise + kind).topk(min(positives, kind.shape[1])).indices
    key = torch.where(kind == 0, noise, -1.0)
    chosen = take(noise, best) + torch.where(take(kind, best) == 1, 1.0, -3.0)
    key = key.scatter(1, best, torch.maximum(chosen, take(key, best)))
    value, index = key.topk(min(size, kind.shape[1]))
    return index, value >= 0


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor | None, threshold: float) -> Tensor:
    """Non-maximum suppression within each image (and group): which boxes (B, P, 4) survive, (B, P) bool.

    `groups` (B, P) are class indices; None treats all boxes of an image as rivals.
    """
    from torchvision.ops import batched_nms

    n, p = scores.shape
    image = torch.arange(n, device=boxes.device)[:, None].expand(n, p)
    rivals = image if groups is None else image * (int(groups.max()) + 1) + groups
    kept = batched_nms(boxes.flatten(0, 1), scores.flatten(), rivals.flatten(), threshold)
    survives = torch.zeros(n * p, dtype=torch.bool, device=boxes.device)
    survives[kept] = True
    return survives.view(n, p)


# --- the detector --------------------------------------------------------------------------------


@dataclass
class Detections:
    """What a detector says about B images, D slots each, best first; an empty slot has label -1 and score 0."""

    boxes: Tensor  # (B, D, 4) pixels
    labels: Tensor  # (B, D) int64
    scores: Tensor  # (B, D) probability of that class

    def above(self, threshold: float) -> "Detections":
        """Empty the slots whose score is not above `threshold`."""
        return self.where(self.scores > threshold)

    def where(self, keep: Tensor) -> "Detections":
        """Empty the slots in which `keep` (B, D) is false."""
        return replace(
            self,
            labels=torch.where(keep, self.labels, -1),
            scores=torch.where(keep, self.scores, 0.0),
        )


class Detector(nn.Module):
    """Faster R-CNN (Ren et al., 2015) in small: a backbone of stride 4, a proposal network, a box head.

    `size` (height, width) of the images in pixels, `anchors` the sides of the square anchors in pixels,
    `widths` the channels of the backbone, `proposals` how many boxes reach the second stage. Images
    (B, 3, H, W) in [0, 1]. The box head refines a box in the same way for every class.
    """

    def __init__(
        self,
        n_classes: int,
        size: tuple[int, int],
        *,
        anchors: Sequence[float] = (12, 18, 26),
        widths: Sequence[int] = (16, 32, 48),
        hidden: int = 128,
        proposals: int = 32,
        pooled: int = 4,
    ):
        super().__init__()
        self.n_classes, self.size, self.n_proposals, self.pooled = (
            n_classes,
            size,
            proposals,
            pooled,
        )
        first, second, dim = widths
        self.backbone = nn.Sequential(
            _block(3, first, 2), _block(first, second, 2), _block(second, dim), _block(dim, dim)
        )
        self.rpn_conv = _block(dim, dim)
        self.rpn_out = nn.Conv2d(dim, 5 * len(anchors), 1)
        self.fc = nn.Sequential(
            nn.Linear(dim * pooled**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.cls = nn.Linear(hidden, n_classes + 1)
        self.reg = nn.Linear(hidden, 4)
        nn.init.zeros_(self.reg.weight)
        self.register_buffer("anchors", _anchor_boxes(size, anchors), persistent=False)
        self.register_buffer("head_std", torch.tensor(HEAD_STD), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """Return the feature map (B, D, H/4, W/4) of images (B, 3, H, W)."""
        return self.backbone((x - 0.5) * 4)

    def rpn(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """First stage: logit of being an object (B, A) and deltas (B, A, 4) for each of A anchors."""
        out = self.rpn_out(self.rpn_conv(features)).permute(0, 2, 3, 1)
        out = out.reshape(len(out), -1, 5)
        return out[..., 0], out[..., 1:]

    @torch.no_grad()
    def propose(self, objectness: Tensor, deltas: Tensor, before: int = 96) -> Tensor:
        """Return the most object-like boxes (B, K, 4) after non-maximum suppression; no gradient passes."""
        score, best = objectness.topk(min(before, objectness.shape[1]))
        anchors = self.anchors.expand(len(best), -1, -1)
        boxes = clip(decode(take(deltas, best), take(anchors, best)), self.size)
        # Survivors come first; where they are fewer than K, suppressed boxes fill the slots.
        ranked = score.sigmoid() + suppress(boxes, score, None, 0.7)
        return take(boxes, ranked.topk(self.n_proposals).indices)

    def head(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Second stage: class logits (B, P, C + 1), background last, and deltas (B, P, 4) for boxes (B, P, 4)."""
        n, p = boxes.shape[:2]
        pooled = pool(features, boxes, self.pooled).reshape(n * p, -1)
        hidden = self.fc(pooled).view(n, p, -1)
        return self.cls(hidden), self.reg(hidden)

    def refine(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Apply the second stage's deltas (B, P, 4) to boxes (B, P, 4), clipped to the image."""
        return clip(decode(deltas * self.head_std, boxes), self.size)

    @torch.no_grad()
    def detect(self, features: Tensor, *, threshold: float = 0.05, slots: int = 20) -> Detections:
        """Run both stages on the feature map of B images, with suppression (0.5) within each class."""
        proposals = self.propose(*self.rpn(features))
        logits, deltas = self.head(features, proposals)
        boxes = self.refine(proposals, deltas)
        scores, best = logits.softmax(-1)[..., :-1].flatten(1).topk(3 * slots)
        boxes, labels = take(boxes, best // self.n_classes), best % self.n_classes
        kept = suppress(boxes, scores, labels, 0.5) & (scores > threshold)
        scores, order = torch.where(kept, scores, 0.0).topk(slots)
        found = Detections(take(boxes, order), take(labels, order), scores)
        return found.where(scores > 0)


def pool(features: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Read side x side features from each box (B, P, 4) in pixels: (B, P, D, side, side).

    Equal to torchvision's `roi_align` with one sample in each cell, but through `grid_sample`, whose
    gradient takes less than half the time on a CPU.
    """
    height, width = (s * STRIDE for s in features.shape[2:])
    at = (torch.arange(side, device=boxes.device) + 0.5) / side
    x = boxes[..., 0, None] + (boxes[..., 2] - boxes[..., 0])[..., None] * at  # (B, P, side)
    y = boxes[..., 1, None] + (boxes[..., 3] - boxes[..., 1])[..., None] * at
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None], y[..., None]), -1)
    grid = grid.flatten(2, 3) * 2 / grid.new_tensor([width, height]) - 1
    grid = grid.nan_to_num()  # the gradient of a place that is no number would crash the process
    read = F.grid_sample(features, grid.detach(), padding_mode="border", align_corners=False)
    return read.permute(0, 2, 1, 3).unflatten(-1, (side, side))


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _anchor_boxes(size: tuple[int, int], sides: Sequence[float]) -> Tensor:
    """Square boxes (A, 4) of every side around every cell, in the order of the proposal network's outputs."""
    rows, columns = (-(-s // STRIDE) for s in size)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = (torch.stack([x, y], -1).float() + 0.5) * STRIDE
    half = torch.tensor(sides, dtype=torch.float)[None, None, :, None] / 2
    return torch.cat([centre[:, :, None] - half, centre[:, :, None] + half], -1).view(-1, 4)


def rpn_loss(
    model: Detector,
    objectness: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    size: int = 64,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Loss of the first stage, (B,) one value per image: objectness and box deltas of `size` sampled anchors.

    Anchors that overlap an object by at least 0.6, and each object's best anchor, are positive; those
    under 0.3 are negative; what lies between is ignored. At most half of the sample is positive.
    """
    anchors = model.anchors.expand(len(boxes), -1, -1)
    overlap, slot, iou = match(anchors, boxes, labels)
    best = iou.amax(1, keepdim=True).clamp_min(0.1)
    positive = (overlap >= 0.6) | (iou >= best).any(-1)
    kind = torch.where(positive, 1, torch.where(overlap < 0.3, 0, -1))
    index, used = sample(kind, size, size // 2, generator=generator, noise=noise)
    is_object = take(kind, index) == 1
    bce = F.binary_cross_entropy_with_logits(
        take(objectness, index), is_object.float(), reduction="none"
    )
    target = encode(take(boxes, take(slot, index)), take(anchors, index))
    error = F.smooth_l1_loss(take(deltas, index), target, beta=1 / 9, reduction="none").sum(-1)
    per_image = torch.where(used, bce, 0.0) + torch.where(used & is_object, error, 0.0)
    return per_image.sum(1) / used.sum(1).clamp_min(1)


# --- evaluation ----------------------------------------------------------------------------------


@torch.no_grad()
def detect_all(model: Detector, x: Tensor, batch: int = 128, **settings) -> Detections:
    """Detect on all images x (N, 3, H, W), a batch at a time; `settings` as for `Detector.detect`."""
    parts = [model.detect(model.features(part), **settings) for part in x.split(batch)]
    return Detections(
        *(torch.cat([getattr(p, f) for p in parts]) for f in ("boxes", "labels", "scores"))
    )


def average_precision(found: Detections, boxes: Tensor, labels: Tensor) -> dict[str, float]:
    """Return COCO's average precision, `ap` (over IoU 0.5, 0.55 ... 0.95), `ap50` and `ap75`, by pycocotools.

    `boxes` (N, G, 4) and `labels` (N, G; -1 in empty slots) are the truth. Means over the classes present.
    """
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(boxes))],
            "categories": [{"id": int(c)} for c in labels[labels >= 0].unique()],
            "annotations": [a | {"iscrowd": 0} for a in _coco(boxes, labels)],
        }
        truth.createIndex()
        said = COCO()
        said.dataset = truth.dataset | {
            "annotations": _coco(found.boxes, found.labels, found.scores)
        }
        said.createIndex()
        judge = COCOeval(truth, said, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: float(judge.stats[k]) for k, name in enumerate(("ap", "ap50", "ap75"))}


def _coco(boxes: Tensor, labels: Tensor, scores: Tensor | None = None) -> list[dict]:
    """List the used slots as COCO writes annotations; ids start at one, because zero means none there."""
    image, slot = (labels >= 0).nonzero(as_tuple=True)
    corner, side = boxes[image, slot, :2], _sides(boxes[image, slot])
    rows = zip(
        image.tolist(),
        labels[image, slot].tolist(),
        torch.cat([corner, side], 1).tolist(),
        (boxes.new_zeros(boxes.shape[:2]) if scores is None else scores)[image, slot].tolist(),
        strict=True,
    )
    return [
        {"id": k, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "score": s}
        for k, (i, c, b, s) in enumerate(rows, start=1)
    ]


# --- real images ---------------------------------------------------------------------------------


def bccd(
    size: tuple[int, int] = (120, 160), *, device: str | torch.device = "cpu"
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Load the blood cells of BCCD: for `trainval` and `test` the images, boxes and labels.

    Images (N, 3, *size) float32 in [0, 1], boxes (N, G, 4) in pixels of the resized image, labels (N, G)
    into BCCD_CLASSES. Not every cell is annotated there, which bounds what a detector can score.
    Raises DataError, which says what to put where, if the files are absent, and which names the file that is damaged.
    """
    parts = {}
    for part, listed in bccd_files().items():
        images = [_picture(noted.picture, size) for noted in listed]
        objects = [_scaled(noted, size) for noted in listed]
        slots = max(len(o) for o in objects)
        boxes, labels = torch.zeros(len(listed), slots, 4), torch.full((len(listed), slots), -1)
        for i, found in enumerate(objects):
            for k, (label, box) in enumerate(found):
                boxes[i, k], labels[i, k] = torch.tensor(box), label
        x = torch.stack(images).to(device).float().div_(255)
        parts[part] = (x, boxes.to(device), labels.to(device))
    return parts


def bccd_files() -> dict[str, list[voc.Noted]]:
    """Return for `trainval` and `test` each image's file and what its annotation says, all of them there and well-formed.

    Pictures are not decoded here. Raises DataError, which names the file, if one is absent or damaged.
    """
    root, parts = data_root() / "BCCD", {}
    for part in ("trainval", "test"):
        listed = root / "ImageSets" / "Main" / f"{part}.txt"
        if not listed.is_file():
            raise DataError(
                f"BCCD is absent: put {voc.FOLDERS} (from "
                f"github.com/Shenggan/BCCD_Dataset) into {root}, or set LEFCOURSE_DATA to the folder above; "
                f"there is no file {listed}"
            )
        parts[part] = voc.read(listed, BCCD_CLASSES)
    return parts


def _picture(file: Path, size: tuple[int, int]) -> Tensor:
    """Read one image, resized: (3, *size) uint8."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except Exception as problem:  # Pillow's plug-ins report a damaged file in many ways
        raise DataError(f"{file} is broken ({problem}): replace it") from None
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _scaled(noted: voc.Noted, size: tuple[int, int]) -> list[tuple[int, tuple[float, ...]]]:
    """Return the objects of one image: class index and box in pixels of the resized image, each."""
    width, height = noted.extent
    scale = np.array([size[1] / width, size[0] / height] * 2)
    scaled = [
        (BCCD_CLASSES.index(name), tuple((np.array(corners) * scale).tolist()))
        for name, corners in noted.objects
    ]
    # A few annotations are empty.
    return [(label, b) for label, b in scaled if min(b[2] - b[0], b[3] - b[1]) > 1]
