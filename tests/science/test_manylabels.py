"""Images with several labels: loading, losing labels, judging."""

import pytest
import torch
from realdata import voc_cells

from lefcourse.errors import DataError, UsageError
from lefcourse.running import needs
from lefcourse.science import manylabels as m


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    return m.load("scenes", seed=2, train=400, val=60, test=400, tail=20.0)


# --- data


def test_the_tail_ends_before_the_test_images(data):
    train, test = data.y_train.mean(0), data.y_test.mean(0)
    assert train[0] > 6 * train[-1] and test.max() < 2 * test.min()
    assert data.x_val.shape == (60, 3, 32, 32) and data.n_classes == 12 and data.size == 32
    assert "400 train, 60 val, 400 test" in repr(data) and not torch.equal(
        data.x_train, data.x_test
    )


def test_what_is_hard_is_passed_on():
    data = m.load("scenes", train=20, val=0, test=8, size=24, classes=5, objects=2)
    assert data.n_classes == 5 and data.size == 24 and len(data.x_val) == 0


@pytest.mark.parametrize("name", ["scene", "voc", "voc:", "voc2008"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UsageError, match="data set"):
        m.load(name)


OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>11</ymax></bndbox></object>"


@pytest.fixture
def folder(tmp_path):
    """Six pictures of 40 x 20 pixels; a cat in all, twice in some, a dog beside it in every second."""
    from PIL import Image

    for inner in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (tmp_path / inner).mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (40, 20), (255, 40 * i, 0)).save(tmp_path / "JPEGImages" / f"{i}.jpg")
        objects = OBJECT.format("cat", 2, 6) + OBJECT.format("cat", 2, 12) * (i > 2)
        objects += OBJECT.format("dog", 20, 40) * (i % 2)
        (tmp_path / "Annotations" / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("0\n1\n2\n3\n")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("4\n5\n")
    return tmp_path


def test_a_voc_folder_is_a_data_set(folder):
    data = m.load(f"voc:{folder}", train=3, val=1, test=2, size=16)
    assert data.classes == ["cat", "dog"] and data.x_train.shape == (3, 3, 16, 16)
    number = (data.x_test[:, 1].mean((1, 2)) * 255 / 40).round().tolist()
    assert sorted(number) == [4, 5] and data.y_test[:, 1].tolist() == [n % 2 for n in number]
    assert (data.y_test[:, 0] == 1).all() and data.area_test[0, 0] == pytest.approx(10 * 10 / 800)
    other = m.load(f"voc:{folder}", seed=1, train=3, val=1, test=2, size=16)
    assert not torch.equal(other.x_train, data.x_train)


def test_the_cells_in_which_a_class_shows(data):
    from lefcourse.science.worlds import scenes

    cover = data.cover("test", 8)
    drawn = scenes.make(400, seed=8, classes=12)  # the third stream of seed 2
    assert torch.equal(drawn.image, data.x_test)
    masks = drawn.masks.float().unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5))
    assert torch.allclose(cover, masks) and torch.allclose(cover.mean((2, 3)), data.area_test)
    with pytest.raises(UsageError, match=r"grid=5: .* side, 32"):
        data.cover("test", 5)
    with pytest.raises(UsageError, match="part"):
        data.cover("tset", 8)


def test_the_cells_of_boxes(folder):
    data = m.load(f"voc:{folder}", train=3, val=1, test=2, size=16)
    cover = data.cover("test", 4)  # cells of 10 x 5 pixels
    dog = cover[data.y_test[:, 1] > 0, 1][0]
    rows = torch.tensor([0.8, 1.0, 0.2, 0.0])  # from 1 to 11
    assert torch.allclose(dog, rows[:, None] * torch.tensor([0.0, 0.0, 1.0, 1.0]))
    cat = cover[0, 0]  # from 2 to 12, and a smaller box within
    assert torch.allclose(cat, rows[:, None] * torch.tensor([0.8, 0.2, 0.0, 0.0]))
    assert data.cover("val", 2).shape == (1, 2, 2, 2)


def test_without_a_test_list_some_of_the_others_are_taken(folder):
    (folder / "ImageSets" / "Main" / "test.txt").unlink()
    data = m.load(f"voc:{folder}", train=2, val=1, test=1, size=16)
    parts = torch.cat([data.x_train, data.x_val, data.x_test]).mean((2, 3))[:, 1]
    assert len({round(v, 2) for v in parts.tolist()}) == 4  # no picture in two parts
    with pytest.raises(UsageError, match="4 images, fewer than train 2, val 1, test 2"):
        m.load(f"voc:{folder}", train=2, val=1, test=2)


def test_what_is_wrong_with_a_folder_is_said(folder, tmp_path):
    with pytest.raises(UsageError, match="and 2 to test, fewer than"):
        m.load(f"voc:{folder}", train=2, val=1, test=3)
    (folder / "Annotations" / "4.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"4\.xml is broken"):
        needs.look({"dataset": f"voc:{folder}"})
    (folder / "Annotations" / "4.xml").write_text("<html><annotation/></html>")
    with pytest.raises(DataError, match="<html>, not <annotation>"):
        m.find(f"voc:{folder}")
    (folder / "ImageSets" / "Main" / "trainval.txt").unlink()
    with pytest.raises(DataError, match="format of Pascal VOC"):
        needs.look({"dataset": f"voc:{folder}"})


def test_numbers_that_fit_a_folder_are_found_before_a_run(folder):
    usual = {"dataset": f"voc:{folder}", "train": 2000, "val": 500, "test": 1000}
    assert needs.look(usual) == {"train": 3, "val": 1, "test": 2}
    with pytest.raises(UsageError, match=r"has 6 pictures .* too few for train 2000; what fits"):
        needs.look(usual, ["train"])


def test_one_class_is_not_enough(folder):
    for file in (folder / "Annotations").iterdir():
        file.write_text(f"<annotation>{OBJECT.format('cat', 2, 6)}</annotation>")
    with pytest.raises(DataError, match="one class only, 'cat'"):
        m.load(f"voc:{folder}", train=2, val=1, test=1)


def test_absent_photographs_are_asked_for(tmp_path, monkeypatch):
    from torchvision.datasets import VOCDetection

    def offline(*given, **how):
        raise OSError("no network")

    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    monkeypatch.setattr(VOCDetection, "__init__", offline)
    with pytest.raises(DataError, match=r"'voc2007' is not here .*no network.*JPEGImages"):
        needs.look({"dataset": "voc2007"})


@pytest.mark.realdata
def test_the_real_cells_are_a_voc_folder():
    data = m.load(voc_cells(), train=60, val=20, test=30, size=24)
    assert data.classes == ["Platelets", "RBC", "WBC"] and 0.2 < data.y_train[:, 0].mean() < 0.9


# --- labels that are lost


@pytest.mark.parametrize("lost", m.LOST)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_of_known_labels_is_kept(lost, share, data):
    seen = m.observe(data.y_train, share, lost, data.area_train, draws())
    there = data.y_train > 0
    assert (seen[there] >= 0).all() and (seen[~there] <= 0).all()  # what is known is true
    assert (seen[there] == 1).float().mean() == pytest.approx(share, abs=0.04)
    assert (seen[~there] == -1).float().mean() == pytest.approx(share, abs=0.03)


def test_the_small_ones_are_lost_first(data):
    there = data.y_train > 0
    area = data.area_train[there]
    half = area < area.median()
    known = {
        lost: m.observe(data.y_train, 0.3, lost, data.area_train, draws())[there] == 1
        for lost in m.LOST
    }
    small, large = (known["small"][rows].float().mean() for rows in (half, ~half))
    assert large > 1.8 * small
    small, large = (known["random"][rows].float().mean() for rows in (half, ~half))
    assert abs(large - small) < 0.1


def test_chances_are_proportional_until_they_are_certain():
    area = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert m.proportional(area, 0.1).tolist() == pytest.approx([0.025, 0.05, 0.075, 0.25])
    chance = m.proportional(area, 0.5)
    assert chance[3] == 1 and chance.mean() == pytest.approx(0.5)
    assert (chance[:3] / area[:3]).tolist() == pytest.approx([1 / 6] * 3)
    assert m.proportional(area, 1.0).tolist() == [1, 1, 1, 1]
    assert len(m.proportional(area[:0], 0.5)) == 0


def test_all_or_nothing(data):
    y = data.y_train
    assert torch.equal(m.observe(y, 1.0, "small", data.area_train), torch.where(y > 0, 1, -1))
    assert (m.observe(y, 0.0, generator=draws()) == 0).all()
    for wrong in (dict(share=1.2), dict(share=0.1, lost="smal"), dict(share=0.1, lost="small")):
        with pytest.raises(UsageError):
            m.observe(y, **wrong)


# --- judging


def test_f1_scores_are_those_of_the_definition():
    y = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0]])
    p = torch.tensor([[0.9, 0.8, 0.9], [0.2, 0.7, 0.1], [0.6, 0.1, 0.1]])
    # class 1: 1 of 2 claims right, 1 of 2 found; class 2: 1 of 2 and 1 of 2; class 3 has no positive
    assert m.f1_scores(p, y) == pytest.approx({"cf1": 0.5, "of1": 0.5})
    assert m.f1_scores(p, y, torch.tensor([0.1, 0.1, 0.1]))["of1"] == pytest.approx(6 / 9)
    assert m.f1_scores(torch.zeros(3, 3), y) == {"cf1": 0.0, "of1": 0.0}


def test_unknown_labels_are_not_judged():
    seen = torch.tensor([[1, 0], [-1, 0], [0, 1]])
    s = torch.tensor([[2.0, 0.0], [1.0, 5.0], [9.0, 1.0]])
    assert m.known_precision(s, seen) == 1.0  # the second class has no known negative
    assert m.known_precision(-s, seen) == 0.5
    assert m.known_precision(s, torch.zeros_like(seen)) != m.known_precision(s, seen)


def test_the_network_takes_its_size():
    net = m.convnet(5, width=4)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 5) and net.features(torch.rand(2, 3, 48, 48)).shape == (2, 16)  # fmt: skip
