"""Dimension, sharpness, stacked networks and attack, against brute force, closed forms and scikit-dimension.

Brief sources: paper's definitions; authors' datasetproperties.py, src/dimensionality.py, train.py; ppope/dimensions.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs
from torch import nn

import lefcourse as lc

ip = lc.methods("intrinsic-properties")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def cubes():
    return {m: ip.cube(1000, m, gen(m)) for m in (1, 2, 3, 5, 8)}


def dimension(x, k=20):
    return ip.mle(ip.neighbours(ip.distances(x), k), k)


# --- the world -------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", [None, 0.5])
@pytest.mark.parametrize("side", [32, 16])
def test_pictures_stay_in_range_and_change_smoothly(contrast, side):
    """A small step of any factor changes no pixel by much: nothing is rounded to a pixel."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    for y in (torch.zeros(256), torch.ones(256)):
        x = ip.picture(corners, y, contrast, side)
        assert x.shape == (256, 1, 32, 32) and x.min() >= 0 and x.max() <= 1
    u, y = ip.draw_factors(20, list(range(8)), gen())
    for factor in range(8):
        v = u.clone()
        v[:, factor] += 1e-3
        change = (ip.picture(v, y, contrast, side) - ip.picture(u, y, contrast, side)).abs()
        assert 0 < change.max() < 0.02


def test_enlarging_is_linear_interpolation():
    x = torch.rand(3, 16, 16, generator=gen())
    known = nn.functional.interpolate(x[:, None], (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(ip.enlarged(x), known, atol=1e-6)


def test_factors_that_are_not_free_stay_in_the_middle():
    u, y = ip.draw_factors(2000, [0, 3], gen())
    assert (u[:, [1, 2, 4, 5, 6, 7]] == 0.5).all()
    assert u[:, [0, 3]].mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert y.float().mean() == pytest.approx(0.5, abs=0.05)


def test_the_label_is_the_lesion_and_nothing_else():
    u, _ = ip.draw_factors(50, list(range(8)), gen())
    zero, one = torch.zeros(50), torch.ones(50)
    plain = ip.picture(u, zero, 0.2)
    assert torch.equal(plain, ip.picture(u, zero, 0.5)), "without a lesion all contrasts are alike"
    assert torch.equal(plain, ip.picture(u, zero, None)), "and so are the domains"
    faint, dark = (plain - ip.picture(u, one, c) for c in (0.1, 0.2))
    assert torch.allclose(2 * faint, dark, atol=1e-5) and dark.max() <= 0.2 + 1e-6
    gap = dark.flatten(1).norm(dim=1)
    # A Gaussian of width sqrt(2) has the norm contrast * width * sqrt(pi).
    assert gap.numpy() == pytest.approx(0.2 * math.sqrt(2 * math.pi), rel=0.02)
    assert (plain - ip.picture(u, one, None)).flatten(1).norm(dim=1).min() > gap.max()


# --- dimension -------------------------------------------------------------------------------------


def test_cubes_have_the_dimension_that_the_brief_measured(cubes):
    """Biased low at n = 1000, k = 20, and within 20 % up to five dimensions."""
    known = {1: 0.95, 2: 1.85, 3: 2.67, 5: 4.2, 8: 6.3}
    for m, x in cubes.items():
        assert dimension(x) == pytest.approx(known[m], rel=0.06)
        T = ip.neighbours(ip.distances(x), 20)
        assert ip.twonn(T) == pytest.approx(m, rel=0.2)
        if m <= 5:
            assert abs(dimension(x) / m - 1) < 0.2


def test_the_dimension_ignores_rotation_translation_and_scale(cubes):
    x = cubes[3][:300]
    Q, _ = torch.linalg.qr(torch.randn(100, 100, generator=gen(), dtype=torch.float64))
    for other in (x @ Q, x + 7, 0.01 * x):
        assert dimension(other) == pytest.approx(dimension(x), rel=1e-6)
        two = [ip.twonn(ip.neighbours(ip.distances(v), 2)) for v in (x, other)]
        assert two[1] == pytest.approx(two[0], rel=1e-5)


def test_the_estimate_is_its_definition():
    x, k = torch.rand(40, 3, generator=gen(), dtype=torch.float64), 7
    g = []
    for i in range(40):
        T = sorted(float((x[i] - x[j]).norm()) for j in range(40) if j != i)
        g.append(sum(math.log(T[k - 1] / T[j]) for j in range(k - 1)) / (k - 2))
    assert dimension(x, k) == pytest.approx(1 / np.mean(g), rel=1e-9)
    assert dimension(x, k) != pytest.approx(np.mean([1 / v for v in g]), rel=1e-3)
    more = ip.neighbours(ip.distances(x), 20)
    assert ip.mle(more, k) == pytest.approx(dimension(x, k)), "only the first k columns count"


def test_twonn_is_the_slope_of_a_line_through_the_origin():
    x = torch.rand(60, 2, generator=gen(), dtype=torch.float64)
    T = ip.neighbours(ip.distances(x), 2).numpy()
    mu = np.sort(T[:, 1] / T[:, 0])[:-1]
    F = np.arange(1, 60) / 60
    slope = np.linalg.lstsq(np.log(mu)[:, None], -np.log(1 - F), rcond=None)[0][0]
    assert ip.twonn(torch.tensor(T)) == pytest.approx(slope, rel=1e-6)


def test_duplicates_are_left_out_and_give_no_infinity():
    x = torch.rand(50, 30, generator=gen())
    twice = torch.cat([x, x[:5]])
    D = ip.distances(twice)
    assert (D.diagonal() == 0).all() and all(D[i, 50 + i] == 0 for i in range(5))
    T = ip.neighbours(D, 8)
    assert len(T) == 45 and (T > 0).all()
    assert math.isfinite(ip.mle(T, 8)) and math.isfinite(ip.twonn(T))
    assert math.isnan(ip.mle(ip.neighbours(torch.zeros(9, 9), 5), 5)), "nothing left: no number"


def test_scikit_dimension_agrees(cubes):
    """Its MLE is ours with the correction of the bias; its default divides by k - 1, not k - 2. TwoNN: one point dropped."""
    skdim = pytest.importorskip("skdim")
    for m in (2, 5):
        x = cubes[m][:500]
        T, k = ip.neighbours(ip.distances(x), 20), 20
        unbiased = skdim.id.MLE(unbiased=True).fit(x.numpy(), n_neighbors=k, comb="mle")
        assert ip.mle(T, k) == pytest.approx(unbiased.dimension_, rel=1e-6)
        default = skdim.id.MLE().fit(x.numpy(), n_neighbors=k).dimension_
        assert ip.mle(T, k) == pytest.approx(default * (k - 2) / (k - 1), rel=1e-6)
        two = skdim.id.TwoNN(discard_fraction=0.5 / len(x)).fit(x.numpy())
        assert ip.twonn(T) == pytest.approx(two.dimension_, rel=1e-6)


def test_pca_counts_directions_and_sees_no_curve():
    g = gen()
    flat = torch.randn(300, 4, generator=g) @ torch.randn(4, 50, generator=g)
    shares = ip.spectrum(flat)
    assert ip.pca_dimension(shares, 0.9999) == 4 and shares.sum() == pytest.approx(1)
    values = np.linalg.svd((flat - flat.mean(0)).numpy(), compute_uv=False) ** 2
    assert shares[:4].numpy() == pytest.approx((values / values.sum())[:4], rel=1e-3)
    t = torch.rand(300, generator=g)
    curve = torch.stack([f(2 * math.pi * j * t) for j in (1, 2, 3) for f in (torch.sin, torch.cos)])
    assert ip.pca_dimension(ip.spectrum(curve.T), 0.95) == 6
    assert dimension(curve.T.double()) < 1.2


# --- sharpness -------------------------------------------------------------------------------------


def some(n=20, seed=0):
    g = gen(seed)
    x = torch.rand(n, 1, 4, 4, generator=g)
    return x, (torch.rand(n, generator=g) < 0.5).long()


def test_sharpness_is_brute_force():
    x, y = some()
    steep = [
        abs(int(y[j] - y[i])) / float((x[i] - x[j]).norm()) for i in range(20) for j in range(i)
    ]
    D = ip.distances(x)
    assert ip.sharpness(D, y) == pytest.approx(max(steep), rel=1e-5)
    i, j = ip.closest_pair(D, y)
    assert y[i] != y[j] and 1 / D[i, j].item() == pytest.approx(max(steep), rel=1e-5)


def test_sharpness_scales_swaps_and_grows():
    x, y = some()
    K = ip.sharpness(ip.distances(x), y)
    assert ip.sharpness(ip.distances(5 * x), y) == pytest.approx(K / 5)
    assert ip.sharpness(ip.distances(x), 1 - y) == K
    found = [ip.sharpness(ip.distances(x[:m]), y[:m]) for m in range(3, 21)]
    assert all(b >= a - 1e-9 for a, b in pairwise(found))
    assert ip.sharpness(ip.distances(x), torch.ones(20).long()) == 0.0


def test_sharpness_of_two_points_and_of_a_gap():
    two = torch.tensor([[0.0, 0], [0, 2]])
    assert ip.sharpness(ip.distances(two), torch.tensor([0, 1])) == pytest.approx(0.5)
    x = torch.rand(200, 5, generator=gen(), dtype=torch.float64)
    w = torch.ones(5, dtype=torch.float64) / math.sqrt(5)
    y, gap = (x @ w > 1.1).long(), 0.4
    x = x + gap * y[:, None] * w
    assert 0 < ip.sharpness(ip.distances(x), y) <= 1 / gap


def test_the_released_function_looks_at_equal_labels():
    x = torch.tensor([[0.0], [1.0], [1.5], [5.0]])
    D = ip.distances(x)
    y = torch.tensor([0, 0, 1, 1])
    assert ip.sharpness(D, y) == pytest.approx(2.0)
    assert ip.released_sharpness(D, y) == pytest.approx(1.0)


# --- the networks ----------------------------------------------------------------------------------


def alone(weights, s):
    """The s-th network of a stack, as torch's own layers."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 2),
    )  # fmt: skip
    with torch.no_grad():
        for p, w in zip(net.parameters(), weights, strict=True):
            p.copy_(w[s].T if p.dim() == 2 else w[s])
    return net


def stack(S=3, seed=0):
    g = gen(seed)
    weights = ip.initial(S, g)
    assert all(torch.equal(w[0], w[1]) for w in weights), "all begin alike"
    with torch.no_grad():
        for w in weights:
            w += 0.05 * torch.randn(w.shape, generator=g)
    return weights, torch.rand(S, 10, 32, 32, generator=g), torch.rand(S, 10, generator=g).lt(0.5)


def test_a_stack_is_its_networks_one_by_one():
    weights, x, y = stack()
    out = ip.layers(weights, x)
    assert sum(w[0].numel() for w in weights) == 21_394
    for s in range(3):
        net = alone(weights, s)
        h = net[:7](4 * (x[s][:, None] - 0.5))
        assert torch.allclose(out[2][s], h, atol=1e-5)
        assert torch.allclose(out[3][s], net[7](h), atol=1e-5)
        loss = nn.functional.cross_entropy(net[7](h), y[s].long(), reduction="none")
        assert torch.allclose(ip.losses(out[3], y.long())[s], loss, atol=1e-5)


def test_training_side_by_side_is_training_alone():
    _, x, y = stack(2)
    y, how = y.long(), dict(lr=1e-2, weight_decay=1e-2, steps=4, batch=6, schedule="cosine")

    def fit(rows):
        def images_of(i):  # the same draws, whoever else is in the stack
            i = i[:1].expand(len(rows), -1)
            r = torch.tensor(rows)[:, None]
            return x[r, i], y[r, i]

        sizes = torch.full((len(rows),), 10)
        g = gen(7)
        draws = [torch.rand(1, 6, generator=g) for _ in range(4)]
        queue = iter(draws)
        real, torch.rand = torch.rand, lambda *a, **k: next(queue).expand(len(rows), -1)
        try:
            return ip.train(ip.initial(len(rows), gen(1)), images_of, sizes, generator=g, **how)
        finally:
            torch.rand = real

    together, second = fit([0, 1]), fit([1])
    for w, v in zip(together, second, strict=True):
        assert torch.allclose(w[1], v[0], atol=1e-4)
    assert any((w[0] != w[1]).any() for w in together)


def test_training_lowers_the_loss_and_draws_only_from_the_training_images():
    u, y = ip.draw_factors(60, [0, 3], gen())
    x, seen = ip.picture(u, y, None)[:, 0], set()

    def images_of(i):
        seen.update(i.flatten().tolist())
        return x[i], y[i]

    how = dict(lr=4e-3, weight_decay=0.0, steps=40, batch=10, schedule="constant")
    weights = ip.train(ip.initial(1, gen()), images_of, torch.tensor([40]), generator=gen(), **how)
    loss = ip.losses(ip.layers(weights, x[None])[-1], y[None]).mean()
    assert max(seen) < 40 and len(seen) > 30 and loss < 0.1


def test_a_step_of_adam_is_the_published_one():
    """Kingma and Ba's algorithm in NumPy, with the penalty added to the gradient, as in torch."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), rng.normal(size=(4, 5))
    w = torch.tensor(start, requires_grad=True)
    memory, m, v, known = [(torch.zeros_like(w), torch.zeros_like(w))], 0, 0, start
    for t, g in enumerate(gradients, 1):
        ip.adam_step([w], [torch.tensor(g)], memory, t, 0.1, 0.02)
        g = g + 0.02 * known
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        known = known - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert w.detach().numpy() == pytest.approx(known)


# --- the attack ------------------------------------------------------------------------------------


def test_the_attack_moves_every_pixel_by_e_and_clips():
    weights, x, y = stack()
    x, y = 0.4 + 0.2 * x, y.long()
    moved = ip.fgsm(weights, x, y, 0.05) - x
    assert moved.abs().max() == pytest.approx(0.05, abs=1e-6)
    assert (moved.abs() > 0.049).float().mean() > 0.9
    assert torch.equal(ip.fgsm(weights, x, y, 0.0), x)
    wide = ip.fgsm(weights, x, y, 3.0)
    assert wide.min() >= 0 and wide.max() <= 1
    signs = torch.ones_like(x)
    assert torch.allclose(ip.fgsm(weights, x, y, 0.1, signs), x + 0.1)


def test_on_a_linear_network_the_attack_costs_e_times_the_l1_norm():
    """With large biases every ReLU is open, and the margin is linear in the image."""
    weights, x, y = stack(2)
    x, y = (0.4 + 0.2 * x).double(), y.long()
    weights = [w.detach().double() for w in weights]
    for b, size in zip(weights[1:6:2], (1e3, 1e5, 1e8), strict=True):
        b += size
    assert all((h > 0).all() for h in ip.layers(weights, x)[:3])
    sign = 2.0 * y - 1

    def margin(v):
        z = ip.layers(weights, v)[-1]
        return sign * (z[..., 1] - z[..., 0])

    x.requires_grad_()
    (g,) = torch.autograd.grad(margin(x).sum(), x)
    e = 0.01
    after = margin(ip.fgsm(weights, x, y, e))
    assert torch.allclose(after, margin(x) - e * g.abs().sum((2, 3)), atol=1e-4)
    before, attacked = (
        ip.losses(ip.layers(weights, v)[-1], y) for v in (x, ip.fgsm(weights, x, y, e))
    )
    assert (attacked >= before - 1e-6).all()


# --- the regression --------------------------------------------------------------------------------


def test_a_left_out_set_is_predicted_by_the_others_alone():
    rng = np.random.default_rng(0)
    f, t = rng.normal(size=(2, 12)), rng.normal(size=12)
    A = np.column_stack([np.ones(12), *f])
    H = A @ np.linalg.pinv(A)
    assert ip.left_out(f, t) == pytest.approx((t - H @ t) / (1 - np.diag(H)))
    assert ip.left_out([], t) == pytest.approx((t - t.mean()) * 12 / 11)
    assert ip.left_out(f, 3 + A @ [0, 2.0, -1]) == pytest.approx(np.zeros(12), abs=1e-9)
    groups = np.repeat([0, 1, 2, 3], 3)
    changed = t + 100 * (groups == 2)
    one, other = ip.left_out(f, t, groups), ip.left_out(f, changed, groups)
    assert other[groups == 2] - one[groups == 2] == pytest.approx(np.full(3, 100))


def test_a_useless_number_costs_and_a_true_one_pays():
    rng = np.random.default_rng(1)
    d, K = rng.normal(size=(2, 30))
    t = d + K + 0.1 * rng.normal(size=30)
    errors = {n: ip.rms(ip.left_out(f, t)) for n, f in
              dict(d=[d], both=[d, K], junk=[d, rng.permutation(K)]).items()}  # fmt: skip
    assert errors["both"] < 0.15 < errors["d"] and errors["junk"] > 0.9 * errors["d"]
    low, high = ip.difference_interval(
        ip.left_out([d, K], t), ip.left_out([d], t), np.arange(30), rng
    )
    assert 0 < low < high
    low, high = ip.difference_interval(t, t[::-1], np.arange(30), rng)
    assert low <= 0 <= high


def test_rank_correlation_is_spearmans():
    x, y = [1, 2, 2, 5, 9, 9], [3, 1, 4, 4, 8, 7]
    ranks = [[1, 2.5, 2.5, 4, 5.5, 5.5], [2, 1, 3.5, 3.5, 6, 5]]
    assert ip.rank_correlation(x, y) == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert ip.rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert ip.rank_correlation(x, [1] * 6) == 0


# --- the paper's setting, and the exercises ------------------------------------------------------

# What `--budget full` must be, and where it is said (files of mazurowski-lab/intrinsic-properties).
PAPER = {
    "n": (1750, "train.py, training_sizes: 500 to 1750"),
    "test": (750, "train.py, test_size"),
    "lr": (0.001, "train.py, learning_rates, resnet18"),
    "weight_decay": (0.0001, "train.py, Adam"),
    "batch": (40, "train.py: batch_size_factors of resnet18 over 5"),
    "schedule": ("constant", "train.py: no scheduler"),
    "k": (20, "datasetproperties.py, hyperparam_k"),
    "images": (1000, "datasetproperties.py, M; dimensionality.py, max_num_samples"),
    "eps": (2.0, "paper: FGSM with 2 on the scale of 0 to 255"),
    "dataset": ("cifar10", "train.py, dataset_names"),
}


def test_the_full_budget_is_the_papers_setting():
    full = full_budget("intrinsic-properties")
    assert_papers(full, PAPER)
    assert full["steps"] == 100 * full["n"] // full["batch"], "train.py, epochs"


def steep(
    D, y, q, choose=lambda D, y: y[:, None] != y[None], turn=lambda r, q: np.quantile(1 / r, q)
):
    return float(turn(D[choose(D, y)].numpy(), q))


def everything(D, y):
    return ~torch.eye(len(y), dtype=torch.bool)


def noisy(r, p, sigma, factor=2, power=-0.5):
    return (r**2 + factor * p * sigma**2) ** power


def slope(sizes, losses):
    return -np.polyfit(np.log(sizes), np.log(losses), 1)[0]


WRONG = {
    "check_quantile": [
        (lambda D, y, q: ip.sharpness(D, y), "q is not used"),
        (lambda D, y, q: steep(D, y, q, everything), "equal labels are in it: only"),
        (lambda D, y, q: steep(D, y, q, turn=lambda r, q: 1 / np.quantile(r, q)), "order turns round"),
        (
            lambda D, y, q: float(
                np.quantile(np.where(y[:, None] != y[None], 1 / np.maximum(D.numpy(), 1e-9), 0), q)
            ),
            "zeros of the pairs",
        ),
        (lambda D, y, q: float(np.quantile(1 / D.clamp_min(0)[D < 1], q)), "no pair with itself"),
        (lambda D, y, q: 0.3, "lower quartile is 0.2"),
    ],
    "check_noise": [
        (lambda r, p, s: noisy(r, p, s, factor=1), "noise of their own"),
        (lambda r, p, s: noisy(r, 1, s), "p is missing"),
        (lambda r, p, s: noisy(r, p, s, power=-1), "take the root"),
        (lambda r, p, s: noisy(r, p, s, power=0.5), "its inverse"),
        (lambda r, p, s: 1 / (r + math.sqrt(2 * p) * s), "their squares do"),
        (lambda r, p, s: noisy(0, p, s), "r is missing"),
        (lambda r, p, s: 1 / r, "you say 2.000"),
    ],
    "check_exponent": [
        (lambda N, L: -slope(N, L), "minus the slope"),
        (lambda N, L: 1 / slope(N, L), "the reverse"),
        (lambda N, L: -np.polyfit(N, L, 1)[0], "both in logarithms"),
        (lambda N, L: -np.polyfit(np.log(N), L, 1)[0], "both in logarithms"),
        (lambda N, L: math.log(L[0] / L[-1]) / math.log(N[-1] / N[0]), "two ends"),
    ],
}  # fmt: skip


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("intrinsic-properties", WRONG, name, k)


@pytest.mark.realdata
def test_it_runs_on_mnist(tmp_path):
    assert_runs("intrinsic-properties", "mnist", tmp_path)
