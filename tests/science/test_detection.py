"""The small detector: boxes under transformations, assignment, pooling, average precision, real images."""

import math
import os

import pytest
import torch

from lefcourse.errors import DataError
from lefcourse.science import detection as d

SIZE = (48, 48)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_boxes(n=4, per=6, seed=0, inside=48):
    corner = torch.rand(n, per, 2, generator=generator(seed)) * inside * 0.6
    side = 4 + torch.rand(n, per, 2, generator=generator(seed + 1)) * inside * 0.3
    return torch.cat([corner, corner + side], -1)


def flags(*values):
    return torch.tensor(values)


# --- boxes


def test_decode_undoes_encode():
    boxes, references = some_boxes(seed=1), some_boxes(seed=5)
    assert torch.allclose(d.decode(d.encode(boxes, references), references), boxes, atol=1e-4)


def test_deltas_are_shifts_in_widths_and_logs_of_ratios():
    reference = torch.tensor([[10.0, 10, 20, 30]])
    box = torch.tensor([[15.0, 10, 35, 30]])  # centre 10 to the right: one width; twice as wide
    assert torch.allclose(d.encode(box, reference), torch.tensor([[1.0, 0, math.log(2), 0]]))


def test_there_and_back_is_the_identity_for_flips_shifts_and_scales():
    boxes = some_boxes()
    T_t = d.affine(SIZE, mirrored=flags(True, False, True, False))
    T_s = d.affine(
        SIZE,
        mirrored=flags(False, True, True, False),
        shift=torch.tensor([[3.0, -5], [0, 0], [7, 2], [-1, -1]]),
        scale=torch.tensor([1.0, 1.2, 0.8, 1.1]),
    )
    on_t = d.transport(boxes, T_t)
    there = d.transport(on_t, T_s @ T_t.inverse())
    assert torch.allclose(there, d.transport(boxes, T_s), atol=1e-4)
    assert torch.allclose(d.transport(there, T_t @ T_s.inverse()), on_t, atol=1e-4)


def test_a_mirrored_box_is_where_it_should_be():
    T = d.affine((20, 40), mirrored=flags(True))
    assert d.transport(torch.tensor([[[2.0, 3, 10, 7]]]), T).tolist() == [[[30, 3, 38, 7]]]


def test_the_hull_of_a_rotated_box_can_only_grow():
    boxes = some_boxes(3)
    T = d.affine(SIZE, mirrored=flags(False, True, False), angle=torch.tensor([0.3, -0.7, 1.2]))
    back = d.transport(d.transport(boxes, T), T.inverse())
    assert (back[..., :2] <= boxes[..., :2] + 1e-4).all()
    assert (back[..., 2:] >= boxes[..., 2:] - 1e-4).all()


def test_boxes_are_clipped_to_the_image():
    T = d.affine((20, 30), mirrored=flags(False), shift=torch.tensor([[25.0, -4.0]]))
    moved = d.transport(torch.tensor([[[1.0, 1, 9, 9]]]), T, (20, 30))
    assert moved.tolist() == [[[26, 0, 30, 5]]]


@pytest.mark.parametrize("size", [(48, 48), (24, 40)])
def test_pictures_move_like_their_boxes(size):
    x = torch.full((2, 3, *size), 0.5)
    x[:, :, 6:14, 8:20] = 1.0
    T = d.affine(size, mirrored=flags(True, False), shift=torch.tensor([[2.0, 3], [-4, 1]]))
    moved = d.warp(x, T)
    boxes = d.transport(torch.tensor([[[8.0, 6, 20, 14]]] * 2), T)[:, 0].round().int().tolist()
    for image, (x1, y1, x2, y2) in zip(moved, boxes, strict=True):
        expected = torch.full(size, 0.5)
        expected[y1:y2, x1:x2] = 1.0
        assert torch.allclose(image[0], expected, atol=1e-4)


# --- assignment


def test_match_is_the_slow_definition_and_ignores_empty_slots():
    candidates, boxes = some_boxes(2, 7, seed=3), some_boxes(2, 4, seed=8)
    labels = torch.tensor([[0, -1, 2, 1], [-1, -1, -1, -1]])
    overlap, slot, iou = d.match(candidates, boxes, labels)
    for p in range(7):
        best = (-1.0, 0)
        for k in (0, 2, 3):
            a, b = candidates[0, p], boxes[0, k]
            w = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
            h = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
            best = max(best, (w * h / float(union), k))
        assert overlap[0, p] == pytest.approx(best[0], abs=1e-5)
        assert best[0] == 0 or slot[0, p] == best[1]
    assert (overlap[1] == -1).all() and (iou[0, :, 1] == -1).all()


def test_boxes_without_area_do_not_poison_the_overlap():
    zeros = torch.zeros(1, 3, 4)
    overlap, _, _ = d.match(zeros, zeros, torch.tensor([[-1, -1, -1]]))
    assert (overlap == -1).all()


def test_a_sample_is_made_of_what_it_may_hold():
    kind = torch.tensor([[1] * 10 + [0] * 20 + [-1] * 5, [1] * 2 + [0] * 3 + [-1] * 30])
    index, used = d.sample(kind, 12, 4, generator=generator())
    drawn = d.take(kind, index)
    assert used[0].all() and (drawn[0] == 1).sum() == 4 and (drawn[0] == 0).sum() == 8
    assert used[1].sum() == 5 and (drawn[1][used[1]] >= 0).all()
    assert all(len(set(row.tolist())) == 12 for row in index)


def test_sampling_is_uniform_and_repeats_with_its_noise():
    kind = torch.tensor([[1] * 6 + [0] * 6])
    count = torch.zeros(12)
    for seed in range(600):
        index, used = d.sample(kind, 4, 2, generator=generator(seed))
        count[index[0][used[0]]] += 1
    assert (count[:6] / 600 - 2 / 6).abs().max() < 0.08
    assert (count[6:] / 600 - 2 / 6).abs().max() < 0.08
    noise = torch.rand(1, 12, generator=generator(7))
    assert torch.equal(d.sample(kind, 4, 2, noise=noise)[0], d.sample(kind, 4, 2, noise=noise)[0])


def test_suppression_is_torchvisions_in_each_image_and_class():
    from torchvision.ops import nms

    boxes, scores = some_boxes(3, 20, seed=2), torch.rand(3, 20, generator=generator(4))
    groups = torch.randint(2, (3, 20), generator=generator(5))
    alone, grouped = d.suppress(boxes, scores, None, 0.3), d.suppress(boxes, scores, groups, 0.3)
    for i in range(3):
        assert set(alone[i].nonzero()[:, 0].tolist()) == set(nms(boxes[i], scores[i], 0.3).tolist())
        for c in (0, 1):
            mine = (groups[i] == c).nonzero()[:, 0]
            kept = mine[nms(boxes[i][mine], scores[i][mine], 0.3)]
            assert set((grouped[i] & (groups[i] == c)).nonzero()[:, 0].tolist()) == set(
                kept.tolist()
            )


# --- the detector


def detector(**change):
    torch.manual_seed(0)
    return d.Detector(3, SIZE, **change).eval()


def test_pooling_is_roi_align_and_has_its_gradient():
    from torchvision.ops import roi_align

    f = torch.randn(3, 5, 12, 12, generator=generator(1), requires_grad=True)
    boxes = some_boxes(3, 6)
    ours = d.pool(f, boxes, 4)
    rois = torch.cat([torch.arange(3.0).repeat_interleave(6)[:, None], boxes.flatten(0, 1)], 1)
    theirs = roi_align(f, rois, 4, 1 / d.STRIDE, sampling_ratio=1, aligned=True)
    assert torch.allclose(ours.flatten(0, 1), theirs, atol=1e-5)
    weight = torch.randn(theirs.shape, generator=generator(2))
    (a,) = torch.autograd.grad((ours.flatten(0, 1) * weight).sum(), f, retain_graph=True)
    (b,) = torch.autograd.grad((theirs * weight).sum(), f)
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("size", [(48, 48), (30, 41)])
def test_shapes_of_both_stages(size):
    torch.manual_seed(0)
    model = d.Detector(3, size, proposals=16).eval()
    f = model.features(torch.rand(2, 3, *size))
    objectness, deltas = model.rpn(f)
    assert objectness.shape == (2, len(model.anchors)) and deltas.shape == (
        2,
        len(model.anchors),
        4,
    )
    proposals = model.propose(objectness, deltas)
    assert proposals.shape == (2, 16, 4) and not proposals.requires_grad
    assert (
        proposals.min() >= 0 and (proposals.amax((0, 1)) <= torch.tensor([*size[::-1]] * 2)).all()
    )
    z, refined = model.head(f, proposals)
    assert z.shape == (2, 16, 4) and refined.shape == (2, 16, 4)


def test_anchors_lie_in_the_order_of_the_outputs():
    model = d.Detector(3, (16, 24), anchors=(4, 8))
    centre = (model.anchors[:, :2] + model.anchors[:, 2:]) / 2
    assert centre[0].tolist() == centre[1].tolist() == [2, 2]
    assert centre[2].tolist() == [6, 2], "columns turn before rows"
    assert (model.anchors[:2, 2] - model.anchors[:2, 0]).tolist() == [4, 8]


def test_images_do_not_see_each_other():
    model, x = detector(), torch.rand(3, 3, *SIZE, generator=generator(3))
    together = model.detect(model.features(x), threshold=0.0, slots=5)
    alone = model.detect(model.features(x[1:2]), threshold=0.0, slots=5)
    assert torch.allclose(together.boxes[1], alone.boxes[0], atol=1e-4)
    assert torch.equal(together.labels[1], alone.labels[0])


def test_detections_are_sorted_and_cut_off():
    model = detector()
    found = model.detect(
        model.features(torch.rand(2, 3, *SIZE, generator=generator(4))), threshold=0.2
    )
    assert (found.scores.diff(dim=1) <= 0).all()
    assert ((found.labels >= 0) == (found.scores > 0.2)).all()
    assert (found.above(0.9).labels[found.scores <= 0.9] == -1).all()


def test_without_objects_the_first_stage_learns_only_background():
    model = detector()
    objectness, deltas = model.rpn(model.features(torch.rand(2, 3, *SIZE)))
    boxes, labels = torch.zeros(2, 4, 4), torch.full((2, 4), -1)
    noise = torch.rand(objectness.shape, generator=generator())
    loss = d.rpn_loss(model, objectness, deltas, boxes, labels, noise=noise)
    used, _ = d.sample(torch.zeros(objectness.shape, dtype=torch.long), 64, 32, noise=noise)
    wanted = torch.nn.functional.softplus(d.take(objectness, used)).mean(1)
    assert loss.shape == (2,) and torch.allclose(loss, wanted)


def test_it_learns_to_find_a_square():
    """Forty steps on one-object scenes: far above chance, or some coordinate is mixed up."""
    g = generator(0)
    corner = torch.randint(4, 28, (16, 1, 2), generator=g).float()
    side = torch.randint(10, 18, (16, 1, 1), generator=g).float()
    boxes, labels = torch.cat([corner, corner + side], -1), torch.zeros(16, 1, dtype=torch.long)
    x = torch.full((16, 3, *SIZE), 0.5) + 0.05 * torch.randn(16, 3, *SIZE, generator=g)
    for i, (x1, y1, x2, y2) in enumerate(boxes[:, 0].int().tolist()):
        x[i, :, y1:y2, x1:x2] = 1.0
    torch.manual_seed(0)
    model = d.Detector(1, SIZE).train()
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        objectness, deltas = model.rpn(model.features(x))
        loss = d.rpn_loss(model, objectness, deltas, boxes, labels, generator=g).mean()
        opt.zero_grad(), loss.backward(), opt.step()
    proposals = model.eval().propose(*model.rpn(model.features(x)))
    overlap, _, _ = d.match(proposals[:, :3], boxes, labels)
    assert (overlap.amax(1) > 0.5).float().mean() > 0.8


# --- evaluation


def truth():
    boxes = torch.tensor([[[2.0, 2, 12, 12], [20, 20, 40, 44]], [[5, 5, 25, 15], [0, 0, 0, 0]]])
    return boxes, torch.tensor([[0, 1], [1, -1]])


def test_the_truth_itself_scores_one():
    boxes, labels = truth()
    score = d.average_precision(d.Detections(boxes, labels, torch.full((2, 2), 0.9)), boxes, labels)
    assert score == {"ap": 1, "ap50": 1, "ap75": 1}


def test_average_precision_by_hand():
    """Class 0: one object, found second, after a false alarm: precision 1/2. Class 1: one of two objects."""
    boxes, labels = truth()
    found = d.Detections(
        torch.tensor([[[30.0, 2, 40, 12], [2, 2, 12, 12], [20, 20, 40, 44]], [[0, 0, 1, 1]] * 3]),
        torch.tensor([[0, 0, 1], [-1, -1, -1]]),
        torch.tensor([[0.9, 0.8, 0.7], [0, 0, 0]]),
    )
    # COCO averages precision over 101 recall levels: recall 0.5 covers 51 of them.
    assert d.average_precision(found, boxes, labels)["ap50"] == pytest.approx((0.5 + 51 / 101) / 2)


def test_nothing_found_scores_nothing():
    boxes, labels = truth()
    found = d.Detections(torch.zeros(2, 3, 4), torch.full((2, 3), -1), torch.zeros(2, 3))
    assert d.average_precision(found, boxes, labels)["ap"] == 0


def test_a_badly_placed_box_counts_at_half_overlap_only():
    boxes, labels = truth()
    moved = boxes + torch.tensor(
        [2.0, 0, 2, 0]
    )  # overlap 8/12 for a width of 10, 9/11 and more for 20
    score = d.average_precision(d.Detections(moved, labels, torch.full((2, 2), 0.9)), boxes, labels)
    assert score["ap50"] == 1 and score["ap75"] == 0.5


# --- real images


def test_absent_cells_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="JPEGImages, Annotations and ImageSets"):
        d.bccd()


OBJECT = (
    "<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>2</ymin><xmax>20</xmax>"
    "<ymax>10</ymax></bndbox></object>"
)
NOTES = (
    "<annotation>"
    + OBJECT.format(name="WBC", x=4)
    + "<object><name>RBC</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object>"
    "</annotation>"
)


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A BCCD of two images, one to train on and one to test, of 40 x 20 pixels."""
    from PIL import Image

    root = tmp_path / "BCCD"
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    for name, part in (("a", "trainval"), ("b", "test")):
        Image.new("RGB", (40, 20), (255, 0, 0)).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(NOTES)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{name}\n")
    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    return root


def test_voc_files_are_read_and_resized(cells):
    x, boxes, labels = d.bccd((10, 20))["test"]
    assert x.shape == (1, 3, 10, 20) and x[0, 0].mean() > 0.95 and x[0, 1].mean() < 0.05
    assert labels.tolist() == [[1]] and boxes.tolist() == [[[2, 1, 10, 5]]]
    (cells / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match="incomplete"):
        d.bccd()


DAMAGED_NOTES = {
    "cut off": (NOTES[:80], "no whole XML"),
    "empty": ("", "no whole XML"),
    "not XML": ("\x00\x01", "no whole XML"),
    "no name": (NOTES.replace("<name>WBC</name>", ""), "object 1 is called ''"),
    "another set's": (NOTES.replace("WBC", "dog"), "object 1 is called 'dog'"),
    "no box": (NOTES.replace("bndbox", "polygon"), "object 1 has xmin = None"),
    "no corner": (NOTES.replace("<xmax>20</xmax>", ""), "object 1 has xmax = None"),
    "no number": (NOTES.replace("20", "x"), "object 1 has xmax = 'x'"),
    "not a number": (NOTES.replace("20", "nan"), "not in the picture"),
    "outside": (NOTES.replace("20", "400"), "not in the picture of 40 x 20"),
    "negative": (NOTES.replace(">4<", ">-4<"), "not in the picture"),
    "turned over": (NOTES.replace(">4<", ">30<"), "not in the picture"),
    "another picture's": (
        NOTES.replace(
            "<annotation>", "<annotation><size><width>64</width><height>9</height></size>"
        ),
        "about a picture of 64 x 9",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_NOTES)
def test_a_damaged_annotation_is_named(damage, cells):
    content, why = DAMAGED_NOTES[damage]
    (cells / "Annotations" / "b.xml").write_text(content)
    with pytest.raises(DataError, match=rf"b\.xml is broken: .*{why}") as error:
        d.bccd()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 20, 0.5])
def test_a_damaged_picture_is_named(kept, cells):
    path = cells / "JPEGImages" / "b.jpg"
    blob = path.read_bytes()
    path.write_bytes(blob[: int(kept * len(blob)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"b\.jpg is broken"):
        d.bccd()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", r"test\.txt is broken: it lists no image"),
        (b"\xff\xfe\x00", r"test\.txt is broken: it is no text"),
        (b"b\nc\n", r"c\.jpg is listed in .*test\.txt but absent"),
    ],
)
def test_a_damaged_list_is_named(content, why, cells):
    (cells / "ImageSets" / "Main" / "test.txt").write_bytes(content)
    with pytest.raises(DataError, match=why):
        d.bccd()


def test_a_set_without_any_object_or_list_is_not_this_set(cells):
    (cells / "Annotations" / "b.xml").write_text("<annotation/>")
    with pytest.raises(
        DataError, match=r"test\.txt is broken: no image that it lists has an object"
    ):
        d.bccd()
    (cells / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"there is no file .*test\.txt"):
        d.bccd()


@pytest.mark.realdata
def test_the_real_cells():
    if "LEFCOURSE_DATA" not in os.environ:
        pytest.skip("LEFCOURSE_DATA is not set: no folder of real data sets")
    try:
        parts = d.bccd((60, 80))
    except DataError as absent:
        pytest.skip(str(absent))
    assert len(parts["trainval"][0]) + len(parts["test"][0]) == 364
    for x, boxes, labels in parts.values():
        assert x.shape[1:] == (3, 60, 80) and x.min() >= 0 and x.max() <= 1
        real = boxes[labels >= 0]
        assert (real[:, 2:] > real[:, :2]).all() and real.min() >= 0
        assert (real <= torch.tensor([80.0, 60, 80, 60]) + 0.5).all()
        assert {0, 1, 2} == set(labels[labels >= 0].tolist())
