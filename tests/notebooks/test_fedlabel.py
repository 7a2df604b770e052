"""FedLabel's rule and round against a slow loop over clients and images, its split, its server, and the exercises."""

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, checks, each, full_budget
from realdata import assert_runs

import lefcourse as lc

fl = lc.methods("fedlabel")
M, C, D, H = 3, 4, 6, 5  # clients, classes, inputs, hidden units
E_L, E_U, B, B_U = 2, 2, 4, 6


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def probabilities(*shape, seed=0, scale=1.5):
    z = scale * torch.randn(*shape, C, generator=rng(seed), dtype=torch.float64)
    return z.softmax(-1)


def weights(m=1, seed=1):
    theta = [p.double() for p in fl.init_mlp([D, H, C], rng(seed))]
    theta = [p + 0.1 * torch.randn(p.shape, generator=rng(9), dtype=p.dtype) for p in theta]
    return [
        p + 0.3 * torch.randn(m, *p.shape[1:], generator=rng(seed), dtype=p.dtype) for p in theta
    ]


def batches(seed=2):
    """Labeled batches and classes, weak and strong views."""
    g = rng(seed)
    x, weak, strong = (
        torch.randn(*n, D, generator=g, dtype=torch.float64)
        for n in ((E_L, M, B), (E_U, M, B_U), (E_U, M, B_U))
    )
    return x, torch.randint(C, (E_L, M, B), generator=g), weak, strong


def of(theta, k):
    return [p[k : k + 1] for p in theta]


def same(one, other, atol=1e-12):
    return all(torch.allclose(p, q, atol=atol) for p, q in zip(one, other, strict=True))


# --- the rule ------------------------------------------------------------------------------------


def by_hand(g, q, tau):
    """One image, by the definitions: who decides, label, kept, agree, rho."""
    v = [(sum(p * p for p in P) - 1 / len(P)) / (len(P) - 1) for P in (g, q)]
    P = g if v[0] >= v[1] else q
    y = max(range(len(P)), key=lambda c: P[c])
    first = [max(range(len(Q)), key=lambda c, Q=Q: Q[c]) for Q in (g, q)]
    kept = P[y] > tau
    return float(v[0] >= v[1]), y, kept, kept and first[0] == first[1], min(v) / max(v)


@pytest.mark.parametrize("tau", [0.3, 0.6, 0.9])
def test_labels_are_their_definition_image_by_image(tau):
    P_G, P_L = probabilities(5, M, 8), probabilities(5, M, 8, seed=1)
    said = fl.pseudo_labels(P_G, P_L, tau)
    flat = [part.flatten() for part in said]
    for n, (g, q) in enumerate(zip(P_G.flatten(0, 2), P_L.flatten(0, 2), strict=True)):
        who, y, kept, agree, rho = by_hand(g.tolist(), q.tolist(), tau)
        assert flat[0][n] == who and flat[1][n] == y
        assert flat[2][n].item() == kept and flat[3][n].item() == agree
        assert abs(flat[4][n].item() - rho) < 1e-12
    assert 0 < said.g.mean() < 1 and said.kept.any() and said.agree.any()


def test_the_threshold_is_on_the_chosen_model():
    sure, other = torch.tensor([[0.7, 0.1, 0.1, 0.1]]), torch.tensor([[0.1, 0.1, 0.4, 0.4]])
    for pair in ((sure, other), (other, sure)):
        said = fl.pseudo_labels(*pair, 0.5)
        assert said.kept.all() and (said.y == 0).all()
        assert not fl.pseudo_labels(*pair, 0.7).kept.any()  # above, not at least


def test_variance_is_the_sum_of_squares():
    P = probabilities(50)
    assert torch.allclose(fl.variance(P), ((P**2).sum(-1) - 1 / C) / (C - 1), atol=1e-15)
    certain = torch.eye(C, dtype=torch.float64)
    assert torch.allclose(fl.variance(certain), torch.full((C,), 1 / C, dtype=torch.float64))
    assert fl.variance(torch.full((1, C), 1 / C)).item() == 0


def test_classes_have_no_order():
    P_G, P_L, mixed = probabilities(40), probabilities(40, seed=1), torch.tensor([2, 0, 3, 1])
    one, two = fl.pseudo_labels(P_G, P_L, 0.5), fl.pseudo_labels(P_G[:, mixed], P_L[:, mixed], 0.5)
    for name in ("g", "kept", "agree", "rho"):
        assert torch.allclose(getattr(one, name).double(), getattr(two, name).double())
    assert torch.equal(one.y, mixed[two.y])


def test_with_two_classes_the_larger_probability_decides_with_three_not():
    p, q = torch.rand(2, 200, generator=rng(), dtype=torch.float64)
    P_G, P_L = torch.stack([p, 1 - p], 1), torch.stack([q, 1 - q], 1)
    assert torch.equal(fl.surer(P_G, P_L) > 0, P_G.amax(1) >= P_L.amax(1))
    P_G, P_L = torch.tensor([[0.6, 0.4, 0.0]]), torch.tensor([[0.62, 0.19, 0.19]])
    assert fl.surer(P_G, P_L) == 1 and fl.surer(P_L, P_G) == 0
    assert fl.surer(P_G, P_L, lambda P: P.amax(-1)) == 0


def test_probabilities_are_compared_not_logits():
    """Adding a constant to logits, or a hopeless class's logit sinking, changes the variance of the logits alone."""
    z_G, z_L = torch.tensor([[3.0, 0, 0, 0]]), torch.tensor([[2.0, 0, 0, -20]])
    assert z_L.var(-1) > z_G.var(-1) and fl.surer(z_G.softmax(-1), z_L.softmax(-1)) == 1


def test_a_tie_goes_to_the_global_model():
    P = probabilities(30)
    said = fl.pseudo_labels(P, P, 0.5)
    assert (said.g == 1).all() and (said.rho == 1).all() and torch.equal(said.agree, said.kept)
    x, y, weak, strong = batches()
    seen = []
    w = weights()
    fl.fedlabel_round(
        fl.mlp, w, x[:0], y[:0].new_zeros(0, M, B), weak, strong, lr=0.1, tau=0.0,
        watch=lambda *what: seen.append(what),
    )  # fmt: skip
    ((P_G, P_L, said),) = seen
    assert torch.equal(P_G, P_L) and (said.g == 1).all() and (said.rho == 1).all()


def test_a_blend_labels_by_the_mean():
    P_G, P_L = probabilities(60), probabilities(60, seed=1)
    said = fl.pseudo_labels(P_G, P_L, 0.5, lambda a, b: torch.full_like(a[..., 0], 0.5))
    assert torch.equal(said.y, (P_G + P_L).argmax(-1))
    assert torch.equal(said.kept, (P_G + P_L).amax(-1) / 2 > 0.5)
    uniform = torch.full((1, C), 1 / C)
    assert torch.isfinite(fl.pseudo_labels(uniform, uniform, 0.0).rho).all()


# --- the losses ----------------------------------------------------------------------------------


def test_pseudo_labels_are_averaged_over_the_kept():
    z = torch.randn(M, B_U, C, generator=rng(3), dtype=torch.float64, requires_grad=True)
    y = torch.randint(C, (M, B_U), generator=rng(4))
    kept = torch.rand(M, B_U, generator=rng(5)) < 0.5
    kept[1] = False
    loss = fl.pseudo_loss(z, y, kept)
    assert loss[1] == 0
    for k in (0, 2):
        assert torch.allclose(loss[k], F.cross_entropy(z[k][kept[k]], y[k][kept[k]]))
    loss.sum().backward()
    assert torch.equal(z.grad.abs().sum(-1) > 0, kept)


def test_consistency_is_its_definition():
    z = torch.randn(M, B_U, C, generator=rng(3), dtype=torch.float64)
    P_L, rho = probabilities(M, B_U), torch.rand(M, B_U, generator=rng(6), dtype=torch.float64)
    agree = torch.rand(M, B_U, generator=rng(5)) < 0.5
    agree[2] = False
    loss = fl.consistency_loss(z, P_L, agree, rho)
    for k in range(M):
        q = z[k].softmax(-1)
        kl = [(P_L[k, b] * (P_L[k, b] / q[b]).log()).sum() * rho[k, b] for b in range(B_U)]
        rows = [kl[b] for b in range(B_U) if agree[k, b]]
        assert torch.allclose(loss[k], sum(rows, z.new_zeros(())) / max(len(rows), 1))
    zero = torch.tensor([[[1.0, 0, 0, 0]]])  # a probability of exactly 0 has no part in it
    assert torch.isfinite(
        fl.consistency_loss(torch.zeros(1, 1, C), zero, torch.ones(1, 1), 1.0)
    ).all()


def test_at_the_expert_itself_the_consistency_and_its_gradient_vanish():
    P_L = probabilities(M, B_U)
    z = P_L.log().requires_grad_()
    loss = fl.consistency_loss(z, P_L, torch.ones(M, B_U), torch.ones(M, B_U))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert loss.abs().max() < 1e-14 and gradient.abs().max() < 1e-14


def test_proximity_is_a_mean_for_each_tensor():
    theta, w = weights(M, seed=4), fl.copies(weights(), M)
    loss = fl.proximity(theta, w)
    for k in range(M):
        by_tensor = [((p[k] - q[k]) ** 2).mean() for p, q in zip(theta, w, strict=True)]
        assert torch.allclose(loss[k], sum(by_tensor))
    assert (fl.proximity(w, w) == 0).all()


# --- all clients at once -------------------------------------------------------------------------


def test_stacked_networks_are_each_its_own_network():
    theta, x = weights(M), batches()[0][0]
    stacked = fl.mlp(theta, x)
    for k in range(M):
        W1, b1, W2, b2 = (p[k] for p in theta)
        assert torch.allclose(stacked[k], (x[k] @ W1 + b1).relu() @ W2 + b2, atol=1e-12)
    images = torch.randn(M, B, 1, 2, 3, dtype=torch.float64)
    assert torch.equal(fl.mlp(theta, images), fl.mlp(theta, images.flatten(2)))


def test_a_local_expert_is_plain_sgd():
    theta, (x, y, _, _) = weights(M), batches()
    found = fl.local_expert(fl.mlp, theta, x, y, 0.3)
    for k in range(M):
        W1, b1, W2, b2 = (p[k].clone().requires_grad_() for p in theta)
        for t in range(E_L):
            F.cross_entropy((x[t, k] @ W1 + b1).relu() @ W2 + b2, y[t, k]).backward()
            with torch.no_grad():
                for p in (W1, b1, W2, b2):
                    p -= 0.3 * p.grad
                    p.grad = None
        assert same([p[None] for p in (W1, b1, W2, b2)], of(found, k))
    assert not same(found, theta) and not any(p.requires_grad for p in found)


def step(theta, loss, lr):
    theta = [p.detach().requires_grad_() for p in theta]
    gradients = torch.autograd.grad(loss(theta), theta)
    return [(p - lr * g).detach() for p, g in zip(theta, gradients, strict=True)]


def logits_of(theta, v):
    return fl.mlp(theta, v[None])[0]


def slow_loss(theta, w, expert, weak, strong, tau, lam, mu, target):
    """The loss of one client in one step, by a loop over its images; and how many it keeps."""
    P_G, P_L = logits_of(w, weak).softmax(-1), logits_of(expert, weak).softmax(-1)
    what = [by_hand(g.tolist(), q.tolist(), tau) for g, q in zip(P_G, P_L, strict=True)]
    a, z = logits_of(theta, strong), logits_of(theta, weak).log_softmax(-1)
    P = P_L if target == "local" else P_G
    kept = [F.cross_entropy(a[b], torch.tensor(h[1])) for b, h in enumerate(what) if h[2]]
    both = [h[4] * (P[b] * (P[b].log() - z[b])).sum() for b, h in enumerate(what) if h[3]]
    total = sum(kept) / max(len(kept), 1) + lam * sum(both) / max(len(both), 1)
    total = total + mu * sum(((p - q) ** 2).mean() for p, q in zip(theta, w, strict=True))
    return total, len(kept)


def slow_client(w, x, y, weak, strong, lr, *settings, start, n_of):
    """The expert, the third network and the number of pseudo-labels of one client."""
    expert, counts = w, []
    for t in range(E_L):
        expert = step(expert, lambda th, t=t: F.cross_entropy(logits_of(th, x[t]), y[t]), lr)
    third = w if start == "w" else expert

    def loss_at(t):
        def loss(theta):
            total, n = slow_loss(theta, w, expert, weak[t], strong[t], *settings)
            counts.append(n)
            return total

        return loss

    for t in range(E_U):
        third = step(third, loss_at(t), lr)
    return expert, third, max(sum(counts) if n_of == "all" else counts[-1], 1)


def slow_round(w, x, y, weak, strong, lr, tau, lam, mu, start="w", n_of="all", target="local"):
    """One round by a loop over clients. `start`, `n_of` and `target` make typical wrong versions."""
    clients = [
        slow_client(
            w, x[:, k], y[:, k], weak[:, k], strong[:, k], lr, tau, lam, mu, target,
            start=start, n_of=n_of,
        )
        for k in range(M)
    ]  # fmt: skip
    total = sum(n for _, _, n in clients)
    means = [sum(e[i] for e, _, _ in clients) / M for i in range(len(w))]
    by_n = [sum(n * u[i] for _, u, n in clients) / total for i in range(len(w))]
    return [(a + b) / 2 for a, b in zip(means, by_n, strict=True)]


HOW = dict(lr=0.3, tau=0.55)


def test_a_round_is_the_loop_over_its_clients():
    w, data = weights(), batches()
    found = fl.fedlabel_round(fl.mlp, w, *data, **HOW, consistency=0.7, prox=2.0)
    assert same(found, slow_round(w, *data, 0.3, 0.55, 0.7, 2.0))
    for wrong in (dict(start="expert"), dict(n_of="last"), dict(target="global")):
        assert not same(found, slow_round(w, *data, 0.3, 0.55, 0.7, 2.0, **wrong), 1e-6), wrong
    assert not same(
        found,
        fl.fedlabel_round(fl.mlp, w, *data, **HOW, consistency=0.7, prox=2.0, by_number=False),
        1e-6,
    )


def test_a_client_does_not_see_the_others_data():
    w, (x, y, weak, strong) = fl.copies(weights(), M), batches()
    experts = fl.local_expert(fl.mlp, w, x, y, 0.3)
    P_G, P_L = fl.ask(fl.mlp, w, weak), fl.ask(fl.mlp, experts, weak)
    how = dict(lr=0.3, consistency=0.5, prox=1.0)
    said = fl.pseudo_labels(P_G, P_L, 0.5)
    thirds = fl.third_network(fl.mlp, w, weak, strong, said, P_L, **how)
    x, weak, strong = (v.clone() for v in (x, weak, strong))
    for v in (x, weak, strong):
        v[:, 0] += 1
    experts_2 = fl.local_expert(fl.mlp, w, x, y, 0.3)
    P_G, P_L = fl.ask(fl.mlp, w, weak), fl.ask(fl.mlp, experts_2, weak)
    thirds_2 = fl.third_network(
        fl.mlp, w, weak, strong, fl.pseudo_labels(P_G, P_L, 0.5), P_L, **how
    )
    for one, two in ((experts, experts_2), (thirds, thirds_2)):
        assert not same(of(one, 0), of(two, 0), 1e-6)
        assert all(same(of(one, k), of(two, k)) for k in (1, 2))


def test_asking_gives_no_gradient_and_keeps_the_order():
    theta, weak = [p.requires_grad_() for p in weights(M)], batches()[2]
    P = fl.ask(fl.mlp, theta, weak)
    assert not P.requires_grad and P.shape == (E_U, M, B_U, C)
    for t in range(E_U):
        assert torch.allclose(P[t], fl.mlp(theta, weak[t]).softmax(-1), atol=1e-12)


def test_without_kept_images_the_third_network_stays_where_it_is():
    w, data = weights(), batches()
    seen = []
    found = fl.fedlabel_round(
        fl.mlp, w, *data, lr=0.3, tau=0.9999, watch=lambda *what: seen.append(what)
    )
    assert not seen[0][2].kept.any()
    burning = fl.fedlabel_round(fl.mlp, w, *data, lr=0.3, tau=0.9999, burning=True)
    assert same(found, burning)


# --- the server ----------------------------------------------------------------------------------


def test_while_burning_in_the_server_goes_half_way():
    w, (x, y, weak, strong) = weights(), batches()
    found = fl.fedlabel_round(fl.mlp, w, x, y, weak, strong, **HOW, burning=True)
    mean = fl.average(fl.local_expert(fl.mlp, fl.copies(w, M), x, y, 0.3))
    assert same(found, [(p + q) / 2 for p, q in zip(w, mean, strict=True)])


def test_the_server_weighs_labels_alike_and_pseudo_labels_by_number():
    experts, thirds, n = weights(M), weights(M, seed=5), torch.tensor([1.0, 30.0, 9.0]).double()
    found = fl.aggregate(experts, thirds, n)
    for p, e, u in zip(found, experts, thirds, strict=True):
        expected = e.mean(0) / 2 + sum(n[k] / 40 * u[k] for k in range(M)) / 2
        assert torch.allclose(p[0], expected)
    assert same(found, fl.aggregate(experts, thirds, 2 * n))
    assert not same(found, fl.aggregate(experts, thirds, torch.ones(M).double()), 1e-6)
    one = weights()
    assert same(one, fl.aggregate(fl.copies(one, M), fl.copies(one, M), n))  # weights sum to 1


# --- the split -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.2, 10.0])
def test_every_image_has_one_owner_and_is_labeled_or_not(alpha):
    y = torch.arange(500) % 10
    parts = fl.split_clients(y, 8, 10, alpha, 0.1, rng(1))
    everything = torch.cat([torch.cat(part) for part in parts])
    assert torch.equal(everything.sort().values, torch.arange(500))
    for mine, rest in parts:
        assert len(mine) >= 1 and len(rest) >= 1
        n = len(mine) + len(rest)
        assert n >= 4 and len(mine) == max(1, round(0.1 * n))
    again = fl.split_clients(y, 8, 10, alpha, 0.1, rng(1))
    other = fl.split_clients(y, 8, 10, alpha, 0.1, rng(2))
    assert all(
        torch.equal(a, b)
        for p, q in zip(parts, again, strict=True)
        for a, b in zip(p, q, strict=True)
    )
    assert [len(p[1]) for p in parts] != [len(p[1]) for p in other]


def test_shares_are_normalised_over_the_clients_and_even_at_large_alpha():
    share = fl.shares(6, 10, 0.2, rng())
    assert torch.allclose(share.sum(0), torch.ones(10).double()) and (share >= 0).all()
    assert (fl.shares(6, 10, 1e7, rng()) - 1 / 6).abs().max() < 1e-3
    assert torch.isfinite(fl.shares(6, 10, 1e-3, rng())).all()
    y = torch.arange(600) % 10
    for part in fl.deal(y, fl.shares(6, 10, 1e9, rng()), rng()):
        assert (y[part].bincount(minlength=10) == 10).all()


def test_classes_are_cut_in_proportion_and_shuffled():
    y = torch.arange(1000) % 2
    share = torch.tensor([[0.1, 0.5], [0.3, 0.5], [0.6, 0.0]]).double()
    parts = fl.deal(y, share, rng())
    assert [y[p].bincount(minlength=2).tolist() for p in parts] == [[50, 250], [150, 250], [300, 0]]
    assert parts[0].min() < parts[1].max() and parts[1].min() < parts[0].max()


def test_too_few_images_are_refused():
    with pytest.raises(lc.DataError, match="alpha"):
        fl.split_clients(torch.arange(10) % 2, 8, 2, 0.2, 0.1, rng())


# --- the rival -----------------------------------------------------------------------------------


def test_fixmatch_is_the_loop_over_its_clients():
    w, (x, y, weak, strong) = weights(M), batches()
    found = fl.fixmatch(fl.mlp, w, x[:E_U], y[:E_U], weak, strong, lr=0.3, tau=0.5)
    taught = 0
    for k in range(M):
        theta = of(w, k)
        for t in range(E_U):
            theta = [p.detach().requires_grad_() for p in theta]
            z, z_w, z_s = (fl.mlp(theta, v[t, k][None])[0] for v in (x, weak, strong))
            p = z_w.detach().softmax(-1)  # the current network's own labels
            mask = p.amax(-1) > 0.5
            taught += mask.sum()
            pseudo = F.cross_entropy(z_s, p.argmax(-1), reduction="none")
            loss = F.cross_entropy(z, y[t, k]) + (mask * pseudo).mean()
            gradients = torch.autograd.grad(loss, theta)
            theta = [p - 0.3 * g for p, g in zip(theta, gradients, strict=True)]
        assert same(of(found, k), theta)
    assert 0 < taught < E_U * M * B_U


# --- the full budget -----------------------------------------------------------------------------

PAPER = {  # each value with its source: keys of experiments/semisupervision/config.yaml in microsoft/msrflute
    "clients": (100, "ensize"),
    "per_round": (10, "num_clients_per_iteration, size"),
    "alpha": (0.1, "alpha"),
    "labeled": (0.2, "train_ratio; dataloaders/cifar_dataset.py: the last fifth of a client"),
    "rounds": (2000, "max_iteration"),
    "burn_in": (50, "burnout_round"),
    "local_steps": (30, "train_ep, each a single batch: core/trainer.py"),
    "unlabeled_steps": (10, "unsuptrain_ep"),
    "batch": (64, "bs"),
    "batch_u": (64, "unl_bs is 128, of which the first 64 are used: core/trainer.py"),
    "lr": (0.003, "eta, initial_lr_client"),
    "tau": (0.3, "thre, for the 100 classes of CIFAR-100"),
    "consistency": (0.05, "vat_consis"),
    "prox": (10.0, "l2_lambda"),
}


def test_the_full_budget_is_the_codes_setting():
    assert_papers(full_budget("fedlabel"), PAPER)


# --- the exercises -------------------------------------------------------------------------------


def cooled(z, y, grid, *, times=False, of_all=False, index=False, by_accuracy=False, highest=False):
    scaled = [z * T if times else z / T for T in grid]
    if by_accuracy:
        loss = torch.stack([-(v.argmax(-1) == y).float().mean(1) for v in scaled])
    else:
        loss = torch.stack([fl.cross_entropy(v, y).mean(1) for v in scaled])
    if of_all:
        loss = loss.mean(1, keepdim=True).expand_as(loss)
    at = loss.argmax(0) if highest else loss.argmin(0)
    return at if index else torch.tensor(grid)[at]


def informed(P, counts, *, add=1, norm=True, pooled=False, mean=False, flat=False):
    counts = counts.sum(0, keepdim=True).expand_as(counts) if pooled else counts
    prior = (counts + add) / (counts + add).sum(1, keepdim=True)
    if flat:
        prior = torch.full_like(prior, 1 / prior.shape[1])
    if mean:
        return (P + prior[:, None]) / 2
    P = P * prior[:, None]
    return P / P.sum(-1, keepdim=True) if norm else P


def rotated(
    images, labeled, unlabeled, k, *, turns=1, parts=(0, 1), copy=True, everyone=False, flip=False
):
    turned = images.clone() if copy else images
    mine = torch.cat([(labeled, unlabeled)[n][k] for n in parts])
    mine = slice(None) if everyone else mine
    turned[mine] = images[mine].flip(-1) if flip else images[mine].rot90(turns, (2, 3))
    return turned


RIGHT = {"check_temperatures": cooled, "check_with_prior": informed, "check_askew": rotated}
WRONG = {
    "check_temperatures": [
        (lambda z, y, g: cooled(z, y, g, times=True), "do not multiply"),
        (lambda z, y, g: cooled(z, y, g, highest=True), "not the highest"),
        (lambda z, y, g: cooled(z, y, g, of_all=True), "one T for all"),
        (lambda z, y, g: cooled(z, y, g, index=True), "positions in the list"),
        (lambda z, y, g: cooled(z, y, g, by_accuracy=True), "not the accuracy"),
        (lambda z, y, g: cooled(z, y, g)[0], "one temperature for each client"),
    ],
    "check_with_prior": [
        (lambda P, n: informed(P, n, norm=False), "sum to one again"),
        (lambda P, n: informed(P, n, add=0), "add one count"),
        (lambda P, n: informed(P, n, pooled=True), "its own mix"),
        (lambda P, n: informed(P, n, mean=True), "do not average"),
        (lambda P, n: informed(P, n, flat=True), "its own mix"),
        (lambda P, n: informed(P, n)[0], "as many probabilities"),
    ],
    "check_askew": [
        (lambda *a: rotated(*a, copy=False), "turn a copy"),
        (lambda *a: rotated(*a, parts=(0,)), "its unlabeled images"),
        (lambda *a: rotated(*a, parts=(1,)), "its labeled images"),
        (lambda *a: rotated(*a, everyone=True), "the others' stay"),
        (lambda *a: rotated(*a, turns=2), "half a turn"),
        (lambda *a: rotated(*a, flip=True), "no mirror"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("fedlabel", WRONG, name, k)


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    checks("fedlabel")[name](RIGHT[name], strict=True)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_runs_as_it_is_on_real_data(name, tmp_path):
    assert_runs("fedlabel", name, tmp_path, cutout=8)
