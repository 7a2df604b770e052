"""The LDR losses against closed forms, brute force and slow definitions. Brief sources: paper; authors' loss.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs
from scipy.optimize import minimize

import lefcourse as lc

ldr = lc.methods("ldr")
B, K = 30, 4
LOG_K = math.log(K)


def draw(*shape, seed=0, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


F_, Y_ = draw(B, K), torch.arange(B) % K


def gradient(loss, s=F_):
    s = s.clone().requires_grad_()
    return torch.autograd.grad(loss(s).sum(), s)[0]


# --- LDR-KL --------------------------------------------------------------------------------------


def test_violations_are_their_definition():
    d = ldr.violations(F_, Y_, 0.3)
    for i in range(B):
        for k in range(K):
            c = 0.3 if k != Y_[i] else 0.0
            assert d[i, k] == pytest.approx(float(F_[i, k] - F_[i, Y_[i]] + c))


def test_at_lambda_one_it_is_cross_entropy_minus_log_k():
    """The mean, not the sum, stands in the logarithm."""
    ce = F.cross_entropy(F_, Y_, reduction="none")
    assert torch.allclose(ldr.ldr_kl(F_, Y_, 1.0), ce - LOG_K, atol=1e-9)
    by_ce = gradient(lambda s: F.cross_entropy(s, Y_, reduction="none"))
    assert torch.allclose(gradient(lambda s: ldr.ldr_kl(s, Y_, 1.0)), by_ce)


@pytest.mark.parametrize("lam", [0.2, 1.0, 5.0])
def test_gradient_is_the_adversarys_weights_minus_the_label(lam):
    p = F.softmax(ldr.violations(F_, Y_, 0.5) / lam, dim=1)
    by_autograd = gradient(lambda s: ldr.ldr_kl(s, Y_, lam, 0.5))
    assert torch.allclose(by_autograd, p - F.one_hot(Y_, K), atol=1e-9)


def test_the_ends_of_the_dial():
    d = ldr.violations(F_, Y_, 0.5)
    small, large = ldr.ldr_kl(F_, Y_, 1e-3, 0.5), ldr.ldr_kl(F_, Y_, 1e4, 0.5)
    assert torch.allclose(small, d.amax(1), atol=1e-3 * LOG_K + 1e-9)
    assert torch.allclose(small, ldr.crammer_singer(F_, Y_, 0.5), atol=2e-3)
    assert torch.allclose(large, d.mean(1), atol=float((d**2).max()) / 1e4)


def test_it_falls_as_lambda_grows():
    values = torch.stack([ldr.ldr_kl(F_, Y_, lam, 0.1) for lam in (0.05, 0.3, 1, 4, 20)])
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize("lam", [0.3, 2.0])
def test_closed_form_is_the_maximum_over_the_simplex(lam):
    for i in range(3):
        d = ldr.violations(F_[i], Y_[i], 0.2).numpy()

        def minus(p, d=d):
            return -(p @ d - lam * (p * torch.log(torch.tensor(K * p)).numpy()).sum())

        found = minimize(
            minus,
            [1 / K] * K,
            bounds=[(1e-9, 1)] * K,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-12},
        )
        assert -found.fun == pytest.approx(float(ldr.ldr_kl(F_[i], Y_[i], lam, 0.2)), abs=1e-4)


def test_the_far_end_is_symmetric_and_cross_entropy_is_not():
    c, every = 0.3, torch.arange(K)
    at = lambda lam: torch.stack(  # noqa: E731
        [ldr.ldr_kl(f.expand(K, K), every, lam, c).sum() for f in F_]
    )
    assert torch.allclose(at(1e7), torch.full((B,), (K - 1) * c).double(), atol=1e-4)
    assert at(1.0).std() > 0.1


def test_a_constant_changes_nothing_and_large_scores_stay_finite():
    assert torch.allclose(ldr.ldr_kl(F_ + 7, Y_, 0.5, 0.1), ldr.ldr_kl(F_, Y_, 0.5, 0.1))
    big = torch.tensor([[1e3, -1e3, 0, 0], [-1e3, 1e3, 0, 0]], requires_grad=True)
    for lam in (1e-2, 1.0, 1e2):
        value = ldr.ldr_kl(big, torch.tensor([1, 1]), lam).sum()
        (slope,) = torch.autograd.grad(value, big)
        assert value.isfinite() and slope.isfinite().all()
    assert ldr.normalised_ldr(big, torch.tensor([1, 1]), 10.0).isfinite().all()


def test_lambda_and_margin_may_differ_from_network_to_network():
    f, y = draw(2, 5, K), torch.arange(10).view(2, 5) % K
    lam, c = torch.tensor([[0.5], [3.0]]), torch.tensor([[0.0], [0.2]])
    stacked = ldr.ldr_kl(f, y, lam, c)
    for j, (a, b) in enumerate([(0.5, 0.0), (3.0, 0.2)]):
        assert torch.allclose(stacked[j], ldr.ldr_kl(f[j], y[j], a, b))


def test_normalised_scores_are_positive_with_mean_one():
    for s in (F_, torch.full((2, K), -50.0).double(), draw(3, K, scale=1e-8)):
        f = ldr.normalise(s)
        assert (f >= 0).all() and torch.allclose(f.sum(-1), torch.tensor(float(K)).double())
    by_hand = torch.log1p(F_.exp())
    assert torch.allclose(ldr.normalise(F_), K * by_hand / by_hand.sum(1, keepdim=True))


def test_lambda_infinity_on_normalised_scores_is_a_mean_absolute_error():
    # (1/K) sum_k d_k = 1 - f_y + const, and 2 (1 - f_y / K) has 2 / K times its slope.
    a = gradient(lambda s: ldr.ldr_kl(ldr.normalise(s), Y_, 1e7))
    b = gradient(lambda s: ldr.normalised_mae(s, Y_))
    assert torch.allclose(2 / K * a, b, atol=1e-5)


# --- ALDR-KL -------------------------------------------------------------------------------------


def test_temperatures_stay_between_their_bounds_and_reach_them():
    lam0, alpha = 0.5, 2.0
    lam = ldr.temperature(F_, torch.full((B,), lam0).double(), lam0, alpha)
    assert (lam >= lam0 * (1 - 1 / alpha)).all() and (lam <= lam0).all()
    f = torch.tensor([[1.0] * K, [1000.0, 0, 0, 0]]).double()
    flat, sure = ldr.temperature(f, torch.full((2,), lam0).double(), lam0, alpha)
    assert flat == pytest.approx(lam0)
    assert sure == pytest.approx(lam0 * (1 - 1 / alpha), abs=1e-3)


def test_at_a_fixed_point_lambda_is_stationary():
    lam0, alpha, y = 2.0, 2.0, Y_
    f = ldr.normalise(F_)
    lam = torch.full((B,), lam0).double()
    for _ in range(200):
        lam = ldr.temperature(f, lam, lam0, alpha)
    lam.requires_grad_()
    (slope,) = torch.autograd.grad(ldr.aldr_kl(f, y, lam, lam0, alpha, 0.0).sum(), lam)
    assert slope.abs().max() < 1e-3  # the share 1e-5 that is mixed into p
    off = torch.full((B,), 0.6 * lam0).double().requires_grad_()
    (slope,) = torch.autograd.grad(ldr.aldr_kl(f, y, off, lam0, alpha, 0.0).sum(), off)
    assert slope.abs().min() > 0.1


def test_with_a_large_alpha_it_is_ldr_kl():
    lam = ldr.temperature(F_, torch.full((B,), 3.0).double(), 3.0, 1e9)
    ours = ldr.aldr_kl(F_, Y_, lam, 3.0, 1e9, 0.1)
    assert torch.allclose(ours, ldr.ldr_kl(F_, Y_, 3.0, 0.1), atol=1e-6)


def test_temperatures_are_constants_kept_by_the_index_of_the_data_set():
    known = ldr.Temperatures(6, 1.0, 2.0)
    f = ldr.normalise(draw(2, K)).float().requires_grad_()
    lam = known.update(torch.tensor([4, 1]), f)
    assert not lam.requires_grad and not known.table.requires_grad
    assert torch.equal(known.table[[0, 2, 3, 5]], torch.ones(4))
    expected = ldr.temperature(f.detach(), torch.ones(2), 1.0, 2.0)
    assert torch.allclose(known.table[[4, 1]], expected)
    again = known.update(torch.tensor([1]), f[1:])  # from its own old value, not from lambda_0
    assert torch.allclose(again, ldr.temperature(f[1:].detach(), expected[1:], 1.0, 2.0))


def problem(n=40):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 3, 3, generator=g), torch.randint(K, (n,), generator=g)
    torch.manual_seed(1)
    return lc.nets.mlp((1, 3, 3), K, hidden=(16,)), x, y


def train(model, x, y, **change):
    own = dict(lam0=2.0, alpha=2.0, c=0.1, epochs=3, batch=8, lr=0.1)
    generator = torch.Generator().manual_seed(2)
    return ldr.train_aldr(model, x, y, generator=generator, **own | change)


def test_the_loop_finds_every_temperature_by_its_image():
    """With a learning rate of zero the scores stand still: lambda_i is three steps from each image's own scores."""
    model, x, y = problem()
    table = train(model, x, y, lr=0.0)
    f, lam = ldr.normalise(lc.predict(model, x)), torch.full((len(x),), 2.0)
    for _ in range(3):
        lam = ldr.temperature(f, lam, 2.0, 2.0)
    assert torch.allclose(table, lam, atol=1e-6) and table.std() > 0


def test_with_fixed_temperatures_the_loop_is_ldr_kl_step_for_step():
    (ours, x, y), (plain, *_) = problem(), problem()
    train(ours, x, y, alpha=1e12)
    loss = lambda s, t: ldr.normalised_ldr(s, t, 2.0, 0.1).mean()  # noqa: E731
    lc.fit(
        plain,
        x,
        y,
        epochs=3,
        batch=8,
        lr=0.1,
        loss=loss,
        generator=torch.Generator().manual_seed(2),
    )
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_lent_temperature_is_the_strangers():
    (a, x, y), (b, *_), (c, *_) = problem(), problem(), problem()
    train(a, x, y)
    train(b, x, y, lend=torch.arange(len(x)))
    train(c, x, y, lend=torch.arange(len(x)).flip(0))
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.allclose(a.head.weight, c.head.weight, atol=1e-7)


# --- rivals, the demonstration, the stack ----------------------------------------------------------


def test_rivals_are_their_definitions():
    p = F.softmax(F_, dim=1)
    e = F.one_hot(Y_, K)
    assert torch.allclose(ldr.cross_entropy(F_, Y_), F.cross_entropy(F_, Y_, reduction="none"))
    smooth = F.cross_entropy(F_, Y_, reduction="none", label_smoothing=0.3)
    assert torch.allclose(ldr.label_smoothing(F_, Y_, 0.3), smooth)
    assert torch.allclose(ldr.mae(F_, Y_), (e - p).abs().sum(1))
    assert torch.allclose(ldr.gce(F_, Y_, 1.0), ldr.mae(F_, Y_) / 2)
    assert torch.allclose(ldr.gce(F_, Y_, 1e-7), ldr.cross_entropy(F_, Y_), atol=1e-4)
    reverse = -(p * torch.where(e > 0, 0.0, -4.0)).sum(1)
    assert torch.allclose(ldr.sce(F_, Y_, 0.2), 0.2 * ldr.cross_entropy(F_, Y_) + reverse)


def test_the_gradient_of_mae_is_not_zero():
    """sum_k (y_k - p_k), without the absolute value, would be 0 for any scores."""
    slope = gradient(lambda s: ldr.mae(s, Y_))
    assert slope.abs().max() > 0.1
    assert (slope.gather(1, Y_[:, None]) < 0).all()


Q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_ldr_kl_wants_the_whole_order_at_any_lambda(lam):
    f = ldr.best_scores(lambda s, y: ldr.ldr_kl(s, y, lam), Q)
    rest = f - lam * Q.log()
    assert (rest - rest.mean()).abs().max() < 1e-3 * max(1, lam)


def test_the_symmetric_loss_wants_the_mode_alone_and_a_box_ties_the_tail():
    f = ldr.normalise(ldr.best_scores(ldr.normalised_mae, Q))
    assert torch.allclose(f, torch.tensor([4.0, 0, 0, 0]).double(), atol=0.02)
    f = ldr.normalise(ldr.best_scores(lambda s, y: ldr.normalised_ldr(s, y, 10.0, 0.0), Q))
    p = F.softmax(
        f / 10, dim=0
    )  # on the edge of the box p - q is the same for all classes that are not at zero
    assert f[:2].min() > 0.1 and f[2:].max() < 1e-3
    assert float(p[0] - p[1]) == pytest.approx(0.1, abs=1e-3)
    f = ldr.normalise(ldr.best_scores(lambda s, y: ldr.normalised_ldr(s, y, 1.0, 0.0), Q))
    assert torch.allclose(f, 1 + Q.log() - Q.log().mean(), atol=0.02)


def test_networks_in_a_stack_train_as_they_would_alone():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(24, 1, 3, 3, generator=g)
    Y = torch.randint(K, (3, 24), generator=g)
    theta = ldr.fedlabel.copies(ldr.fedlabel.init_mlp([9, 6, K], g), 3)
    lr, lam0 = torch.tensor([0.1, 0.2, 0.05]), torch.tensor([[1.0], [4.0]])

    def run(rows, losses):
        own = dict(epochs=2, batch=8, generator=torch.Generator().manual_seed(4))
        return ldr.train_stack([p[rows] for p in theta], x, Y[rows], losses, lr=lr[rows], **own)

    plain = lambda s, y, i: ldr.cross_entropy(s, y)  # noqa: E731
    both = [(slice(0, 1), plain), (slice(1, 3), ldr.adaptive(24, lam0, 2.0, 0.1))]
    together = run(slice(0, 3), both)
    alone = [run(slice(0, 1), [(slice(0, 1), plain)])]
    for j in (0, 1):
        loss = ldr.adaptive(24, lam0[j : j + 1], 2.0, 0.1)
        alone.append(run(slice(j + 1, j + 2), [(slice(0, 1), loss)]))
    for p, *ones in zip(together, *alone, strict=True):
        assert torch.allclose(p, torch.cat(ones), atol=1e-6)
    assert not torch.allclose(together[0], theta[0], atol=1e-3)


# --- the paper's setting, and the exercises ------------------------------------------------------

# What `--budget full` must be, and where it is said (the authors' repository; the paper, experiments on images).
PAPER = {
    "net": ("resnet18", "experiment.py, images"),
    "epochs": (30, "experiment.py, images"),
    "batch": (64, "experiment.py"),
    "weight_decay": (5e-3, "README, --decay"),
    "alpha": (2.0, "README, --alpha"),
    "lam0": (10.0, "loss.py, lambda of the released script"),
    "margin": (0.1, "experiment.py, default"),
    "rate": (0.6, "one of the paper's uniform noises"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("ldr"), PAPER)


def simplex(z):
    """The point of the simplex nearest to each row, by bisection of the shift."""
    low, high = z.amin(1, keepdim=True) - 1, z.amax(1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        big = (z - middle).clamp_min(0).sum(1, keepdim=True) > 1
        low, high = torch.where(big, middle, low), torch.where(big, high, middle)
    return (z - middle).clamp_min(0)


def clipped(d, lam):
    p = (d / lam).clamp_min(1e-300)
    p[:, 2] = torch.where(d[:, 2] < 0, 0.0, p[:, 2])
    return p / p.sum(1, keepdim=True)


def scan(z, y, sign=1):
    T = torch.linspace(0.1, 6, 2000)
    return float(T[torch.stack([sign * F.cross_entropy(z / t, y) for t in T]).argmin()])


WRONG = {
    "check_square": [
        (lambda d, lam: F.softmax(d / lam, 1), "exact zeros"),
        (clipped, "clipping and rescaling"),
        (lambda d, lam: simplex(d), "project d / lam"),
        (lambda d, lam: d / lam, "sum to one"),
    ],
    "check_mae": [
        (lambda q: q, "what cross-entropy wants"),
        (lambda q: F.one_hot(q.argmin(), 3).float(), "maximised"),
        (lambda q: q**2 / (q**2).sum(), "still shared"),
    ],
    "check_temperature": [
        (lambda z, y: 1.0, "changes nothing"),
        (lambda z, y: 1 / scan(z, y), "divided"),
        (lambda z, y: math.log(scan(z, y)), "log T"),
        (lambda z, y: scan(z, y, -1), "you say"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    more = {"violations": ldr.violations}
    assert_named("ldr", WRONG, name, k, **more)


def test_a_projection_by_another_way_passes_the_check():
    from exercise_checks import checks

    checks("ldr")["check_square"](lambda d, lam: simplex(d / lam), strict=True)


@pytest.mark.realdata
def test_runs_as_it_is_on_real_data(tmp_path):
    assert_runs("ldr", "mnist", tmp_path)
