"""ConR against its double loop, its limits and its gradients; the world, the weights and the rivals.

Brief sources: the paper; the authors' agedb-dir/loss.py, train.py and README.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

conr = lc.methods("conr")
OMEGA, TAU, EPS = 2.0, 0.07, 0.01


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def views(n=4, seed=0, dim=5):
    """2n views in double precision: features, labels (twins n apart), predictions, weights."""
    g = rng(seed)
    z = torch.randn(2 * n, dim, generator=g, dtype=torch.float64)
    y = torch.tensor([10.0, 11.0, 14.0, 60.0, 80.0, 13.5, 30.0, 31.0])[:n].double().repeat(2)
    yhat = torch.tensor([12.0, 12.5, 13.0, 13.5, 40.0, 14.0, 13.0, 31.0])[:n].double().repeat(2)
    yhat = yhat + 0.1 * torch.randn(2 * n, generator=g, dtype=torch.float64)
    v = 0.5 + torch.rand(n, generator=g, dtype=torch.float64).repeat(2)
    return z, y, yhat, v


def by_loops(z, y, yhat, v, omega=OMEGA, tau=TAU, eps=EPS):
    """The paper's definition, pair by pair, with exponentials as they are written."""
    M, total = len(y), 0.0
    q = [row / row.norm() for row in z]
    e = [[math.exp(float(a @ b) / tau) for b in q] for a in q]
    y, yhat, v = y.tolist(), yhat.tolist(), v.tolist()
    for j in range(M):
        P = [i for i in range(M) if i != j and abs(y[i] - y[j]) <= omega]
        Q = [i for i in range(M) if abs(y[i] - y[j]) > omega and abs(yhat[i] - yhat[j]) <= omega]
        if not Q or not P:
            continue
        S = {i: v[j] * math.exp(eps * abs(y[i] - y[j])) for i in Q}
        below = sum(e[j][i] for i in P) + sum(S[i] * e[j][i] for i in Q)
        total += v[j] * -sum(math.log(e[j][i] / below) for i in P) / len(P)
    return total / M


def loss(z, y, yhat, v, **change):
    return conr.conr(z, y, yhat, v, **dict(omega=OMEGA, tau=TAU, eps=EPS) | change)


# --- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("change", [{}, {"eps": 0.1}, {"tau": 0.5}, {"omega": 5.0}])
def test_it_is_the_double_loop(n, change):
    for seed in range(3):
        batch = views(n, seed)
        assert loss(*batch, **change).item() == pytest.approx(by_loops(*batch, **change), rel=1e-9)
        assert loss(*batch, **change) > 0


def test_perfect_predictions_leave_nothing_and_no_gradient():
    z, y, _, v = views(8)
    z.requires_grad_()
    value = loss(z, y, y, v)
    value.backward()
    assert value == 0 and (z.grad == 0).all()


def test_equal_labels_leave_nothing():
    z, y, yhat, v = views(4)
    assert loss(z, torch.full_like(y, 30.0), yhat, v) == 0


def supcon_by_loops(z, y, omega, tau):
    M, total, q = len(y), 0.0, F.normalize(z, dim=1)
    for j in range(M):
        P = [i for i in range(M) if i != j and abs(y[i] - y[j]) <= omega]
        others = torch.stack([q[j] @ q[i] / tau for i in range(M) if i != j])
        total += sum(float(others.logsumexp(0) - q[j] @ q[i] / tau) for i in P) / len(P)
    return total / M


def test_with_all_dissimilar_pairs_and_no_weights_it_is_supervised_contrast():
    z, y, _, _ = views(8)
    assert conr.supcon(z, y, omega=OMEGA, tau=TAU).item() == pytest.approx(
        supcon_by_loops(z, y, OMEGA, TAU)
    )
    # Predictions that are all equal make every dissimilar pair a contradiction.
    value = loss(z, y, torch.zeros_like(y), torch.ones_like(y), eps=0.0)
    assert value.item() == pytest.approx(supcon_by_loops(z, y, OMEGA, TAU))


def test_relations_are_symmetric_disjoint_and_leave_out_the_anchor():
    for seed in range(3):
        _, y, yhat, _ = views(8, seed)
        P, Q = conr.relations(y, yhat, OMEGA)
        assert torch.equal(P, P.T) and torch.equal(Q, Q.T) and not (P & Q).any()
        assert not P.diagonal().any() and not Q.diagonal().any()
        assert P.any() and Q.any() and not (P | Q).all()
        assert P[torch.arange(8), torch.arange(8) + 8].all()  # the twin view


def test_a_label_at_the_threshold_agrees():
    P, Q = conr.relations(torch.tensor([10.0, 12.0, 12.5]), torch.tensor([0.0, 0.0, 2.0]), 2.0)
    assert P[0, 1] and not P[0, 2] and Q[0, 2] and not Q[0, 1]


def test_columns_of_labels_are_refused():
    """|y - y^T| of labels (M, 1) would broadcast to a column of zeros."""
    with pytest.raises(ValueError, match="one number for each view"):
        conr.relations(torch.zeros(4, 1), torch.zeros(4), 1.0)


def test_it_grows_as_a_negative_comes_closer_and_falls_as_a_positive_does():
    y = torch.tensor([10.0, 10.0, 60.0, 60.0]).double()
    yhat, v = torch.full((4,), 12.0).double(), torch.ones(4).double()
    angle = torch.tensor([0.0, 0.5, 1.5, 2.5]).double()

    def at(k, move):
        a = angle.clone()
        a[k] += move
        return loss(torch.stack([a.cos(), a.sin()], 1), y, yhat, v).item()

    def anchor_loss(a):
        z = torch.stack([a.cos(), a.sin()], 1)
        P, Q = conr.relations(y, yhat, OMEGA)
        only = torch.tensor([[True], [False], [False], [False]])
        log_S = EPS * conr.distance(y)
        return conr.contrast(z, P & only, Q & only, log_S, v, TAU).item()

    near = angle.clone()
    for k, sign in ((2, 1), (3, 1)):  # negatives of the first view, moved towards it
        near = angle.clone()
        near[k] -= 0.05
        assert sign * (anchor_loss(near) - anchor_loss(angle)) > 0
    near = angle.clone()
    near[1] -= 0.05  # its positive
    assert anchor_loss(near) < anchor_loss(angle)
    assert at(0, 0.0) != at(0, 0.05)


def test_the_scale_of_features_is_irrelevant():
    z, y, yhat, v = views(8)
    scale = torch.linspace(0.1, 30, 16).double()[:, None]
    assert torch.allclose(loss(z * scale, y, yhat, v), loss(z, y, yhat, v))


def test_no_gradient_reaches_the_predictions_but_both_ends_of_a_pair():
    z, y, yhat, v = views(8)
    z, yhat = z.requires_grad_(), yhat.requires_grad_()
    loss(z, y, yhat, v).backward()
    assert yhat.grad is None
    _, Q = conr.relations(y, yhat.detach(), OMEGA)
    assert (z.grad[Q.any(1)].abs().sum(1) > 0).all()


def test_v_scales_the_anchor_outside_and_its_push_inside():
    z, y, yhat, v = views(8)
    P, Q = conr.relations(y, yhat, OMEGA)
    log_S = EPS * conr.distance(y)
    outer = conr.contrast(z, P, Q, log_S, 2 * v, TAU)
    assert torch.allclose(outer, 2 * conr.contrast(z, P, Q, log_S, v, TAU))
    inner = conr.contrast(z, P, Q, log_S + math.log(2), v, TAU)
    assert inner > conr.contrast(z, P, Q, log_S, v, TAU)
    j = int(Q.any(1).nonzero()[0])  # one rarer anchor: its row, not its column
    rarer = v.clone()
    rarer[j] *= 2
    assert loss(z, y, yhat, rarer).item() == pytest.approx(by_loops(z, y, yhat, rarer))
    assert loss(2 * z, y, yhat, 2 * v) > 2 * loss(z, y, yhat, v)


def test_one_view_per_image_is_no_division_by_zero():
    z = torch.randn(3, 4, generator=rng()).requires_grad_()
    y = torch.tensor([10.0, 11.0, 80.0])  # the last has a negative and no positive
    value = loss(z, y, torch.zeros(3), torch.ones(3))
    value.backward()
    assert value.isfinite() and value > 0 and z.grad.isfinite().all()
    alone = torch.tensor([10.0, 40.0, 80.0])
    assert loss(z, alone, torch.zeros(3), torch.ones(3)) == 0


def test_sharp_similarities_and_rare_anchors_stay_finite():
    z, y, yhat, v = (t.float() for t in views(8))
    z = z.requires_grad_()
    value = loss(z, y, yhat, 1e4 * v, tau=1e-3, eps=1.0)
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


def released(z, y, yhat, v, omega, tau, eps):
    """What the released loss computes, written anew: masked zeros are exponentiated, too."""
    q = F.normalize(z, dim=1)
    s = q @ q.T / tau
    P, Q = conr.relations(y, yhat, omega)
    below = torch.exp(s * P).sum(1)
    below = below + (v[:, None] * torch.exp(eps * conr.distance(y)) * torch.exp(s * Q) * Q).sum(1)
    L = (-torch.log(torch.exp(s * P) / below[:, None]) * P).sum(1) / P.sum(1)
    return (v * L * Q.any(1)).mean()


def test_the_released_codes_constant_is_one_for_each_view_that_is_no_positive():
    z, y, yhat, v = views(8)
    P, Q = conr.relations(y, yhat, OMEGA)
    log_S = v.log()[:, None] + EPS * conr.distance(y)
    extra = (len(y) - P.sum(1)).double()
    ours = conr.contrast(z, P, Q, log_S, v, TAU, extra=extra)
    theirs = released(z, y, yhat, v, OMEGA, TAU, EPS)
    assert torch.allclose(ours, theirs) and not torch.allclose(ours, loss(z, y, yhat, v))


# --- weights, rivals, controls ---------------------------------------------------------------------


def test_weights_have_mean_one_and_follow_the_power_of_the_count():
    y = torch.tensor([5.2] * 16 + [50.1] * 4 + [70.9])
    for power in (0.5, 1.0):
        v = conr.rarity(y, power, 0.0)
        assert v.mean() == pytest.approx(1.0)
        assert float(v[-1] / v[0]) == pytest.approx(16**power)
        assert float(v[-1] / v[16]) == pytest.approx(4**power, rel=1e-5)


def test_smoothing_keeps_the_number_and_lends_from_neighbours():
    counts = torch.zeros(90, dtype=torch.long)
    counts[40] = 10
    density = conr.smoothed(counts, 2.0)
    assert density.sum() == pytest.approx(10.0, rel=1e-5) and density[42] > 1
    assert torch.equal(density[30:40], density[41:51].flip(0))
    assert torch.equal(conr.smoothed(counts, 0.0), counts.float())
    y = torch.tensor([40.5] * 10 + [41.5, 80.5])
    v = conr.rarity(y, 0.5, 2.0)
    assert v[-1] > 2 * v[-2]  # one image each, but one has ten neighbours


def test_balanced_mse_is_its_definition_and_forgets_the_prior():
    y, yhat, sigma = torch.tensor([10.0, 12.0, 50.0]), torch.tensor([11.0, 20.0, 30.0]), 4.0
    expected = 0.0
    for i in range(3):
        near = [math.exp(-0.5 * float((yhat[i] - y[k]) / sigma) ** 2) for k in range(3)]
        expected -= 2 * sigma**2 * math.log(near[i] / sum(near)) / 3
    ones = torch.ones(3)
    got = conr.balanced_mse(None, yhat, y, ones, sigma=sigma)
    assert got.item() == pytest.approx(expected, rel=1e-5)
    thrice = conr.balanced_mse(None, yhat.repeat(3), y.repeat(3), ones, sigma=sigma)
    assert (thrice - got).item() == pytest.approx(2 * sigma**2 * math.log(3), rel=1e-5)


def test_ranks_and_ranksims_gradient():
    s = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    r = conr.Ranked.apply(s, 2.0)
    assert torch.allclose(r, torch.tensor([[1.0, 1 / 3, 2 / 3]]))
    (g,) = torch.autograd.grad(r, s, torch.tensor([[-1.5, 0.0, 0.0]]))
    # Moved by 2 * -1.5, the first entry would have the lowest rank.
    moved = conr.ranks(torch.tensor([[0.0, 1.0, 2.0]]))
    assert torch.allclose(g, -(r - moved) / 2, atol=1e-6)


def test_ranksim_is_zero_where_features_are_ordered_as_labels():
    y = torch.tensor([0.0, 11.0, 23.0, 36.0])
    a = torch.deg2rad(y)
    z = torch.stack([a.cos(), a.sin()], 1)
    assert conr.ranksim(z, y, 2.0) == 0
    assert conr.ranksim(z[[2, 0, 3, 1]], y, 2.0) > 0


def test_the_placebo_has_as_many_negatives_all_dissimilar_and_elsewhere():
    _, y, yhat, _ = views(8)
    _, Q = conr.relations(y, yhat, OMEGA)
    dissimilar = conr.distance(y) > OMEGA
    drawn = conr.at_random(Q, dissimilar, rng())
    assert torch.equal(drawn.sum(1), Q.sum(1)) and (dissimilar | ~drawn).all()
    assert not torch.equal(drawn, Q) and not torch.equal(
        drawn, conr.at_random(Q, dissimilar, rng(1))
    )


def test_contradictions_are_counted_once_and_by_the_labels_distance():
    y, yhat = torch.tensor([10.0, 14.0, 60.0, 61.0]), torch.tensor([12.0, 12.0, 12.0, 40.0])
    assert conr.contradictions(y, yhat, OMEGA).tolist() == [3.0, 2.0]


# --- the world and the loop ------------------------------------------------------------------------


def test_balanced_labels_fill_every_bin_alike_and_skewed_ones_do_not():
    assert (conr.per_bin(conr.balanced(450, rng())) == 5).all()
    y = conr.skewed(4000, rng(), common=0.95)
    assert y.min() >= 0 and y.max() < 90
    assert 0.015 < float((y > 45).float().mean()) < 0.04
    counts = conr.per_bin(conr.skewed(1000, rng(), common=0.95))
    inside = conr.regions(torch.arange(90) + 0.5, counts)
    assert (torch.stack([*inside.values()]).sum(0) == 1).all()
    assert inside["few"][50:].all() and inside["many"][15]


def test_the_bar_lies_at_the_labels_angle():
    y = torch.tensor([0.0, 30.0, 60.0, 89.0]).repeat_interleave(5)
    image = conr.scenes(y, rng(), size=48, noise=0.0, discs=0)[:, 0]
    at = torch.arange(48.0)
    for angle, picture in zip(y, image, strict=True):
        w = picture / picture.sum()
        dx, dy = at - (w.sum(0) * at).sum(), at - (w.sum(1) * at).sum()
        xx, yy = (w.sum(0) * dx**2).sum(), (w.sum(1) * dy**2).sum()
        xy = (w * dy[:, None] * dx[None, :]).sum()
        found = 0.5 * torch.rad2deg(torch.atan2(2 * xy, xx - yy))
        assert abs(float(found - angle)) < 4


def problem(n=24):
    y = conr.skewed(n, rng())
    x = conr.scenes(y, rng(1), 8)
    torch.manual_seed(0)
    return conr.Reader(8, 2, 20.0), x, y


def test_the_loop_gives_three_views_labels_and_weights_that_belong_together():
    net, x, y = problem()
    seen = []

    def look(z, yhat, three, v):
        assert len(z) == len(yhat) == len(three) == len(v) and len(three) % 3 == 0
        n = len(three) // 3
        assert torch.equal(three[:n], three[n : 2 * n]) and torch.equal(v, three / 100)
        seen.append(three[:n])
        return (yhat - three).abs().mean()

    own = dict(epochs=2, batch=10, lr=1e-3, omega=2.0, generator=rng())
    told = conr.fit_reader(net, x, y, y / 100, look, **own)
    assert told.shape == (2, 2) and (told[:, 0] >= told[:, 1]).all()
    assert torch.equal(torch.cat(seen[:3]).sort().values, y.sort().values)


def test_views_differ_and_keep_the_shape():
    _, x, _ = problem()
    a, b = conr.view(x, rng(0)), conr.view(x, rng(1))
    assert a.shape == x.shape and not torch.allclose(a, b)


# --- the paper's setting, and the exercises --------------------------------------------------------

# What `--budget full` must be, and where it is said (the authors' repository, agedb-dir).
PAPER = {
    "batch": (64, "README, train"),
    "lr": (2.5e-4, "README, train"),
    "weight_decay": (1e-4, "train.py"),
    "epochs": (120, "train.py: divided by ten at 60 and 80"),
    "drops": (True, "train.py"),
    "omega": (1.0, "README, -w, in years"),
    "beta": (4.0, "README, --beta"),
    "eps": (0.01, "README, -e"),
    "tau": (0.07, "loss.py, whatever -t says"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("conr"), PAPER)


def share(y, w, company):
    P = (conr.distance(y) <= w) & ~torch.eye(len(y), dtype=torch.bool)
    return float((P.sum(1) <= company).float().mean())


def eye(n):
    return torch.eye(n, dtype=torch.bool)


def city(a):
    return (a[:, None] - a[None, :]).abs().sum(-1)


def far2(a):
    return torch.cdist(a, a)


def pairs2(y, yhat, w, d=far2, predicted=far2):
    return (d(y) <= w) & ~eye(len(y)), (d(y) > w) & (predicted(yhat) <= w)


WRONG = {
    "check_alone": [
        (lambda y, w: share(y, w, 0), "count the twin"),
        (
            lambda y, w: float(((conr.distance(y) < w).sum(1) == 2).float().mean()),
            "at.* the threshold",
        ),
        (lambda y, w: share(y, w, 1) / 2, "divide by"),
        (lambda y, w: share(y, w, 1) * len(y), "between 0 and 1"),
    ],
    "check_relations": [
        (lambda y, p, w: (far2(y) <= w, (far2(y) > w) & (far2(p) <= w)), "own positive"),
        (lambda y, p, w: pairs2(y, p, w, d=city), "add the coordinates"),
        (lambda y, p, w: ((far2(y) <= w) & ~eye(4), far2(p) <= w), "cannot be both"),
        (lambda y, p, w: ((far2(y) <= w) & ~eye(4), far2(y) > w), "predictions too"),
        (
            lambda y, p, w: pairs2(y, p, w, predicted=lambda a: conr.distance(a[:, 1])),
            "in all coordinates",
        ),
        (lambda y, p, w: pairs2(y, p + torch.arange(4.0)[:, None] * 9, w), "no negatives"),
    ],
    "check_gate": [
        (lambda p, w, h: torch.sigmoid((w - conr.distance(p)) / h), "can escape"),
        (lambda p, w, h: torch.sigmoid((conr.distance(p.detach()) - w) / h), "sign is turned"),
        (
            lambda p, w, h: torch.sigmoid((w - conr.distance(p.detach())) * h),
            "divide by the softness",
        ),
        (lambda p, w, h: torch.sigmoid((w - p.detach()) / h), "each pair"),
        (
            lambda p, w, h: torch.sigmoid((w - (p[:, None] - p[None, :]).detach()) / h),
            "absolute difference",
        ),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("conr", WRONG, name, k)
