"""Long tails, self-training and pre-training: counts, theorems, what is kept, and the rival's subtraction.

Brief sources: the paper's text and theorems, and its code YyzHarry/imbalanced-semi-self.
"""

import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs

import lefcourse as lc

labels = lc.methods("value-of-labels")
K = 10


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# --- counts and splits -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n_0", "rho"), [(30, 15.0), (60, 10.0), (500, 50.0), (200, 50.0)])
def test_the_tail_falls_geometrically_to_a_rho_th(n_0, rho):
    n = labels.long_tail(n_0, rho, K)
    assert n[0] == n_0 and n[-1] == n_0 // rho
    for k, count in enumerate(n.tolist()):
        exact = n_0 * rho ** (-k / (K - 1))
        assert count <= exact + 1e-6 < count + 1 + 1e-6
    assert (n.diff() <= 0).all()


def test_the_briefs_counts():
    assert labels.long_tail(30, 15.0, K).tolist() == [30, 22, 16, 12, 9, 6, 4, 3, 2, 2]


@pytest.mark.parametrize("rho_U", [1.0, 15.0, 30.0, 100.0])
def test_the_pool_is_as_large_whatever_its_tail(rho_U):
    for U in (250, 257, 1):
        m = labels.unlabeled_counts(U, rho_U, K)
        assert m.sum() == U and (m >= 0).all()
        share = torch.tensor([rho_U ** (-k / (K - 1)) for k in range(K)])
        assert (m - U * share / share.sum()).abs().max() < 1


def test_labeled_and_unlabeled_images_never_meet():
    y = torch.arange(1200) % K
    n, m = labels.long_tail(30, 15.0, K), labels.unlabeled_counts(250, 15.0, K)
    a, b = labels.draw_split(y, n, m, rng())
    assert not set(a.tolist()) & set(b.tolist())
    assert y[a].bincount(minlength=K).equal(n) and y[b].bincount(minlength=K).equal(m)
    other, _ = labels.draw_split(y, n, m, rng(1))
    assert not a.equal(other), "another seed, other images"


def test_too_few_images_of_a_class_are_named():
    y = torch.arange(100) % K
    n, m = labels.long_tail(9, 3.0, K), labels.unlabeled_counts(80, 1.0, K)
    with pytest.raises(lc.UsageError, match=r"rank 0 needs 9 labeled and 8 unlabeled .* has 10"):
        labels.draw_split(y, n, m, rng())


# --- self-training ---------------------------------------------------------------------------------


def test_pseudo_labels_are_hard_unfiltered_and_blind_to_the_truth():
    z = torch.randn(50, K, generator=rng())
    named = labels.pseudo_labels(z)
    assert named.equal(z.softmax(1).max(1).indices) and len(named) == 50
    assert named.equal(labels.pseudo_labels(3 * z + 1))


def test_the_concatenation_weighs_the_pool_by_its_size():
    """Full batch: gradient = (n g_L + U g_U) / (n + U)."""
    g = rng()
    x, u = torch.randn(7, 5, generator=g), torch.randn(20, 5, generator=g)
    y, y_u = torch.arange(7) % 3, torch.arange(20) % 3
    w = torch.randn(5, 3, generator=g, requires_grad=True)

    def gradient(images, names):
        return torch.autograd.grad(F.cross_entropy(images @ w, names), w)[0]

    both = gradient(*labels.together(x, y, u, y_u))
    apart = (7 * gradient(x, y) + 20 * gradient(u, y_u)) / 27
    assert torch.allclose(both, apart, atol=1e-6)
    alone = labels.together(x, y, u[:0], y_u[:0])
    assert alone[0].equal(x) and alone[1].equal(y), "no pool: the supervised run"


# --- theorem 1 -------------------------------------------------------------------------------------


def test_theorem_1_by_sampling():
    """Pseudo-labels right independently of x: mean and variance of the midpoint."""
    m_1, m_2, s, p, q, a, b = 1.5, -1.0, 0.8, 0.9, 0.7, 40, 15
    g, rounds = rng(), 20_000
    right = (torch.rand(rounds, a, generator=g) < p).double()
    plus = (right * m_1 + (1 - right) * m_2 + s * torch.randn(rounds, a, generator=g)).mean(1)
    right = (torch.rand(rounds, b, generator=g) < q).double()
    minus = (right * m_2 + (1 - right) * m_1 + s * torch.randn(rounds, b, generator=g)).mean(1)
    theta = (plus + minus) / 2
    expected = labels.expected_threshold(m_1, m_2, p, q)
    variance = labels.threshold_variance(m_1, m_2, s, p, q, a, b)
    assert theta.mean().item() == pytest.approx(expected, abs=5 * math.sqrt(variance / rounds))
    assert theta.var().item() == pytest.approx(variance, rel=0.05)


def test_equal_precisions_leave_the_midpoint_and_a_scarce_side_makes_noise():
    assert labels.expected_threshold(3, 1, 0.6, 0.6) == 2
    assert labels.expected_threshold(3, 1, 0.9, 0.6) > 2
    few = labels.threshold_variance(1, -1, 1, 0.8, 0.8, 99, 1)
    assert few > 10 * labels.threshold_variance(1, -1, 1, 0.8, 0.8, 50, 50)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1])
@pytest.mark.parametrize("t", [-0.7, 0.0, 0.5, 1.0])
def test_one_real_round_by_sampling(t, share):
    g, N = rng(), 200_000
    positive = torch.rand(N, generator=g) < share
    x = torch.randn(N, generator=g) + 2.0 * positive - 1
    by_hand = (x[x > t].mean() + x[x < t].mean()) / 2
    assert labels.one_round(t, 1, -1, 1, share) == pytest.approx(by_hand.item(), abs=0.015)
    p, q = labels.precisions(t, 1, -1, 1, share)
    assert p == pytest.approx(positive[x > t].double().mean().item(), abs=0.01)
    assert q == pytest.approx((~positive[x < t]).double().mean().item(), abs=0.01)


def test_the_briefs_thresholds():
    assert labels.one_round(0.0, 1, -1, 1) == pytest.approx(0, abs=1e-12)
    for t, real, theorem in [(0.5, 0.284, 0.160), (1.0, 0.575, 0.295)]:
        assert labels.one_round(t, 1, -1, 1) == pytest.approx(real, abs=1e-3)
        by_theorem = labels.expected_threshold(1, -1, *labels.precisions(t, 1, -1, 1))
        assert by_theorem == pytest.approx(theorem, abs=1e-3)
    assert labels.one_round(1.0, 1, -1, 1, 0.1) == pytest.approx(0.343, abs=1e-3)


# --- theorem 2 -------------------------------------------------------------------------------------


def test_a_line_is_wrong_a_quarter_of_the_time():
    draw = random.Random(0)
    for _ in range(2000):
        b, beta, p_minus = draw.expovariate(0.3), 3 + draw.expovariate(0.2), draw.uniform(0.5, 1)
        assert labels.line_error(b, beta, p_minus) >= 0.25 - 1e-9
    assert labels.line_error(-9, 4, 0.95) < 0.06, "b >= 0 matters: always the majority"
    b = math.sqrt(math.log(4) / (1 - 1 / 4))
    best = min(labels.line_error(0.01 * k, 4, 0.5) for k in range(500))
    assert labels.line_error(b, 4, 0.5) == pytest.approx(best, abs=1e-4)
    assert best == pytest.approx(0.419, abs=1e-3)


def test_a_line_by_sampling():
    g, N, beta, b, p_minus = rng(), 300_000, 5.0, 0.7, 0.8
    minus = torch.rand(N, generator=g) < p_minus
    x = torch.randn(N, generator=g) * torch.where(minus, beta**0.5, 1.0)
    wrong = (x + b > 0) == minus
    expected = labels.line_error(b, beta, p_minus)
    assert wrong.double().mean().item() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("d", "error"), [(1, 0.342), (5, 0.174), (10, 0.106), (20, 0.051), (50, 0.009)]
)
def test_the_square_separates(d, error):
    plus, minus = labels.feature_errors(d, 4.0)
    assert (plus + minus) / 2 == pytest.approx(error, abs=1e-3)
    g, N = rng(), 20_000
    wide, narrow = (sigma * torch.randn(N, d, generator=g) for sigma in (2.0, 1.0))
    # Any z = k_1 |x|^2 + k_2, with the threshold half-way between the classes' means of z.
    k_1, k_2 = 0.3, 7.0
    bar = ((k_1 * d + k_2) + (k_1 * 4 * d + k_2)) / 2
    z_plus, z_minus = (k_1 * v.square().sum(1) + k_2 for v in (narrow, wide))
    assert (z_plus > bar).double().mean().item() == pytest.approx(plus, abs=0.015)
    assert (z_minus < bar).double().mean().item() == pytest.approx(minus, abs=0.015)


# --- pre-training ----------------------------------------------------------------------------------


def test_turns_are_quarter_turns_one_for_each_image():
    x = torch.rand(10, 1, 6, 6, generator=rng())
    turned, k = labels.quarter_turns(x, rng())
    assert k.bincount(minlength=4).tolist() == [3, 3, 2, 2]
    for image, out, j in zip(x, turned, k, strict=True):
        assert out.equal(torch.rot90(image, int(j), (1, 2)))
        back = out
        for _ in range((4 - int(j)) % 4):
            back = torch.rot90(back, 1, (1, 2))
        assert back.equal(image), "four quarter turns are the identity"
    assert not k.equal(labels.quarter_turns(x, rng(1))[1])


def test_weights_and_statistics_are_kept_and_the_head_stays_fresh():
    torch.manual_seed(0)
    model = lc.nets.convnet(1, 3, 2, size=8)
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(24, 1, 8, 8, generator=rng())
    seen = []

    def augment(images, g):
        seen.append(len(images))
        return images

    how = dict(steps=3, batch=8, lr=0.05, weight_decay=0.0, augment=augment, generator=rng())
    right = labels.pretrain(model, x, **how)
    after = model.state_dict()
    assert 0 <= right <= 1 and seen == [8, 8, 8]
    for name in before:
        if name.startswith("head"):
            assert after[name].equal(before[name]), "the head of the real task is not touched"
        elif "num_batches" not in name:
            assert not after[name].equal(before[name]), f"{name} is taken over"
    assert any("running_mean" in name for name in before)
    assert model.head.out_features == 3


# --- rivals ----------------------------------------------------------------------------------------


def test_logit_adjustment_takes_the_bonus_back():
    z, n = torch.randn(40, 4, generator=rng()), torch.tensor([30, 12, 5, 2])
    odds = (z.softmax(1) / n).log()
    assert labels.adjusted(z, n).argmax(1).equal(odds.argmax(1))
    assert labels.adjusted(z, torch.full((4,), 7)).argmax(1).equal(z.argmax(1)), (
        "equal counts: nothing"
    )
    assert (
        labels.adjusted(z, n).argmax(1).bincount(minlength=4)[3]
        > z.argmax(1).bincount(minlength=4)[3]
    )


def test_class_weights_are_the_effective_numbers():
    n = torch.tensor([500, 60, 10])
    w = labels.class_weights(n)
    raw = [(1 - 0.9999) / (1 - 0.9999**c) for c in (500, 60, 10)]
    assert torch.allclose(w, torch.tensor([3 * v / sum(raw) for v in raw]))
    assert w.sum().item() == pytest.approx(3)


# --- exercises, budget, real data --------------------------------------------------------------------


def recall_shift(table, m_1, m_2):
    (pp, pm), (mp, mm) = table
    return (pp / (pp + pm) - mm / (mp + mm)) * (m_1 - m_2) / 2


def precision(table, sign=1.0, scale=None):
    (pp, pm), (mp, mm) = table
    return lambda m_1, m_2: sign * (pp / (pp + mp) - mm / (pm + mm)) * (scale or (m_1 - m_2) / 2)


def global_bar(scores, share):
    sure = scores.softmax(1).max(1).values
    return sure >= sure.sort(descending=True).values[math.ceil(share * len(sure)) - 1]


def of_each(key, rounding=math.ceil):
    def attempt(scores, share):
        sure, named = key(scores), scores.argmax(1)
        kept = torch.zeros_like(named, dtype=torch.bool)
        for k in named.unique():
            mine = (named == k).nonzero().flatten()
            kept[mine[sure[mine].argsort(descending=True)[: rounding(share * len(mine))]]] = True
        return kept

    return attempt


def by_probability(scores):
    return scores.softmax(1).max(1).values


WRONG = {
    "check_shift": [
        (recall_shift, "precisions"),
        (lambda table, a, b: precision(table, -1.0)(a, b), "the sign"),
        (lambda table, a, b: precision(table, 1.0, 2.0)(a, b), "you say"),
        (lambda table, a, b: precision(table, 1.0, 1.0)(a, b), "from the midpoint"),
        (lambda table, a, b: precision(table)(a, b) + (a + b) / 2, "m_1 = 5"),
        (lambda table, a, b: (table[0][0] - table[1][1]) / 100, "as many wrong|precisions|you say"),
    ],
    "check_fixed": [
        (lambda share: labels.one_round(0.0, 1, -1, 1, share), "one round is not enough"),
        (lambda share: labels.one_round(labels.one_round(0.0, 1, -1, 1, share), 1, -1, 1, share), "still moves"),
        (lambda share: 0.0, "the mean of those above sinks"),
        (lambda share: 2 * share - 1, "another round still moves"),
        (lambda share: 1 - 2 * share, "the threshold with it"),
    ],
    "check_surest": [
        (global_bar, "a bar for each class"),
        (of_each(by_probability, math.floor), "rounded up|no image of the second class"),
        (of_each(lambda z: z.max(1).values), "probability, not score"),
        (of_each(lambda z: -by_probability(z)), "the surest half"),
        (lambda z, share: by_probability(z).argsort()[:3], "a mask"),
        (lambda z, share: torch.ones(len(z), dtype=torch.bool), "the surest half"),
    ],
}  # fmt: skip


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("value-of-labels", WRONG, name, k, math=math)


# What `--budget full` must be, and where it is said.
PAPER = {
    "dataset": ("cifar10", "paper, section 4"),
    "rho": (50.0, "paper, table 1"),
    "rho_U": (50.0, "paper, table 1: the pool like the labels"),
    "n_0": (500, "brief: 5,000 leave no unlabeled image of the largest class"),
    "unlabeled": (7_000, "five times the labels, train_semi.py"),
    "batch": (256, "train_semi.py"),
    "weight_decay": (2e-4, "train_semi.py"),
    "steps": (6_600, "200 epochs of 8,400 images"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("value-of-labels"), PAPER)
    n = labels.long_tail(500, 50.0, K).sum()
    assert abs(7_000 - 5 * n) < 120, "five times the labels"


@pytest.mark.realdata
def test_it_runs_on_mnist(tmp_path):
    assert_runs("value-of-labels", "mnist", tmp_path, n_0=4, unlabeled=20)
