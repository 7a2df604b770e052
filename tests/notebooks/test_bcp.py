"""Bidirectional copy-paste against slow definitions and limits. Sources: paper, section 3; authors' code."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from scipy import ndimage
from torch import nn

import lefcourse as lc
from lefcourse.science import segmentation

bcp = lc.methods("bcp")
K = 4


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(n=3, shape=(9, 9), seed=0):
    return torch.randn(n, K, *shape, generator=rng(seed), dtype=torch.float64)


def labels(n=3, shape=(9, 9), seed=1):
    return torch.randint(0, K, (n, *shape), generator=rng(seed))


def box(shape=(9, 9), seed=2):
    return bcp.box_mask(shape, 2 / 3, rng(seed))


# --- the mask ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "inside"), [((9, 9), 36), ((12, 9), 48), ((6, 9, 12), 192)])
def test_one_box_with_two_thirds_of_every_side(shape, inside):
    M = box(shape)
    assert M.shape == shape and (1 - M).sum() == inside
    where = (M == 0).nonzero()
    sides = where.amax(0) - where.amin(0) + 1
    assert sides.prod() == inside, "the zeros fill one axis-aligned box"
    assert sides.tolist() == [2 * n // 3 for n in shape]


def test_the_box_lies_anywhere_with_equal_chance():
    draws = rng()
    corners = [(bcp.box_mask((6, 6), 2 / 3, draws) == 0).nonzero()[0].tolist() for _ in range(1800)]
    counts = torch.zeros(3, 3)
    for i, j in corners:
        counts[i, j] += 1
    assert ((counts - 200).abs() < 5 * 200**0.5).all()


def test_a_given_corner_is_kept():
    M = bcp.box_mask((8, 8), 0.5, corner=(4, 1))
    assert (M[4:, 1:5] == 0).all() and (1 - M).sum() == 16


# --- pasting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 9), (6, 6, 6)])
def test_what_is_cut_out_of_one_lies_in_the_other(shape):
    a, b = torch.rand(2, 3, 2, *shape, generator=rng())
    M = box(shape)
    assert torch.equal(bcp.paste(a, b, M) + bcp.paste(b, a, M), a + b)
    assert torch.equal(bcp.paste(a, b, M), a * M + b * (1 - M))
    y, h = labels(3, shape), labels(3, shape, 5)
    one_hot = [F.one_hot(t, K) for t in (y, h, bcp.paste(y, h, M), bcp.paste(h, y, M))]
    assert torch.equal(one_hot[2] + one_hot[3], one_hot[0] + one_hot[1])


# --- the component filter ------------------------------------------------------------------------


def test_the_larger_component_stays():
    y = torch.zeros(1, 8, 10, dtype=torch.long)
    y[0, :3, :3] = 1  # 9 pixels
    y[0, 6, 2:7] = 1  # 5 pixels
    y[0, 6, 9] = 2  # alone, but the largest of its class
    kept = bcp.largest_component(y, 3)
    assert (kept == 1).sum() == 9 and kept[0, 1, 1] == 1 and kept[0, 6, 9] == 2
    assert torch.equal(bcp.largest_component(kept, 3), kept), "filtering twice changes nothing"
    assert not bcp.largest_component(torch.zeros_like(y), 3).any(), "an empty class stays empty"


def test_each_image_and_each_class_by_itself():
    y = torch.zeros(2, 6, 6, dtype=torch.long)
    y[0, :4, :4], y[1, 0, 0] = 1, 1
    y[0, 5, 5], y[0, 5, 0] = 2, 3
    assert torch.equal(bcp.largest_component(y, 4), y)


def test_corners_connect_also_in_three_dimensions():
    y = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    y[0, 0, 0, 0] = y[0, 1, 1, 1] = y[0, 3, 3, 0] = 1
    kept = bcp.largest_component(y, 2)
    assert kept.sum() == 2 and kept[0, 3, 3, 0] == 0


def slow_filter(y, K):
    """Flood fill."""
    out = torch.zeros_like(y)
    for image, kept in zip(y, out, strict=True):
        for k in range(1, K):
            left, parts = {tuple(p) for p in (image == k).nonzero().tolist()}, []
            while left:
                part, edge = set(), [left.pop()]
                while edge:
                    i, j = edge.pop()
                    part.add((i, j))
                    near = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
                    left -= near
                    edge += near
                parts.append(part)
            for p in max(parts, key=len, default=()):
                kept[p] = k
    return out


def test_the_filter_is_its_definition():
    for seed in range(20):
        y = torch.randint(0, 5, (1, 9, 9), generator=rng(seed)).clamp(max=2)
        found, wanted = bcp.largest_component(y, 3), slow_filter(y, 3)
        for k in (1, 2):  # of two equally large components either may stay
            assert (found == k).sum() == (wanted == k).sum()
        assert ((found == y) | (found == 0)).all()


def test_pseudo_labels_are_the_teachers_best_guess_without_gradient():
    torch.manual_seed(0)
    teacher = segmentation.UNet(1, K, (4, 8)).eval()
    u = torch.randn(3, 1, 8, 8, generator=rng())
    statistics = copy.deepcopy(teacher.state_dict())
    raw = bcp.pseudo_labels(teacher, u, keep_largest=False)
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in statistics.items())
    assert torch.equal(raw, segmentation.predict(teacher, u)) and not raw.requires_grad
    assert torch.equal(bcp.pseudo_labels(teacher, u), bcp.largest_component(raw, K))
    trained = copy.deepcopy(teacher).train()
    batch_at_hand = trained(u).argmax(1)
    assert torch.equal(bcp.pseudo_labels(trained, u, keep_largest=False), batch_at_hand)
    assert not torch.equal(batch_at_hand, raw), "the mode decides"


@pytest.mark.parametrize("trains", [True, False])
def test_the_teacher_guesses_in_training_mode_unless_told_otherwise(small, trains):
    """As in the authors' training scripts, LA_BCP_train.py and ACDC_BCP_train.py: ema_model.train()."""
    modes = []

    def step(student, teacher, *args, **more):
        modes.append((student.training, teacher.training))
        return bcp.bcp_step(student, teacher, *args, **more)

    change = {} if trains else dict(teacher_trains=False)
    bcp.train_bcp(segmentation.UNet(1, K, (4, 8)), *small, **settings(step=step, **change))
    assert set(modes) == {(True, trains)}


# --- the loss ------------------------------------------------------------------------------------


def slow_region_loss(q, y, R, s=1e-5):
    """Pixel by pixel."""
    inside = R.bool().nonzero().tolist()
    ce, dice = 0.0, 0.0
    for n in range(len(q)):
        both, p_sum, t_sum = [0.0] * K, [0.0] * K, [0.0] * K
        for at in inside:
            z = q[(n, slice(None), *at)]
            p, t = z.softmax(0), int(y[(n, *at)])
            ce -= p[t].log().item()
            for c in range(K):
                both[c] += p[c].item() * (c == t)
                p_sum[c] += p[c].item()
                t_sum[c] += c == t
        dice += sum((2 * both[c] + s) / (p_sum[c] + t_sum[c] + s) for c in range(K)) / K
    return (ce / (len(q) * len(inside)) + 1 - dice / len(q)) / 2


@pytest.mark.parametrize("shape", [(6, 6), (3, 4, 6)])
def test_the_loss_of_a_region_is_its_definition(shape):
    q, y, R = logits(2, shape), labels(2, shape), box(shape)
    for region in (R, 1 - R, torch.ones(shape)):
        wanted = slow_region_loss(q, y, region)
        assert bcp.region_loss(q, y, region).item() == pytest.approx(wanted, abs=1e-9)


def test_what_lies_outside_does_not_matter():
    q, y, R = logits(), labels(), box()
    other_q, other_y = torch.where(R.bool(), q, 9 * logits(seed=7)), torch.where(R.bool(), y, 0)
    assert torch.allclose(bcp.region_loss(q, y, R), bcp.region_loss(other_q, other_y, R))


def test_a_region_is_averaged_over_its_own_pixels():
    """Tiling doubles the region and leaves its loss: a small box has the same say as a large one."""
    q, y, R = logits(), labels(), box()
    twice = [torch.cat([t, t], -1) for t in (q, y, R)]
    assert torch.allclose(bcp.region_loss(*twice, s=0), bcp.region_loss(q, y, R, s=0))


def test_an_empty_region_costs_nothing():
    q, y = logits().requires_grad_(), labels()
    loss = bcp.region_loss(q, y, torch.zeros(9, 9))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and not q.grad.any()


def losses(M, alpha, seed=0, truth=False):
    q_in, q_out = logits(seed=seed), logits(seed=seed + 1)
    y1, y2, h1, h2 = (labels(seed=k) for k in (3, 4, 5, 6))
    return bcp.bcp_loss(q_in, q_out, y1, y2, h1, h2, M, alpha), (q_in, q_out, y1, y2, h1, h2)


def test_without_a_box_the_streams_are_separate():
    """M all ones: the first mixture is labeled image 1, the second unlabeled image 2. All zeros: roles swap."""
    for value in (1, 0):
        M, whole = torch.full((9, 9), float(value)), torch.ones(9, 9)
        loss, (q_in, q_out, y1, y2, h1, h2) = losses(M, 0.3)
        labeled, guessed = ((q_in, y1), (q_out, h2)) if value else ((q_out, y2), (q_in, h1))
        wanted = bcp.region_loss(*labeled, whole) + 0.3 * bcp.region_loss(*guessed, whole)
        assert loss.isfinite() and torch.allclose(loss, wanted, atol=1e-6)


def test_each_region_has_its_own_weight_and_target():
    M = box()
    loss, (q_in, q_out, y1, y2, h1, h2) = losses(M, 0.5)
    terms = [
        (1.0, q_in, y1, M), (0.5, q_in, h1, 1 - M), (0.5, q_out, h2, M), (1.0, q_out, y2, 1 - M)
    ]  # fmt: skip
    assert loss.item() == pytest.approx(sum(w * slow_region_loss(q, y, R) for w, q, y, R in terms))


def test_alpha_zero_leaves_guessed_pixels_alone():
    M = box()
    q_in, q_out = logits().requires_grad_(), logits(seed=1).requires_grad_()
    y1, y2, h1, h2 = (labels(seed=k) for k in (3, 4, 5, 6))
    bcp.bcp_loss(q_in, q_out, y1, y2, h1, h2, M, 0.0).backward()
    box_, around = (M == 0).expand_as(q_in), (M == 1).expand_as(q_in)
    assert not q_in.grad[box_].any() and q_in.grad[around].all()
    assert not q_out.grad[around].any() and q_out.grad[box_].all()


def test_a_teacher_who_is_right_means_full_supervision_with_cutmix():
    """alpha = 1 and guesses that are true: number by number the loss of mixtures with their true labels."""
    torch.manual_seed(0)
    student = segmentation.UNet(1, K, (4, 8)).eval()
    x1, x2, u1, u2 = torch.randn(4, 2, 1, 12, 12, generator=rng())
    y1, y2, t1, t2 = (labels(2, (12, 12), k) for k in range(4))
    M = box((12, 12))
    x_in, x_out, y_in, y_out = x1.clone(), u2.clone(), y1.clone(), t2.clone()
    hole = M == 0
    x_in[..., hole], x_out[..., hole] = u1[..., hole], x2[..., hole]
    y_in[..., hole], y_out[..., hole] = t1[..., hole], y2[..., hole]
    full = sum(
        bcp.region_loss(student(x), y, R)
        for x, y in ((x_in, y_in), (x_out, y_out))
        for R in (M, 1 - M)
    )

    class Oracle(nn.Module):
        def forward(self, u):
            return 9.0 * F.one_hot(torch.cat([t1, t2]), K).movedim(-1, 1)

    mixed = bcp.bcp_step(
        student, Oracle(), x1, x2, y1, y2, u1, u2, M, alpha=1.0, keep_largest=False
    )
    assert torch.allclose(mixed, full, atol=1e-6)


# --- a step --------------------------------------------------------------------------------------


class Spy(nn.Module):
    """Remembers what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(K)), []

    def forward(self, x):
        self.seen.append(x.clone())
        return self.weight.view(1, K, *[1] * (x.ndim - 2)) * x


def test_two_pairs_are_mixed_both_ways_and_the_teacher_sees_them_whole():
    student, teacher = Spy(), Spy()
    x1, x2, u1, u2 = (torch.full((2, 1, 6, 6), float(v)) for v in (1, 2, 3, 4))
    M = box((6, 6))
    y = torch.zeros(2, 6, 6, dtype=torch.long)
    bcp.bcp_step(student, teacher, x1, x2, y, y, u1, u2, M, alpha=0.5).backward()
    (whole,), (mixed,) = teacher.seen, student.seen
    assert torch.equal(whole, torch.cat([u1, u2]))
    assert torch.equal(mixed[:2], x1 * M + u1 * (1 - M)), "inward: an unlabeled box"
    assert torch.equal(mixed[2:], u2 * M + x2 * (1 - M)), "outward: a labeled box, another pair"
    assert teacher.weight.grad is None and student.weight.grad is not None


def test_the_teacher_follows_weights_and_statistics():
    torch.manual_seed(0)
    teacher, student = segmentation.UNet(1, K, (4, 8)), segmentation.UNet(1, K, (4, 8))
    student(torch.randn(4, 1, 8, 8))
    before = copy.deepcopy(teacher.state_dict())
    bcp.update_teacher(teacher, student, 0.99)
    for name, now in teacher.state_dict().items():
        if now.is_floating_point():
            wanted = 0.99 * before[name] + 0.01 * student.state_dict()[name]
            assert torch.allclose(now, wanted, atol=1e-7), name
    assert "down.0.1.running_mean" in before


@pytest.fixture(scope="module")
def small():
    x, u = torch.rand(4, 1, 12, 12, generator=rng()), torch.rand(6, 1, 12, 12, generator=rng(1))
    return x, labels(4, (12, 12)), u


def settings(**change):
    return dict(steps=2, batch=4, lr=1e-3, generator=rng(3), where=rng(4)) | change


def test_training_draws_one_box_a_step_and_moves_the_teacher_after_the_student(small):
    x, y, u = small
    torch.manual_seed(0)
    net = segmentation.UNet(1, K, (4, 8))
    masks, teachers = [], [copy.deepcopy(net.state_dict())]

    def mask(*args):
        masks.append(bcp.box_mask(*args))
        return masks[-1]

    def watch(t, student, teacher):
        old, name = teachers[-1], "head.weight"
        wanted = 0.9 * old[name] + 0.1 * student.state_dict()[name]
        assert torch.allclose(teacher.state_dict()[name], wanted, atol=1e-7)
        assert all(p.grad is None for p in teacher.parameters())
        teachers.append(copy.deepcopy(teacher.state_dict()))

    student, teacher = bcp.train_bcp(net, x, y, u, m=0.9, mask=mask, watch=watch, **settings())
    assert len(masks) == 2 and len(teachers) == 3 and student is net
    assert not any(p.requires_grad for p in teacher.parameters())


def test_both_networks_begin_with_the_pretrained_weights(small):
    x, y, u = small
    torch.manual_seed(0)
    net = bcp.pretrain(segmentation.UNet(1, K, (4, 8)), x, y, beta=2 / 3, **settings())
    start, seen = copy.deepcopy(net.state_dict()), []

    def step(student, teacher, *rest, **_):
        seen.append((copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())))
        return student(rest[0]).sum() * 0

    bcp.train_bcp(net, x, y, u, step=step, **settings(steps=1))
    for state in seen[0]:
        assert all(torch.equal(v, state[k]) for k, v in start.items())


def test_pretraining_mixes_labeled_images_with_their_labels(small, monkeypatch):
    x, y, _ = small
    seen = []
    original = bcp.region_loss
    monkeypatch.setattr(
        bcp, "region_loss", lambda q, t, R: seen.append((t, R)) or original(q, t, R)
    )
    torch.manual_seed(0)
    bcp.pretrain(segmentation.UNet(1, K, (4, 8)), x, y, beta=2 / 3, **settings(steps=1))
    (t, R), known = seen[0], {tuple(v.flatten().tolist()) for v in y}
    assert t.shape == (4, 12, 12) and (R == 1).all()
    assert any(tuple(v.flatten().tolist()) not in known for v in t), "labels are cut, too"


def test_the_same_seed_is_the_same_student_and_another_is_not(small):
    x, y, u = small

    def run(seed):
        torch.manual_seed(0)
        net = segmentation.UNet(1, K, (4, 8))
        return bcp.train_bcp(net, x, y, u, **settings(generator=rng(seed)))[0].head.weight

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_volumes_are_mixed_alike():
    torch.manual_seed(0)
    x, u = torch.rand(2, 1, 4, 12, 12), torch.rand(4, 1, 4, 12, 12)
    net = segmentation.UNet(1, K, (4, 8), dims=3)
    student, _ = bcp.train_bcp(net, x, labels(2, (4, 12, 12)), u, **settings(batch=2))
    assert segmentation.predict(student, u).shape == (4, 4, 12, 12)


# --- the exercises' checks -----------------------------------------------------------------------


def with_zeros_as_a_class(y, K, share):
    return torch.where(y == 0, 1, y)


def across_the_batch(y, K, share):
    """Compares every component with the largest of its class in all images."""
    flat, out = np.zeros((3, 3, 3)), torch.zeros_like(y)
    flat[1] = 1  # what touches lies in the same image
    for k in range(1, K):
        parts, _ = ndimage.label(y == k, flat)
        sizes = np.bincount(parts.flat)
        sizes[0] = 0
        out[torch.from_numpy((sizes >= share * sizes.max())[parts] & (parts > 0))] = k
    return out


def wrapped(y, margin):
    M = torch.ones(y.shape)
    if (y > 0).any():
        low, high = (y > 0).nonzero().amin(0) - margin, (y > 0).nonzero().amax(0) + margin + 1
        M[tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))] = 0
    return M


def four_neighbours(y, K, share):
    """Pixels that touch at a corner are apart."""
    kept = np.zeros_like(given := y.numpy())
    for image, out in zip(given, kept, strict=True):
        for k in range(1, K):
            parts, _ = ndimage.label(image == k)
            sizes = np.bincount(parts.flat)
            sizes[0] = 0
            out[(sizes >= share * sizes.max())[parts] & (parts > 0)] = k
    return torch.from_numpy(kept)


def dilated(y, margin):
    grown = ndimage.binary_dilation(y.numpy() > 0, np.ones((3, 3)), margin) if margin else y > 0
    return torch.from_numpy(1.0 - np.asarray(grown, dtype=np.float32))


WRONG = {
    "check_share": [
        (lambda beta, alpha, d: alpha / (1 + alpha), "that of the area"),
        (lambda beta, alpha, d: alpha * beta**d, "divide by the sum"),
        (
            lambda beta, alpha, d: alpha * beta**2 / (alpha * beta**2 + 1 - beta**2),
            "three dimensions",
        ),
    ],
    "check_keep": [
        (lambda y, K, share: bcp.largest_component(y, K), "stays beside one of 9"),
        (lambda y, K, share: y, "a single pixel must go"),
        (lambda y, K, share: bcp.largest_component((y > 0).long(), K) * y, "a largest component"),
        (with_zeros_as_a_class, "a single pixel must go"),
        (across_the_batch, "not across the batch"),
        (four_neighbours, "touch at a corner"),
    ],
    "check_heart": [
        (lambda y, margin: (y == 0).float(), "grows by one pixel"),
        (lambda y, margin: (y > 0).float(), "0 marks what is replaced"),
        (lambda y, margin: torch.zeros(y.shape), "0 marks what is replaced"),
        (lambda y, margin: wrapped(y, 0), "grows by one pixel"),
        (wrapped, "not wrapped around"),
        (dilated, "follow its outline"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("bcp", WRONG, name, k)


# --- the paper's setting -------------------------------------------------------------------------

# What `--budget full` must be, and where it is said (files of the authors' repository; ACDC).
PAPER = {
    "patients": (3, "ACDC_BCP_train.py, --labelnum 3"),
    "unlabeled": (67, "ACDC: 70 patients for training"),
    "burn_in": (10_000, "ACDC_BCP_train.py, --pre_iterations"),
    "steps": (30_000, "ACDC_BCP_train.py, --max_iterations"),
    "batch": (12, "ACDC_BCP_train.py, --labeled_bs of a --batch_size of 24"),
    "beta": (0.6667, "ACDC_BCP_train.py, generate_mask: two thirds of a side"),
    "alpha": (0.5, "ACDC_BCP_train.py, --u_weight"),
    "m": (0.99, "ACDC_BCP_train.py, update_model_ema(model, ema_model, 0.99)"),
}


def test_the_full_budget_has_the_papers_setting():
    full = full_budget("bcp")
    assert_papers(full, PAPER)
