"""Data sets: the splits, the layouts that are read, and what is said of absent or broken files."""

import io
import os
import struct
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from lefcourse.errors import DataError, UsageError
from lefcourse.science import data, folders

REAL = {"mnist": "MNIST/raw", "cifar10": "cifar10-imagefolder.tar"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data root on a machine without a network."""

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    return tmp_path


@pytest.fixture
def mnist(root, monkeypatch):
    """A data root with an MNIST of 30 + 10 images, whose image `i` is of the one shade `i`."""
    monkeypatch.setattr(data, "IDX_COUNTS", {"train": 30, "t10k": 10})
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in data.IDX_COUNTS.items():
        pixels = np.repeat(np.arange(n, dtype=np.uint8), 28 * 28)
        header = struct.pack(">4I", 2051, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(n, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + bytes(labels))
    return raw


@pytest.fixture
def cifar10(root, monkeypatch):
    """A data root with a CIFAR-10 of JPEG images in folders, two and one of each class."""
    monkeypatch.setattr(data, "CIFAR10_PER_CLASS", {"train": 2, "test": 1})
    for part, n in data.CIFAR10_PER_CLASS.items():
        for label, name in enumerate(data.CIFAR10_CLASSES):
            for i in range(n):
                save(root / "cifar10" / part / name / f"{i:04}.jpg", shade=20 * label + i)
    return root / "cifar10"


@pytest.fixture
def cifar10_tar(cifar10, root):
    """The same as an archive."""
    path = root / "cifar10-imagefolder.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(cifar10, "cifar10")
    cifar10.rename(root / "unpacked")
    return path


def save(path, shade, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)


def parts(d):
    return (d.x_train, d.y_train), (d.x_val, d.y_val), (d.x_test, d.y_test)


def same(a, b):
    return all(
        torch.equal(s, t)
        for p, q in zip(parts(a), parts(b), strict=True)
        for s, t in zip(p, q, strict=True)
    )


def test_digits_have_the_promised_form():
    d = data.load("digits")
    assert d.x_train.shape == (1000, 1, 8, 8) and len(d.x_val) == 200 and len(d.x_test) == 597
    assert d.x_train.dtype == torch.float32 and d.y_train.dtype == torch.int64
    assert d.x_train.min() == 0 and d.x_train.max() == 1
    assert (d.channels, d.size, d.n_classes) == (1, 8, 10)
    assert "(1000, 1, 8, 8)" in repr(d)
    assert "8 x 8" in d.describe() and "\n" not in d.describe()


def test_the_split_is_a_partition_of_the_whole_set():
    from sklearn.datasets import load_digits

    d = data.load("digits", seed=3)
    whole = torch.cat([x.flatten(1) * 16 for x, _ in parts(d)])
    rows = sorted(map(tuple, whole.int().tolist()))
    assert rows == sorted(map(tuple, load_digits().data.astype(int).tolist()))


def test_a_seed_repeats_its_split_and_another_seed_draws_another():
    assert same(data.load("digits", seed=1), data.load("digits", seed=1))
    assert not same(data.load("digits", seed=1), data.load("digits", seed=2))


def test_a_smaller_training_set_begins_the_larger_one():
    small, large = (data.load("digits", train=n) for n in (100, 900))
    assert torch.equal(small.x_train, large.x_train[:100])
    assert torch.equal(small.x_val, large.x_val) and torch.equal(small.x_test, large.x_test)


def test_no_validation_images_when_none_are_asked_for():
    d = data.load("digits", val=0)
    assert d.x_val.shape == (0, 1, 8, 8) and len(d.x_train) == 1200


def test_images_are_resized():
    d = data.load("digits", size=16)
    assert d.size == 16 and d.x_train.min() >= 0 and d.x_train.max() <= 1


@pytest.mark.parametrize(
    "counts",
    [{"train": 1798}, {"train": 1500, "val": 100}, {"test": 1700}, {"val": -1}, {"train": 0}],
)
def test_impossible_counts_are_named(counts):
    with pytest.raises(UsageError) as error:
        data.load("digits", **counts)
    name = next(iter(counts))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mnits", "imagefolder", "imagefolder:", ""])
def test_an_unknown_name_is_refused_with_the_choices(name):
    with pytest.raises(UsageError, match=r"unknown data set.*imagefolder:PATH"):
        data.load(name)
    assert data.check_name("imagefolder:/a:b") == "imagefolder:/a:b"


def test_few_labels_takes_as_many_of_each_class():
    y = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0))
    index = data.few_labels(y, 5, torch.Generator().manual_seed(1))
    assert torch.equal(torch.bincount(y[index]), torch.full((4,), 5))
    assert len(index.unique()) == 20
    assert torch.equal(index, data.few_labels(y, 5, torch.Generator().manual_seed(1)))
    assert not torch.equal(index, data.few_labels(y, 5, torch.Generator().manual_seed(2)))


def test_few_labels_names_the_scarce_class():
    with pytest.raises(UsageError, match="class 1 has only 2"):
        data.few_labels(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), 3)


def test_shapes_come_by_the_same_call():
    d = data.load("shapes", train=30, val=6, test=12)
    assert d.x_train.shape == (30, 3, 32, 32) and len(d.y_val) == 6 and len(d.x_test) == 12
    assert d.y_train.max() < d.n_classes
    assert same(d, data.load("shapes", train=30, val=6, test=12))
    assert not same(d, data.load("shapes", seed=1, train=30, val=6, test=12))
    assert data.load("shapes", train=2, val=0, test=1, size=16).size == 16


# MNIST


def test_mnist_is_read_image_by_image(mnist):
    d = data.load("mnist", val=10)
    assert [len(y) for _, y in parts(d)] == [20, 10, 10]
    shades = [(x * 255).round().long().amax((1, 2, 3)) for x, _ in parts(d)]
    for shade, (_, y) in zip(shades, parts(d), strict=True):
        assert torch.equal(shade % 10, y)
    assert sorted(torch.cat(shades[:2]).tolist()) == list(range(30))


def test_a_seed_draws_the_test_images_too_where_not_all_are_taken(mnist):
    tests = [data.load("mnist", seed=seed, val=0, test=5).y_test for seed in range(3)]
    assert len({tuple(y.tolist()) for y in tests}) > 1


def test_more_than_mnist_has_is_refused(mnist):
    with pytest.raises(UsageError, match=r"30 images.*train=25 \+ val=10"):
        data.load("mnist", train=25, val=10)
    with pytest.raises(UsageError, match=r"10 test images.*test=11"):
        data.load("mnist", val=0, test=11)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_an_absent_set_says_which_files_go_where(root, name):
    with pytest.raises(DataError) as error:
        data.load(name)
    message = str(error.value)
    assert str(root) in message and "put " in message and "\n" not in message
    assert name in message
    assert not data.available()[name][0] and "put " in data.available()[name][1]


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:5]])
def test_an_idx_file_of_wrong_length_is_named(mnist, file, damage):
    (mnist / file).write_bytes(damage((mnist / file).read_bytes()))
    with pytest.raises(DataError, match=f"{file} is broken"):
        data.load("mnist", val=0)
    ok, why = data.available()["mnist"]
    assert not ok and file in why


def test_images_and_labels_of_different_number_are_refused(mnist):
    labels = mnist / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2I", 2049, 29) + bytes(29))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is broken"):
        data.load("mnist", val=0)


def test_labels_that_are_no_digit_are_refused(mnist):
    labels = mnist / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is broken"):
        data.load("mnist", val=0)


# CIFAR-10


def check_cifar10():
    d = data.load("cifar10", val=5)
    assert d.x_train.shape == (15, 3, 32, 32) and len(d.y_test) == 10
    for x, y in parts(d):
        shade = (x * 255).round().long()[:, 0, 16, 16]
        assert torch.equal((shade + 5) // 20, y)
    return d


def test_cifar10_folder_and_archive_are_the_same_data(cifar10, request):
    folder = check_cifar10()
    request.getfixturevalue("cifar10_tar")
    assert same(folder, check_cifar10())


def test_only_the_images_asked_for_are_decoded(cifar10_tar, monkeypatch):
    decoded, decode = [], folders.decode
    monkeypatch.setattr(folders, "decode", lambda *args: decoded.append(args) or decode(*args))
    data.load("cifar10", train=3, val=2, test=1)
    assert len(decoded) == 6


def test_a_truncated_archive_is_named(cifar10_tar):
    whole = cifar10_tar.read_bytes()
    for n in (0, 100, 700, len(whole) // 2, len(whole) * 3 // 4):
        cifar10_tar.write_bytes(whole[:n])
        with pytest.raises(DataError, match=r"cifar10-imagefolder\.tar"):
            data.load("cifar10", val=0)


def test_a_broken_image_in_the_archive_is_named(cifar10_tar):
    with tarfile.open(cifar10_tar) as archive:
        member = archive.getmember("cifar10/test/dog/0000.jpg")
    with cifar10_tar.open("r+b") as file:
        file.seek(member.offset_data + 20)
        file.write(bytes(member.size - 20))
    with pytest.raises(DataError, match=r"dog/0000\.jpg is broken"):
        data.load("cifar10", val=0)


def test_a_missing_image_or_class_is_named(cifar10):
    (cifar10 / "train" / "cat" / "0001.jpg").unlink()
    with pytest.raises(DataError, match="train/cat has 1 images"):
        data.load("cifar10", val=0)
    (cifar10 / "train" / "cat" / "0000.jpg").unlink()
    with pytest.raises(DataError, match="cat"):
        data.load("cifar10", val=0)


def test_torchvisions_own_files_are_checked(root):
    batches = root / "cifar-10-batches-py"
    batches.mkdir()
    with pytest.raises(DataError, match="data_batch_1 is missing"):
        data.load("cifar10")
    (batches / "data_batch_1").write_bytes(b"half a file")
    with pytest.raises(DataError, match="data_batch_1 is broken"):
        data.load("cifar10")


def test_torchvisions_own_files_are_read(root, monkeypatch):
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        return [name, hashlib.md5(blob).hexdigest()]

    labels = list(range(10))
    pixels = np.repeat(np.array(labels, np.uint8)[:, None], 3072, 1) * 20
    listed = write("data_batch_1", {"data": pixels, "labels": labels})
    monkeypatch.setattr(CIFAR10, "train_list", [listed])
    monkeypatch.setattr(CIFAR10, "test_list", [listed])
    name, md5 = write("batches.meta", {"label_names": data.CIFAR10_CLASSES})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    d = data.load("cifar10", val=3)
    assert [len(y) for _, y in parts(d)] == [7, 3, 10]
    for x, y in parts(d):
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), 20 * y)


# A reader's own images


def test_a_folder_with_train_and_test_is_taken_so(tmp_path):
    for part, n in (("train", 6), ("test", 2)):
        for label, name in enumerate(("apple", "pear")):
            for i in range(n):
                save(tmp_path / part / name / f"{i}.png", shade=100 * label + i, size=(60, 40))
    d = data.load(f"imagefolder:{tmp_path}", val=2, size=20)
    assert d.classes == ["apple", "pear"] and d.x_train.shape == (10, 3, 20, 20)
    assert torch.equal((d.x_test[:, 0, 0, 0] * 255).round().long() // 100, d.y_test)


def test_a_flat_folder_is_split_by_the_seed(tmp_path):
    for name in ("apple", "pear"):
        for i in range(10):
            save(tmp_path / name / f"{i}.png", shade=i)
    d = data.load(f"imagefolder:{tmp_path}", val=4)
    assert [len(y) for _, y in parts(d)] == [12, 4, 4] and d.size == 32


def test_a_photograph_is_scaled_and_its_centre_is_kept(tmp_path):
    pixels = np.zeros((400, 1200, 3), np.uint8)
    pixels[:, 400:800] = 255
    for i in range(10):
        path = tmp_path / "only" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)
    d = data.load(f"imagefolder:{tmp_path}", val=0, size=24)
    assert d.x_train.mean() > 0.97


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        data.load(f"imagefolder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=str(tmp_path)):
        data.load(f"imagefolder:{tmp_path}")
    save(tmp_path / "train" / "apple" / "0.png", 0)
    with pytest.raises(DataError, match="no test/"):
        data.load(f"imagefolder:{tmp_path}")
    save(tmp_path / "test" / "pear" / "0.png", 0)
    with pytest.raises(DataError, match="apple, pear"):
        data.load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0, 30, 0.5, 0.9])
def test_a_truncated_image_is_named(tmp_path, kind, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "jpeg" if kind == "jpg" else "png")
    blob = buffer.getvalue()
    (tmp_path / "a").mkdir()
    for i in range(4):
        (tmp_path / "a" / f"{i}.{kind}").write_bytes(blob)
    n = int(kept * len(blob)) if isinstance(kept, float) else kept
    (tmp_path / "a" / f"2.{kind}").write_bytes(blob[:n])
    with pytest.raises(DataError, match=f"2.{kind} is broken"):
        data.load(f"imagefolder:{tmp_path}", val=1, test=1)


def test_available_names_every_set():
    assert list(data.available()) == data.names()


# Real data


@pytest.fixture(params=list(REAL))
def real(request):
    folder = os.environ.get("LEFCOURSE_DATA")
    if not folder:
        pytest.skip("LEFCOURSE_DATA is not set")
    if not (Path(folder) / REAL[request.param]).exists():
        pytest.skip(f"no {request.param} below LEFCOURSE_DATA")
    return request.param


@pytest.mark.realdata
def test_real_data_load(real):
    d = data.load(real, train=600, val=200, test=300)
    assert [len(y) for _, y in parts(d)] == [600, 200, 300]
    assert 0.1 < d.x_train.mean() < 0.6 and d.x_train.max() <= 1
    assert torch.bincount(d.y_train, minlength=10).min() > 30
    assert same(d, data.load(real, train=600, val=200, test=300))
    assert data.available()[real][0]


@pytest.mark.realdata
def test_real_data_are_labelled_rightly(real):
    """A nearest-mean classifier is far above chance only if images and labels belong together."""
    d = data.load(real, train=3000, val=0, test=500)
    means = torch.stack([d.x_train[d.y_train == c].mean(0).flatten() for c in range(10)])
    predicted = torch.cdist(d.x_test.flatten(1), means).argmin(1)
    assert (predicted == d.y_test).float().mean() > {"mnist": 0.75, "cifar10": 0.2}[real]
