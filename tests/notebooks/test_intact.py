"""Aimed noise: what is dropped, its energy, the meta-learned teacher's gradient, and what the teacher may touch.

The paper's text could not be had beyond the abstract; the definitions are the brief's reconstruction.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

intact = lc.methods("intact")
B, N, K = 3, 24, 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return intact.PointNet(8, K)


@pytest.fixture
def x():
    return torch.randn(B, N, 3, generator=rng(1))


@pytest.fixture
def y():
    return torch.tensor([0, 3, 4])


# --- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_drop_keeps_n_points_all_of_them_original(x, share):
    out = intact.drop(x, torch.ones(B, N), share, rng())
    assert out.shape == x.shape
    for cloud, kept in zip(x, out, strict=True):
        where = (kept[:, None] == cloud).all(-1)
        assert where.any(1).all(), "no new coordinates, no zeros"
        assert len(kept.unique(dim=0)) == N - int(share * N)
    if share == 0:
        assert all(len(a.unique(dim=0)) == N for a in out)


def test_salient_points_go_first():
    n = 20_000
    x = torch.arange(4.0).view(1, 4, 1).expand(n, 4, 3)
    w = torch.tensor([0.1, 0.4, 1.0, 2.5]).expand(n, 4)
    out = intact.drop(x, w, 0.25, rng())[..., 0]
    gone = torch.stack([(out != k).all(1).double().mean() for k in range(4)])
    expected = w[0].double() / w[0].sum()  # one draw without replacement
    assert torch.allclose(gone, expected, atol=0.015)
    even = intact.drop(x, torch.ones(n, 4), 0.5, rng())[..., 0]
    gone = torch.stack([(even != k).all(1).double().mean() for k in range(4)])
    assert torch.allclose(gone, torch.full((4,), 0.5).double(), atol=0.015)


@pytest.mark.parametrize("g", [0.0, 0.5, 1.0])
def test_aimed_jitter_spends_the_same_energy(g):
    s = torch.rand(400, N, generator=rng()) ** 4
    s = s / s.mean(1, keepdim=True)
    w, x = intact.aim(s, g), torch.zeros(400, N, 3)
    assert torch.allclose(w.mean(1), torch.ones(400), atol=1e-5)
    energy = intact.jitter(x, w, 0.3, rng()).square().sum(-1).mean()
    assert energy.item() == pytest.approx(3 * 0.09, rel=0.03)


def test_without_aim_or_level_nothing_is_aimed_or_moved(net, x, y):
    s = torch.rand(B, N, generator=rng())
    assert intact.aim(s, 0.0).equal(torch.ones(B, N)) and intact.aim(s, 1.0).equal(s)
    for kind in ("drop", "jitter", "attack"):
        out = intact.strike(net, x, y, s, 1.0, 0.0, rng(), kinds=(kind,))
        assert torch.equal(out.sort(1).values, x.sort(1).values), kind


def test_untargeted_at_full_level_is_uniform_noise(net, x, y):
    """g = 0, no attack, mu = eta = 0, ramp 0: the crude rival, for the same stream of draws."""
    s = torch.rand(B, N, generator=rng())
    for seed in range(6):
        kinds = ("drop", "jitter")
        noisy = intact.strike(net, x, y, s, 0.0, intact.level(0, 10, 0), rng(seed), kinds)
        g = rng(seed)
        kind = int(torch.randint(2, (), generator=g))
        even = torch.ones(B, N)
        crude = intact.drop(x, even, 0.7, g) if kind == 0 else intact.jitter(x, even, 0.2, g)
        assert noisy.equal(crude)
        loss = intact.student_loss(net, None, noisy, x, y, 0.0, 0.0)
        assert loss.equal(F.cross_entropy(net(crude), y))


def test_the_level_rises_over_the_ramp():
    assert [intact.level(t, 100) for t in (0, 35, 70, 100)] == pytest.approx([0, 0.5, 1, 1])
    assert intact.level(0, 100, ramp=0) == 1


def test_the_attack_moves_salient_points_uphill_by_eps(net, x, y):
    s = torch.rand(B, N, generator=rng())
    out = intact.attack(net, x, y, s, 0.05, share=0.25)
    moved = (out - x).abs().amax(-1) > 1e-7
    top = torch.zeros(B, N, dtype=torch.bool).scatter(1, s.topk(N // 4, 1).indices, True)
    assert not (moved & ~top).any(), "only the most salient quarter"
    assert (out - x).abs().max() <= 0.05 + 1e-6
    small = intact.attack(net, x, y, s, 1e-3, share=1.0)
    assert F.cross_entropy(net(small), y) > F.cross_entropy(net(x), y)
    assert all(p.grad is None for p in net.parameters()), "the student's weights are not touched"


# --- saliency --------------------------------------------------------------------------------------


def test_saliency_has_mean_one_and_follows_the_points(net, x, y):
    s = intact.saliency(net, x, y, rng(), sigma=0.0)
    assert (s >= 0).all() and torch.allclose(s.mean(1), torch.ones(B), atol=1e-5)
    order = torch.randperm(N, generator=rng(2))
    again = intact.saliency(net, x[:, order], y, rng(), sigma=0.0)
    assert torch.allclose(again, s[:, order], atol=1e-5)


def test_saliency_is_the_length_of_the_gradient(net, x, y):
    moved = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(moved), y, reduction="sum"), moved)
    by_hand = gradient.norm(dim=-1)
    by_hand = by_hand / by_hand.mean(1, keepdim=True)
    assert torch.allclose(intact.saliency(net, x, y, rng(), sigma=0.0), by_hand, atol=1e-5)


def test_smoothing_reaches_points_that_the_maximum_ignores(net, x, y):
    sharp = intact.saliency(net, x, y, rng(), copies=1, sigma=0.0)
    smooth = intact.saliency(net, x, y, rng(), copies=40, sigma=0.3)
    assert (smooth > 0).sum() > (sharp > 0).sum()


def test_a_teacher_without_gradient_gives_even_saliency(x, y):
    def flat(x):
        return 0 * x.sum((-2, -1))[:, None].expand(-1, K)

    assert intact.saliency(flat, x, y, rng()).equal(torch.ones(B, N))


def test_scaling_the_loss_leaves_saliency(net, x, y):
    """Twice the loss, the same map: compare two copies of every cloud, whose summed loss is double."""
    s = intact.saliency(net, x, y, rng(), sigma=0.0)
    twice = intact.saliency(net, torch.cat([x, x]), torch.cat([y, y]), rng(), sigma=0.0)
    assert torch.allclose(twice[:B], s, atol=1e-5) and torch.allclose(twice[B:], s, atol=1e-5)


# --- the meta-learned teacher ------------------------------------------------------------------------


def quadratic(A, c):
    return lambda theta: 0.5 * (theta["t"] - c) @ A @ (theta["t"] - c)


def test_the_outer_gradient_goes_through_the_inner_step():
    """For quadratic losses: (I - a A_s) A_q (theta' - c_q)."""
    g = rng()
    M_s, M_q = torch.randn(2, 4, 4, generator=g).double()
    A_s, A_q = M_s @ M_s.T, M_q @ M_q.T
    c_s, c_q, t = torch.randn(3, 4, generator=g).double()
    a = 0.05
    tasks = [(quadratic(A_s, c_s), quadratic(A_q, c_q))]
    found = torch.func.grad(lambda theta: intact.meta_loss(theta, tasks, a))({"t": t})["t"]
    first = A_q @ (t - a * A_s @ (t - c_s) - c_q)
    assert torch.allclose(found, first - a * A_s @ first)
    assert not torch.allclose(found, first), "the first-order form is another method"
    twice = torch.func.grad(lambda theta: intact.meta_loss(theta, tasks * 2, a))({"t": t})["t"]
    assert torch.allclose(twice, 2 * found), "a sum over tasks"


def test_without_an_inner_step_it_is_the_ordinary_gradient(net, x, y):
    everything = torch.ones(K, dtype=torch.bool)
    loss = intact.task_loss(net, x, y, everything)
    theta = dict(net.named_parameters())
    outer = intact.meta_loss(theta, [(loss, loss)], 0.0)
    plain = F.cross_entropy(net(x), y)
    assert outer.item() == pytest.approx(plain.item(), abs=1e-6)
    a = torch.autograd.grad(outer, list(theta.values()))
    b = torch.autograd.grad(plain, list(net.parameters()))
    assert all(torch.allclose(u, v, atol=1e-6) for u, v in zip(a, b, strict=True))


def test_a_task_has_half_the_classes_and_disjoint_draws(net):
    x = torch.randn(200, N, 3, generator=rng())
    y = torch.arange(200) % K
    support, query = intact.draw_task(net, x, y, K, 8, rng(3))
    theta = dict(net.named_parameters())
    assert support(theta).isfinite() and query(theta).isfinite()
    assert support(theta) != query(theta)
    # Masked classes cannot win: with K // 2 classes the loss of a flat network is their logarithm.
    flat = {k: torch.zeros_like(v) for k, v in theta.items()}
    assert support(flat).item() == pytest.approx(math.log(K // 2), abs=1e-4)


# --- the student -----------------------------------------------------------------------------------


def test_the_loss_is_three_terms(net, x, y):
    torch.manual_seed(1)
    teacher, noisy = intact.PointNet(8, K), x + 0.1
    found = intact.student_loss(net, teacher, noisy, x, y, 0.5, 0.3, tau=2.0)
    p = (teacher(x) / 2).softmax(1)
    q = (net(noisy) / 2).log_softmax(1)
    kl = (p * (p.log() - q)).sum(1).mean()
    by_hand = F.cross_entropy(net(noisy), y) + 0.5 * F.cross_entropy(net(x), y) + 0.3 * kl
    assert found.item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_the_teacher_is_not_trained_and_not_asked_without_eta(net, x, y):
    torch.manual_seed(1)
    teacher = intact.PointNet(8, K)
    intact.student_loss(net, teacher, x, x, y, 0.5, 0.5).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in net.parameters())
    other = intact.PointNet(8, K)
    without = [intact.student_loss(net, t, x, x, y, 0.5, 0.0) for t in (teacher, other)]
    assert without[0].equal(without[1])


def test_the_network_sees_a_set(net, x):
    assert torch.allclose(net(x), net(x[:, torch.randperm(N, generator=rng())]), atol=1e-6)
    copies = torch.cat([x, x[:, :5]], 1)
    assert torch.allclose(net(x), net(copies), atol=1e-6), "copies of points change nothing"


# --- exercises, budget -------------------------------------------------------------------------------


def outer(sign=-1, curvature="s", at_start=False, swap=False):
    def attempt(theta, A_s, c_s, A_q, c_q, a):
        first = A_q @ ((theta if at_start else theta - a * A_s @ (theta - c_s)) - c_q)
        exact = first + sign * a * (A_s if curvature == "s" else A_q) @ first
        return (first, exact) if swap else (exact, first)

    return attempt


def one_way(a, b):
    return torch.stack(
        [torch.cdist(a, c.expand(len(a), -1, -1)).square().amin(2).mean(1) for c in b], 1
    )


def both(square=True, reduce="mean"):
    def attempt(a, b):
        found = []
        for c in b:
            d = torch.cdist(a, c.expand(len(a), -1, -1))
            d = d.square() if square else d
            found.append(getattr(d.amin(2), reduce)(1) + getattr(d.amin(1), reduce)(1))
        return torch.stack(found, 1)

    return attempt


WRONG = {
    "check_energy": [
        (lambda w: w.mean(), "a mean of w"),
        (lambda w: w.square().sum(), "uniform weights|not the sum"),
        (lambda w: w.square().mean().sqrt(), "no root at the end"),
        (lambda w: 4 * w.mean(), "uniform weights"),
        (lambda w: w.mean() + w.var(unbiased=True), "you say"),
    ],
    "check_outer": [
        (outer(sign=1), "the sign"),
        (outer(curvature="q"), "curvature is the support's"),
        (outer(at_start=True), "after the inner step"),
        (outer(swap=True), "first order"),
        (lambda *given: outer()(*given)[0], "two gradients"),
        (lambda *given: (outer()(*given)[1],) * 2, "exact"),
    ],
    "check_chamfer": [
        (one_way, "both ways"),
        (lambda a, b: one_way(b, a).T, "both ways"),
        (both(square=False), "squared distances"),
        (both(reduce="sum"), "means over the points"),
        (lambda a, b: both()(a, b)[0], "one cloud against two"),
        (lambda a, b: both()(a, b) / 2, "you say"),
    ],
}  # fmt: skip


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("intact", WRONG, name, k)


# What `--budget full` must be, and where it is said.
PAPER = {
    "points": (1024, "brief: ModelNet40 as usual"),
    "mu": (0.5, "brief"),
    "eta": (0.5, "brief"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("intact"), PAPER)
