"""Belief propagation for bags against enumeration, and the losses against their definitions."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

llp = lc.methods("llp-bp")
NO_PAIRS = torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def case(lam_b, lam_s, seed=0, n=10, size=5, Y=(2, 3)):
    """A small random problem: the arguments of `potentials`."""
    edges, kernel = llp.knn_graph(torch.randn(n, 3, generator=rng(seed)), 2)
    return n, torch.arange(n).view(-1, size), torch.tensor(Y), edges, kernel, lam_b, lam_s


def pairwise(args, **more):
    return llp.belief_propagation(*llp.potentials(*args), **more)


def by_counts(args, **more):
    n, bags, Y, edges, kernel, lam_b, lam_s = args
    prior = llp.neighbour_potentials(n, edges, kernel, lam_s)
    return llp.belief_propagation(*prior, bags, Y.double(), lam_b, **more)


def states(n):
    return torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=torch.float64)


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_potentials_are_the_energy_up_to_a_constant(seed):
    n, bags, Y, edges, kernel, lam_b, lam_s = args = case(0.7, 1.3, seed)
    u, pairs, J = llp.potentials(*args)
    y = states(n)
    slow = torch.zeros(len(y), dtype=torch.float64)
    for b, members in enumerate(bags.tolist()):
        slow += lam_b * (sum(y[:, i] for i in members) - Y[b]) ** 2
    for (i, j), k in zip(edges.tolist(), kernel, strict=True):
        slow += lam_s * k * (y[:, i] - y[:, j]) ** 2
    assert torch.allclose(llp.energy(y, bags, Y, edges, kernel, lam_b, lam_s), slow)
    score = y @ u + (y[:, pairs[:, 0]] * y[:, pairs[:, 1]]) @ J
    assert (score + slow).max() - (score + slow).min() < 1e-10


def test_every_pair_speaks_once():
    args = case(0.5, 2.0)
    _, _, _, edges, kernel, lam_b, lam_s = args
    _, pairs, J = llp.potentials(*args)
    assert len(pairs) == len(pairs.unique(dim=0)) and (pairs[:, 0] < pairs[:, 1]).all()
    near = {tuple(e): k for e, k in zip(edges.tolist(), kernel.tolist(), strict=True)}
    for (i, j), value in zip(pairs.tolist(), J.tolist(), strict=True):
        expected = 2 * lam_s * near.get((i, j), 0.0) - 2 * lam_b * (i // 5 == j // 5)
        assert abs(value - expected) < 1e-12


def test_graph_is_the_union_of_cosine_neighbours():
    x = torch.randn(30, 4, generator=rng(1))
    edges, kernel = llp.knn_graph(x, 3)
    wanted = set()
    for i in range(30):
        likeness = F.cosine_similarity(x[i : i + 1], x)
        likeness[i] = -2
        wanted |= {tuple(sorted((i, int(j)))) for j in likeness.topk(3).indices}
    assert {tuple(e) for e in edges.tolist()} == wanted
    distance = (x[edges[:, 0]] - x[edges[:, 1]]).norm(dim=1).double()
    assert torch.allclose(kernel, torch.exp(-distance / distance.median()))
    assert torch.allclose(llp.knn_graph(x, 3, scale=1.0)[1], torch.exp(-distance))


def test_bags_are_disjoint_and_whole():
    bags = llp.draw_bags(50, 8, rng())
    assert bags.shape == (6, 8) and bags.unique().numel() == 48
    assert torch.equal(llp.draw_bags(6, 2, order=torch.arange(6)), torch.arange(6).view(3, 2))


# --- belief propagation --------------------------------------------------------------------------


def brute_force(u, pairs, J):
    y = states(len(u))
    weight = torch.softmax(y @ u + (y[:, pairs[:, 0]] * y[:, pairs[:, 1]]) @ J, 0)
    return weight @ y


def test_enumeration_is_enumeration():
    u, pairs, J = llp.potentials(*case(0.9, 0.4))
    assert torch.allclose(llp.exact_marginals(u, pairs, J), brute_force(u, pairs, J))


@pytest.mark.parametrize("damping", [0.0, 0.5, 0.9])
def test_exact_on_a_chain_and_on_a_star(damping):
    u, J = torch.randn(8, generator=rng(2)).double(), 2 * torch.randn(7, generator=rng(3)).double()
    chain = torch.tensor([[i, i + 1] for i in range(7)])
    star = torch.tensor([[0, i] for i in range(1, 8)])
    for pairs in (chain, star):
        p, residuals = llp.belief_propagation(u, pairs, J, steps=400, damping=damping)
        assert torch.allclose(p, brute_force(u, pairs, J), atol=1e-6)
        assert residuals[-1] < 1e-6


def test_one_message_is_its_formula():
    u, J = torch.tensor([0.4, -1.1], dtype=torch.float64), torch.tensor([1.7], dtype=torch.float64)
    p, residuals = llp.belief_propagation(u, torch.tensor([[0, 1]]), J, steps=1, damping=0.5)
    to_1 = torch.log1p(torch.exp(u[0] + J[0])) - torch.log1p(torch.exp(u[0]))
    to_0 = torch.log1p(torch.exp(u[1] + J[0])) - torch.log1p(torch.exp(u[1]))
    assert torch.allclose(p, torch.sigmoid(u + 0.5 * torch.stack([to_0, to_1])))
    assert abs(residuals[0] - max(to_0.abs(), to_1.abs())) < 1e-12


def test_one_bag_with_a_count_factor_is_exact():
    h, y = torch.randn(7, generator=rng(4)).double(), states(7)
    weight = torch.softmax(y @ h - 0.8 * (y.sum(1) - 3) ** 2, 0)
    three = torch.tensor([3.0], dtype=torch.float64)
    p, _ = llp.belief_propagation(h, *NO_PAIRS, torch.arange(7)[None], three, 0.8)
    assert torch.allclose(p, weight @ y, atol=1e-6)


def test_count_messages_by_enumeration():
    h, Y, y = torch.randn(2, 5, generator=rng(5)).double(), torch.tensor([1.0, 4.0]), states(5)
    messages = llp.count_messages(h, Y.double(), 0.6)
    for b in range(2):
        for i in range(5):
            others = [j for j in range(5) if j != i]
            logs = y[:, others] @ h[b, others] - 0.6 * (y.sum(1) - Y[b]) ** 2
            up, down = (torch.logsumexp(logs[y[:, i] == v], 0) for v in (1, 0))
            assert torch.allclose(messages[b, i], up - down)


@pytest.mark.parametrize("run", [pairwise, by_counts])
@pytest.mark.parametrize("seed", range(3))
def test_weak_couplings_are_close_to_exact(run, seed):
    args = case(0.2, 0.2, seed)
    assert (run(args)[0] - brute_force(*llp.potentials(*args))).abs().max() < 0.05


@pytest.mark.parametrize("run", [pairwise, by_counts])
def test_counting_the_others_flips_the_marginals(run):
    n, bags, Y, *rest = args = case(0.4, 0.6)
    p, q = run(args)[0], run((n, bags, 5 - Y, *rest))[0]
    assert torch.allclose(p + q, torch.ones(n, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("run", [pairwise, by_counts])
def test_order_inside_a_bag_does_not_matter(run):
    n, bags, *rest = args = case(0.4, 0.6)
    shuffled = torch.stack([row[torch.randperm(5, generator=rng(6))] for row in bags])
    assert torch.allclose(run(args)[0], run((n, shuffled, *rest))[0], atol=1e-10)
    order = torch.tensor([3, 1, 4, 0, 2, 5, 6, 7, 8, 9])  # rename the members of the first bag
    place = order.argsort()
    Y, edges, kernel, lam_b, lam_s = rest
    renamed = place[edges].sort(1).values
    assert torch.allclose(
        run(args)[0][order], run((n, bags, Y, renamed, kernel, lam_b, lam_s))[0], atol=1e-8
    )


@pytest.mark.parametrize("run", [pairwise, by_counts])
def test_pure_bags_are_certain(run):
    p, _ = run(case(10.0, 0.2, Y=(0, 5)))
    assert torch.allclose(p, torch.tensor([0.0] * 5 + [1.0] * 5).double(), atol=1e-3)


@pytest.mark.parametrize("run", [pairwise, by_counts])
def test_without_neighbours_a_bag_has_one_marginal(run):
    p, _ = run(case(0.3, 0.0))
    assert p.view(2, 5).std(1).max() < 1e-9
    assert (p[0] < 0.5 < p[5]).item()


@pytest.mark.parametrize("run", [pairwise, by_counts])
def test_damping_does_not_change_the_fixed_point(run):
    args = case(0.3, 0.5)
    p, residuals = run(args, steps=400, damping=0.5)
    assert residuals[-1] < 1e-8, "the damped messages satisfy the undamped equation"
    assert torch.allclose(p, run(args, steps=1500, damping=0.9)[0], atol=1e-6)


def test_large_potentials_do_not_overflow():
    p, residuals = pairwise(case(500.0, 100.0))
    assert p.isfinite().all() and all(r < float("inf") for r in residuals)


@pytest.mark.parametrize(
    ("size", "damping"), [(16, 0.5), (64, 0.5), (32, 0.9), (128, 0.9), (8, 0.3)]
)
def test_the_bound_separates_settling_from_swinging(size, damping):
    limit = llp.largest_stable_lam_b(size, damping)
    own = 0.01 * torch.linspace(-1, 1, size, dtype=torch.float64)
    last = []
    for factor in (0.7, 1.5):
        args = (size, torch.arange(size)[None], torch.tensor([size // 2]), *NO_PAIRS)
        u, pairs, J = llp.potentials(*args, factor * limit, 0.0)
        last.append(llp.belief_propagation(u + own, pairs, J, steps=600, damping=damping)[1][-1])
    assert last[0] < 1e-6 < 1e-2 < last[1]


def test_small_bags_never_swing():
    assert llp.largest_stable_lam_b(5, 0.5) == float("inf") > llp.largest_stable_lam_b(6, 0.5)


# --- losses --------------------------------------------------------------------------------------


def test_dllp_loss_is_its_definition():
    z, r = torch.randn(3, 4, generator=rng(7)).double(), torch.tensor([0.25, 0.5, 1.0]).double()
    slow = 0
    for b in range(3):
        q = sum(1 / (1 + torch.exp(-v)) for v in z[b]) / 4
        slow -= r[b] * torch.log(q) + (1 - r[b]) * torch.log(1 - q)
    assert torch.allclose(llp.dllp_loss(z, r), slow / 3)


def test_easyllp_is_unbiased_over_random_bags():
    """Averaged over all bags with their probabilities, the loss of a member equals that with its own label."""
    z, prior = torch.tensor([0.7, -0.2, 1.5], dtype=torch.float64), 0.3
    y = states(3)
    chance = (prior**y * (1 - prior) ** (1 - y)).prod(1)
    ours = sum(
        c * llp.easyllp_loss(z[None], row.mean()[None], prior)
        for c, row in zip(chance, y, strict=True)
    )
    own = sum(
        c * F.binary_cross_entropy_with_logits(z, row) for c, row in zip(chance, y, strict=True)
    )
    assert torch.allclose(ours, own)


def test_refinement_loss_adds_the_weighted_bag_loss():
    z, t = torch.randn(2, 3, generator=rng(8)), torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    bag_z, r = torch.tensor([0.3, -0.8]), torch.tensor([1 / 3, 2 / 3])
    members = -(t * F.logsigmoid(z) + (1 - t) * F.logsigmoid(-z)).mean()
    on_bags = -(r * F.logsigmoid(bag_z) + (1 - r) * F.logsigmoid(-bag_z)).mean()
    assert torch.allclose(llp.refinement_loss(z, bag_z, t, r, 0.1), members + 0.1 * on_bags)
    assert torch.allclose(llp.refinement_loss(z, None, t, None, 0), members)


def test_bag_head_sees_the_mean_embedding():
    torch.manual_seed(0)
    model, x = llp.BagNet(6), torch.randn(3, 4, 6, generator=rng(9))
    z, bag_z = model(x)
    assert z.shape == (3, 4) and bag_z.shape == (3,)
    embedding = model.net.features(x[1])
    assert torch.allclose(z[1], model.net.head(embedding)[:, 0], atol=1e-6)
    assert torch.allclose(bag_z[1], model.bag_head(embedding.mean(0))[0], atol=1e-6)
    assert torch.allclose(model(x[:, [2, 0, 3, 1]])[1], bag_z, atol=1e-6)


# --- OpenML --------------------------------------------------------------------------------------


def test_openml_tables_become_numbers(monkeypatch):
    import pandas as pd

    table = pd.DataFrame({"age": [20.0, 30, 40, 50], "job": list("abab")})
    target = pd.Series([">50K", "<=50K", "<=50K", ">50K"])
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *a, **k: (table, target))
    x, y = llp.from_openml("adult", limit=3)
    assert x.shape == (3, 3) and abs(x[:, 0].mean()) < 1e-9
    assert y.tolist() == [True, False, False]


def test_absent_openml_says_what_to_do(monkeypatch, tmp_path):
    def fetch(*given, **more):
        raise OSError("no network")

    monkeypatch.setenv("LEFCOURSE_DATA", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    with pytest.raises(lc.DataError, match=r"bank-marketing .* OpenML"):
        llp.from_openml("bank-marketing")


# --- the paper's setting, and the exercises ------------------------------------------------------

# What `--budget full` must be, and where it is said (files of the authors' repository).
PAPER = {
    "task": ("adult", "the paper's first table"),
    "k": (5, "train.py, n_neighbors"),
    "lam_b": (10.0, "train.py, lambda_b"),
    "lam_s": (10.0, "train.py, lambda_s"),
    "damping": (0.5, "train.py, combined_run_map_bp"),
    "iterations": (100, "train.py, combined_run_map_bp"),
    "rounds": (2, "train.py: two rounds of pseudo-labels"),
    "lam_a": (0.1, "network.py, the weight of the bag loss"),
}


def test_the_full_budget_has_the_papers_setting():
    assert_papers(full_budget("llp-bp"), PAPER)


TOY = dict(
    toy_bags=torch.arange(10).view(2, 5),
    toy_Y=torch.tensor([2, 3]),
    toy_graph=llp.knn_graph(torch.randn(10, 3, generator=rng(1)), 2),
)


def solved(count, back=False):
    """Belief propagation with other counts; `back`: the result turned round."""

    def marginals(n, bags, Y, edges, kernel, lam_b, lam_s):
        args = llp.potentials(n, bags, count(Y, bags.shape[1], n), edges, kernel, lam_b, lam_s)
        p, _ = llp.belief_propagation(*args)
        return 1 - p if back else p

    return marginals


def needed(mates, solve):
    return lambda S, lam_b: max(0.0, solve((S - mates) * np.tanh(lam_b / 2)))


WRONG = {
    "check_two": [
        (lambda lam_b: (0.5, 0.5), "not independent"),
        (lambda lam_b: (1 / (1 + np.exp(-lam_b)), 1 / (1 + np.exp(-lam_b))), "nothing tells"),
        (lambda lam_b: (0.5, 1 / (1 + 2 * np.exp(-lam_b))), "normalise over all four"),
    ],
    "check_flip": [
        (solved(lambda Y, S, n: Y), "these are the marginals of a positive"),
        (solved(lambda Y, S, n: S - Y, back=True), "these are the marginals of a positive"),
        (solved(lambda Y, S, n: n - Y), r"flipped count \|S\| - Y"),
        (solved(lambda Y, S, n: Y.flip(0) * 0 + 1), r"flipped count \|S\| - Y"),
    ],
    "check_damping": [
        (needed(1, lambda g: (g - 1) / (g + 1)), "to S - 1"),
        (needed(2, lambda g: (g - 1) / g), "solve delta"),
        (
            lambda S, lam_b: (
                ((S - 2) * np.tanh(lam_b / 2) - 1) / ((S - 2) * np.tanh(lam_b / 2) + 1)
            ),
            "between 0 and 1",
        ),
        (lambda S, lam_b: 0.9, "the deviation shrinks from"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("llp-bp", WRONG, name, k, **TOY)
