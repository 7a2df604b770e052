"""ReLabel against slow definitions and maps whose labels are known. Brief sources: paper; the release's relabel_functions.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs_on_a_voc_folder

import lefcourse as lc

rl = lc.methods("relabel")
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def boxes(n, seed=0):
    return rl.random_boxes(n, generator=torch.Generator().manual_seed(seed))


# --- crops -------------------------------------------------------------------------------------------


def test_boxes_have_the_areas_and_shapes_asked_for_and_lie_inside():
    box = rl.random_boxes(2000, (0.1, 0.6), generator=torch.Generator().manual_seed(1))
    assert (box >= 0).all() and (box <= 1 + 1e-6).all()
    side = box[:, 2:] - box[:, :2]
    area, ratio = side.prod(1), side[:, 0] / side[:, 1]
    assert 0.1 - 1e-5 <= area.min() < 0.11 and 0.58 < area.max() <= 0.6 + 1e-5
    assert area.mean() == pytest.approx(0.35, abs=0.02)
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.01)
    assert ratio.log().mean() == pytest.approx(0, abs=0.02)


def test_draws_are_area_shape_left_and_top():
    middle = 0.5  # of the logarithms: a square
    box = rl.random_boxes(1, (0.25, 1), draws=torch.tensor([[0.0, middle, 1.0, 0.0]]))
    assert torch.allclose(box, torch.tensor([[0.5, 0.0, 1.0, 0.5]]))
    wide = rl.random_boxes(1, (0.25, 1), draws=torch.tensor([[0.0, 1.0, 0.0, 0.0]]))[0]
    assert wide[2] > wide[3]
    assert torch.equal(
        rl.random_boxes(1, draws=torch.tensor([[1.0, 0.9, 0.3, 0.3]]))[0, ::2], WHOLE[0, ::2]
    )


def test_a_crop_is_the_pixels_of_its_box():
    x = draw(2, 3, 8, 8)
    assert torch.allclose(rl.cut(x, WHOLE.repeat(2, 1), 8), x, atol=1e-5)
    box = torch.tensor([[0.5, 0.0, 1.0, 0.5], [0.25, 0.5, 0.75, 1.0]])
    crops = rl.cut(x, box, 4)
    assert torch.allclose(crops[0], x[0, :, :4, 4:], atol=1e-5)
    assert torch.allclose(crops[1], x[1, :, 4:, 2:6], atol=1e-5)


def test_shares_count_what_shows_in_the_box():
    cover = (draw(3, 2, 10, 10, seed=2) < 0.4).float()
    box = torch.tensor([[0.2, 0.0, 0.7, 0.4], [0.0, 0.5, 0.3, 0.6], [0.0, 0.0, 1.0, 1.0]])
    slow = [cover[0, :, 0:4, 2:7], cover[1, :, 5:6, 0:3], cover[2]]
    expected = torch.stack([part.mean((1, 2)) for part in slow])
    assert torch.allclose(rl.shares(cover, box), expected, atol=1e-5)
    half = torch.zeros(1, 1, 2, 2)
    half[0, 0, 0, 0] = 1.0  # only part of a cell lies in the box
    assert rl.shares(half, torch.tensor([[0.25, 0.0, 0.75, 0.5]])).item() == pytest.approx(0.5)


def test_true_targets_and_label_quality():
    shown = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.004, 0.0], [0.2, 0.0, 0.3]])
    truth = rl.true_target(shown)
    expected = torch.tensor([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5]])
    assert torch.allclose(truth, expected)
    t = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = rl.label_quality(t, shown)  # the second crop shows nothing
    assert found == pytest.approx(dict(right=0.5, largest=0.0, distance=(0.3 + 1.0) / 2))
    assert rl.label_quality(truth, shown)["distance"] == pytest.approx(0)


# --- the loss, and CutMix ------------------------------------------------------------------------------


def test_with_one_hot_targets_the_loss_is_cross_entropy():
    z, y = 3 * draw(6, 4, seed=3), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.allclose(rl.soft_cross_entropy(z, F.one_hot(y, 4).float()), F.cross_entropy(z, y))
    t = draw(6, 4, seed=4).softmax(1)
    slow = -sum(t[i, c] * z[i].log_softmax(0)[c] for i in range(6) for c in range(4)) / 6
    assert torch.allclose(rl.soft_cross_entropy(z, t), slow)
    assert rl.soft_cross_entropy(t.log(), t) <= rl.soft_cross_entropy(z, t)


def test_cutmix_weighs_targets_by_the_pixels_of_each():
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 5, 7).clone()
    t, order = torch.eye(3), torch.tensor([1, 2, 0])
    mask = draw(3, 1, 5, 7, seed=5) < 0.4
    mixed, targets = rl.paste(x, t, order, mask)
    for i in range(3):
        for c in range(3):
            assert targets[i, c] == pytest.approx(float((mixed[i] == c).float().mean()), abs=1e-6)
    same, kept = rl.paste(x, t, order, torch.zeros_like(mask))
    assert torch.equal(same, x) and torch.equal(kept, t)


def test_cutmix_batches_keep_the_weight_of_targets():
    x, t = draw(16, 3, 8, 8), draw(16, 4).softmax(1)
    mixed, targets = rl.cutmix_batch(x, t, torch.Generator().manual_seed(0))
    assert mixed.shape == x.shape and torch.allclose(targets.sum(1), torch.ones(16))
    assert (mixed != x).any() and not torch.allclose(targets, t)


# --- the label map ---------------------------------------------------------------------------------------


def annotator(n_classes=4):
    torch.manual_seed(0)
    model = lc.manylabels.convnet(n_classes, 8)
    model(draw(8, 3, 48, 48, seed=8))  # statistics of some images
    return model.eval()


def test_the_mean_of_the_map_is_the_classifier():
    model, x = annotator(), draw(3, 3, 48, 48, seed=6)
    M = rl.label_map(model, x)
    assert M.shape == (3, 4, 6, 6) and not M.requires_grad
    assert torch.allclose(rl.whole_image(M), model(x), atol=1e-5)
    assert torch.allclose(rl.pool(M, WHOLE.repeat(3, 1)), model(x), atol=1e-5)
    assert torch.allclose(rl.relabel(M, WHOLE.repeat(3, 1)), model(x).softmax(1), atol=1e-5)


def test_one_position_has_the_score_of_its_feature():
    model, x = annotator(), draw(1, 3, 48, 48, seed=6)
    features = model.body[:-2](x)
    M = rl.label_map(model, x)
    assert torch.allclose(M[0, :, 2, 5], model.head(features[0, :, 2, 5]), atol=1e-5)


def test_passes_are_counted_image_by_image():
    counted, x = rl.Counted(annotator()), draw(5, 3, 16, 16)
    assert not counted(x).requires_grad and counted.passes == 5
    assert counted(x[:2], mapped=True).shape == (2, 4, 2, 2) and counted.passes == 7


def test_all_scores_stored_is_the_map_and_others_become_zero():
    M = 4 * draw(2, 5, 3, 3, seed=7) - 2
    assert torch.equal(rl.densify(*rl.keep_top(M, 5), 5), M)
    assert rl.keep_top(M, 99)[0].shape[1] == 5
    values, index = rl.keep_top(M, 2)
    dense = rl.densify(values, index, 5)
    assert ((dense != 0).sum(1) == 2).all()
    assert torch.equal(dense.gather(1, index), values)
    assert torch.equal(dense.amax(1), M.amax(1).where(dense.amax(1) == M.amax(1), dense.amax(1)))


def test_a_class_outside_the_top_keeps_the_mass_of_a_zero():
    M = torch.tensor([3.0, 1.0, -8.0, -9.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    t = rl.relabel(rl.densify(*rl.keep_top(M, 1), 4), WHOLE)[0]
    assert t[1:].tolist() == pytest.approx([1 / (math.exp(3) + 3)] * 3)
    assert t[2] > rl.relabel(M, WHOLE)[0, 2]


# --- pooling the label of a box ------------------------------------------------------------------------------


def slow_pool(M, box):
    """The mean of bilinear readings of M (C, H, W); as many along each side as the box has cells, rounded up."""
    C, H, W = M.shape
    x1, y1, x2, y2 = (float(b) * n - 0.5 for b, n in zip(box, (W, H, W, H), strict=True))
    wide, tall = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    nx, ny = math.ceil(wide - 1e-6), math.ceil(tall - 1e-6)
    total = torch.zeros(C)
    for j in range(ny):
        for i in range(nx):
            x = min(max(x1 + (i + 0.5) * wide / nx, 0.0), W - 1)
            y = min(max(y1 + (j + 0.5) * tall / ny, 0.0), H - 1)
            r, c = int(y), int(x)
            dy, dx = y - r, x - c
            for row, weight_y in ((r, 1 - dy), (min(r + 1, H - 1), dy)):
                for column, weight_x in ((c, 1 - dx), (min(c + 1, W - 1), dx)):
                    total += weight_y * weight_x * M[:, row, column]
    return total / (nx * ny)


@pytest.mark.parametrize("shape", [(4, 4), (3, 6)])
def test_pooling_is_the_mean_of_bilinear_readings(shape):
    M, box = draw(6, 3, *shape, seed=9), boxes(6, seed=2)
    slow = torch.stack([slow_pool(*pair) for pair in zip(M, box, strict=True)])
    assert torch.allclose(rl.pool(M, box), slow, atol=1e-4)


def test_targets_sum_to_one_and_a_constant_map_gives_the_same_to_all():
    M = 5 * draw(8, 4, 6, 6, seed=3)
    assert torch.allclose(rl.relabel(M, boxes(8)).sum(1), torch.ones(8), atol=1e-5)
    constant = M[:1, :, :1, :1].expand(8, 4, 6, 6)
    t = rl.relabel(constant, boxes(8))
    assert torch.allclose(t, M[:1, :, 0, 0].softmax(1).expand(8, 4), atol=1e-5)


def test_a_box_around_one_cell_returns_that_cell():
    M = draw(1, 3, 6, 6, seed=4)
    box = torch.tensor([[4 / 6, 1 / 6, 5 / 6, 2 / 6]])  # column 4, row 1
    assert torch.allclose(rl.pool(M, box)[0], M[0, :, 1, 4], atol=1e-5)


def test_left_is_left_and_boxes_with_exchanged_axes_fail():
    M = torch.zeros(1, 2, 6, 6)
    M[0, 0, :, :3], M[0, 1, :, 3:] = 9.0, 9.0
    left, right = torch.tensor([[0.0, 0.0, 0.4, 1.0]]), torch.tensor([[0.6, 0.0, 1.0, 1.0]])
    assert rl.relabel(M, left)[0, 0] > 0.99 and rl.relabel(M, right)[0, 1] > 0.99
    exchanged = left[:, [1, 0, 3, 2]]
    assert rl.relabel(M, exchanged)[0, 0] < 0.6
    # Half a cell matters: a box of the left half must not read across the middle.
    half = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    assert rl.pool(M, half)[0].tolist() == pytest.approx([9.0, 0.0], abs=1e-5)


# --- rivals, and the loop --------------------------------------------------------------------------------------


def test_rivals_are_their_definitions():
    M = 3 * draw(4, 3, 6, 6, seed=5)
    box, i = boxes(4), torch.arange(4)
    assert torch.equal(rl.one_hot_top(torch.tensor([[1.0, 3.0, 2.0]])), torch.tensor([[0.0, 1, 0]]))
    smooth = rl.smoothed(torch.eye(4)[:2], 0.2)
    assert torch.allclose(smooth[0], torch.tensor([0.85, 0.05, 0.05, 0.05]))
    assert torch.allclose(rl.pooled(M)(i, box, None), rl.relabel(M, box))
    single = rl.pooled(M, rl.one_hot_top)(i[2:], box[2:], None)
    assert torch.equal(single.argmax(1), rl.pool(M, box).argmax(1)[2:])
    same = rl.fixed(rl.whole_image(M).softmax(1))
    assert torch.equal(same(i, box, None), same(i, box.flip(0), None))


def test_distillation_asks_about_each_crop():
    counted, crops = rl.Counted(annotator()), draw(5, 3, 32, 32)
    t = rl.distilled(counted)(None, None, crops)
    assert torch.allclose(t, counted.model(crops).softmax(1)) and not t.requires_grad
    assert counted.passes == 5


X = draw(8, 3, 16, 16, seed=1)


def train(target, **change):
    torch.manual_seed(0)
    own = dict(steps=4, batch=4, crop=16, scale=(0.2, 1.0), lr=0.01)
    own |= dict(generator=torch.Generator().manual_seed(2)) | change
    return rl.train_on_crops(lc.manylabels.convnet(3, 8), X, target, **own)


def test_all_targets_meet_the_same_crops_and_their_boxes():
    met = {}

    def seeing(name, t):
        met[name] = []

        def target(i, box, crops):
            met[name].append((i, box, crops))
            return t[i]

        return target

    a = train(seeing("a", torch.eye(3)[torch.arange(8) % 3]))
    b = train(seeing("b", torch.full((8, 3), 1 / 3)))
    assert len(met["a"]) == len(met["b"]) == 4
    for one, other in zip(met["a"], met["b"], strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))
    i, box, crops = met["a"][0]
    plain = rl.cut(X[i], box, 16)
    same = [
        torch.allclose(c, p) or torch.allclose(c, p.flip(-1))
        for c, p in zip(crops, plain, strict=True)
    ]
    assert all(same)
    assert not torch.allclose(a.head.weight, b.head.weight) and not a.training


def test_cutmix_ends_before_the_last_steps(monkeypatch):
    calls = []

    def counted(x, t, generator=None):
        calls.append(len(x))
        return x, t

    monkeypatch.setitem(rl.train_on_crops.__globals__, "cutmix_batch", counted)
    train(lambda i, box, crops: torch.eye(3)[i % 3], mix=3)
    assert calls == [4, 4, 4]


def test_the_papers_optimiser():
    model = lc.manylabels.convnet(3, 8)
    assert isinstance(rl.make_optimizer(model, "adam", 0.01, 0.0), torch.optim.Adam)
    (group,) = rl.make_optimizer(model, "sgd", 0.1, 1e-4).param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-4)


# --- the paper's setting, and the exercises --------------------------------------------------------------------

# What `--budget full` must be, and where it is said (the release's README and training script).
PAPER = {
    "epochs": (300, "README, --epochs"),
    "batch": (1024, "README, --batch-size"),
    "optimizer": ("sgd", "README, --opt: SGD with Nesterov's momentum"),
    "lr": (0.1, "README, --lr"),
    "weight_decay": (1e-4, "README, --weight-decay"),
    "smallest": (0.08, "standard random resized crop"),
    "crop": (224, "standard random resized crop"),
    "keep": (5, "label maps of the release: top-5 scores; not checked in the paper"),
    "cutmix": (False, "main row of the README's table"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("relabel"), PAPER)


def reading(M, x, y, shift=0.5, swap=False, nearest=False, zero=False, along_y=True):
    """Typical ways to read a map wrongly."""
    if swap:
        M, x, y = M, y, x
    H, W = M.shape
    row, column = y * H - shift, x * W - shift
    if zero and (row < 0 or column < 0):
        return 7.0
    row, column = min(max(row, 0.0), H - 1.0), min(max(column, 0.0), W - 1.0)
    if nearest:
        return M[round(row), round(column)]
    if not along_y:
        row = float(round(row))
    r, c = min(int(row), H - 2), min(int(column), W - 2)
    a, b = row - r, column - c
    return (1 - a) * ((1 - b) * M[r, c] + b * M[r, c + 1]) + a * (
        (1 - b) * M[r + 1, c] + b * M[r + 1, c + 1]
    )


def share(shown, y, least=0.008, empty=False, right=False, largest=False):
    there = shown >= least
    hit = there.gather(1, y[:, None])[:, 0]
    hit = shown.argmax(1) == y if largest else hit
    wrong = hit if right else ~hit
    return float(wrong.float().mean() if empty else wrong[there.any(1)].float().mean())


WRONG = {
    "check_read": [
        (lambda M, x, y: reading(M, x, y, swap=True), "changed places"),
        (lambda M, x, y: reading(M, x, y, shift=0.0), "minus one half"),
        (lambda M, x, y: reading(M, x, y, nearest=True), "nearest cell"),
        (lambda M, x, y: reading(M, x, y, zero=True), "border's"),
        (lambda M, x, y: reading(M, x, y, along_y=False), "along y as well"),
    ],
    "check_mixture": [
        (lambda M, box: rl.relabel(M, box), "scores first"),
        (lambda M, box: rl.pool(M.flatten(2).softmax(2).view_as(M), box), "over the classes"),
        (lambda M, box: rl.pool(M.softmax(1), box).softmax(1), "no second softmax"),
        (lambda M, box: rl.pool(M.softmax(1), box)[0], "for each box"),
    ],
    "check_wrong": [
        (lambda shown, y: share(shown, y, empty=True), "left out"),
        (lambda shown, y: share(shown, y, right=True), "the right ones"),
        (lambda shown, y: share(shown, y, largest=True), "the largest"),
        (lambda shown, y: share(shown, y, least=1e-9), "use `least`"),
        (lambda shown, y: share(shown, torch.zeros_like(y)), "the named class y"),
    ],
}  # fmt: skip


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("relabel", WRONG, name, k)


@pytest.mark.realdata
def test_runs_on_a_folder_of_photographs(tmp_path):
    assert_runs_on_a_voc_folder("relabel", tmp_path, taught=60, train=40, val=30, test=30)
