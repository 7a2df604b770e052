"""From tokens to a panoptic network: cuts, order of painting, the rule of 0.7, quality, names, and what a loss moves.

Brief sources: paper (abstract) and u2seg/U2Seg (generate_pseudo_panoptic.py, prepare_stuff_panoptic_fpn.py,
coco_evaluation.py, config); MaskCut as in CutLER. Panoptic quality is checked against torchmetrics.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from scipy.optimize import linear_sum_assignment

import lefcourse as lc

m = lc.methods("u2seg")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def rect(side, *spans):
    """Masks (M, side, side), each true in rows a to b and columns c to d."""
    out = torch.zeros(len(spans), side, side, dtype=torch.bool)
    for k, (a, b, c, d) in enumerate(spans):
        out[k, a:b, c:d] = True
    return out


# --- tokens ----------------------------------------------------------------------------------------


def test_infonce_asks_for_the_same_place_among_other_images():
    u, v = (F.normalize(torch.randn(6, 4, generator=draws(s)), dim=1) for s in (0, 1))
    image = torch.tensor([0, 0, 1, 1, 2, 2])
    z, total = (u @ v.T / 0.1).tolist(), 0.0
    for i in range(6):
        rivals = [j for j in range(6) if j == i or image[j] != image[i]]
        row = math.log(sum(math.exp(z[i][j] - z[i][i]) for j in rivals))
        total += row + math.log(sum(math.exp(z[j][i] - z[i][i]) for j in rivals))
    assert m.dense_infonce(u, v, image).item() == pytest.approx(total / 12, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_matched_tokens_of_two_windows_show_the_same_place(seed):
    at = torch.arange(40.0)
    x = torch.stack(torch.meshgrid(at, at, indexing="ij"))[None]
    windows, slices = m.two_windows(x, 28, draws(seed))
    first, second = (F.avg_pool2d(w, 4)[s] for w, s in zip(windows, slices, strict=True))
    assert first.shape == second.shape and windows[0].shape[2:] == (28, 28)
    assert (first - second).abs().max() <= 2  # less than a token apart


def test_a_token_sees_nine_pixels_and_has_unit_length():
    net = m.Encoder(8, 12).eval()
    x = torch.rand(1, 3, 40, 40, generator=draws(), requires_grad=True)
    k = net(x)
    assert k.shape == (1, 12, 10, 10)
    assert torch.allclose(k.norm(dim=1), torch.ones(1, 10, 10), atol=1e-5)
    k[0, 0, 5, 5].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 9


# --- cuts ------------------------------------------------------------------------------------------


def test_the_second_eigenvector_separates_two_blocks_exactly():
    W = torch.full((1, 10, 10), 1e-5)
    W[0, :4, :4] = W[0, 4:, 4:] = 1.0
    x = m.second_eigenvector(W)[0]
    assert (x[:4] > x.mean()).all() != (x[4:] > x.mean()).all()
    assert x[:4].std() < 1e-4 and x[4:].std() < 1e-4
    assert x[0].abs() > x[4].abs()  # the smaller block has the larger values


def test_it_solves_the_generalised_problem():
    W = torch.rand(2, 9, 9, generator=draws()).double()
    W = W + W.transpose(1, 2)
    x = m.second_eigenvector(W)[..., None]
    D = torch.diag_embed(W.sum(2))
    left, right = (D - W) @ x, D @ x
    lam = (x * left).sum(1) / (x * right).sum(1)
    assert torch.allclose(left, lam[:, None] * right, atol=1e-10)
    assert (torch.ones(1, 9).double() @ right).abs().max() < 1e-10  # no constant in it


def test_the_affinity_links_the_share_that_is_asked_for():
    k = F.normalize(torch.randn(2, 8, 5, 5, generator=draws()), dim=1)
    W = m.affinity(k, 0.8)
    assert W.unique().tolist() == pytest.approx([1e-5, 1.0])
    assert torch.allclose((W == 1).float().mean((1, 2)), torch.full((2,), 0.2), atol=0.01)
    assert W.equal(W.transpose(1, 2))


def test_only_what_hangs_together_with_the_seed_is_kept():
    mask = rect(6, (0, 2, 0, 2))[0] | rect(6, (2, 3, 2, 4))[0] | rect(6, (5, 6, 5, 6))[0]
    start = rect(6, (0, 1, 0, 1))[0]
    assert m.spread(start[None], mask[None])[0].equal(mask & ~rect(6, (5, 6, 5, 6))[0])
    assert not m.spread(rect(6, (4, 5, 0, 1)), mask[None]).any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_side_of_the_largest_value_unless_it_owns_two_corners(sign):
    free = torch.zeros(1, 36, dtype=torch.bool)
    object_ = rect(6, (2, 4, 2, 4))
    x = sign * torch.where(object_, 3.0, -0.2).flatten(1)
    assert m.foreground(x, free, 6, 6).equal(object_)
    x = sign * torch.where(object_, 0.5, -3.0).flatten(
        1
    )  # the ground has the largest, and four corners
    assert m.foreground(x, free, 6, 6).equal(object_)


def scene_tokens():
    """Tokens of ground with two objects of different kinds, 8 x 8."""
    objects = rect(8, (1, 3, 1, 4), (5, 7, 4, 7))
    kind = objects[0].long() + 2 * objects[1].long()
    return F.one_hot(kind, 3).permute(2, 0, 1)[None].float(), objects


def test_maskcut_finds_the_objects_one_after_the_other():
    k, objects = scene_tokens()
    k = F.normalize(k + 0.01 * torch.randn(k.shape, generator=draws()), dim=1)
    masks, vectors = m.maskcut(k, tau=0.4, cuts=2)
    assert vectors.shape == masks.shape == (1, 2, 8, 8)
    assert {tuple(x.flatten().tolist()) for x in masks[0]} == {
        tuple(x.flatten().tolist()) for x in objects
    }
    masks = m.maskcut(k, tau=0.4, cuts=3)[0][0]
    assert masks.sum(0).max() <= 1  # what was taken is not taken again


def test_refining_finds_the_edge_in_colour():
    at = torch.arange(40.0) - 19.5
    disc = at[:, None] ** 2 + at**2 < 81
    x = torch.where(disc, 0.9, 0.2).expand(1, 3, -1, -1).contiguous()
    coarse = F.avg_pool2d(disc[None, None].float(), 4) > 0.4
    found = m.refine(x, coarse)[0, 0]
    assert (found & disc).sum() / (found | disc).sum() > 0.95
    assert not m.refine(x, torch.zeros_like(coarse)).any()
    assert not m.refine(x, torch.ones_like(coarse)).any()  # too large


def test_a_crop_is_the_box_of_its_mask():
    x = torch.rand(1, 3, 40, 40, generator=draws())
    mask = rect(40, (8, 32, 4, 28))
    image, cut = m.crops(x, mask, 24)
    assert torch.allclose(image, x[:, :, 8:32, 4:28], atol=1e-4) and (cut > 0.99).all()


def test_an_embedding_does_not_see_beyond_its_mask():
    net = m.Encoder(8, 12).eval()
    mask = rect(40, (8, 32, 8, 32))
    mask[0, 20:32, 20:32] = False
    x = torch.rand(1, 3, 40, 40, generator=draws())
    moved = x.clone()
    moved[:, :, 32:] = moved[:, :, :, 32:] = 0
    with torch.no_grad():
        assert torch.allclose(m.embed(net, x, mask), m.embed(net, moved, mask), atol=1e-5)


# --- pseudo-labels ---------------------------------------------------------------------------------


def merged(masks, stuff=None, C=4, S=2, covered=0.7):
    stuff = torch.zeros(masks.shape[1:], dtype=torch.long) if stuff is None else stuff
    return m.merge(masks[None], torch.arange(len(masks))[None], stuff[None], C, S, covered)[0]


@pytest.mark.parametrize("swap", [False, True])
def test_of_two_nested_masks_the_smaller_is_wholly_visible(swap):
    masks = rect(8, (0, 6, 0, 6), (2, 4, 2, 4))
    small = int(not swap)
    found = merged(masks.flip(0) if swap else masks)
    assert (found[2:4, 2:4, 0] == small).all() and (found[..., 1] == small + 1).sum() == 4
    assert (found[..., 0] == 1 - small).sum() == 32


def test_a_mask_hidden_by_smaller_ones_disappears():
    large = rect(8, (0, 4, 0, 4))[0] & ~rect(8, (1, 3, 1, 3))[0]
    parts = rect(8, (0, 4, 0, 2), (0, 4, 2, 4))
    found = merged(torch.stack([large, *parts]))
    assert not (found[..., 0] == 0).any() and set(found[..., 1].unique().tolist()) == {0, 2, 3}


@pytest.mark.parametrize(("rows", "kept"), [(71, False), (69, True)])
def test_stuff_that_is_more_covered_than_seven_tenths_is_void(rows, kept):
    masks = torch.zeros(1, 100, 4, dtype=torch.bool)
    masks[0, :rows] = True
    stuff = torch.zeros(100, 4, dtype=torch.long)
    found = merged(masks, stuff)
    rest = found[rows:, :, 0]
    assert (rest == (4 if kept else -1)).all() and (found[:rows, :, 0] == 0).all()


def test_categories_of_stuff_follow_those_of_masks():
    stuff = torch.zeros(8, 8, dtype=torch.long)
    stuff[4:] = 1
    found = merged(rect(8, (0, 2, 0, 2)), stuff)
    assert found[0, 0].tolist() == [0, 1]
    assert found[3, 3].tolist() == [4, 0] and found[6, 6].tolist() == [5, 0]


# --- quality and names -----------------------------------------------------------------------------

THINGS, CLASSES = 3, 5


def random_maps(seed, n=6, side=16):
    """Maps with blocky segments: classes 0 to 2 are things with numbers, 3 and 4 stuff."""
    g = draws(seed)
    category = torch.randint(CLASSES, (n, 4, 4), generator=g)
    number = torch.randint(1, 4, (n, 4, 4), generator=g) * (category < THINGS)
    maps = torch.stack([category, number], -1)
    return maps.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)


def disturbed(maps, seed, void=0.03):
    """Maps with some pixels of other maps, and some void."""
    g, other = draws(seed), random_maps(seed + 50)
    swap = torch.rand(maps.shape[:3], generator=g)[..., None]
    out = torch.where(swap < 0.15, other, maps)
    return torch.where(swap > 1 - void, torch.tensor([-1, 0]), out)


@pytest.mark.parametrize("seed", range(3))
def test_quality_agrees_with_torchmetrics(seed):
    """Without void: torchmetrics leaves predicted void out of the truth's area, COCO's rule does not."""
    detection = pytest.importorskip("torchmetrics.detection")
    truth = random_maps(seed)
    predicted = disturbed(truth, seed + 1, void=0)
    metric = detection.PanopticQuality(
        set(range(THINGS)), {3, 4}, return_sq_and_rq=True, return_per_class=True
    )  # fmt: skip
    theirs = metric(predicted, truth).double()
    order = [*metric.things, *metric.stuffs]
    sq, rq = m.panoptic_quality(predicted, truth, CLASSES)
    ours = torch.stack([sq * rq, sq, rq], 1)[order]
    assert 0.1 < ours[:, 0].mean() < 0.95
    assert torch.allclose(theirs.view(-1, 3), ours, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_quality_is_a_loop_over_segments(seed):
    truth = random_maps(seed)
    predicted = disturbed(truth, seed + 1)
    sq, rq = m.panoptic_quality(predicted, truth, CLASSES)

    def parts(maps, n, c):
        one = maps[n]
        numbers = one[one[..., 0] == c][:, 1].unique().tolist()
        return [(one[..., 0] == c) & (one[..., 1] == k) for k in numbers]

    for c in range(CLASSES):
        tp, close, total = 0, 0.0, 0
        for n in range(len(truth)):
            p, t = parts(predicted, n, c), parts(truth, n, c)
            total += len(p) + len(t)
            for a in p:
                for b in t:
                    iou = ((a & b).sum() / (a | b).sum()).item()
                    if iou > 0.5:
                        tp, close = tp + 1, close + iou
        assert sq[c].item() == pytest.approx(close / max(tp, 1), abs=1e-5)
        assert rq[c].item() == pytest.approx(2 * tp / max(total, 1), abs=1e-5)


def test_quality_of_the_truth_is_one_whatever_its_numbers():
    truth = random_maps(7)
    other = truth.clone()
    other[..., 1] = torch.where(truth[..., 1] > 0, 9 - truth[..., 1], 0)
    for maps in (truth, other):
        sq, rq = m.panoptic_quality(maps, truth, CLASSES)
        assert sq.tolist() == rq.tolist() == [1.0] * CLASSES
    shaken = disturbed(truth, 3)
    moved = shaken.clone()
    moved[..., 1] = torch.where(shaken[..., 1] > 0, 9 - shaken[..., 1], 0)
    for a, b in zip(*(m.panoptic_quality(x, truth, CLASSES) for x in (shaken, moved)), strict=True):
        assert torch.allclose(a, b)


def test_names_do_not_depend_on_the_numbers_of_clusters():
    truth = random_maps(1)
    g, C, S = draws(2), 6, 4
    finer = truth.clone()  # each class in two clusters
    half = torch.randint(2, (len(truth), 1, 1), generator=g)
    finer[..., 0] = torch.where(
        truth[..., 0] < THINGS, 2 * truth[..., 0] + half, C + 2 * (truth[..., 0] - THINGS) + half
    )
    order = torch.cat([torch.randperm(C, generator=g), C + torch.randperm(S, generator=g)])
    moved = torch.stack([order[finer[..., 0]], finer[..., 1]], -1)
    named = []
    for maps in (finer, moved):
        table = m.confusion(maps, truth, C, C + S, THINGS, CLASSES)
        named.append(m.rename(maps, m.majority_names(table)))
    assert named[0].equal(named[1]) and named[0].equal(truth)


def test_pairs_count_only_above_their_bars_and_never_across_things_and_stuff():
    truth = torch.zeros(1, 10, 10, 2, dtype=torch.long)
    truth[..., 0] = 3
    truth[0, :4, :5] = torch.tensor([1, 1])
    maps = torch.full_like(truth, 0)
    maps[..., 0], maps[0, :4, :3] = 4, torch.tensor([2, 1])  # 12 of 20 pixels: IoU 0.6
    table = m.confusion(maps, truth, 4, 6, THINGS, CLASSES)
    assert table.nonzero().tolist() == [[2, 1], [4, 3]]
    maps[0, :4, 2:3] = torch.tensor([4, 0])  # 8 of 20: too little for a thing
    assert m.confusion(maps, truth, 4, 6, THINGS, CLASSES).nonzero().tolist() == [[4, 3]]


def test_hungarian_and_majority_coincide_on_a_permutation_and_part_with_more_clusters():
    one_to_one = 10 * torch.eye(4).long()[torch.tensor([2, 0, 3, 1])]
    assert m.majority_names(one_to_one).equal(m.hungarian_names(one_to_one))
    many = torch.cat([one_to_one, 3 * one_to_one, one_to_one + 1])
    names = m.hungarian_names(many)
    assert (names < 0).sum() == 12 - 4 and (m.majority_names(many) >= 0).all()
    assert sorted(names[names >= 0].tolist()) == [0, 1, 2, 3]


def test_what_has_no_name_becomes_void():
    maps = torch.tensor([[[[0, 1], [1, 2], [2, 0], [-1, 0]]]])
    named = m.rename(maps, torch.tensor([4, -1, 1]))
    assert named.tolist() == [[[[4, 1], [-1, 0], [1, 0], [-1, 0]]]]


# --- network ---------------------------------------------------------------------------------------


def network(C=4, S=3):
    torch.manual_seed(0)
    return m.PanopticNet(m.Encoder(8, 12), C, S)


def labels():
    """Two maps, 16 x 16: two things, two kinds of stuff, a strip of void."""
    category = torch.full((2, 16, 16), 4)
    category[1, :, 8:] = 6
    number = torch.zeros_like(category)
    for k, span in enumerate([(1, 6, 1, 6), (8, 15, 9, 16)]):
        category[:, span[0] : span[1], span[2] : span[3]] = 1 + k
        number[:, span[0] : span[1], span[2] : span[3]] = 1 + k
    category[:, 15] = -1
    return torch.stack([category, number], -1)


def gradients(**weights):
    net, x = network(), torch.rand(2, 3, 16, 16, generator=draws())
    m.u2seg_loss(net(x), m.targets(labels(), 4, 3), **weights).backward()
    return {
        n: 0.0 if p.grad is None else p.grad.abs().sum().item() for n, p in net.named_parameters()
    }


def test_each_weight_moves_its_own_heads():
    without, only = gradients(lambda_s=0.0), gradients(lambda_i=0.0)
    for name in without:
        head = name.split(".")[0]
        assert (without[name] == 0) == (head == "semantic"), name
        if head in ("instance", "cluster", "semantic"):
            assert (only[name] == 0) == (head != "semantic"), name


def test_void_counts_for_nothing_but_being_no_thing():
    outputs = network().eval()(torch.rand(2, 3, 16, 16, generator=draws()))
    goals = m.targets(labels(), 4, 3)
    assert (goals[4][:, 15] == -1).all() and not goals[2][:, 15].any()
    moved = list(outputs)
    moved[3] = outputs[3] + F.pad(torch.randn(2, 4, 1, 16, generator=draws(1)), (0, 0, 15, 0))
    assert m.u2seg_loss(moved, goals).equal(m.u2seg_loss(outputs, goals))


def test_targets_point_to_the_centres():
    heat, offset, thing, cluster, semantic = m.targets(labels(), 4, 3)
    at = torch.arange(16) + 0.5
    assert torch.allclose((at[:, None] + 8 * offset[0, 0])[1:6, 1:6], torch.tensor(3.5))
    assert torch.allclose((at + 8 * offset[0, 1])[8:15, 9:16], torch.tensor(12.5))
    assert (offset[:, :, ~thing[0]] == 0).all()
    assert heat.shape == (2, 8, 8) and (heat.amax((1, 2)) > 0.8).all()
    assert cluster.shape == (2, 4, 4) and set(cluster.unique().tolist()) == {-1, 1, 2}
    assert semantic[0, 0, 0] == 1 and semantic[1, 0, 15] == 3 and semantic[0, 3, 3] == 0


def test_decoding_what_the_targets_ask_for_gives_the_map():
    maps = labels()
    maps[:, 15, :, 0] = maps[:, 7, :, 0]
    heat, offset, thing, _, semantic = m.targets(maps, 4, 3)
    clusters = torch.zeros(2, 4, 4, 4)
    clusters[:, 1, :2, :2] = clusters[:, 2, 2:, 2:] = 9.0
    rest = torch.cat([offset, torch.where(thing, 9.0, -9.0)[:, None]], 1)
    logits = 9.0 * F.one_hot(semantic, 4).permute(0, 3, 1, 2)
    found = m.decode(
        (torch.logit(heat.clamp(1e-4, 1 - 1e-4)), clusters, rest, logits), smallest=(4, 9)
    )
    sq, rq = m.panoptic_quality(found, maps, 7)
    used = maps[..., 0].unique()
    assert (rq[used] == 1).all() and (sq[used] > 0.999).all()
    few = m.decode(
        (torch.logit(heat.clamp(1e-4, 1 - 1e-4)), clusters, rest, logits), smallest=(40, 9)
    )
    assert (few[0, 3, 3] == torch.tensor([-1, 0])).all()  # 25 pixels are too few


# --- exercises and budget --------------------------------------------------------------------------


def stack(masks, key=None, reverse=True, start=1):
    box = []
    for mask in masks:
        r, c = mask.any(1).nonzero(), mask.any(0).nonzero()
        box.append(int((r.max() - r.min() + 1) * (c.max() - c.min() + 1)))
    rank = key(masks) if key else box
    number = torch.zeros(masks.shape[1:], dtype=torch.long)
    for k in sorted(range(len(masks)), key=lambda k: -rank[k] if reverse else rank[k]):
        number[masks[k]] = k + start
    return number


def one_to_one(table):
    names = torch.full((len(table),), -1)
    for i, j in zip(*linear_sum_assignment(table, True), strict=True):
        names[i] = j if table[i, j] > 0 else -1
    return names


WRONG = {
    "check_stack": [
        (lambda x: stack(x, reverse=False), "small mask vanished"),
        (lambda x: stack(x, key=lambda x: x.sum((1, 2)).tolist()), "box decides|largest first"),
        (lambda x: stack(x, start=0), "number 1 where"),
        (lambda x: stack(x) - 1, "count from 1"),
        (lambda x: stack(x)[None], "one number a pixel"),
        (
            lambda x: stack(x, key=lambda x: list(range(len(x)))),
            "small mask vanished|largest first",
        ),
    ],
    "check_names": [
        (lambda t: t.argmax(1), "-1, not class 0"),
        (one_to_one, "one-to-one"),
        (lambda t: t.argmax(0), "one name for each of 5"),
        (lambda t: torch.where(t.sum(1) > 0, t.argmin(1), -1), "most frequent|one-to-one"),
    ],
    "check_purity": [
        (lambda t: (t.amax(1) / t.sum(1).clamp(min=1))[:2].mean(), "weigh clusters"),
        (lambda t: (t.amax(1) / t.sum(1).clamp(min=1)).mean(), "weigh clusters"),
        (lambda t: (t.amax(1) / t.sum(1)).mean(), "empty cluster"),
        (lambda t: t.amax(0).sum() / t.sum(), "not within each class"),
        (lambda t: t.amax(1).sum(), "a share"),
        (lambda t: 1 - t.amax(1).sum() / t.sum(), "9 of 12"),
    ],
}


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("u2seg", WRONG, name, k, math=math)


# What `--budget full` must be, and where it is said.
PAPER = {
    "C": (800, "paper and Instance_Clustering: 300 or 800 clusters"),
    "S": (27, "STEGO's clusters; prepare_stuff_panoptic_fpn.py: 28 outputs"),
    "cuts": (3, "MaskCut: up to 3 masks"),
    "covered": (0.7, "generate_pseudo_panoptic.py"),
    "lambda_s": (0.5, "config: weight of the semantic head"),
    "batch": (16, "config: images in a batch"),
    "steps": (90_000, "name of the released checkpoint"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("u2seg"), PAPER)
