"""Images with several labels, of which only some are known: data, what annotators leave out, and what a model is worth.

    data = lc.manylabels.load("scenes", seed=0, train=2000, val=500, test=1000, classes=12, tail=20.0)
    seen = lc.manylabels.observe(data.y_train, 0.1, "small", data.area_train, generator)

Labels are (N, C): 1 present, 0 absent. What is observed of them is 1 (known to be there), -1 (known not to be there) or
0 (unknown).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lefcourse.errors import DataError, UsageError, choice
from lefcourse.paths import data_root
from lefcourse.progress import progress
from lefcourse.science import folders, voc
from lefcourse.science.nets import Classifier
from lefcourse.science.worlds import scenes

PARTS = ("train", "val", "test")
LOST = ("random", "small")
YEARS = ("2007", "2012")  # of Pascal VOC, which torchvision can download


@dataclass(repr=False)
class ManyLabels:
    """Images in three parts, with all labels. On one device; C classes.

    `x_*` (N, 3, H, H) float32 in [0, 1]; `y_*` (N, C) float32, 0 or 1; `area_*` (N, C), the share of the picture in
    which each class shows (for annotated photographs that of its largest box).
    """

    name: str
    classes: list[str]
    x_train: Tensor
    y_train: Tensor
    area_train: Tensor
    x_val: Tensor
    y_val: Tensor
    area_val: Tensor
    x_test: Tensor
    y_test: Tensor
    area_test: Tensor
    covers: Mapping[str, Callable[[int], Tensor]]

    def cover(self, part: str, grid: int) -> Tensor:
        """Share of each cell of a grid in which each class shows: (N, C, grid, grid), rows from the top.

        Of scenes the visible pixels count, of photographs the boxes. Raises UsageError for an unknown part and for a
        grid that does not divide the side of the images.
        """
        choice("part", part, PARTS)
        if not 1 <= grid <= self.size or self.size % grid:
            raise UsageError(f"grid={grid}: a number that divides the images' side, {self.size}")
        return self.covers[part](grid)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return self.x_train.shape[-1]

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, f'x_{part}')):,} {part}" for part in PARTS)
        present = self.y_train.sum(1).mean().item()
        return (
            f"ManyLabels({self.name!r}, {counts}, {self.size} x {self.size} pixels, {self.n_classes} classes, "
            f"{present:.1f} present in an image)"
        )


def check_name(name: str) -> str:
    """Return `name` if `load` knows it; otherwise raise UsageError, nearest spelling first."""
    kind, _, path = name.partition(":")
    known = ("scenes", *(f"voc{year}" for year in YEARS), "voc:PATH")
    return name if kind == "voc" and path else choice("data set", name, known)


def load(
    name: str,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    train: int = 2000,
    val: int = 500,
    test: int = 1000,
    size: int = 32,
    **description,
) -> ManyLabels:
    """Load images with several labels and split them by `seed`.

    Args:
        name: `scenes`, generated; `voc2007` or `voc2012`, read from the data root or downloaded by torchvision; or
            `voc:PATH`, a reader's own folder in the format of Pascal VOC, whose test images are those of its list
            `test` if it has one that is not empty, else some of the others.
        description: what shall be hard about the scenes (see `worlds.scenes.sample`); photographs are as they are. A
            long tail concerns training and validation: in the test images all classes are equally frequent.

    Raises UsageError for an unknown name or for more images than there are, DataError where files are absent or broken.
    """
    counts = {"train": train, "val": val, "test": test}
    if check_name(name) == "scenes":
        return _scenes(seed, device, counts, size, description)
    return _photographs(name, seed, device, counts, size)


def _scenes(seed: int, device, counts: Mapping[str, int], size: int, description) -> ManyLabels:
    tensors, covers, classes = {}, {}, ()
    for stream, (part, n) in enumerate(counts.items()):
        how = description | ({"tail": 1.0} if part == "test" else {})
        drawn = scenes.make(n, seed=3 * seed + stream, device=device, size=size, **how)
        tensors |= {f"x_{part}": drawn.image, f"y_{part}": drawn.labels, f"area_{part}": drawn.area}
        covers[part], classes = drawn.cover, drawn.classes
    return ManyLabels("scenes", list(classes), **tensors, covers=covers)


# --- folders of photographs ------------------------------------------------------------------------


def find(name: str) -> dict[str, list[voc.Noted]]:
    """Return what is known of each image of the VOC folder that `name` means, by part: `pool`, and `test` if it has one.

    Pictures are not decoded. Raises DataError, which names the file, for what is absent or damaged.
    """
    kind, _, path = check_name(name).partition(":")
    root = Path(path).expanduser() if path else _fetched(kind.removeprefix("voc"))
    lists = root / "ImageSets" / "Main"
    pools = [lists / "trainval.txt", lists / "train.txt"]
    pool = next((file for file in pools if file.is_file()), None)
    if pool is None:
        raise DataError(
            f"{root} is no folder in the format of Pascal VOC: it needs {voc.FOLDERS}; there is no file {pools[0]}"
        )
    found = {"pool": voc.read(pool)}
    if (listed := lists / "test.txt").is_file() and listed.read_bytes().strip():
        found["test"] = voc.read(listed)
    elif pool.stem == "train" and (lists / "val.txt").is_file():
        found["test"] = voc.read(lists / "val.txt")
    return found


def named(found: Mapping[str, Sequence[voc.Noted]]) -> list[str]:
    """Return the names of the objects of a VOC folder, in order."""
    return sorted(
        {label for part in found.values() for noted in part for label, _ in noted.objects}
    )


def _fetched(year: str) -> Path:
    """Return the folder of Pascal VOC of that year, downloaded if it is absent."""
    from torchvision.datasets import VOCDetection

    root = data_root() / "VOCdevkit" / f"VOC{year}"
    try:
        for part in ("trainval", "test") if year == "2007" else ("trainval",):
            there = (root / "ImageSets" / "Main" / f"{part}.txt").is_file()
            VOCDetection(data_root(), year, part, download=not there)
    except (OSError, RuntimeError) as problem:
        raise DataError(
            f"data set 'voc{year}' is not here and could not be downloaded ({str(problem).splitlines()[0]}): "
            f"put {voc.FOLDERS} into {root} (the data root is set by LEFCOURSE_DATA)"
        ) from problem
    return root


def _photographs(name: str, seed: int, device, counts: Mapping[str, int], size: int) -> ManyLabels:
    found = find(name)
    classes = named(found)
    if len(classes) < 2:
        raise DataError(f"data set {name!r} has one class only, {classes[0]!r}: two are needed")
    chosen, tensors, covers = _split(name, found, seed, counts), {}, {}
    for part, listed in chosen.items():
        pictures = [folders.decode(n.picture, size, n.picture) for n in progress(listed, part)]
        x = torch.tensor(_stacked(pictures, size)).permute(0, 3, 1, 2)
        area = torch.tensor(_areas(listed, classes)).view(len(listed), len(classes))
        tensors[f"x_{part}"] = x.to(device).float().div_(255)
        tensors[f"y_{part}"] = (area > 0).float().to(device)
        tensors[f"area_{part}"] = area.to(device)
        covers[part] = partial(_boxed, listed, classes, device)
    return ManyLabels(name, classes, **tensors, covers=covers)


def _stacked(pictures: list, size: int):
    import numpy as np

    return np.stack(pictures) if pictures else np.zeros((0, size, size, 3), np.uint8)


def _areas(listed: Sequence[voc.Noted], classes: Sequence[str]) -> list[list[float]]:
    """Share of the picture that the largest box of each class covers; a class that is there covers something."""
    rows = []
    for noted in listed:
        row, whole = [0.0] * len(classes), noted.extent[0] * noted.extent[1]
        for label, (x1, y1, x2, y2) in noted.objects:
            share = max((x2 - x1) * (y2 - y1), 1.0) / whole
            row[classes.index(label)] = max(row[classes.index(label)], share)
        rows.append(row)
    return rows


def _boxed(listed: Sequence[voc.Noted], classes: Sequence[str], device, grid: int) -> Tensor:
    """Share of each cell that the boxes of each class cover: of several, the one that covers most of it."""
    shares = torch.zeros(len(listed), len(classes), grid, grid)
    start = torch.arange(grid)
    for row, noted in enumerate(listed):
        for label, (x1, y1, x2, y2) in noted.objects:
            (width, height), at = noted.extent, shares[row, classes.index(label)]
            along = [
                (a * grid / full, b * grid / full)
                for a, b, full in ((y1, y2, height), (x1, x2, width))
            ]
            y, x = (((start + 1).clamp_max(b) - start.clamp_min(a)).clamp_min(0) for a, b in along)
            torch.maximum(at, y[:, None] * x, out=at)
    return shares.to(device)


def _split(name: str, found: Mapping, seed: int, counts: Mapping[str, int]) -> dict[str, list]:
    """Draw the three parts by the seed: train from the front of a random order, validation from its end."""
    draw = torch.Generator().manual_seed(seed)
    pool, own = found["pool"], found.get("test")
    taken = 0 if own is not None else counts["test"]
    needed = counts["train"] + counts["val"] + taken
    if needed > len(pool) or (own is not None and counts["test"] > len(own)):
        has = f"{len(pool)} images" + (f" and {len(own)} to test" if own is not None else "")
        asked = ", ".join(f"{part} {n}" for part, n in counts.items())
        raise UsageError(f"data set {name!r} has {has}, fewer than {asked}")
    order = torch.randperm(len(pool), generator=draw).tolist()
    test = torch.randperm(len(own), generator=draw).tolist() if own is not None else []
    front, end = order[: len(order) - taken], order[len(order) - taken :]
    return {
        "train": [pool[i] for i in front[: counts["train"]]],
        "val": [pool[i] for i in front[len(front) - counts["val"] :]],
        "test": [own[i] for i in test[: counts["test"]]] if own is not None else [pool[i] for i in end],
    }  # fmt: skip


# --- what annotators leave out ---------------------------------------------------------------------


def observe(
    y: Tensor,
    share: float,
    lost: str = "random",
    area: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return what is known of labels y (N, C): 1 present, -1 absent, 0 unknown; int64 (N, C).

    Of the absent ones the share `share` is known, drawn at random; of the present ones as well, on average. `lost` says
    which of these are missing: `random`, or `small`, where one is known with a probability proportional to the share of
    the picture in which it shows (`area` (N, C); at most 1). Raises UsageError for other values.
    """
    choice("value of 'lost'", lost, LOST)
    if not 0 <= share <= 1:
        raise UsageError(f"share={share}: from 0 to 1")
    there = y > 0
    chance = torch.full_like(y, share, dtype=torch.float)
    if lost == "small":
        if area is None:
            raise UsageError("lost='small' needs the areas in which the classes show")
        chance[there] = proportional(area[there].float(), share)
    known = torch.rand(y.shape, generator=generator, device=y.device) < chance
    return torch.where(known, torch.where(there, 1, -1), 0)


def proportional(area: Tensor, share: float) -> Tensor:
    """Probabilities (n,) proportional to areas (n,), at most 1, whose mean is `share`."""
    if share >= 1 or len(area) == 0:
        return torch.ones_like(area)
    ordered = area.sort(descending=True).values.double()
    # If the k largest are certain, the others share what is left: the first k at which that is possible.
    left = share * len(area) - torch.arange(len(area), device=area.device)
    rest = ordered.flip(0).cumsum(0).flip(0)  # of the areas from the k-th on
    factor = left / rest.clamp_min(1e-12)
    k = int(((factor * ordered) <= 1).int().argmax())
    return (factor[k] * area.double()).clamp(0, 1).to(area.dtype)


# --- what a model is worth -------------------------------------------------------------------------


def f1_scores(p: Tensor, y: Tensor, threshold: float | Tensor = 0.5) -> dict[str, float]:
    """CF1 and OF1 of probabilities p (N, C) against labels y (N, C), as they are usual for several labels.

    A class is said to be there where p exceeds the threshold, a number or (C,). OF1 is the F1 score of all decisions
    together; CF1 the harmonic mean of precision and recall after each was averaged over the classes (that have a
    positive; where nothing is claimed, precision is 0).
    """
    from sklearn.metrics import f1_score, precision_score, recall_score

    present = y.bool().any(0)
    said, true = ((t > c)[:, present].cpu().numpy() for t, c in ((p, threshold), (y, 0.5)))
    how = dict(average="macro", zero_division=0)
    precision, recall = precision_score(true, said, **how), recall_score(true, said, **how)
    of1 = float(f1_score(true, said, average="micro", zero_division=0))
    return {"cf1": float(2 * precision * recall / max(precision + recall, 1e-12)), "of1": of1}


def known_precision(s: Tensor, seen: Tensor) -> float:
    """Mean average precision of scores s (N, C) on known labels alone: seen (N, C) is 1, -1, or 0 where nothing is known.

    Classes without a known positive, or without a known negative, are left out; NaN if there are no others.
    """
    from sklearn.metrics import average_precision_score

    scores = []
    for column, labels in zip(s.T.cpu(), seen.T.cpu(), strict=True):
        known = labels != 0
        if (labels > 0).any() and (labels < 0).any():
            scores.append(average_precision_score(labels[known] > 0, column[known]))
    return float(sum(scores) / len(scores)) if scores else float("nan")


# --- the network -----------------------------------------------------------------------------------


def convnet(n_classes: int, width: int = 16) -> Classifier:
    """The small network of the chapters on scenes: four 3x3 convolutions, the first with stride 2, and a global average."""
    layers, channels = [], 3
    for block, outputs in enumerate((width, 2 * width, 4 * width, 4 * width)):
        layers += [
            nn.Conv2d(channels, outputs, 3, 2 if block == 0 else 1, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.MaxPool2d(2)] if block in (1, 2) else []
        channels = outputs
    return Classifier(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels, n_classes
    )
