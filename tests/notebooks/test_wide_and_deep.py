"""The kernels of wide and deep networks, against quadrature, closed forms and direct arithmetic.

Brief sources: paper, taxonomy theorem and construction of the activations; authors' main.py, dataset.py and models.py.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

wd = lc.methods("wide-and-deep")
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
XI = torch.tensor([0.02, 0.3, 0.7, 0.95, 0.999], dtype=torch.float64)
SOME = {
    "designed, d = 2": wd.designed(2),
    "designed, d = 5": wd.designed(5),
    "square": [0.0, 0.0, 1.0],
    "no linear term": wd.without_linear_term(wd.designed(4)),
    "plus a constant": wd.with_constant(wd.designed(3)),
}
coefficients = pytest.mark.parametrize("a", SOME.values(), ids=SOME)


def rng(seed=0):
    return np.random.default_rng(seed)


def dual(a, xi):
    return sum(w**2 * xi**k for k, w in enumerate(a))


def dual_slope(a, xi):
    return sum(k * w**2 * xi ** (k - 1) for k, w in enumerate(a) if k)


def by_hand(a, xi, L):
    """The recursion as it stands in the paper: S_L and K_L, without logarithms."""
    s = k = xi
    for _ in range(L):
        s, k = dual(a, s), dual(a, s) + k * dual_slope(a, s)
    return s, k


# --- the activation and its dual -------------------------------------------------------------------


@coefficients
def test_the_series_is_the_expectation_over_two_correlated_gaussians(a):
    """E[phi(u) phi(v)] by Gauss-Hermite quadrature; at 0 it is A^2, at 1 it is E[phi^2] = 1."""
    for xi in (0.0, 0.4, 0.9, 1.0):
        u, z = np.meshgrid(NODES, NODES)
        v = xi * u + math.sqrt(1 - xi**2) * z
        product = wd.activation(torch.tensor(u), a) * wd.activation(torch.tensor(v), a)
        expectation = (product.numpy() * np.outer(WEIGHTS, WEIGHTS)).sum()
        assert expectation == pytest.approx(dual(a, xi), abs=1e-9)


@coefficients
def test_moments_are_expectations(a):
    z = torch.tensor(NODES, requires_grad=True)
    phi = wd.activation(z, a)
    (slope,) = torch.autograd.grad(phi.sum(), z)
    mean = [float((v.detach().numpy() * WEIGHTS).sum()) for v in (phi, slope, slope**2, phi**2)]
    assert wd.moments(a) == pytest.approx(mean[:3], abs=1e-9)
    assert mean[3] == pytest.approx(1, abs=1e-9)
    A, A1, B1 = wd.moments(a)
    assert dual(a, 0.0) == pytest.approx(A**2)
    assert dual_slope(a, 0.0) == pytest.approx(A1**2)
    assert dual_slope(a, 1.0) == pytest.approx(B1)


@pytest.mark.parametrize("d", range(2, 17))
def test_the_designed_activation_has_slope_d(d):
    a = wd.designed(d)
    A, A1, B1 = wd.moments(a)
    assert pytest.approx([0, 2 ** (-d / 4), 2]) == [A, A1, B1]
    assert sum(w**2 for w in a) == pytest.approx(1)
    assert wd.slope_of(a) == pytest.approx(d)
    assert wd.regime(a) == "singular"


def test_slopes_of_the_authors_polynomials():
    """models.py, dual_act: the squares of the coefficients of what they call 2d_opt, 3d_opt, 5d_opt, 9d_opt (d = 1, 2, 4, 8)."""
    theirs = {
        1: [0, 0.5, 0, 0, 0, 0, 0, 0.5],
        2: [0, 0.5, 0, 0.5],
        4: [0, 0.25, 0.5, 0.25],
        8: [0, 1 / 16, 7 / 8, 1 / 16],
    }
    for d, squares in theirs.items():
        assert wd.slope_of([math.sqrt(w) for w in squares]) == pytest.approx(d)
        if d > 1:
            assert [w**2 for w in wd.designed(d)] == pytest.approx(squares)


def test_changing_one_term_changes_the_regime_and_keeps_the_scale():
    for d in (2, 4):
        cut, lifted = wd.without_linear_term(wd.designed(d)), wd.with_constant(wd.designed(d))
        assert (wd.regime(cut), wd.regime(lifted)) == ("1-NN", "majority")
        assert sum(w**2 for w in cut) == pytest.approx(1) == sum(w**2 for w in lifted)
        assert wd.moments(cut)[2] > 1 and wd.moments(lifted)[2] > 1


# --- the kernels -----------------------------------------------------------------------------------


@coefficients
@pytest.mark.parametrize("L", [1, 2, 6])
def test_logarithms_of_the_recursion(a, L):
    s, k = wd.log_kernels(XI.log(), a, L)
    s_direct, k_direct = by_hand(a, XI, L)
    assert torch.allclose(s.exp(), s_direct, rtol=1e-9, atol=0)
    assert torch.allclose(k.exp(), k_direct, rtol=1e-9, atol=0)
    assert torch.allclose(wd.plain_kernel(XI, a, L), k_direct, rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [2, 3])
def test_a_single_polynomial_has_a_closed_form(k):
    """For the square: K_L(xi) = (2^(L+1) - 1) xi^(2^L); in logarithms also where it underflows."""
    a = [0.0] * k + [1.0]
    for L in (1, 5, 16, 40):
        size = math.log((k ** (L + 1) - 1) // (k - 1))
        assert torch.allclose(wd.log_kernels(XI.log(), a, L)[1], size + k**L * XI.log(), rtol=1e-12)


@pytest.mark.parametrize("d", [2, 4, 7])
def test_the_formula_for_separated_pairs_is_the_recursion(d):
    """Exact rational arithmetic at a depth that floating point numbers cannot hold."""
    squares = [Fraction(w**2) for w in wd.designed(d)]
    s = k = Fraction(9, 10)
    L = 60
    for _ in range(L):
        k = k * sum(i * w * s ** (i - 1) for i, w in enumerate(squares) if i)
        s = sum(w * s**i for i, w in enumerate(squares))
        k += s
        s, k = s.limit_denominator(10**400), k.limit_denominator(10**400)
    exact = math.log(k.numerator) - math.log(k.denominator)
    ours = wd.log_kernels(torch.tensor([0.9], dtype=torch.float64).log(), wd.designed(d), L)[1]
    assert ours.item() == pytest.approx(exact, abs=1e-9)


def test_more_layers_after_separation_are_the_same_in_one_step_or_many():
    a, s = wd.designed(2), XI.log()
    for _ in range(400):
        s = wd.log_series(s, [w**2 for w in a])
    assert wd.log_kernels(XI.log(), a, 400)[0].numpy() == pytest.approx(s.numpy(), rel=1e-12)
    ratio = wd.log_kernels(XI.log(), a, 10**6)[0] - wd.log_kernels(XI.log(), a, 10**6 - 1)[0]
    assert ratio.numpy() == pytest.approx(math.log(0.5), abs=1e-9)


def test_a_constant_brings_all_pairs_to_one_value():
    """c / (1 - D'(c)) at the fixed point c of the dual."""
    a, c = wd.with_constant(wd.designed(2)), 0.0
    for _ in range(300):
        c = dual(a, c)
    s, k = wd.log_kernels(XI.log(), a, 300)
    assert s.exp().numpy() == pytest.approx(c, rel=1e-9)
    assert k.exp().numpy() == pytest.approx(c / (1 - dual_slope(a, c)), rel=1e-9)


def test_relu_s_closed_form_is_its_recursion_with_the_dual_by_quadrature():
    """The recursion's one layer, D and D' from the angle between u and v (midpoint rule over directions)."""
    turn = (torch.arange(200_000, dtype=torch.float64) + 0.5) * 2 * math.pi / 200_000
    for xi in XI.tolist():
        u, v = turn.cos(), xi * turn.cos() + math.sqrt(1 - xi**2) * turn.sin()
        # a Gaussian's squared length is 2 on average and independent of its direction
        D = 2 * 2 * (u.relu() * v.relu()).mean().item()
        slope = 2 * ((u > 0) & (v > 0)).double().mean().item()
        ours = wd.relu_ntk(torch.tensor([xi], dtype=torch.float64)).item()
        assert ours == pytest.approx(D + xi * slope, abs=1e-4)
    assert wd.relu_ntk(torch.tensor([1.0])).item() == pytest.approx(2)


def test_a_wide_layer_has_the_kernel_of_one_layer():
    x = torch.tensor(wd.sphere_world(60, 2, 0.0, rng())[0])
    xi = (x @ x.T).clamp(max=1.0)
    for a in (wd.designed(2), wd.designed(4), [0.0, 0.0, 1.0]):
        k = by_hand(a, xi, 1)[1]
        draws = rng(1)  # a cubic has heavy tails: one layer of 4,096 neurons is 10 % off
        measured = sum(wd.empirical_ntk(x, a, 4096, draws) for _ in range(16)) / 16
        assert (measured - k).norm() / k.norm() < 0.06
        wrong = by_hand(a, xi, 2)[1]
        assert (measured - wrong).norm() / wrong.norm() > 0.2


# --- the limit -------------------------------------------------------------------------------------


def test_slope_of_the_kernel():
    """The brief's numbers: -2 +- 0.1 at 1e5 layers, nearer to -4 than to -2 at 100, for 1 - xi in [1e-3, 1e-2]."""
    a = wd.designed(2)
    assert wd.local_slope(wd.table(a, 10**5), 1e-3, 1e-2) == pytest.approx(-2, abs=0.1)
    assert wd.local_slope(wd.table(a, 100), 1e-3, 1e-2) < -3.5
    assert wd.local_slope(wd.table(a, 100, last_layer=True), 1e-3, 1e-2) == pytest.approx(
        -2, abs=0.1
    )


@pytest.mark.parametrize("d", [2, 3, 4, 6])
def test_the_limit_has_slope_d_and_a_bounded_rest(d):
    rest = wd.table(wd.designed(d)) + d * torch.log(wd.DISTANCE)
    near = (wd.DISTANCE > 1e-3) & (wd.DISTANCE < 1)
    assert rest[near].max() - rest[near].min() < 2
    assert wd.local_slope(wd.table(wd.designed(d)), 1e-5, 1e-2) == pytest.approx(-d, abs=0.1)


@pytest.mark.parametrize("d", [2, 4])
def test_the_bend_moves_with_the_root_of_the_depth(d):
    r = [wd.bend(wd.table(wd.designed(d), L), d) for L in (10**4, 10**6)]
    assert r[0] / r[1] == pytest.approx(10, rel=0.05)
    left, right = ((v * r[1]) ** 2 / 2 for v in (0.03, 30))
    values = wd.table(wd.designed(d), 10**6)
    assert wd.local_slope(values, left / 4, left) == pytest.approx(-d - 2, abs=0.1)
    assert wd.local_slope(values, right / 2, right) == pytest.approx(-d, abs=0.1)


@pytest.fixture(scope="module")
def points():
    train, test = wd.sphere_world(400, 2, 0.15, rng(2)), wd.sphere_world(300, 2, 0.0, rng(3))
    return [torch.tensor(v) for v in (*train[:2], test[0])]


def test_deep_squares_are_the_nearest_neighbour(points):
    x, y, query = points
    said = wd.answers(x, y, query, {"": wd.table([0.0, 0.0, 1.0], 16)})[""]
    assert (said == wd.nearest_labels(x, y, query, 1)).double().mean() > 0.99


def test_the_three_regimes(points):
    x, y, query = points
    nearest, hilbert = (wd.answers(x, y, query, {"": wd.power_law(b)})[""] for b in (400, 2))
    assert torch.equal(nearest, wd.nearest_labels(x, y, query, 1))
    a = wd.designed(2)
    kernels = {
        "cut": wd.table(wd.without_linear_term(a), 80),
        "deep": wd.table(a),
        "lifted": wd.table(wd.with_constant(a), 80),
    }
    said = wd.answers(x, y, query, kernels)
    assert (said["cut"] == nearest).double().mean() > 0.99
    assert (said["deep"] == hilbert).double().mean() > 0.95
    assert (said["lifted"] == torch.sign(y.sum())).all()
    assert (said["deep"] == nearest).double().mean() < 0.95


def test_solving_changes_nothing_when_the_diagonal_dwarfs_the_rest(points):
    """The trained network at 20 layers, its equations solved, against the plain average; at one layer they differ."""
    x, y, query = points
    a, said = wd.designed(2), {}
    for L in (1, 20):
        K, K_query = (by_hand(a, v, L)[1] for v in ((x @ x.T).clamp(max=1.0), query @ x.T))
        K.fill_diagonal_(sum(2.0**k for k in range(L + 1)))
        average = torch.where(K_query @ y >= 0, 1.0, -1.0)
        said[L] = (wd.solved(K, K_query, y) == average).double().mean()
    assert said[20] > 0.99 > said[1]


def test_the_table_gives_the_kernel_of_a_pair(points):
    x, _, query = points
    xi = query @ x.T
    for L in (3, 100):
        direct = wd.log_kernels(xi.log(), wd.designed(2), L)[1]
        found = wd.look_up(wd.table(wd.designed(2), L), torch.log((1 - xi) / xi))
        assert (direct - found).abs().max() < 1e-3


def test_votes_neither_underflow_nor_depend_on_the_scale_or_the_block(points):
    x, y, query = points
    log_k = torch.tensor([[-5000.0, -5001, -5002], [3.0, 900, 899]], dtype=torch.float64)
    labels = torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert wd.vote(log_k, labels).tolist() == [-1, 1]
    assert torch.equal(wd.vote(log_k - 1e4, labels), wd.vote(log_k, labels))
    one, many = (wd.answers(x, y, query, {"": wd.power_law(2)}, b)[""] for b in (1000, 7))
    assert torch.equal(one, many)


def test_every_training_label_is_repeated(points):
    """Consistent although it interpolates: a hair beside a training point its label wins."""
    x, y, _ = points
    beside = x + 1e-7 * torch.tensor(rng().normal(size=x.shape))
    beside = beside / beside.norm(dim=1, keepdim=True)
    assert (wd.answers(x, y, beside, {"": wd.table(wd.designed(2))})[""] == y).all()
    assert not (wd.nearest_labels(x, y, beside, 15) == y).all()


def test_k_nearest_labels_are_their_definition(points):
    x, y, query = points
    for k in (1, 5, 21):
        said = wd.nearest_labels(x, y, query[:40], k)
        for q, answer in zip(query[:40], said, strict=True):
            near = sorted(range(len(x)), key=lambda i: float((x[i] - q).norm()))[:k]
            assert answer == (1 if sum(y[i] for i in near) > 0 else -1)


# --- the worlds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 5])
def test_points_lie_on_the_non_negative_sphere_and_labels_lie_as_often_as_asked(d):
    x, y, f = wd.sphere_world(4000, d, 0.15, rng())
    assert x.shape == (4000, d + 1) and (x >= 0).all()
    assert np.linalg.norm(x, axis=1) == pytest.approx(1)
    assert (y != f).mean() == pytest.approx(0.15, abs=0.02)
    assert 0.2 < (f > 0).mean() < 0.8


@pytest.mark.parametrize("d", [2, 4, 8])
def test_the_authors_laws_and_their_bayes_rule(d):
    law = wd.LAWS[d][0]
    p = rng().dirichlet(law, 5)
    known = torch.distributions.Dirichlet(torch.tensor(law).double()).log_prob(torch.tensor(p))
    assert wd.log_density(p, law) == pytest.approx(known.numpy())
    x, y, f = wd.dirichlet_world(4000, d, 0.0, rng())
    assert np.linalg.norm(x, axis=1) == pytest.approx(1)
    assert (y > 0).mean() == pytest.approx(0.4, abs=0.03)
    laws = [torch.distributions.Dirichlet(torch.tensor(v).double()) for v in wd.LAWS[d]]
    p = torch.tensor(x / x.sum(1, keepdims=True))
    one, other = (v.log_prob(p).numpy() for v in laws)
    better = np.where(one + math.log(0.4) >= other + math.log(0.6), 1, -1)
    assert (better == f).mean() > 0.999  # points on the edge lose digits
    best = (f == y).mean()
    assert best > max((y > 0).mean(), (y < 0).mean())
    assert best > (-f == y).mean() and best > (np.roll(f, 1) == y).mean()


def test_images_are_projected_without_looking_at_the_test_set():
    train, held = rng(1).random((50, 12)), rng(2).random((20, 12))
    x = wd.to_sphere(train, held, 3)
    assert x.shape == (20, 4) and (x > 0).all() and np.linalg.norm(x, axis=1) == pytest.approx(1)
    assert np.allclose(wd.to_sphere(train, held[:5], 3), x[:5])
    stretched = train * np.array([9.0, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 1])
    x = wd.to_sphere(stretched, stretched, 1)
    _, _, V = np.linalg.svd(stretched - stretched.mean(0))
    place = (stretched - stretched.mean(0)) @ (V[:2] * np.sign(V[:2].sum(1))[:, None]).T
    place = np.maximum(place - place.min(0), 1e-9)
    assert x == pytest.approx(place / np.linalg.norm(place, axis=1, keepdims=True))


# --- the paper's setting, and the exercises ------------------------------------------------------

# What `--budget full` must be, and where it is said (files of the authors' repository, uhlerlab/inf_depth_ntks).
PAPER = {
    "dataset": ("dirichlet", "dataset.py, get_dirichlet_data"),
    "d": (2, "main.py, alpha1 with three entries: 3d_opt, consistent for 3d data"),
    "noise": (0.0, "main.py: labels are the classes that were drawn"),
    "test": (10_000, "main.py, n_test"),
    "layers": (100, "main.py, depths of 3d_opt; kernel_fn = 'nngp'"),
}


def test_the_full_budget_is_the_papers_setting():
    full = full_budget("wide-and-deep")
    assert_papers(full, PAPER)
    assert full["sizes"][-1] == 10_000, "main.py, n_train"
    assert wd.PRIOR == 0.4, "main.py, prior1"
    assert wd.LAWS[2] == ([0.5, 0.5, 2.5], [2.5, 0.1, 0.5]), "main.py, alpha1 and alpha2"


def terms(square_k, root=math.sqrt, first=0.0):
    return lambda k: [first, root(1 - square_k(k)), *[0.0] * (k - 2), root(square_k(k))]


def nearest(x, self_too=False):
    distance = torch.cdist(x, x)
    if not self_too:
        distance.fill_diagonal_(math.inf)
    return distance.min(1).values


def size(log_k, log_self, y, absolute=torch.abs, ten=math.log(10)):
    return torch.log(absolute(torch.exp(log_k) @ y) / math.exp(log_self)) / ten


WRONG = {
    "check_terms": [
        (terms(lambda k: 1 / (k - 1), root=float), "take the root"),
        (terms(lambda k: 0.5), "usual halves"),
        (terms(lambda k: 1 / k), "not 2"),
        (terms(lambda k: 1 / (k - 1), first=0.5), "majority vote"),
        (lambda k: wd.designed(2), "coefficients, a_0 to a_4"),
        (lambda k: [0.0, 1.0, *[0.0] * (k - 2), 1 / math.sqrt(k - 1)], "sum of squares"),
    ],
    "check_layers": [
        (lambda x: math.ceil(2 / nearest(x).median().item() ** 2), "4 / r\\^2, not 2 / r\\^2"),
        (lambda x: math.floor(4 / nearest(x).median().item() ** 2), "round up, not down"),
        (lambda x: 4 / nearest(x).median().item() ** 2, "whole number"),
        (lambda x: math.ceil(4 / nearest(x).mean().item() ** 2), "take the median"),
        (lambda x: math.ceil(4 / nearest(x, True).median().item() ** 2), "leave it out"),
        (lambda x: (4 / nearest(x, True).median() ** 2).item(), "leave it out"),
        (lambda x: len(x), "you say 5"),
    ],
    "check_size": [
        (size, "underflows"),
        (lambda k, s, y: size(k, s, y, lambda v: v), "absolute value"),
        (lambda k, s, y: size(k, s, y, ten=1.0), "natural logarithm"),
        (lambda k, s, y: size(k, 0.0, y), "with itself"),
        (lambda k, s, y: size(k, s, y.abs()), "labels have signs"),
        (lambda k, s, y: size(k - k.max() - 1, s, y), "you say"),
        (lambda k, s, y: size(k - k.max(), s, y), "must come back"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("wide-and-deep", WRONG, name, k)
