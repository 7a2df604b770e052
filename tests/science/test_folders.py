"""A reader's own images: every kind of picture and of folder is seen as people see it, or named and refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lefcourse.errors import DataError, UsageError
from lefcourse.science import data, folders

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))  # dark on the left, bright on the right
BYTES = np.rint(RAMP * 255).astype(np.uint8)
RGB = Image.fromarray(BYTES).convert("RGB")


def tree(root, *names):
    """Put a picture at each of the names, and an empty folder at names that end in a slash."""
    for name in names:
        path = Path(root, name)
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            RGB.save(path)
    return Path(root)


# --- pictures ------------------------------------------------------------------------------------


def clear(mode):
    """The ramp on a transparent background whose hidden colour is black."""
    rgba = np.dstack([BYTES, BYTES, BYTES, np.full_like(BYTES, 255)])
    rgba[:8] = 0
    return Image.fromarray(rgba).convert(mode)


KINDS = {
    "16.png": Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16)),
    "16.tif": Image.fromarray(np.rint(RAMP * 65535).astype(">u2")),
    "32.tif": Image.fromarray(np.rint(RAMP * 65535).astype(np.int32)),
    "unit.tif": Image.fromarray(RAMP.astype(np.float32)),
    "bytes.tif": Image.fromarray((RAMP * 255).astype(np.float32)),
    "grey.png": Image.fromarray(BYTES),
    "palette.png": RGB.quantize(256),
    "palette.gif": RGB.quantize(256),
    "rgb.jpg": RGB,
    "cmyk.jpg": RGB.convert("CMYK"),
    "ycc.tif": RGB.convert("YCbCr"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_depth_and_mode_is_seen_as_a_viewer_shows_it(name, tmp_path):
    KINDS[name].save(tmp_path / name)
    seen = folders.decode(tmp_path / name, 32, name)
    assert seen.shape == (32, 32, 3) and seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - BYTES[..., None]).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_lie_on_white(mode, tmp_path):
    clear(mode).save(tmp_path / "a.png")
    seen = folders.decode(tmp_path / "a.png", 32, "a")
    assert (seen[:8] == 255).all() and np.abs(seen[8:, :, 0].astype(int) - BYTES[8:]).max() <= 1


def test_black_and_white_turned_and_moving_pictures(tmp_path):
    Image.fromarray(BYTES > 127).save(tmp_path / "1.png")
    assert set(np.unique(folders.decode(tmp_path / "1.png", 32, "1"))) == {0, 255}
    RGB.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    assert folders.decode(tmp_path / "moving.gif", 32, "m").std() > 50
    exif = Image.Exif()
    exif[274] = 3  # upside down
    RGB.save(tmp_path / "turned.jpg", exif=exif)
    seen = folders.decode(tmp_path / "turned.jpg", 32, "t")
    assert seen[0, 0, 0] > 240 and seen[0, -1, 0] < 15


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.tile(np.arange(32, dtype=np.uint16), (32, 1)), "looks flat"),  # 32 of 65536 values
        (np.tile(np.linspace(-1, 1, 32, dtype=np.float32), (32, 1)), "from -1 to 1"),
        (np.full((32, 32), np.nan, np.float32), "nan"),
        (np.tile(np.linspace(0, 1e9, 32), (32, 1)).astype(np.int32), "0 to 65535"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_named(pixels, why, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match=rf"odd\.tif cannot be shown .*{why}"):
        folders.decode(tmp_path / "odd.tif", 32, tmp_path / "odd.tif")


def test_white_on_nothing_and_bombs_are_named(tmp_path, monkeypatch):
    ghost = np.full((32, 32, 4), 255, np.uint8)
    ghost[:16, :, 3] = 0
    Image.fromarray(ghost).save(tmp_path / "ghost.png")
    with pytest.raises(DataError, match=r"ghost\.png cannot be shown"):
        folders.decode(tmp_path / "ghost.png", 32, "ghost.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match="bomb"):
        folders.decode(tmp_path / "ghost.png", 32, "bomb")


# --- folders -------------------------------------------------------------------------------------


def test_what_systems_and_jupyter_hide_is_no_class_and_no_picture(tmp_path):
    root = tree(
        tmp_path, "apple/0.png", "pear/0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/apple/0.png",
        "@eaDir/0.png", ".git/", "apple/.ipynb_checkpoints/0.png", "apple/._0.png", "pear/@eaDir/0.png",
    )  # fmt: skip
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt"):
        (root / "apple" / name).write_text("")
        (root / name).write_text("")
    found = folders.survey(root)
    assert found.classes == ["apple", "pear"] and found.count("train") == 2


def both(part):
    return f"{part}/apple/0.png", f"{part}/pear/0.png"


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"), ("Train", "Test"), ("TRAINING", "testing"), ("training_set", "test_set"),
        ("train", "val"), ("train2017", "val2017"), ("Train", "Validation", "Test"), ("train", "valid", "tst"),
        ("training", "dev", "test"),
    ],
)  # fmt: skip
def test_parts_are_recognised(names, tmp_path):
    found = folders.survey(tree(tmp_path, *(f for part in names for f in both(part))))
    assert found.classes == ["apple", "pear"]
    assert set(found.parts) == {folders.part_of(name) for name in names}
    assert all(found.count(part) == 2 for part in found.parts)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["Train/apple/0.png", "Train/pear/0.png"], "no test/"),
        (["test/a/0.png", "val/a/0.png"], "no train/"),
        (["train/a/0.png", "Train/a/0.png", "test/a/0.png"], "two folders for one part"),
        (["train/0.png", "test/0.png"], "no folders of classes"),
        (["train/a/0.png", "train/b/0.png", "test/a/0.png"], "the same classes: b"),
        (["train/a/0.png", "val/"], "no folders of classes"),
        (["apple/0.png", "pear/"], "pear holds no picture"),
        (["0.png", "1.png"], "in no folder of a class"),
    ],
)
def test_parts_are_never_taken_for_classes(names, why, tmp_path):
    with pytest.raises(DataError, match=why) as error:
        folders.survey(tree(tmp_path, *names))
    assert "\n" not in str(error.value)


def test_a_class_may_be_called_like_a_part(tmp_path):
    assert folders.survey(tree(tmp_path, "train/0.png", "plane/0.png")).classes == [
        "plane",
        "train",
    ]


def test_a_folder_beside_the_parts_is_said_not_to_be_used(tmp_path, capsys):
    tree(tmp_path, *both("train"), *both("test"), "extra/x/0.png")
    data.load(f"imagefolder:{tmp_path}", val=0)
    assert "not used, because they are no parts: extra" in capsys.readouterr().out


def shades(root, **parts):
    for part, shade in parts.items():
        for name in ("apple", "pear"):
            for i in range(4):
                path = Path(root, part, name, f"{i}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), shade).save(path)
    return data.load(f"imagefolder:{root}", size=8)


def test_a_readers_own_validation_part_is_used(tmp_path):
    d = shades(tmp_path / "3", train=0, val=100, test=200)
    assert [len(x) for x in (d.x_train, d.x_val, d.x_test)] == [8, 8, 8]
    assert [round(float(x.mean() * 255)) for x in (d.x_train, d.x_val, d.x_test)] == [0, 100, 200]
    d = shades(tmp_path / "2", train=0, val=100)
    assert [len(x) for x in (d.x_train, d.x_val, d.x_test)] == [7, 8, 1]
    assert round(float(d.x_val.mean() * 255)) == 100 and d.x_test.max() == 0
    with pytest.raises(UsageError, match="8 validation images, fewer than val=9"):
        data.load(f"imagefolder:{tmp_path / '3'}", val=9)


# --- how many ------------------------------------------------------------------------------------

USUAL = {"train": 1000, "val": 200, "test": 597}


def folder(**counts):
    return folders.Folder(
        Path("photos"), ["a", "b"], {part: [(Path("x"), 0)] * n for part, n in counts.items()}
    )


@pytest.mark.parametrize(
    ("has", "given", "expected"),
    [
        (dict(train=5000), {}, USUAL),
        (dict(train=300), {}, {"train": 168, "val": 33, "test": 99}),
        (dict(train=300), {"train": 100}, {"train": 100, "val": 50, "test": 149}),
        (dict(train=300, test=50), {}, {"train": 250, "val": 50, "test": 50}),
        (dict(train=300, val=10, test=50), {}, {"train": 300, "val": 10, "test": 50}),
        (dict(train=16), {"train": 10, "val": 2, "test": 4}, {"train": 10, "val": 2, "test": 4}),
        (dict(train=3), {}, {"train": 1, "val": 1, "test": 1}),
    ],
)
def test_where_nothing_is_given_shares_of_the_folder_are_taken(has, given, expected):
    counts = folders.counts(folder(**has), USUAL, given)
    if sum(has.values()) == 300 and given:
        assert counts["train"] == 100 and sum(counts.values()) <= 300
    else:
        assert counts == expected


@pytest.mark.parametrize(
    ("has", "given"),
    [
        (dict(train=300), {"train": 1000}),
        (dict(train=300), {"train": 200, "val": 60, "test": 60}),
        (dict(train=300), {"train": 300}),
        (dict(train=300, test=50), {"test": 60}),
        (dict(train=2), {}),
    ],
)
def test_counts_that_do_not_fit_are_refused_with_numbers_that_do(has, given):
    with pytest.raises(UsageError, match="too few for") as error:
        folders.counts(folder(**has), USUAL, given)
    words = str(error.value).partition("what fits: ")[2].split("-p ")[1:]
    if has["train"] > 2:
        fits = {name: int(n) for name, n in (word.split() for word in words)}
        assert folders.counts(folder(**has), USUAL, fits) == fits


def test_one_class_is_not_enough():
    with pytest.raises(UsageError, match="one class only"):
        folders.counts(folders.Folder(Path("p"), ["a"], {"train": [(Path("x"), 0)] * 9}), USUAL)
