"""ShrinkMatch's shrinking against a slow loop, its loss and gradients, alignment, and its loop."""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, checks, each, full_budget
from realdata import assert_runs

import lefcourse as lc

sm = lc.methods("shrinkmatch")
N, C = 60, 7
TAUS = [0.6, 0.8, 0.95]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def predictions(n=N, c=C, seed=0, scale=1.5):
    z = scale * torch.randn(n, c, generator=rng(seed), dtype=torch.float64)
    return F.softmax(z, dim=1)


def logits(n=N, c=C, seed=1):
    return torch.randn(n, c, generator=rng(seed), dtype=torch.float64)


def by_hand(p, a, tau):
    """The definition for one image, by a loop: K (C: none), the confidence there, the loss, the kept classes."""
    c_all = len(p)
    order = sorted(range(c_all), key=lambda k: -p[k])
    for c in range(2, c_all):
        space = [order[0], *order[c:]]
        confidence = p[order[0]] / sum(p[k] for k in space)
        if confidence >= tau:
            loss = math.log(sum(math.exp(a[k]) for k in space)) - a[order[0]]
            return c, confidence, loss, space
    return c_all, None, 0.0, [order[0]]


# --- shrinking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("c", [3, 7, 20])
def test_shrinking_is_its_definition(tau, c):
    p, a = predictions(c=c), logits(c=c)
    order, K = sm.shrink(p, tau)
    kept, taught = sm.shrunk_space(p, tau)
    total, kinds = 0.0, set()
    for j in range(N):
        k, _, loss, space = by_hand(p[j].tolist(), a[j].tolist(), tau)
        kinds.add(k)
        assert K[j] == k and order[j, 0] == p[j].argmax()
        assert kept[j].nonzero().flatten().tolist() == sorted(space)
        uncertain = p[j].max().item() < tau
        assert taught[j].item() == (uncertain and k < c)
        total += loss * p[j].max().item() * (uncertain and k < c)
    assert abs(sm.shrink_loss(p, a, tau).item() - total / N) < 1e-12
    assert total > 0 and len(kinds) > (c > 3)


def test_as_few_rivals_go_as_possible_and_at_least_one():
    p, tau = predictions(), 0.8
    ranked = p.sort(dim=1, descending=True).values
    conf = torch.stack(
        [ranked[:, 0] / (ranked[:, 0] + ranked[:, c:].sum(1)) for c in range(1, C)], 1
    )
    assert (conf.diff(dim=1) >= 0).all()  # conf_c, c = 1 to C - 1
    _, K = sm.shrink(p, tau)
    found = K < C
    at = conf.gather(1, (K - 1).clamp_max(C - 2)[:, None])[:, 0]
    before = conf.gather(1, (K - 2)[:, None])[:, 0]
    assert (K >= 2).all() and (at[found] >= tau).all()
    assert (before[found & (K > 2)] < tau).all()


def test_the_last_class_alone_is_no_space():
    uniform = torch.full((3, C), 1 / C, dtype=torch.float64)
    _, K = sm.shrink(uniform, 0.95)
    _, taught = sm.shrunk_space(uniform, 0.95)
    assert (K == C).all() and not taught.any()
    assert sm.shrink_loss(uniform, logits(3), 0.95) == 0
    two = predictions(c=2)
    assert not sm.shrunk_space(two, 0.95)[1].any()
    assert sm.shrink_loss(two, logits(c=2), 0.95) == 0


def test_the_order_is_the_weak_views():
    p, a = predictions(), logits()
    upside_down = sm.shrink_loss(p, -a, 0.8)
    kept, taught = sm.shrunk_space(p, 0.8)
    by_p = sm.restricted_loss(p, -a, kept, taught)
    assert torch.equal(upside_down, by_p)
    by_a = sm.restricted_loss(p, -a, *sm.shrunk_space(F.softmax(-a, 1), 0.8))
    assert not torch.allclose(upside_down, by_a)


# --- the loss ------------------------------------------------------------------------------------


def test_removed_classes_get_no_gradient():
    p, a = predictions(), logits().requires_grad_()
    kept, taught = sm.shrunk_space(p, 0.8)
    sm.shrink_loss(p, a, 0.8).backward()
    assert 0 < taught.sum() < N and torch.isfinite(a.grad).all()
    assert (a.grad[~kept] == 0).all() and (a.grad[~taught] == 0).all()
    assert torch.allclose(a.grad.sum(1), torch.zeros(N, dtype=torch.float64), atol=1e-15)
    w, top = p.max(1)
    inside = F.softmax(a.detach().masked_fill(~kept, -torch.inf), 1)
    expected = taught * w / N * (inside.gather(1, top[:, None])[:, 0] - 1)
    at_top = a.grad.gather(1, top[:, None])[:, 0]
    assert torch.allclose(at_top, expected) and (at_top[taught] < 0).all()
    assert (a.grad[taught][kept[taught]] != 0).all()


def test_classes_have_no_order_and_logits_no_zero():
    p, a, mixed = predictions(), logits(), torch.randperm(C, generator=rng(3))
    loss = sm.shrink_loss(p, a, 0.8)
    assert torch.allclose(sm.shrink_loss(p[:, mixed], a[:, mixed], 0.8), loss)
    assert torch.allclose(sm.shrink_loss(p, a + 5, 0.8), loss)


def test_certain_images_count_in_the_mean_alone():
    p, a = predictions(), logits()
    sure = F.one_hot(torch.tensor([2]), C).double() * 0.99 + 0.01 / C
    loss = sm.shrink_loss(p, a, 0.8)
    more = sm.shrink_loss(torch.cat([p, sure]), torch.cat([a, logits(1, seed=9)]), 0.8)
    assert torch.allclose(more, loss * N / (N + 1), rtol=1e-12)
    assert sm.shrink_loss(sure, logits(1), 0.8) == 0


def test_the_weight_is_the_probability_in_the_full_space():
    p = torch.tensor([[0.4, 0.35, 0.15, 0.06, 0.04]], dtype=torch.float64)
    a = logits(1, 5)
    kept, _ = sm.shrunk_space(p, 0.6)
    inside = F.cross_entropy(a[:, kept[0]], torch.tensor([0]))
    assert kept.tolist() == [[True, False, True, True, True]]
    assert torch.allclose(sm.shrink_loss(p, a, 0.6), 0.4 * inside)


def test_fixmatch_teaches_the_whole_distribution_of_the_certain():
    p, z = predictions(), logits().requires_grad_()
    certain = sm.confident(p, 0.6)
    loss = sm.fixmatch_loss(p, z, certain)
    by_rows = [-(p[j] * F.log_softmax(z[j], 0)).sum() for j in certain.nonzero().flatten()]
    assert torch.allclose(loss, sum(by_rows) / N) and 0 < certain.sum() < N
    loss.backward()
    assert torch.equal(z.grad.abs().sum(1) > 0, certain)
    assert sm.confident(torch.tensor([[0.5, 0.5]]), 0.5).all()  # at least tau


def test_every_image_has_one_fate():
    p, y = predictions(), torch.arange(N) % C
    found = sm.fates(y, p, 0.8)
    assert (torch.stack([*found.values()]).sum(0) == 1).all()
    for j in range(N):
        k, _, _, space = by_hand(p[j].tolist(), [0.0] * C, 0.8)
        right = p[j].argmax() == y[j]
        if p[j].max() >= 0.8:
            name = "certain, right" if right else "certain, wrong"
        elif k == C:
            name = "not taught"
        else:
            name = "right" if right else "false" if y[j].item() in space else "harmless"
        assert found[name][j], name
    assert all(found[name].any() for name in ("right", "harmless", "false", "certain, wrong"))


# --- alignment, head -----------------------------------------------------------------------------


def test_alignment_divides_by_the_mean_of_the_last_batches():
    align, kept = sm.Alignment(length=3), []
    for step in range(6):
        p = predictions(8, seed=step)
        kept.append(p.mean(0))
        expected = p / torch.stack(kept[-3:]).mean(0)
        expected = expected / expected.sum(1, keepdim=True)
        # A buffer that begins with zeros, as the authors', scales all classes alike.
        zeros = torch.cat([torch.zeros(max(0, 2 - step), C), torch.stack(kept[-3:])])
        theirs = p / zeros.mean(0)
        assert torch.allclose(theirs / theirs.sum(1, keepdim=True), expected)
        assert torch.allclose(align(p), expected)
    assert sm.Alignment().means.maxlen == 32


def test_alignment_lifts_a_rare_class():
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2]], dtype=torch.float64)
    assert sm.Alignment()(p)[0].argmax() == 1


def test_the_auxiliary_head_is_the_papers():
    head = sm.auxiliary_head(128, 10)  # WRN-28-2
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU"] * 2 + ["Linear"]
    assert [layer.out_features for layer in head if hasattr(layer, "out_features")] == [32, 32, 10]
    assert head[2].negative_slope == 0.1
    assert sm.auxiliary_head(512, 100)[0].out_features == 128


# --- the loop ------------------------------------------------------------------------------------


def net():
    torch.manual_seed(1)
    model = lc.nets.convnet(1, C, 4, size=8)
    model.auxiliary = sm.auxiliary_head(model.head.in_features, C)
    return model


def run(model, **change):
    x, y, u = torch.rand(10, 1, 8, 8, generator=rng(2)), torch.arange(10) % C, images()
    same = dict(weak=lambda v: v, strong=lambda v: 1 - v, steps=4, batch=6, batch_u=12, lr=0.1)
    same |= dict(weight_decay=0.0, ema=0.9, generator=rng(7), tau=0.17, memory=0.9)
    return sm.train_shrinkmatch(model, x, y, u, **same | change)


def images():
    return torch.rand(40, 1, 8, 8, generator=rng(4))


def weights(model):
    named = model.named_parameters()
    return torch.cat([w.flatten() for name, w in named if "auxiliary" not in name]).detach()


def test_where_nothing_is_uncertain_it_is_fixmatch_bit_for_bit():
    for change in (dict(tau=1e-6), dict(tau=0.999999)):  # all certain; r stays 0
        ours, plain = net(), net()
        run(ours, **change)
        run(plain, space=None, **change)
        assert torch.equal(weights(ours), weights(plain))
    ours, plain = net(), net()
    run(ours)
    run(plain, space=None)
    assert not torch.allclose(weights(ours), weights(plain))


def test_r_is_an_average_that_starts_at_its_first_value():
    """The weight of the auxiliary loss, read from the loop by a loss of the auxiliary logits' own."""
    seen, gradients, model = [], [], net()

    def loss_of(p, a, kept, taught):
        scale = torch.ones((), requires_grad=True)
        scale.register_hook(lambda g: gradients.append(g.item()))
        return scale * 1.0 + 0 * a.sum()

    def mask(p, tau, j):
        seen.append(j % 3 == 0)
        return seen[-1]

    run(model, loss_of=loss_of, mask=mask)
    r = None
    for mask, weight in zip(seen, gradients, strict=True):
        share = mask.float().mean().item()
        r = share if r is None else 0.9 * r + 0.1 * share
        assert abs(weight - r) < 1e-6 and 0 < r < 1
    gradients.clear()
    run(net(), loss_of=loss_of, reweigh=False)
    assert gradients == [1.0] * 4


def test_no_gradient_through_the_weak_view_and_its_order_is_aligned():
    seen = {}

    def space(p, tau, j):
        seen.update(p=p)
        return sm.shrunk_space(p, tau)

    run(net(), space=space, steps=1)
    before = net()
    x, u = torch.rand(10, 1, 8, 8, generator=rng(2)), images()
    g = rng(7)
    i = next(iter(lc.batches(10, 6, g, steps=1)))
    j = next(iter(lc.batches(40, 12, g, steps=1)))
    z = before(torch.cat([x[i], u[j], 1 - u[j]]))
    assert not seen["p"].requires_grad
    assert torch.allclose(seen["p"], sm.Alignment()(F.softmax(z[6:18], 1)), atol=1e-6)


def test_one_pass_and_the_auxiliary_head_sees_strong_views_only():
    model, sizes = net(), {"body": [], "aux": []}
    model.body.register_forward_hook(lambda m, given, out: sizes["body"].append(len(given[0])))
    model.auxiliary.register_forward_hook(lambda m, given, out: sizes["aux"].append(len(given[0])))
    averaged = run(model)
    assert sizes == {"body": [6 + 12 + 12] * 4, "aux": [12] * 4}
    averaged(images())  # dropped at test time
    assert sizes["aux"] == [12] * 4
    main = net()
    main.auxiliary.register_forward_hook(lambda *_: pytest.fail("it is not asked"))
    run(main, main_head=True)


def test_labels_alone_are_supervised_learning_step_for_step():
    ours, plain = net(), net()
    x, y = torch.rand(10, 1, 8, 8, generator=rng(2)), torch.arange(10) % C
    averaged = run(ours, unlabeled=False, ema=0.5)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True)
    for t, i in enumerate(lc.batches(10, 6, rng(7), steps=4)):
        optimizer.param_groups[0]["lr"] = 0.1 * math.cos(7 * t / 4 * math.pi / 16)
        optimizer.zero_grad()
        F.cross_entropy(plain(x[i]), y[i]).backward()
        optimizer.step()
    assert torch.allclose(weights(ours), weights(plain), atol=1e-6)
    assert not torch.allclose(weights(averaged), weights(ours))


def test_biases_and_norms_do_not_decay():
    model = net()
    optimizer, _ = sm.sgd(model, 0.1, 0.01, 10)
    decayed = {id(w) for g in optimizer.param_groups if g["weight_decay"] for w in g["params"]}
    for w in model.parameters():
        assert (id(w) in decayed) == (w.ndim > 1)


def test_another_seed_gives_another_network_and_the_same_the_same():
    one, two, other = net(), net(), net()
    run(one)
    run(two)
    run(other, generator=rng(8))
    assert torch.equal(weights(one), weights(two))
    assert not torch.allclose(weights(one), weights(other))


# --- the full budget -----------------------------------------------------------------------------

PAPER = {  # each value with its source; files are those of LiheYoung/ShrinkMatch, folder CIFAR
    "dataset": ("cifar10", "README.md"),
    "per_class": (4, "README.md: 40 labels"),
    "net": ("wrn-28-2", "shrinkmatch.py: wide_resnet28w2"),
    "steps": (1_048_576, "shrinkmatch.py: epochs 1024, n_iters_per_epoch 1024"),
    "batch": (64, "shrinkmatch.py: batch_size"),
    "batch_u": (448, "shrinkmatch.py: mu 7"),
    "lr": (0.03, "shrinkmatch.py: lr"),
    "weight_decay": (5e-4, "shrinkmatch.py: weight_decay for cifar10"),
    "ema": (0.999, "network/shrinkmatch.py: momentum"),
    "tau": (0.95, "shrinkmatch.py: threshold"),
    "memory": (0.999, "shrinkmatch.py: certain_ratio_ema"),
    "cutout": (16, "FixMatch's RandAugment: half of the side"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("shrinkmatch"), PAPER)


# --- the exercises -------------------------------------------------------------------------------


def threshold(p, m, *, order=True, shift=1, full=False, alone=False):
    ranked = p.sort(dim=1, descending=True).values if order else p
    tail = ranked[:, m + shift :].sum(1)
    if full:
        return ranked[:, 0]
    return ranked[:, 0] / (tail if alone else ranked[:, 0] + tail)


def erased(p, tau, y, *, start=sm.shrunk_space, spare_top=True, only=True, back=False):
    kept, taught = start(p, tau)
    true = F.one_hot(y, p.shape[1]).bool()
    rival = true & (y != p.argmax(1))[:, None] if spare_top else true
    kept = kept | rival if back else kept & ~rival
    return kept, taught & (kept.sum(1) > 1) if only else taught


def from_the_full_space(p, tau):
    kept, taught = sm.shrunk_space(p, tau)
    return torch.ones_like(kept), taught


def all_images(p, tau):
    kept, taught = sm.shrunk_space(p, tau)
    return kept, torch.ones_like(taught)


def scaled(p, y, tau, s, *, of=None, lies=("false",), everyone=False, certain=False, guard=True):
    q = F.softmax(s * p.log(), 1) if of is None else of(p, s)
    what = sm.fates(y, q, tau)
    sure = (what["certain, right"] | what["certain, wrong"]).float().mean().item()
    taught = what["right"] | what["harmless"] | what["false"]
    n = len(p) if everyone else taught.sum().item()
    told = sum(what[name].sum().item() for name in lies)
    return sure if certain else 1 - sure, told / (max(n, 1) if guard else n or math.nan)


RIGHT = {"check_threshold": threshold, "check_never_false": erased, "check_scaled": scaled}
WRONG = {
    "check_threshold": [
        (lambda p, m: threshold(p, m, full=True), "must be renormalised"),
        (lambda p, m: threshold(p, m, alone=True), "into the denominator"),
        (lambda p, m: threshold(p, m, shift=0), "not at m"),
        (lambda p, m: threshold(p, m, shift=2), "one rival must be left"),
        (lambda p, m: threshold(p, m, order=False), "not sorted"),
        (lambda p, m: threshold(p, m)[:, None], "one number for each image"),
    ],
    "check_never_false": [
        (lambda p, tau, y: erased(p, tau, y, spare_top=False), "that is no rival"),
        (lambda p, tau, y: erased(p, tau, y, back=True), "do not bring it back"),
        (lambda p, tau, y: sm.shrunk_space(p, tau), "that label is false"),
        (lambda p, tau, y: erased(p, tau, y, start=from_the_full_space), "not with the full one"),
        (lambda p, tau, y: erased(p, tau, y, start=all_images), "a certain image is not taught"),
        (lambda p, tau, y: erased(p, tau, y, only=False), "with the last rival gone"),
    ],
    "check_scaled": [
        (lambda p, y, tau, s: scaled(p, y, tau, s, certain=True), "share of the certain"),
        (
            lambda p, y, tau, s: scaled(p, y, tau, s, lies=("false", "harmless")),
            "the removed one is harmless",
        ),
        (lambda p, y, tau, s: scaled(p, y, tau, s, everyone=True), "not by all of them"),
        (
            lambda p, y, tau, s: scaled(p, y, tau, s, of=lambda p, s: F.normalize(s * p, p=1)),
            "multiply the logits",
        ),
        (lambda p, y, tau, s: scaled(p, y, tau, 1 / s), "upside down"),
        (lambda p, y, tau, s: scaled(p, y, tau, s, guard=False), "not a division by zero"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("shrinkmatch", WRONG, name, k)


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    checks("shrinkmatch")[name](RIGHT[name], strict=True)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_runs_as_it_is_on_real_data(name, tmp_path):
    assert_runs("shrinkmatch", name, tmp_path, cutout=8)
