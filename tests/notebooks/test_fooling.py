"""The searches of the fooling chapter, against their definitions, slow references and planted networks.

Brief sources: paper; authors' dl_map_elites_images_mnist.cpp, map_elite.hpp, evo_float_image.hpp, find_fooling_image.py; sferes2's gen_dnn.hpp, af_cppn.hpp.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

fo = lc.methods("fooling")
SIDE, C = 8, 10


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return fo.lenet(SIDE, C).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def score(net):
    return lambda x: fo.log_odds(30 * net(x))


def encodings():
    return {"pixels": fo.pixels(SIDE), "cppn": fo.cppn(SIDE)}


both = pytest.mark.parametrize("name", ["pixels", "cppn"])


def bred(encoding, n=60, generations=12, seed=1):
    """Genomes after some generations of mutation without selection."""
    draws = rng(seed)
    genome = encoding.fresh(n, draws)
    for _ in range(generations):
        halves = ([part[s] for part in genome] for s in (slice(0, n // 2), slice(n // 2, n)))
        genome = encoding.breed(*halves, draws)
    return genome


# --- fitness and archive ---------------------------------------------------------------------------


def test_log_odds_are_the_softmaxs_and_do_not_saturate():
    z = torch.randn(6, 4, generator=rng(), dtype=torch.float64)
    p = F.softmax(z, 1)
    assert torch.allclose(fo.log_odds(z), torch.log(p / (1 - p)))
    sure = torch.tensor([[40.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    said = fo.log_odds(sure)[:, 0]
    assert said[1] - said[0] == pytest.approx(20) and F.softmax(sure, 1)[0, 0] == 1
    assert torch.equal(fo.log_odds(z).argsort(0), p.argsort(0)), "ranks images as p does"


def cells(best):
    return torch.tensor(best), [torch.zeros(len(best), 2)]


def test_one_child_better_in_three_classes_takes_three_cells():
    best, elites = cells([0.0, 0.5, 0.2, 0.9])
    child, other = torch.tensor([7.0, 7.0]), torch.tensor([3.0, 3.0])
    fitness = torch.tensor([[0.1, 0.4, 0.1, 0.1], [0.6, 0.7, 0.3, 0.2]])
    fo.take_cells(best, elites, fitness, [torch.stack([other, child])])
    assert best.tolist() == pytest.approx([0.6, 0.7, 0.3, 0.9])
    assert elites[0].tolist() == [[7, 7], [7, 7], [7, 7], [0, 0]]


def test_a_cell_falls_to_the_strictly_better_alone():
    best, elites = cells([0.5, 0.5])
    fo.take_cells(best, elites, torch.tensor([[0.5, 0.6]]), [torch.ones(1, 2)])
    assert elites[0].tolist() == [[0, 0], [1, 1]] and best.tolist() == pytest.approx([0.5, 0.6])


@both
def test_the_archive_never_falls_and_is_what_a_fresh_evaluation_says(name, score):
    fitness, images = fo.map_elites(score, encodings()[name], 12, 40, rng())
    assert fitness.shape == (13, C) and images.shape == (13, C, 1, SIDE, SIDE)
    assert (fitness.diff(dim=0) >= 0).all() and (fitness[-1] > fitness[0]).any()
    for k in (0, 5, 12):
        fresh = score(images[k]).diagonal()
        assert torch.allclose(fitness[k], fresh, atol=1e-4)


@both
def test_the_same_generator_repeats_the_search(name, score):
    one, two = (fo.map_elites(score, encodings()[name], 3, 20, rng(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def watched(encoding, log):
    """The encoding, whose `breed` notes the first gene of every parent."""

    def breed(mothers, fathers, draws):
        log.append(torch.cat([mothers[0][:, 0], fathers[0][:, 0]]))
        return encoding.breed(mothers, fathers, draws)

    return encoding._replace(breed=breed)


def test_parents_are_drawn_uniformly_from_the_filled_cells(score):
    """Cells of classes that nothing fits stay empty, and have no children."""
    fit = torch.tensor([2, 5, 6, 9])

    def partly(x):
        return score(x).masked_fill(~torch.isin(torch.arange(C), fit), -math.inf)

    log = []
    _, images = fo.map_elites(partly, watched(fo.pixels(SIDE), log), 1, 2000, rng())
    elites = images[0].flatten(1)[fit, 0]
    assert set(log[0].tolist()) == set(elites.tolist()), "only elites of filled cells are parents"
    shares = [(log[0] == gene).float().mean().item() for gene in elites]
    held = [(elites == gene).float().mean().item() for gene in elites]
    assert shares == pytest.approx(held, abs=0.05)


def test_separate_searches_neither_share_parents_nor_cells(score):
    log = []
    encoding = watched(fo.pixels(SIDE), log)
    _, images = fo.map_elites(score, encoding, 1, 40, rng(), shared=False)
    elites = images[0].flatten(1)[:, 0]
    assert torch.equal(log[0], elites[torch.arange(20) % C].repeat(2))


@pytest.mark.parametrize("shared", [True, False])
def test_who_may_take_a_cell(shared):
    """Child k of 40 is an image of brightness k / 40, and every class likes brightness; alone, class c has k = c mod 10."""
    numbers = torch.arange(40.0)[:, None] / 40
    encoding = fo.Encoding(
        lambda n, draws: (torch.zeros(n, 1),),
        lambda genome: genome[0].view(-1, 1, 1, 1),
        lambda mothers, fathers, draws: (numbers,),
    )
    ask = lambda x: x.flatten(1).expand(-1, C)  # noqa: E731
    fitness, _ = fo.map_elites(ask, encoding, 1, 40, rng(), shared=shared)
    alone = (30 + torch.arange(10.0)) / 40
    assert torch.allclose(fitness[-1], torch.full((C,), 39 / 40) if shared else alone)


# --- direct encoding -------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [3.0, 15.0, 40.0])
def test_polynomial_mutation(eta):
    r = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    delta = fo.polynomial(r, eta)
    assert (delta.abs() <= 1).all()
    assert torch.allclose(delta, -fo.polynomial(1 - r, eta)), "symmetric under r -> 1 - r"
    assert (delta[:5000] < 0).all() and (delta[5000:] > 0).all(), "median 0"
    assert (delta.diff() > 0).all()
    assert fo.polynomial(torch.tensor([0.0, 0.5, 1.0]), eta).tolist() == [-1, 0, 1]
    # E|delta| = 1 - (eta + 1) / (eta + 2)
    assert delta.abs().mean() == pytest.approx(1 / (eta + 2), rel=1e-3)


def test_larger_eta_gives_smaller_steps():
    r = torch.rand(1000, generator=rng())
    sizes = [fo.polynomial(r, eta).abs().mean() for eta in (1, 5, 15, 50)]
    assert sorted(sizes, reverse=True) == sizes


def test_mutation_moves_its_share_and_stays_inside():
    genes = torch.rand(200, 64, generator=rng(2))
    moved = fo.mutated(genes, 0.1, 15.0, rng(3))
    assert (moved != genes).float().mean() == pytest.approx(0.1, abs=0.01)
    edge = fo.mutated(torch.ones(200, 64), 0.5, 3.0, rng(3))
    assert edge.min() >= 0 and edge.max() <= 1 and (edge == 1).float().mean() > 0.7
    assert torch.equal(fo.mutated(genes, 0.0, 15.0, rng(3)), genes)


def test_crossover_keeps_the_parents_mean_and_its_spread_has_median_one():
    a, b = torch.rand(2, 4000, 5, generator=rng(), dtype=torch.float64)
    one, two = fo.crossed(a, b, 10.0, rng(1))
    assert torch.allclose(one + two, a + b)
    spread = ((one - two) / (a - b)).abs()
    assert spread.median() == pytest.approx(1, abs=0.01) and (spread > 0).all()
    assert torch.allclose(*fo.crossed(a, a, 10.0, rng(1)))


def test_children_of_pixels_stay_in_range_and_half_of_the_pairs_are_crossed():
    encoding = fo.pixels(SIDE, rate=0.0)
    a, b = torch.rand(2, 500, SIDE**2, generator=rng())
    (kids,) = encoding.breed([a], [b], rng(1))
    assert kids.shape == (1000, SIDE**2) and kids.min() >= 0 and kids.max() <= 1
    copied = (kids[:500] == a).all(1)
    assert copied.float().mean() == pytest.approx(0.5, abs=0.07)
    assert torch.equal(copied, (kids[500:] == b).all(1)), "a pair is crossed or copied as one"
    (wild,) = fo.pixels(SIDE, rate=1.0, eta_m=1.0).breed([a], [b], rng(1))
    assert wild.min() >= 0 and wild.max() <= 1


# --- CPPNs -----------------------------------------------------------------------------------------


def slow_cppn(w, on, kind, position):
    """One CPPN at one position, neuron by neuron."""
    functions = [math.sin, lambda p: 2 * (1 / (1 + math.exp(-p)) - 0.5), lambda p: math.exp(-p * p)]
    functions.append(lambda p: min(max(p, -3), 3) / 3)
    v = [*position] + [0.0] * (fo.PLACES - fo.INPUTS)
    for j in range(fo.INPUTS, fo.PLACES):
        sources = [i for i in range(fo.PLACES) if on[i, j]]
        if sources:
            v[j] = functions[kind[j]](sum((20 * w[i, j].item() - 10) * v[i] for i in sources))
    return abs(v[-1])


def test_the_interpreter_is_the_network_evaluated_neuron_by_neuron():
    genome, at = bred(fo.cppn(SIDE), 12, 20), fo.coordinates(SIDE)
    fast = fo.paint_cppn(genome, at)
    for n in range(12):
        for m in (0, 9, 37, 63):
            slow = slow_cppn(*(part[n] for part in genome), at[m].tolist())
            assert fast[n, m].item() == pytest.approx(slow, abs=1e-4)


def test_a_painting_depends_on_the_position_alone():
    """At twice the resolution, every other pixel is the same."""
    genome = bred(fo.cppn(SIDE), 40)
    small, large = (fo.paint_cppn(genome, fo.coordinates(s)).view(40, s, s) for s in (8, 15))
    assert torch.allclose(large[:, ::2, ::2], small, atol=1e-4)
    assert (small.flatten(1).std(1) > 0).any() and small.min() >= 0 and small.max() <= 1


def test_coordinates():
    at = fo.coordinates(3).view(3, 3, 4)
    assert at[1, 1].tolist() == [0, 0, 0, 1]
    assert at[0, 2].tolist() == pytest.approx([1, -1, math.sqrt(2), 1])


def test_wiring_stays_forward_and_inputs_stay_inputs():
    _, on, _ = bred(fo.cppn(SIDE), 100, 30)
    i, j = torch.nonzero(on)[:, 1:].T
    assert (i < j).all() and (j >= fo.INPUTS).all()
    hidden = fo.in_use(on)[:, fo.INPUTS : -1].sum(1).float()
    assert hidden.mean() > 1 and on.flatten(1).sum(1).float().std() > 0


def line(n, i, j):
    """n CPPNs with one connection, from place i to place j, of weight gene 0.8."""
    w, on = (
        torch.full((n, fo.PLACES, fo.PLACES), 0.3),
        torch.zeros(n, fo.PLACES, fo.PLACES, dtype=torch.bool),
    )
    on[:, i, j], w[:, i, j] = True, 0.8
    return w, on


def test_a_new_neuron_sits_inside_a_connection_and_takes_its_weight():
    w, on = line(2000, 0, fo.PLACES - 1)
    fo.renew(w, on, rng())
    split = on.flatten(1).sum(1) == 2
    # added with 0.5, and of those a fifth are deleted again
    assert split.float().mean() == pytest.approx(0.5 * 0.8, abs=0.04)
    for n in torch.nonzero(split)[:20, 0]:
        (a, k), (k2, b) = torch.nonzero(on[n]).tolist()
        assert (a, b) == (0, fo.PLACES - 1) and k == k2 and 4 <= k < fo.PLACES - 1
        assert w[n, a, k] == w[n, k, b] == pytest.approx(0.8)


def test_rates_of_rewiring():
    """Of one connection: never fewer than none; adding 0.5 and deleting 0.3 leave the numbers that chance gives."""
    w, on = line(4000, 0, fo.PLACES - 1)
    fo.rewire(w, on, rng())
    count = on.flatten(1).sum(1)
    shares = [(count == k).float().mean().item() for k in range(3)]
    assert shares == pytest.approx([0.5 * 0.3, 0.5 * 0.7 + 0.5 * 0.3, 0.5 * 0.7], abs=0.03)


def test_a_moved_connection_keeps_its_weight_and_one_end():
    w, on = line(3000, 1, fo.PLACES - 1)
    fo.rewire(w, on, rng(5))
    one = on.flatten(1).sum(1) == 1
    moved = one & ~on[:, 1, -1]
    ends = torch.nonzero(on[moved])[:, 1:]
    kept = torch.tensor(
        [
            w[n, i, j].item() == pytest.approx(0.8)
            for n, (i, j) in zip(torch.nonzero(moved)[:, 0], ends, strict=True)
        ]
    )
    assert kept.float().mean() > 0.4, "the others lost the old connection and gained a new one"
    assert (ends[kept][:, 1] == fo.PLACES - 1).all()


def test_breeding_leaves_the_parents_alone():
    encoding = fo.cppn(SIDE)
    genome = bred(encoding, 20)
    before = [part.clone() for part in genome]
    encoding.breed([part[:10] for part in genome], [part[10:] for part in genome], rng())
    assert all(torch.equal(a, b) for a, b in zip(before, genome, strict=True))


def test_every_parent_of_a_pair_has_a_child_that_takes_after_it():
    """The authors' crossover of networks copies: child i is mother i or father i - n/2, and mutated."""
    genome = bred(fo.cppn(SIDE), 20, 3)
    children = fo.cppn(SIDE).breed(
        *([part[s] for part in genome] for s in (slice(0, 10), slice(10, 20))), rng()
    )
    same = (children[0][:, None] == genome[0]).flatten(2).float().mean(2)
    assert torch.equal(same.argmax(1), torch.arange(20)) and same.diagonal().min() > 0.7


# --- gradient ascent -------------------------------------------------------------------------------


class Bumpy(torch.nn.Module):
    """A network with batch normalisation and dropout: what a search must not move, and must not ask."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(SIDE**2, 20), torch.nn.BatchNorm1d(20),
            torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(20, C),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def bumpy():
    torch.manual_seed(3)
    return Bumpy().double().eval()


def test_progress_agrees_with_what_was_wanted_as_steps_shrink(bumpy):
    x = torch.rand(C, 1, SIDE, SIDE, generator=rng(), dtype=torch.float64).requires_grad_()
    p = F.softmax(bumpy(x), 1).diagonal()
    (g,) = torch.autograd.grad(p.sum(), x)
    p, errors = p.detach(), []
    for early in (1e-2, 1e-3, 1e-4):
        step = fo.step_length(p, g, early, late=1.0)[:, None, None, None] * g
        gained = F.softmax(bumpy(x + step), 1).diagonal().detach() - p
        errors.append((gained / early - 1).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 0.01


def test_what_is_wanted_is_the_smaller_of_early_and_a_share_of_what_is_missing():
    g = torch.full((3, 1, 2, 2), 0.5)  # squared length 1
    said = fo.step_length(torch.tensor([0.1, 0.7, 0.95]), g, early=0.03, late=0.1)
    assert said.tolist() == pytest.approx([0.03, 0.03, 0.005])


def test_searches_move_neither_weights_nor_statistics(bumpy):
    before = {key: value.clone() for key, value in bumpy.state_dict().items()}
    start = torch.rand(C, 1, SIDE, SIDE, generator=rng(), dtype=torch.float64)
    mean = torch.full((1, 1, SIDE, SIDE), 0.3, dtype=torch.float64)
    fo.climb(bumpy, start, mean, 5, 0.01)
    ask = lambda x: fo.log_odds(bumpy(x.double())).float()  # noqa: E731
    fo.map_elites(ask, fo.pixels(SIDE), 3, 20, rng())
    fo.lottery(ask, fo.lotteries(SIDE)["uniform noise"], 2, 20, rng())
    assert all(torch.equal(before[key], value) for key, value in bumpy.state_dict().items())
    assert all(parameter.grad is None for parameter in bumpy.parameters())


def test_the_climb_rises_returns_its_best_and_decay_pulls_to_the_mean(bumpy):
    start = torch.rand(C, 1, SIDE, SIDE, generator=rng(), dtype=torch.float64)
    mean = torch.full((1, 1, SIDE, SIDE), 0.3, dtype=torch.float64)
    found = {}
    for decay in (0.0, 0.3):
        fitness, x = fo.climb(bumpy, start, mean, 25, decay)
        assert (fitness.diff(dim=0) >= 0).all() and x.min() >= 0 and x.max() <= 1
        fresh = fo.log_odds(bumpy(x)).diagonal()
        assert torch.allclose(fitness[-1], fresh)
        begun = fo.log_odds(bumpy(start)).diagonal()
        assert torch.allclose(fitness[0], begun), "the first image is the start itself"
        found[decay] = (x - mean).norm()
    assert found[0.3] < 0.5 * found[0.0]


# --- lotteries and guards --------------------------------------------------------------------------


def test_a_lottery_keeps_the_best_of_all_its_images(score):
    seen = []

    def draw(n, draws):
        seen.append(torch.rand(n, 1, SIDE, SIDE, generator=draws))
        return seen[-1]

    fitness, images = fo.lottery(score, draw, 4, 30, rng())
    everything = score(torch.cat(seen))
    assert torch.allclose(fitness[-1], everything.max(0).values, atol=1e-5)
    assert torch.allclose(score(images).diagonal(), fitness[-1], atol=1e-4)
    assert len(torch.cat(seen)) == 120 and fitness.shape == (4, C)


@pytest.mark.parametrize("name", [*fo.lotteries(SIDE)])
def test_lotteries_draw_images(name):
    x = fo.lotteries(SIDE)[name](40, rng())
    assert x.shape == (40, 1, SIDE, SIDE) and x.min() >= 0 and x.max() <= 1
    assert len(x.flatten(1).unique(dim=0)) > 20


def test_log_density_is_the_gaussians_up_to_one_constant():
    draws = rng(1)
    means = torch.randn(3, 4, generator=draws, dtype=torch.float64)
    raw = torch.randn(3, 4, 4, generator=draws, dtype=torch.float64)
    precisions = raw @ raw.mT + torch.eye(4)
    roots = torch.linalg.cholesky(precisions)
    x = torch.randn(6, 1, 2, 2, generator=draws, dtype=torch.float64)
    exact = torch.empty(6, 3, dtype=torch.float64)
    for n, image in enumerate(x.flatten(1)):
        for c, (mean, precision) in enumerate(zip(means, precisions, strict=True)):
            d = image - mean
            exact[n, c] = (precision.logdet() - 4 * math.log(2 * math.pi) - d @ precision @ d) / 2
    constant = exact - fo.log_density(x, means, roots)
    assert torch.allclose(constant, constant[0, 0].expand_as(constant))


def test_a_guard_halves_at_the_threshold_and_never_loses_the_slope():
    log_p = torch.log(torch.tensor([[0.9, 0.1]]))
    at = lambda q: fo.guarded(log_p, torch.tensor([[q]]), t=-5.0, s=2.0)  # noqa: E731
    assert torch.allclose(at(-5.0).exp(), log_p.exp() / 2)
    one = torch.sigmoid(torch.tensor(1.0))
    assert torch.allclose(at(-3.0).exp(), log_p.exp() * one), "one deviation s above t"
    assert torch.allclose(at(100.0), log_p)
    assert at(-1e4).isfinite().all() and (at(-1e4) < at(-1e3)).all()


# --- the paper's setting, and the exercises -------------------------------------------


# What `--budget full` must be, and where it is said (files of the authors' repository, Evolving-AI-Lab/fooling).
PAPER = {
    "dataset": ("mnist", "dl_map_elites_images_mnist.cpp, lenet"),
    "size": (0, "the same: 28 pixels, the images' own"),
    "children": (200, "the same: init_size and size of the population"),
    "generations": (200, "paper: median 99.99 % by generation 200"),
    "rate": (0.1, "the same: evo_float::mutation_rate"),
    "eta": (15.0, "the same: evo_float::eta_m"),
    "steps": (300, "find_fooling_image.py: N"),
    "decay": (0.01, "find_fooling_image.py: decay"),
    "rounds": (14, "paper: DNN1 to DNN15"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("fooling"), PAPER)


def tickets(first, target, deviation=None, side=-1):
    z = (target - first.mean(0)) / (first.std(0) if deviation is None else deviation)
    return -torch.special.log_ndtr(side * z) / math.log(10)


def underflowing(first, target):
    z = (target - first.mean(0)) / first.std(0)
    return -torch.log10(1 - torch.special.ndtr(z))


def closeness(p, d, limit, width):
    return torch.sigmoid((limit - d) / width)[:, None]


WRONG = {
    "check_tickets": [
        (lambda f, t: tickets(f, t) * math.log(10), "natural logarithm"),
        (lambda f, t: -tickets(f, t), "its inverse"),
        (lambda f, t: 10 ** tickets(f, t), "take its logarithm"),
        (lambda f, t: tickets(f, t, side=1), "stay below"),
        (lambda f, t: tickets(f, t, deviation=1.0), "standard deviation"),
        (lambda f, t: tickets(f.reshape(-1, 1), t), "you say"),
        (lambda f, t: tickets(f, t).mean(), "one number for each class"),
        (underflowing, "underflows"),
    ],
    "check_committee": [
        (lambda z: F.softmax(z, -1).mean(0), "take its logarithm"),
        (lambda z: F.log_softmax(z.mean(0), -1), "mean logits"),
        (lambda z: F.log_softmax(z, -1).mean(0), "have a veto"),
        (lambda z: F.log_softmax(z, -1).logsumexp(0), "subtract log M"),
        (lambda z: F.softmax(z, -1).mean(1).log(), "over the members"),
        (lambda z: F.softmax(z, -1).mean(0).log(), "underflow"),
        (lambda z: F.log_softmax(z, -1).max(0).values, "you say"),
    ],
    "check_close": [
        (lambda p, d, m, w: p.exp() * closeness(p, d, m, w), "take its logarithm"),
        (lambda p, d, m, w: p * closeness(p, d, m, w), "sum of logarithms"),
        (lambda p, d, m, w: p + closeness(p, d, m, w), "not the acceptance"),
        (lambda p, d, m, w: p + (1 - closeness(p, d, m, w)).log(), "the sign"),
        (lambda p, d, m, w: p + closeness(p, d, m, 1.0).log(), "divide by the width"),
        (lambda p, d, m, w: p + torch.where(d <= m, 0.0, -math.inf)[:, None], "a threshold"),
        (lambda p, d, m, w: p + F.logsigmoid((m - d) / w), "add an axis|you say"),
        (lambda p, d, m, w: p + closeness(p, d, m, w).log(), "underflows"),
        (lambda p, d, m, w: p - (d / m)[:, None], "you say"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("fooling", WRONG, name, k)
