"""PatchCT against slow definitions, its limits and POT. Brief sources: the paper's formulas; CT-pytorch; POT."""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs_on_a_voc_folder

import lefcourse as lc

pc = lc.methods("patchct")
N, M, C = 5, 7, 4
Y = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1.0]]).double()
SOME = Y.sum(1) > 0


def unit(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


X, LABELS = unit(N, M, 6), unit(C, 6, seed=1)
COS = X @ LABELS.T
Q = Y / Y.sum(1, keepdim=True).clamp_min(1)


def half(rho, T=0.3, cos=COS, y=Y, **more):
    return float(pc.ct_loss(cos, y, T, rho, **more))


def gradient(rho, T=0.3, cos=COS, y=Y):
    cos = cos.clone().requires_grad_()
    return torch.autograd.grad(pc.ct_loss(cos, y, T, rho), cos)[0]


# --- the plans and their cost ------------------------------------------------------------------------


def slow(cos, y, T, rho, theta=None):
    """The transport cost by loops over images, patches and present labels; theta (N, M)."""
    total, images = 0.0, 0
    for n in range(len(cos)):
        here = [k for k in range(cos.shape[2]) if y[n, k] > 0]
        if not here:
            continue
        images += 1
        patches = range(cos.shape[1])
        mass = [1 / cos.shape[1] if theta is None else float(theta[n, i]) for i in patches]
        e = [[math.exp(float(cos[n, i, k]) / T) for k in here] for i in patches]
        cost = [[1 - float(cos[n, i, k]) for k in here] for i in patches]
        q = 1 / len(here)
        for i in patches:
            total += (
                rho * mass[i] * sum(a * b for a, b in zip(e[i], cost[i], strict=True)) / sum(e[i])
            )
        for k in range(len(here)):
            all_e = sum(mass[i] * e[i][k] for i in patches)
            total += (1 - rho) * q * sum(mass[i] * e[i][k] * cost[i][k] for i in patches) / all_e
    return total / images


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_the_cost_is_its_definition(rho):
    assert half(rho) == pytest.approx(slow(COS, Y, 0.3, rho))
    theta = unit(N, M, seed=4).abs()
    theta = theta / theta.sum(1, keepdim=True)
    assert half(rho, theta=theta) == pytest.approx(slow(COS, Y, 0.3, rho, theta))
    if rho < 1:
        assert half(rho, theta=theta) != pytest.approx(half(rho), abs=1e-4)


def test_plans_sum_to_one_along_their_own_axis_and_absent_labels_get_nothing():
    forward, backward = pc.plans(COS[SOME], Q[SOME], 0.3)
    assert torch.allclose(forward.sum(2), torch.ones(4, M).double())
    assert torch.allclose(backward.sum(1), torch.ones(4, C).double())
    absent = (Y[SOME] == 0)[:, None].expand_as(forward)
    assert (forward[absent] == 0).all() and (forward[~absent] > 0).all()
    slope = gradient(0.5)
    assert (slope.mT[Y == 0] == 0).all() and (slope.mT[Y > 0] != 0).any(1).all()


def test_masses_stand_inside_both_softmaxes():
    q = torch.tensor([[0.7, 0.2, 0.1, 0.0]]).double()
    theta = torch.arange(1, M + 1).double()[None] / (M * (M + 1) / 2)
    forward, backward = pc.plans(COS[:1], q, 0.5, theta)
    e = (COS[0] / 0.5).exp()
    assert torch.allclose(forward[0], e * q / (e * q).sum(1, keepdim=True))
    weighed = theta[0, :, None] * e
    assert torch.allclose(backward[0], weighed / weighed.sum(0))


def test_images_without_a_label_are_skipped():
    assert half(0.5) == pytest.approx(half(0.5, cos=COS[SOME], y=Y[SOME]))
    assert (gradient(0.5)[~SOME] == 0).all()
    none = COS.clone().requires_grad_()
    for loss in (pc.ct_loss, pc.ot_loss):
        value = loss(none, torch.zeros(N, C).double(), 0.1)
        assert value.item() == 0 and torch.autograd.grad(value, none)[0].abs().max() == 0


def test_a_flat_plan_pays_the_mean_cost_on_both_sides():
    mean = torch.stack([(1 - COS[n][:, Y[n] > 0]).mean() for n in range(N) if SOME[n]]).mean()
    for rho in (0.0, 1.0):
        assert half(rho, T=1e6) == pytest.approx(float(mean), abs=1e-5)


def test_a_sharp_plan_is_a_chamfer_distance():
    costs = [1 - COS[n][:, Y[n] > 0] for n in range(N) if SOME[n]]
    there = sum(float(c.amin(1).mean()) for c in costs) / len(costs)
    back = sum(float(c.amin(0).mean()) for c in costs) / len(costs)
    assert half(1.0, T=1e-4) == pytest.approx(there, abs=1e-4)
    assert half(0.0, T=1e-4) == pytest.approx(back, abs=1e-4)
    assert abs(there - back) > 0.05


def test_one_label_or_one_patch_leaves_no_choice():
    one = Y[1:2]
    assert half(1.0, cos=COS[1:2], y=one) == pytest.approx(float((1 - COS[1, :, 1]).mean()))
    patch = COS[3:4, :1]
    assert half(0.0, cos=patch, y=Y[3:4]) == pytest.approx(float((1 - patch).mean()))


def test_order_does_not_count_and_doubled_patches_neither():
    i, k = torch.randperm(M), torch.tensor([2, 0, 3, 1])
    assert half(0.5, cos=COS[:, i][:, :, k], y=Y[:, k]) == pytest.approx(half(0.5))
    for rho in (0.0, 1.0):
        assert half(rho, cos=torch.cat([COS, COS], 1)) == pytest.approx(half(rho))


def test_equal_sets_cost_nothing_in_the_limit_alone():
    cos = (LABELS @ LABELS.T)[None]
    y = torch.ones(1, C).double()
    assert half(0.5, 1e-3, cos, y) == pytest.approx(0, abs=1e-6) and half(0.5, 0.5, cos, y) > 0.1


def test_each_direction_alone_has_its_way_out():
    cos = torch.tensor([[[0.9, -0.5], [0.8, -0.6], [0.7, -0.9], [-0.2, -0.8]]]).double()
    y = torch.ones(1, 2).double()
    back, there = gradient(0.0, 1e-3, cos, y)[0], gradient(1.0, 1e-3, cos, y)[0]
    assert back[3].abs().max() < 1e-9  # background is free
    assert there[:, 1].abs().max() < 1e-9  # a label that nobody chooses
    assert there[3, 0] < 0 and back[0, 1] < 0


def test_gradients_flow_through_plan_and_cost():
    cos, y, T = COS[:1, :, :3], torch.ones(1, 3).double(), 0.4
    forward, backward = pc.plans(cos, y / 3, T)
    frozen = -(0.5 * forward / M + 0.5 * backward / 3)
    found = gradient(0.5, T, cos, y)
    assert not torch.allclose(found, frozen, atol=1e-4)
    step = 1e-6 * unit(1, M, 3, seed=7)
    moved = pc.ct_loss(cos + step, y, T) - pc.ct_loss(cos - step, y, T)
    assert float(moved / 2) == pytest.approx(float((found * step).sum()), rel=1e-4)


# --- Sinkhorn, against POT ---------------------------------------------------------------------------


def test_the_sinkhorn_plan_is_that_of_pot():
    ot = pytest.importorskip("ot")
    q = torch.tensor([0.5, 0.25, 0.25, 0.0]).double()
    plan = pc.sinkhorn(COS[:1], q[None], 0.3, steps=300)[0]
    assert (plan[:, 3] == 0).all()
    theta, cost = torch.full((M,), 1 / M).double().numpy(), (1 - COS[0, :, :3]).numpy()
    theta = theta / theta.sum()
    theirs = ot.sinkhorn(theta, q[:3].numpy(), cost, reg=0.3, stopThr=1e-12)
    assert torch.allclose(plan[:, :3], torch.tensor(theirs), atol=1e-8)
    assert torch.allclose(plan.sum(1), torch.full((M,), 1 / M).double())


def test_a_sharp_sinkhorn_cost_is_exact_transport_and_the_forward_limit_lies_below():
    ot = pytest.importorskip("ot")
    cos = COS[3:4, :3, :3]
    y = torch.ones(1, 3).double()
    third = torch.full((3,), 1 / 3).double().numpy()
    exact = float(ot.emd2(third, third, (1 - cos[0]).numpy()))
    assert float(pc.ot_loss(cos, y, 0.005, steps=500)) == pytest.approx(exact, abs=5e-3)
    assert half(1.0, 1e-3, cos, y) <= exact + 1e-6  # it has dropped a constraint
    by_hand = min(
        sum(1 - float(cos[0, i, k]) for i, k in enumerate(p)) / 3
        for p in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    )
    assert exact == pytest.approx(by_hand)


def test_the_transport_cost_leaves_absent_labels_alone_and_is_differentiable():
    cos = COS.clone().requires_grad_()
    loss = pc.ot_loss(cos, Y, 0.2)
    (slope,) = torch.autograd.grad(loss, cos)
    assert slope.isfinite().all() and (slope.mT[Y == 0] == 0).all()
    costs = [
        float(
            (
                pc.sinkhorn(COS[n : n + 1][:, :, Y[n] > 0], Q[n : n + 1][:, Y[n] > 0], 0.2)
                * (1 - COS[n][:, Y[n] > 0])
            ).sum()
        )
        for n in range(N)
        if SOME[n]
    ]
    assert loss.item() == pytest.approx(sum(costs) / len(costs))


# --- judging ------------------------------------------------------------------------------------------


def test_pointing_and_mass_count_pairs_that_can_be_right():
    y = torch.tensor([[1.0, 1.0, 0.0]])
    cover = torch.tensor(
        [[[0.0, 0.3, 0.9], [0.2, 0.1, 0.0], [1.0, 1.0, 1.0]]]
    )  # class 1 fills no patch
    maps = torch.tensor([[[0.1, 1.0, 1.0], [0.7, 0.0, 0.0], [0.2, 0.0, 0.0]]])
    assert pc.pointing(maps, y, cover) == 1.0
    assert pc.pointing(maps, y, cover, share=0.5) == 0.0
    assert pc.mass(maps, y, cover) == pytest.approx(0.9)
    assert pc.pointing(maps, torch.ones(1, 3), cover) == 1.0


def test_label_blind_pointers():
    x = torch.zeros(2, 3, 8, 8)
    x[0, 0, :4, 4:], x[1, 2, 4:, :4] = 1.0, 1.0
    assert pc.salient(x, 2).argmax(1).tolist() == [1, 2]
    assert pc.central(3, 5).argmax(1).tolist() == [12] * 3


# --- network, rivals, loop ----------------------------------------------------------------------------


def small(head="token", **more):
    torch.manual_seed(0)
    words = F.normalize(torch.randn(C, 10), dim=-1)
    return pc.Net(pc.Encoder(d=8, heads=2, size=16, **more), words, head, d=8, heads=2)


IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("head", ["token", "mean", "lse", "queries"])
def test_scores_and_maps_have_their_shapes_and_a_patch_sees_its_surroundings_only(head):
    net = small(head).eval()
    s, maps = net(IMAGES)
    assert s.shape == (6, C) and maps.shape == (6, 16, C)
    changed = IMAGES.clone()
    changed[:, :, 12:, 12:] = 0.5
    after = net(changed)[1]
    if head == "queries":
        assert torch.allclose(maps.sum(1), torch.ones(6, C), atol=1e-5)
    else:
        assert maps.abs().max() <= 1 + 1e-5
        assert torch.allclose(maps[:, 0], after[:, 0], atol=1e-6)
    assert not torch.allclose(maps[:, 15], after[:, 15], atol=1e-4)


def test_pooled_heads_are_their_definitions():
    net = small("lse").eval()
    s, maps = net(IMAGES)
    tau = net.log_tau.exp()
    assert torch.allclose(s, (tau * maps).exp().mean(1).log() + net.b, atol=1e-4)
    net.head = "mean"
    _, x = net.encoder.read(net.encoder.tokens(IMAGES))
    cos = F.cosine_similarity(x.mean(1)[:, None], net.labels()[None], dim=-1)
    assert torch.allclose(net(IMAGES)[0], tau * cos + net.b, atol=1e-4)


def test_all_heads_start_from_the_same_encoder():
    a, b = small("token"), small("queries")
    assert all(
        torch.equal(p, q)
        for p, q in zip(a.encoder.parameters(), b.encoder.parameters(), strict=True)
    )
    assert torch.equal(a.word_map.weight, b.word_map.weight)


def test_the_asymmetric_loss_is_its_definition():
    s, y = COS[:, 0] * 3, Y
    bce = F.binary_cross_entropy_with_logits(s, y, reduction="none")
    assert torch.allclose(pc.asl(s, y, 0.0, 0.0), bce.sum() / N)
    p = torch.sigmoid(s)
    m = (p - 0.05).clamp_min(0)
    assert torch.allclose(pc.asl(s, y), -(y * p.log() + (1 - y) * m**4 * (1 - m).log()).sum() / N)


def test_gradients_explain_a_score_to_first_order():
    net = small().eval().double()
    x = IMAGES.double()
    found = pc.by_gradient(net, x)
    t = net.encoder.tokens(x).detach()
    i, k = 3, 2
    scaled = t.clone()
    scaled[:, i] = scaled[:, i] * (1 + 1e-6)
    moved = (net.from_tokens(scaled)[0] - net.from_tokens(t)[0])[:, k] / 1e-6
    assert torch.allclose(found[:, i, k], moved.detach(), atol=1e-5)


def test_words_are_fixed_and_learned_ones_are_free():
    assert torch.equal(pc.label_words(["a", "b"], "learned"), torch.eye(2))
    g = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    a, b = (pc.label_words(["a", "b"], "random", generator=g()) for _ in range(2))
    assert torch.equal(a, b) and torch.allclose(a.norm(dim=1), torch.ones(2))
    E = pc.label_words(["red circle", "red star", "blue cross"])
    assert not E.requires_grad and E[0] @ E[1] > E[0] @ E[2]
    assert "words" not in dict(small().named_parameters())


def test_a_class_that_the_miniature_cannot_read_names_the_choices():
    with pytest.raises(
        lc.UsageError, match=r"'aeroplane'.*words = random or learned.*hf:OWNER/MODEL"
    ):
        pc.label_words(["aeroplane"])


def test_the_loop_adds_the_transport_and_moves_the_encoder():
    y = Y.float()[[0, 1, 3, 4, 0, 2]]
    own = dict(lr=0.01, epochs=1, batch=3, generator=torch.Generator().manual_seed(0))
    met = []

    def extra(net, maps, i):
        met.append(i)
        return pc.ct_loss(maps, y[i], 0.1)

    nets = [
        pc.train_on(
            small(), IMAGES, y, **own | dict(generator=torch.Generator().manual_seed(0)), extra=e
        )
        for e in (None, extra)
    ]
    assert sorted(torch.cat(met).tolist()) == list(range(6))
    a, b, start = (n.encoder.stem[0].weight for n in (*nets, small()))
    assert not torch.equal(a, start) and not torch.equal(a, b)
    still = pc.train_on(small(), IMAGES, y, body_lr=1e-9, weight_decay=0.0, **own)
    assert torch.allclose(still.encoder.stem[0].weight, start, atol=1e-6)
    assert not torch.allclose(still.word_map.weight, small().word_map.weight, atol=1e-4)


# --- the full budget, and the exercises ---------------------------------------------------------------

# What `--budget full` must be, and where it is said. Neither paper nor code could be checked for more than this.
PAPER = {
    "dataset": ("voc2007", "brief, one of the benchmarks; not checked"),
    "net": ("vit_b_16", "brief, ViT-B/16; not checked"),
    "clip_model": (
        "hf:openai/clip-vit-base-patch16",
        "abstract: textual labels; brief: CLIP's text encoder",
    ),
    "words": ("clip", "abstract: textual labels"),
}


def test_the_full_budget_is_as_near_to_the_paper_as_was_known():
    assert_papers(full_budget("patchct"), PAPER)


def ends(cos, y, absent=False):
    c = 1 - (cos if absent else cos[:, y > 0])
    there, back = c.amin(1).mean(), c.amin(0).mean()
    return there, back


def slope(cos, y, T, moving=True, sharp=True):
    share = (cos / T + y.log()).softmax(1)
    c = 1 - cos
    apart = (c - (share * c).sum(1, keepdim=True)) / (T if sharp else 1)
    return share * ((apart if moving else 0) - 1) / len(cos)


def related(E, names, normalise=True, diagonal=False):
    E = F.normalize(E, dim=-1) if normalise else E
    cos, kin, strange = E @ E.T, [], []
    for i in range(len(names)):
        for j in range(i + 1 if diagonal else i):
            weight = 2 if diagonal and i != j else 1
            (kin if set(names[i].split()) & set(names[j].split()) else strange).extend(
                [cos[i, j]] * weight
            )
    return sum(kin) / len(kin) - sum(strange) / len(strange)


WRONG = {
    "check_chamfer": [
        (lambda cos, y: ends(cos, y)[::-1], "swapped"),
        (lambda cos, y: ends(cos, y, absent=True), "carries no mass"),
        (lambda cos, y: ((1 - cos[:, :2]).amin(1).sum(), (1 - cos[:, :2]).amin(0).sum()), "do not sum"),
        (lambda cos, y: (cos[:, :2].amax(1).mean(), cos[:, :2].amax(0).mean()), "cost is 1 - cos"),
        (lambda cos, y: ((1 - cos[:, :2]).amax(1).mean(), (1 - cos[:, :2]).amax(0).mean()), "not the dearest"),
    ],
    "check_gradient": [
        (lambda cos, y, T: -slope(cos, y, T), "sign"),
        (lambda cos, y, T: slope(cos, y, T, moving=False), "its own gradient is missing"),
        (lambda cos, y, T: slope(cos, y, T, sharp=False), "factor 1 / T"),
        (lambda cos, y, T: slope(cos, torch.ones_like(y), T), "its share is zero"),
        (lambda cos, y, T: slope(cos, y, T) * len(cos), "mass 1 / M"),
    ],
    "check_kinship": [
        (lambda E, names: -related(E, names), "sign"),
        (lambda E, names: related(E, names, normalise=False), "length 1"),
        (lambda E, names: related(E, names, diagonal=True), "diagonal"),
    ],
}  # fmt: skip


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("patchct", WRONG, name, k)


@pytest.mark.realdata
def test_runs_on_a_folder_of_photographs(tmp_path):
    assert_runs_on_a_voc_folder("patchct", tmp_path, words="learned", train=40, val=20, test=20)
