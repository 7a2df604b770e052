"""Data sets by name, whole on the device: `load("digits", seed=0)`.

`digits` comes with scikit-learn and `shapes` is generated, so both need no download. `mnist`,
`fashion_mnist` and `cifar10` are read from the data root (`LEFCOURSE_DATA`), or downloaded into it.
`imagefolder:PATH` is a folder of the reader's own: one subfolder per class (see `folders`).
"""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lefcourse.errors import DataError, UsageError, choice
from lefcourse.paths import data_root
from lefcourse.progress import progress
from lefcourse.science import folders, worlds
from lefcourse.science.labels import random_ranks
from lefcourse.science.worlds import WORLDS

# fmt: off
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# fmt: on
# How many images the published sets have; a file with another number is not that set.
IDX_COUNTS = {"train": 60_000, "t10k": 10_000}
CIFAR10_PER_CLASS = {"train": 5_000, "test": 1_000}
DEFAULT_VAL = {"digits": 200, "mnist": 5_000, "fashion_mnist": 5_000, "cifar10": 5_000}
DIGITS_TEST = 597


def generated() -> list[str]:
    """Return the worlds that are image classification."""
    return [name for name, world in WORLDS.items() if world.loads]


def names() -> list[str]:
    """Return the names that `load` knows, besides a reader's own folders."""
    return ["digits", *generated(), "mnist", "fashion_mnist", "cifar10"]


@dataclass(repr=False)
class Data:
    """A data set in three parts. Images float32 in [0, 1], NCHW; labels int64; all on one device."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: list[str]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue)."""
        return self.x_train.shape[1]

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return self.x_train.shape[-1]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def __repr__(self) -> str:
        x, device = self.x_train, self.x_train.device
        shapes = ", ".join(
            f"{part} {tuple(getattr(self, f'x_{part}').shape)}" for part in ("train", "val", "test")
        )
        return f"Data({self.name!r}, {shapes}, {x.dtype}, {self.n_classes} classes, {device})"

    def describe(self) -> str:
        """Say in one line what there is, for a reader."""
        colour = "grey" if self.channels == 1 else "colour"
        return (
            f"{self.name}: {colour} images of {self.size} x {self.size} pixels in "
            f"{self.n_classes} classes; {len(self.x_train):,} to train on, "
            f"{len(self.x_val):,} to validate, {len(self.x_test):,} to test"
        )


@dataclass
class _Source:
    """Labelled images that are decoded when asked for: `pick(indices)` gives uint8 (N, C, H, W)."""

    y: Tensor
    pick: Callable[[Tensor], Tensor]
    white: int = 255


def check_name(name: str) -> str:
    """Return `name` if `load` knows it; otherwise raise UsageError, nearest spelling first."""
    kind, _, path = name.partition(":")
    return (
        name
        if kind == "imagefolder" and path
        else choice("data set", name, (*names(), "imagefolder:PATH"))
    )


def load(
    name: str,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    size: int | None = None,
) -> Data:
    """Load the data set `name` and split it by `seed`.

    Every seed draws another split: train and validation from the official training part, a smaller
    `test` from the official test part; `digits` and a flat image folder are split as a whole; parts that a
    reader's own folder has (`train`, `val`, `test`) are used as such. With
    the same seed a smaller `train` is the beginning of a larger one. `train` defaults to all that
    `val` leaves (digits: 1000, 200, 597), `test` to all; `size` (pixels) to the images' own, and to
    32 for `shapes` and image folders. Only the images that are needed are decoded.

    Raises UsageError for an unknown name or for more images than there are, and DataError where
    files are absent (and cannot be downloaded) or broken.
    """
    kind, _, path = check_name(name).partition(":")
    counts = {"train": train, "val": val, "test": test}
    _check_counts(counts)
    if kind in generated():
        return _generated(kind, seed, device, counts, size)
    readers = {
        "digits": _digits,
        "mnist": lambda: _idx("mnist"),
        "fashion_mnist": lambda: _idx("fashion_mnist"),
        "cifar10": _cifar10,
        "imagefolder": lambda: _imagefolder(Path(path).expanduser(), size or 32),
    }
    pool, held, classes = readers[kind]()
    parts = _split(name, seed, pool, held, counts)
    tensors = {}
    for part, (source, indices) in parts.items():
        x = source.pick(indices).to(device).float().div_(source.white)
        tensors[f"x_{part}"] = _resize(x, size) if size else x
        tensors[f"y_{part}"] = source.y[indices].to(device)
    return Data(name=name, classes=classes, **tensors)


def few_labels(y: Tensor, per_class: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `per_class` samples of every class: their indices (int64, ascending) into `y` (N,).

    Raises UsageError if a class (0 to `y.max()`) has fewer.
    """
    counts = torch.bincount(y)
    scarce = int(counts.argmin())
    if counts[scarce] < per_class:
        raise UsageError(
            f"{per_class} labels per class: class {scarce} has only {int(counts[scarce])} samples"
        )
    return (random_ranks(y, generator) < per_class).nonzero().flatten()


def fetch(name: str) -> None:
    """Look for the published set `name`, and download it if it is absent. Raises DataError if it cannot be had or is broken."""
    if name == "cifar10":
        _cifar10_parts()
    else:
        _fetch_idx(name)


def available() -> dict[str, tuple[bool, str]]:
    """Say of each name whether it can be loaded without a download, and from where (or what is missing)."""
    found = {"digits": (True, "comes with scikit-learn")}
    found |= dict.fromkeys(generated(), (True, "generated by lefcourse"))
    checks = {
        "mnist": lambda: _check_idx("mnist"),
        "fashion_mnist": lambda: _check_idx("fashion_mnist"),
        "cifar10": _find_cifar10,
    }
    for name, check in checks.items():
        try:
            where = check()
        except DataError as broken:
            found[name] = (False, str(broken))
        else:
            found[name] = (where is not None, str(where) if where else _put_there(name))
    return found


# Splitting


def _check_counts(counts: dict[str, int | None]) -> None:
    for part, n in counts.items():
        least = 1 if part == "train" else 0
        if n is not None and n < least:
            raise UsageError(f"{part}={n}: the number of images must be at least {least}")


def _generator(seed: int, stream: str) -> torch.Generator:
    """Return a generator for one stream of draws, unlike the one that a run seeds by the same number."""
    return torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(stream.encode()))


def _split(
    name: str, seed: int, pool: _Source, held: dict[str, _Source], counts: dict[str, int | None]
) -> dict[str, tuple[_Source, Tensor]]:
    """Draw the three parts: train from the front of a random order, validation and test from its end.

    A part that is `held` has images of its own and takes none from the pool.
    """
    n, own = len(pool.y), {part: len(source.y) for part, source in held.items()}
    test = counts["test"]
    if test is None:
        test = own.get("test") or (DIGITS_TEST if name == "digits" else n // 5)
    taken = 0 if "test" in own else test
    val = counts["val"]
    if val is None:
        val = own.get("val") or DEFAULT_VAL.get(name, (n - taken) // 10)
    taken_val = 0 if "val" in own else val
    train = n - taken - taken_val if counts["train"] is None else counts["train"]
    for part, asked in {"val": val, "test": test}.items():
        if asked > own.get(part, asked):
            what = {"val": "validation", "test": "test"}[part]
            raise UsageError(
                f"data set {name!r} has {own[part]} {what} images, fewer than {part}={asked}"
            )
    if train < 1 or train + taken_val + taken > n:
        asked = " + ".join(
            f"{part}={m}"
            for part, m in {"train": max(train, 1), "val": taken_val, "test": taken}.items()
            if m
        )
        raise UsageError(f"data set {name!r} has {n} images to split, fewer than {asked}")
    order = torch.randperm(n, generator=_generator(seed, "split"))
    drawn = {
        part: torch.randperm(len(source.y), generator=_generator(seed, part))
        for part, source in held.items()
    }
    return {
        "train": (pool, order[:train]),
        "val": (held["val"], drawn["val"][:val])
        if "val" in held
        else (pool, order[n - taken - val : n - taken]),
        "test": (held["test"], drawn["test"][:test])
        if "test" in held
        else (pool, order[n - test :]),
    }


def _resize(x: Tensor, size: int) -> Tensor:
    if x.shape[-1] == size:
        return x
    resized = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return resized.clamp_(0, 1)


# What needs no files


def _digits() -> tuple[_Source, dict, list[str]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    y = torch.from_numpy(bunch.target).long()
    return _Source(y, x.__getitem__, white=16), {}, [str(digit) for digit in range(10)]


def _generated(
    name: str,
    seed: int,
    device: str | torch.device,
    counts: dict[str, int | None],
    size: int | None,
) -> Data:
    world = getattr(worlds, name)
    tensors = {}
    for stream, (part, default) in enumerate(world.COUNTS.items()):
        n = default if counts[part] is None else counts[part]
        x, y = world.classification(n, seed=3 * seed + stream, device=device, size=size or 32)
        tensors |= {f"x_{part}": x, f"y_{part}": y}
    return Data(name=name, classes=list(world.CLASSES), **tensors)


# MNIST and Fashion-MNIST: four files in the IDX format


def _idx_class(name: str):
    from torchvision import datasets

    return {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]


def _idx_files(name: str) -> dict[str, Path]:
    raw = data_root() / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw"
    kinds = ("images-idx3", "labels-idx1")
    return {
        f"{part}-{kind[:6]}": raw / f"{part}-{kind}-ubyte" for part in IDX_COUNTS for kind in kinds
    }


def _check_idx(name: str) -> Path | None:
    """Return the folder of the four files, None if one is absent; raise DataError if one is broken."""
    files = _idx_files(name)
    if not all(path.is_file() for path in files.values()):
        return None
    for key, path in files.items():
        part, kind = key.split("-")
        n = IDX_COUNTS[part]
        shape, magic = ((n, 28, 28), 2051) if kind == "images" else ((n,), 2049)
        expected = struct.pack(f">{1 + len(shape)}I", magic, *shape)
        n_bytes = len(expected) + int(np.prod(shape))
        with path.open("rb") as file:
            header = file.read(len(expected))
        if header != expected:
            raise DataError(
                f"{path} is broken: its header is not that of {n} {name} {kind}; "
                "delete it and load again, or replace it"
            )
        if path.stat().st_size != n_bytes:
            raise DataError(
                f"{path} is broken: {path.stat().st_size} bytes instead of {n_bytes}; "
                "delete it and load again, or replace it"
            )
    return files["train-images"].parent


def _fetch_idx(name: str) -> None:
    if _check_idx(name) is None:
        _download(name, lambda: _idx_class(name)(data_root(), download=True))
        if _check_idx(name) is None:
            raise DataError(f"data set {name!r} is not complete: {_put_there(name)}")


def _idx(name: str) -> tuple[_Source, dict, list[str]]:
    dataset = _idx_class(name)
    _fetch_idx(name)
    sources = []
    for train in (True, False):
        part = dataset(data_root(), train=train)
        if part.targets.max() >= len(dataset.classes):
            key = f"{'train' if train else 't10k'}-labels"
            raise DataError(f"{_idx_files(name)[key]} is broken: it holds labels above 9")
        sources.append(_Source(part.targets.long(), part.data[:, None].__getitem__))
    classes = [label.split(" - ")[0] for label in dataset.classes]
    return sources[0], {"test": sources[1]}, classes


# CIFAR-10: torchvision's files, or JPEG images in a folder or a tar archive


def _find_cifar10() -> Path | None:
    names = ("cifar-10-batches-py", "cifar10", "cifar10-imagefolder.tar")
    return next((data_root() / name for name in names if (data_root() / name).exists()), None)


def _cifar10() -> tuple[_Source, dict, list[str]]:
    train, test = _cifar10_parts()
    return train, {"test": test}, CIFAR10_CLASSES


def _cifar10_parts() -> list[_Source]:
    from torchvision.datasets import CIFAR10

    if _find_cifar10() is None:
        _download("cifar10", lambda: CIFAR10(data_root(), download=True))
    path = _find_cifar10()
    if path.suffix == ".tar":
        members = _tar_members(path)
        return [_tar_source(path, part, members[part]) for part in members]
    if path.name == "cifar10":
        return [_cifar10_folder(path / part) for part in ("train", "test")]
    _check_cifar10_batches(path)
    return [_cifar10_batches(CIFAR10(data_root(), train=train)) for train in (True, False)]


def _check_cifar10_batches(folder: Path) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    for file, md5 in CIFAR10.train_list + CIFAR10.test_list:
        if not check_integrity(folder / file, md5):
            state = "broken (wrong checksum)" if (folder / file).exists() else "missing"
            raise DataError(
                f"{folder / file} is {state}; delete the folder and load again, or replace the file"
            )


def _cifar10_batches(part) -> _Source:
    x = torch.from_numpy(part.data).permute(0, 3, 1, 2)
    return _Source(torch.tensor(part.targets), x.__getitem__)


def _cifar10_folder(folder: Path) -> _Source:
    classes, found = folders.labelled(folder)
    source = _pictures(folder, found, 32)
    _check_cifar10_counts(folder, classes, source.y)
    return source


def _check_cifar10_counts(where: Path, classes: list[str], y: Tensor) -> None:
    if classes != CIFAR10_CLASSES:
        raise DataError(f"{where} is not CIFAR-10: its classes are {', '.join(classes) or 'none'}")
    for name, n in zip(classes, torch.bincount(y, minlength=len(classes)).tolist(), strict=True):
        if n != CIFAR10_PER_CLASS[where.name]:
            raise DataError(
                f"{where / name} has {n} images, CIFAR-10 has {CIFAR10_PER_CLASS[where.name]}; "
                "the copy is incomplete: replace it"
            )


def _tar_members(path: Path) -> dict[str, list[tarfile.TarInfo]]:
    """Read the archive's index: `cifar10/{train,test}/CLASS/NAME.jpg`, in the order of the names."""
    parts = {"train": [], "test": []}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                names = member.name.split("/")
                if member.isfile() and len(names) == 4 and names[1] in parts:
                    parts[names[1]].append(member)
    except (tarfile.TarError, OSError) as problem:
        raise DataError(f"{path} is broken ({problem}): replace it") from None
    return {part: sorted(found, key=lambda m: m.name) for part, found in parts.items()}


def _tar_source(path: Path, part: str, members: list[tarfile.TarInfo]) -> _Source:
    labels = [member.name.split("/")[2] for member in members]
    classes = sorted(set(labels))
    y = torch.tensor([classes.index(label) for label in labels], dtype=torch.long)
    _check_cifar10_counts(path / part, classes, y)

    def pick(indices: Tensor) -> Tensor:
        x = np.empty((len(indices), 32, 32, 3), np.uint8)
        with path.open("rb") as file:
            for row, i in enumerate(progress(indices.tolist(), f"reading {path.name}")):
                file.seek(members[i].offset_data)
                jpeg = io.BytesIO(file.read(members[i].size))
                x[row] = folders.decode(jpeg, 32, f"{path}: {members[i].name}")
        return torch.from_numpy(x).permute(0, 3, 1, 2)

    return _Source(y, pick)


# A reader's own images


def _imagefolder(path: Path, size: int) -> tuple[_Source, dict, list[str]]:
    """Read the pictures of `folders.survey`, and say what of them is not used."""
    folder = folders.survey(path)
    if folder.unused:
        print(f"{path}: not used, because they are no parts: {', '.join(folder.unused)}")
    parts = {part: _pictures(path, found, size) for part, found in folder.parts.items()}
    return parts.pop("train"), parts, folder.classes


def _pictures(path: Path, found: folders.Labelled, size: int) -> _Source:
    files = [file for file, _ in found]

    def pick(indices: Tensor) -> Tensor:
        x = np.empty((len(indices), size, size, 3), np.uint8)
        for row, i in enumerate(progress(indices.tolist(), f"reading {path.name}")):
            x[row] = folders.decode(files[i], size, files[i])
        return torch.from_numpy(x).permute(0, 3, 1, 2)

    return _Source(torch.tensor([label for _, label in found]), pick)


# Absent files


def _put_there(name: str) -> str:
    if name == "cifar10":
        files = (
            "cifar-10-batches-py/ (or cifar10/{train,test}/CLASS/*.jpg, or cifar10-imagefolder.tar)"
        )
        return f"put {files} into {data_root()} (the data root, set by LEFCOURSE_DATA)"
    files = _idx_files(name)
    folder = files["train-images"].parent
    names = ", ".join(path.name for path in files.values())
    return f"put {names} into {folder} (the data root is set by LEFCOURSE_DATA)"


def _download(name: str, fetch: Callable) -> None:
    try:
        fetch()
    except (OSError, RuntimeError) as problem:
        reason = str(problem).splitlines()[0].rstrip(":")
        raise DataError(
            f"data set {name!r} is not here and could not be downloaded ({reason}): {_put_there(name)}"
        ) from problem
