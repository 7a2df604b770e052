"""Nested dropout and its second stage, against closed forms and slow definitions. Sources: the authors' code and README."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, checks, each, full_budget
from realdata import assert_runs

import lefcourse as lc

nd = lc.methods("nested-dropout")
N, C, WIDTH = 30, 4, 12


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def net(seed=1, width=WIDTH):
    torch.manual_seed(seed)
    model = lc.nets.mlp((1, 3, 3), C, hidden=(8, width))
    model.head = torch.nn.Linear(width, C, bias=False)
    return model


@pytest.fixture
def problem():
    return torch.randn(N, 1, 3, 3, generator=rng()), torch.randint(C, (N,), generator=rng(1))


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


# --- how many channels ---------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [3.0, 10.0, 100.0])
def test_the_distribution_is_its_definition(eta):
    P = nd.channel_distribution(256, eta)
    assert P.shape == (256,) and math.isclose(float(P.sum()), 1.0)
    assert (P.diff() <= 0).all() and P[0] > P[1]
    for k in (2, 5, 9):
        assert math.isclose(float(P[k - 1] / P[0]), math.exp(-(k**2 - 1) / eta**2), rel_tol=1e-9)


def test_the_distribution_at_its_ends_and_elsewhere():
    assert torch.allclose(nd.channel_distribution(7, math.inf), torch.full((7,), 1 / 7).double())
    assert torch.allclose(nd.channel_distribution(7, 1e-3), torch.eye(7)[0].double())
    assert int(nd.channel_distribution(20, 4.0, mu=6.0).argmax()) + 1 == 6


def test_k_is_drawn_from_one_to_D_as_often_as_said():
    P, g = torch.tensor([0.5, 0.3, 0.2]), rng()
    drawn = torch.tensor([nd.draw_k(P, g) for _ in range(3000)])
    assert set(drawn.tolist()) == {1, 2, 3}
    assert torch.allclose(drawn.bincount()[1:] / 3000, P, atol=0.04)


def test_a_mask_is_one_for_the_whole_batch_and_not_rescaled():
    masks = nd.nested_masks(nd.channel_distribution(WIDTH, 4.0), rng(3))
    seen = [masks(16) for _ in range(40)]
    assert all(m.shape == (WIDTH,) for m in seen)  # not (16, D): no mask for each image
    assert all(set(m.tolist()) <= {0.0, 1.0} and (m.diff() <= 0).all() and m[0] == 1 for m in seen)
    assert len({int(m.sum()) for m in seen}) > 3  # drawn anew for every batch
    assert nd.mask(3, 5).tolist() == [1, 1, 1, 0, 0] and nd.mask(5, 5).all()


# --- training under masks ------------------------------------------------------------------------

HOW = dict(epochs=3, batch=8, lr=0.1, momentum=0.9, weight_decay=1e-3)


def test_with_all_channels_it_is_cross_entropy_step_for_step(problem):
    ours, plain, nested = net(), net(), net()
    nd.train_masked(
        ours, *problem, masks=lambda size: nd.mask(WIDTH, WIDTH), generator=rng(2), **HOW
    )
    lc.fit(plain, *problem, generator=rng(2), **HOW)
    assert same(ours, plain)
    masks = nd.nested_masks(nd.channel_distribution(WIDTH, 4.0), rng(4))
    nd.train_masked(nested, *problem, masks=masks, generator=rng(2), **HOW)
    assert not same(nested, plain)


def test_channels_behind_the_mask_have_no_gradient(problem):
    x, y = problem
    model, k = net(), 5
    F.cross_entropy(nd.logits(model, x, nd.mask(k, WIDTH)), y).backward()
    last = model.body[-2]  # the linear layer that makes the features
    for gradient in (model.head.weight.grad.T, last.weight.grad, last.bias.grad):
        assert (gradient[k:] == 0).all() and (gradient[:k] != 0).any()


def test_masked_logits_are_those_of_the_cut_network(problem):
    model, x = net(), problem[0]
    h = model.features(x)
    for k in (1, 5, WIDTH):
        cut = h[:, :k] @ model.head.weight[:, :k].T  # no 1 / P(k >= j), no bias
        assert torch.allclose(nd.logits(model, x, nd.mask(k, WIDTH)), cut, atol=1e-6)


def test_the_learning_rate_rises_and_falls():
    rates = [nd.rate_at(s, 100, 0.1, (0.5, 0.75)) for s in (0, 4, 9, 49, 50, 75)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.1, 0.01])
    assert nd.rate_at(0, 100) == 1.0


def test_every_step_has_its_rate(problem):
    plain, risen = net(), net()
    masks = dict(masks=lambda size: 1.0, epochs=1, batch=N, momentum=0.0)
    nd.train_masked(plain, *problem, lr=0.05, generator=rng(2), **masks)
    nd.train_masked(risen, *problem, lr=0.1, warm_up=2.0, generator=rng(2), **masks)  # 1 of 2 steps
    assert same(plain, risen)


# --- all widths at once --------------------------------------------------------------------------


def test_prefixes_are_cumulative_and_match_the_loop(problem):
    model, x = net(), problem[0]
    h, W = nd.ordered_parts(model, x)
    z = nd.prefix_logits(h, W)
    assert z.shape == (N, WIDTH, C)
    for k in range(1, WIDTH + 1):
        assert torch.allclose(z[:, k - 1], nd.predict_at([model], x, k), atol=1e-5)
        if k > 1:
            assert torch.allclose(z[:, k - 1] - z[:, k - 2], h[:, k - 1 : k] * W[k - 1], atol=1e-5)


@pytest.mark.parametrize("n", [1, 2])
def test_accuracy_by_k_matches_the_loop_for_one_and_two_networks(problem, n):
    x, y = problem
    models = [net(seed) for seed in range(n)]
    found = nd.accuracy_by_k(models, x, y, chunk=7)
    for k in range(1, WIDTH + 1):
        z = sum(nd.logits(m, x, nd.mask(k, WIDTH)) for m in models)
        assert math.isclose(float(found[k - 1]), float((z.argmax(1) == y).double().mean()))
        assert torch.allclose(nd.predict_at(models, x, k), z / n, atol=1e-6)


def test_another_order_changes_the_way_but_not_the_end(problem):
    model, order = net(), torch.randperm(WIDTH, generator=rng(5))
    plain, other = (nd.accuracy_by_k([model], *problem, order=o) for o in (None, order))
    assert plain[-1] == other[-1] and not torch.equal(plain, other)
    h, W = nd.ordered_parts(model, problem[0], order)
    assert torch.allclose(h @ W, model(problem[0]), atol=1e-6)


def test_a_network_that_has_diverged_has_no_accuracy(problem):
    model = net()
    model.head.weight.data[0, 3] = math.nan
    found = nd.accuracy_by_k([model], *problem)
    assert found[:3].isfinite().all() and found[3:].isnan().all()


def test_evaluation_leaves_the_mode_as_it_was(problem):
    for mode in (True, False):
        model = net().train(mode)
        nd.accuracy_by_k([model], *problem)
        nd.predict_at([model], problem[0], 3)
        assert model.training is mode


def test_among_equals_the_smaller_k():
    a = torch.tensor([0.1, 0.5, 0.5, 0.4, 0.5], dtype=torch.float64)
    k, value = nd.best_k(a)
    assert k == 2 and math.isclose(value, 0.5 - 1e-5)
    assert nd.best_k(torch.tensor([0.1, 0.5, 0.5 + 2e-5]).double())[0] == 3  # a real gain counts
    assert nd.best_k(torch.full((256,), 0.3).double())[0] == 1


def test_a_linear_autoencoder_finds_the_principal_directions_in_order():
    """With the expected loss over k: column k of the decoder is the k-th eigenvector, up to sign."""
    scale = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=rng(6), dtype=torch.float64))[0]
    X = torch.randn(200, 3, generator=rng(7), dtype=torch.float64) * scale @ Q.T
    X = X - X.mean(0)
    P = nd.channel_distribution(3, math.inf)
    U, V = (torch.randn(3, 3, generator=rng(s), dtype=torch.float64) / 2 for s in (8, 9))
    U.requires_grad_(), V.requires_grad_()
    optimizer = torch.optim.LBFGS([U, V], max_iter=600, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        errors = ((nd.prefix_logits(X @ U, V) - X[:, None]) ** 2).sum(2).mean(0)
        total = (P * errors).sum()
        total.backward()
        return total

    optimizer.step(loss)
    principal = torch.linalg.svd(X, full_matrices=False)[2]
    found = F.normalize(V.detach(), dim=1)
    assert ((found * principal).sum(1).abs() > 0.999).all()


# --- the second stage ----------------------------------------------------------------------------


def test_the_smallest_losses_are_kept():
    losses = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    assert nd.smallest(losses, 0.4).tolist() == [1, 2, 0]
    assert nd.smallest(losses, 0.0).sort().values.tolist() == [0, 1, 2, 3, 4]
    assert nd.smallest(losses, 1.0).tolist() == [1]


HALVES = (torch.arange(N // 2), torch.arange(N // 2, N))


def test_each_network_gets_what_the_other_kept_of_its_half(problem):
    x, y = problem
    models, k = [net(1), net(2)], 5
    for_1, for_2 = nd.exchange(models, k, x, y, HALVES, 0.4)
    for picked, judge, half in ((for_1, models[1], HALVES[1]), (for_2, models[0], HALVES[0])):
        z = judge.features(x[half])[:, :k] @ judge.head.weight[:, :k].T
        losses = F.cross_entropy(z, y[half], reduction="none")
        assert picked.tolist() == half[losses.argsort()[:9]].tolist()
    assert not set(for_2.tolist()) & set(HALVES[1].tolist())  # network 1 never picks of B2


def test_with_nothing_forgotten_each_sees_the_whole_half_of_the_other(problem):
    for_1, for_2 = nd.exchange([net(1), net(2)], WIDTH, *problem, HALVES, 0.0)
    assert for_1.sort().values.tolist() == HALVES[1].tolist()
    assert for_2.sort().values.tolist() == HALVES[0].tolist()


def slow_co_teach(models, k, x, y, masks, forget, halves, lr):
    """One epoch in batches of 8, plain SGD, in the order of the same generator."""
    for i in lc.batches(N, 8, rng(2)):
        parts = i.tensor_split(2) if halves else (i, i)
        kept = []
        for model, part in zip(models, parts, strict=True):
            z = model.features(x[part])[:, :k] @ model.head.weight[:, :k].T
            order = F.cross_entropy(z, y[part], reduction="none").argsort()
            kept.append(part[order[: max(1, int((1 - forget) * len(part)))]])
        m = masks(len(i))
        for model, j in zip(models, (kept[1], kept[0]), strict=True):
            loss = F.cross_entropy((model.features(x[j]) * m) @ model.head.weight.T, y[j])
            gradients = torch.autograd.grad(loss, [*model.parameters()])
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p -= lr * g


@pytest.mark.parametrize("halves", [True, False])
def test_co_teaching_is_the_slow_loop(problem, halves):
    P = nd.channel_distribution(WIDTH, 4.0)
    ours = [net(1), net(2)]
    slow = copy.deepcopy(ours)
    how = dict(forget=0.4, halves=halves, lr=0.1)
    own = dict(epochs=1, batch=8, momentum=0.0, generator=rng(2))
    nd.co_teach(ours, 5, *problem, masks=nd.nested_masks(P, rng(9)), **how, **own)
    slow_co_teach(slow, 5, *problem, nd.nested_masks(P, rng(9)), **how)
    for a, b in zip(ours, slow, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-6)


def test_the_second_stage_draws_the_same_k_for_both(problem):
    sizes = []

    def masks(size):
        sizes.append(size)
        return nd.mask(3, WIDTH)

    own = dict(epochs=1, batch=8, lr=0.1, forget=0.5, generator=rng(2))
    nd.co_teach([net(1), net(2)], 5, *problem, masks=masks, **own)
    assert sizes == [8, 8, 8, 6]  # one draw a batch, not one a network


@pytest.mark.parametrize("halves", [True, False])
def test_statistics_are_frozen_in_the_second_stage_alone(problem, halves):
    models = [net(1), net(2)]
    for model in models:
        model.body = torch.nn.Sequential(model.body, torch.nn.BatchNorm1d(WIDTH))
    own = dict(epochs=1, batch=8, lr=0.1, forget=0.2, generator=rng(2), halves=halves)
    nd.co_teach(models, WIDTH, *problem, masks=lambda size: 1.0, **own)
    moved = [bool((model.body[1].running_mean != 0).any()) for model in models]
    assert moved == [not halves] * 2


def test_the_forget_rate_rises(problem):
    counts = []

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net(1)
            self.head = self.inner.head

        def features(self, x):
            if torch.is_grad_enabled():
                counts.append(len(x))
            return self.inner.features(x)

    own = dict(epochs=3, batch=N, lr=0.1, forget=0.6, ramp=2, halves=False, generator=rng(2))
    nd.co_teach([Counting(), Counting()], WIDTH, *problem, masks=lambda size: 1.0, **own)
    assert counts == [21, 21, 12, 12, 12, 12]


# --- the full budget, the exercises, real data ---------------------------------------------------

PAPER = {  # CIFAR-10 with 20 % symmetric noise: files of the authors' repository
    "dataset": ("cifar10", "nested/run_cifar.sh"),
    "net": ("resnet18", "nested/run_cifar.sh"),
    "train": (45_000, "data/preprocess_cifar10.py"),
    "val": (5_000, "data/preprocess_cifar10.py: a tenth of the training images"),
    "validation": ("clean", "data/preprocess_cifar10.py: they keep their labels"),
    "noise": ("symmetric", "nested/run_cifar.sh"),
    "rate": (0.2, "nested/run_cifar.sh"),
    "eta": (10.0, "nested/run_cifar.sh: --nested 10"),
    "epochs": (350, "nested/train_resnet.py: nbEpoch"),
    "batch": (320, "nested/train_resnet.py: batchsize"),
    "lr": (0.1, "nested/train_resnet.py: lr"),
    "weight_decay": (5e-4, "nested/train_resnet.py: weightDecay"),
    "schedule": ("steps", "nested/train_resnet.py: lrSchedule 200 300, 4/7 and 6/7 of 350"),
    "augmented": (True, "nested/train_resnet.py: crops with a margin of 4, flips"),
    "forget": (0.2, "README, section 4.2: forgetRate"),
    "fine_lr": (1e-3, "README, section 4.2: lr"),
    "fine_epochs": (100, "README, section 4.2: nbEpoch"),
}


def test_the_full_budget_is_the_papers_setting():
    full = full_budget("nested-dropout")
    assert_papers(full, PAPER)
    assert abs(full["warm_up"] * 350 * math.ceil(45_000 / 320) - 6000) < 100


def thrifty(a, n, *, root=True, times=1, off=1, largest=False, by_n=True):
    best = a.max()
    variance = best * (1 - best) / (n if by_n else 1)
    positions = (a >= best - times * (variance.sqrt() if root else variance)).nonzero()[:, 0]
    return int(positions[-1 if largest else 0]) + off


def rows(D, size, draw, *, shift=0, one=False, scale=False, flip=False):
    k = draw(size)
    k = k[:1].expand(size) if one else k
    m = (torch.arange(D) < k[:, None] + shift).float()
    m = m.flip(1) if flip else m
    return m * D / k[:, None] if scale else m


RIGHT = {
    "check_seen": lambda P: torch.stack([P[j:].sum() for j in range(len(P))]),
    "check_thrifty": thrifty,
    "check_masks": rows,
}
WRONG = {
    "check_seen": [
        (lambda P: P.cumsum(0), r"P\(k <= j\)"),
        (lambda P: 1 - P.cumsum(0), r"P\(k > j\)"),
        (lambda P: P, r"P\(k = j\)"),
        (lambda P: P.flip(0).cumsum(0), "flip back"),
        (lambda P: P.sum(), "one probability for each channel"),
    ],
    "check_thrifty": [
        (lambda a, n: int(a.argmax()) + 1, "that is the best k"),
        (lambda a, n: thrifty(a, n, off=0), "counted from 1"),
        (lambda a, n: thrifty(a, n, largest=True), "not the largest"),
        (lambda a, n: thrifty(a, n, root=False), "square root"),
        (lambda a, n: thrifty(a, n, times=2), "too generous"),
        (lambda a, n: thrifty(a, n, by_n=False), "falls with n"),
        (lambda a, n: thrifty(a, 100), "1,600"),
    ],
    "check_masks": [
        (lambda *a: rows(*a, shift=1), "one channel too many"),
        (lambda *a: rows(*a, shift=-1), "too few"),
        (lambda *a: rows(*a, one=True), "its own k"),
        (lambda *a: rows(*a, scale=True), "no rescaling"),
        (lambda *a: rows(*a, flip=True), "not the last"),
        (lambda *a: rows(*a)[0], "three images and four channels"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("nested-dropout", WRONG, name, k)


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    checks("nested-dropout")[name](RIGHT[name], strict=True)


@pytest.mark.realdata
def test_runs_as_it_is_on_real_data(tmp_path):
    assert_runs("nested-dropout", "mnist", tmp_path)
