"""PU-MLC against slow definitions, its closed form and finite spaces. Brief sources: paper; authors' vpu_loss.py."""

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs_on_a_voc_folder
from torch import nn

import lefcourse as lc

pu = lc.methods("pu-mlc")
N, C = 12, 3


def draw(*shape, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


S = draw(N, C)
Z = torch.zeros(N, C, dtype=torch.long)
Z[:4, 0], Z[3:5, 1], Z[6:9] = 1, 1, -1
POSITIVE = (Z == 1).double()
W, T = torch.tensor([0.3, 0.7, 1.0]).double(), torch.tensor([0.5, 1.0, 0.8]).double()


def gradient(loss, s=S):
    s = s.clone().requires_grad_()
    return torch.autograd.grad(loss(s), s)[0]


# --- the loss --------------------------------------------------------------------------------------


def test_the_loss_is_its_definition():
    value = 0.0
    for c in range(C):
        phi = torch.sigmoid(S[:, c] / T[c])
        known = [i for i in range(N) if Z[i, c] == 1]
        value += W[c] * phi.mean().log()
        if known:
            value -= sum(phi[i].log() for i in known) / len(known)
    assert torch.allclose(pu.pu_mlc(S, Z, 1.0, 0.5, w=W, t=T), value)


def test_without_weights_the_scale_is_free_and_with_them_it_wants_to_grow():
    phi = 0.5 * torch.sigmoid(S)[:, :2]
    positive, one = POSITIVE[:, :2], torch.ones(2).double()
    at = lambda c, w: pu.pu_loss(c * phi, positive, w)  # noqa: E731
    for c in (0.1, 0.5, 2.0):
        assert torch.allclose(at(c, one), at(1.0, one), atol=1e-7)
    assert at(1.1, 0.5 * one) < at(1.0, 0.5 * one) < at(0.9, 0.5 * one)


def test_the_gradient_identity():
    phi = torch.sigmoid(S / T)
    n = POSITIVE.sum(0).clamp_min(1)
    by_hand = (1 - phi) / T * (W * phi / phi.sum(0) - POSITIVE / n)
    found = gradient(lambda s: pu.pu_mlc(s, Z, 1.0, 0.5, w=W, t=T))
    assert torch.allclose(found, by_hand, atol=1e-7)


def test_no_gradient_flows_through_weight_and_temperature():
    s = 0.3 * S  # a spread at which the temperature acts
    t = pu.temperature(s, 1.0)
    w = pu.factors(torch.sigmoid(s / t), 0.55)
    assert (t < 1).any() and (w < 1).all()
    free = gradient(lambda s: pu.pu_mlc(s, Z, 1.0, 0.55), s)
    assert torch.allclose(free, gradient(lambda s: pu.pu_mlc(s, Z, 1.0, 0.55, w=w, t=t), s))


def test_temperature_is_the_population_spread_at_most_one_and_ignores_the_mean():
    t = pu.temperature(S, 0.7)
    spread = ((S - S.mean(0)) ** 2).mean(0).sqrt()
    assert torch.allclose(t, (0.7 * spread).clamp(max=1))
    assert torch.allclose(pu.temperature(S + 5, 0.7), t)
    assert torch.equal(pu.temperature(S, 1e9), torch.ones(C).double())
    assert pu.pu_mlc(torch.zeros(4, C), torch.ones(4, C), 1.0, 0.5).isfinite()


def test_weights_are_a_power_of_the_mean():
    phi = torch.sigmoid(S)
    assert torch.allclose(pu.factors(phi, 0.55), (1 - (1 - phi).mean(0)) ** 0.55)
    assert torch.equal(pu.factors(phi, 0.0), torch.ones(C).double())


def test_a_class_without_positives_is_pushed_down_only():
    assert POSITIVE[:, 2].sum() == 0
    slope = gradient(lambda s: pu.pu_mlc(s, Z, 1.0, 0.55))
    assert slope.isfinite().all() and (slope[:, 2] > 0).all()
    far = torch.full((N, C), -200.0).requires_grad_()
    assert pu.pu_mlc(far, Z, 1e9, 0.0).isfinite()


def test_known_negatives_are_treated_as_unknown():
    assert torch.equal(pu.pu_mlc(S, Z, 1.0, 0.5), pu.pu_mlc(S, Z.clamp_min(0), 1.0, 0.5))


# --- a finite space: five kinds of images, expectations exact ---------------------------------------

ETA = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.0]).double()
COUNT = torch.tensor([40, 20, 10, 10, 10])
KIND = torch.repeat_interleave(torch.arange(5), COUNT)
KNOWN = torch.cat(
    [(torch.arange(n) < round(float(e * n))) for e, n in zip(ETA, COUNT, strict=True)]
)


def minimise(gamma, steps=400, literal=False):
    """phi (5,) of the kinds after descent on their scores, the weight held at each step."""
    s = torch.linspace(-1.5, -0.5, 5, dtype=torch.float64).requires_grad_()
    z = KNOWN.long()[:, None]
    opt = torch.optim.Adam([s], 0.1)
    for _ in range(steps):
        opt.zero_grad()
        pu.pu_mlc(s[KIND][:, None], z, 1e9, gamma, literal=literal).backward()
        opt.step()
    return torch.sigmoid(s.detach())


def test_the_minimiser_is_proportional_to_the_truth_and_literally_unlabelled_is_not():
    ratio = minimise(0.0) / ETA
    assert torch.allclose(ratio / ratio.mean(), torch.ones(5).double(), atol=0.01)
    ratio = minimise(0.0, literal=True) / ETA
    assert float(ratio.max() / ratio.min()) > 1.2


@pytest.mark.parametrize("gamma", [0.4, 0.85])
def test_descent_comes_to_rest_at_the_equilibrium(gamma):
    phi, m = pu.equilibrium(ETA, COUNT / COUNT.sum(), gamma)
    assert torch.allclose(minimise(gamma), phi, atol=0.02)
    assert m == pytest.approx(float((COUNT / COUNT.sum() * phi).sum()), abs=1e-6)


def test_the_ends_of_the_equilibrium():
    u = (COUNT / COUNT.sum()).double()
    prior = float((u * ETA).sum())
    low, _ = pu.equilibrium(ETA, u, 1e-3)
    assert torch.allclose(low, ETA / ETA.max(), atol=0.01)
    high, _ = pu.equilibrium(ETA, u, 1.0)
    assert torch.allclose(high, (ETA / prior).clamp(max=1))


# --- blends ------------------------------------------------------------------------------------------


def small_net():
    torch.manual_seed(0)
    return lc.manylabels.convnet(C, 8)


X = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_blends_are_their_definition_and_leave_the_statistics_alone():
    model, z = small_net().train(), Z[:8]
    s = model(X)
    before = [b.clone() for b in model.buffers()]
    order, lam = torch.tensor([2, 0, 3, 1]), torch.tensor([0.3])
    found = pu.blend_loss(model, X, s, z, order, lam)
    for a, b in zip(before, model.buffers(), strict=True):
        assert torch.equal(a, b) or a.dtype == torch.long  # the number of passes is counted
    q = torch.sigmoid(s)
    q = q.masked_fill(z == 1, 1.0)
    out = model(torch.stack([0.3 * X[j] + 0.7 * X[4 + i] for i, j in enumerate(order)]))
    value = 0.0
    for i, j in enumerate(order):
        for c in range(C):
            target = 0.3 * q[j, c] + 0.7 * q[4 + i, c]
            value += (target.log() - torch.sigmoid(out[i, c]).log()) ** 2 / 4
    assert torch.allclose(found, value, atol=1e-5)
    assert model.body[1].momentum == 0.1


def test_blended_targets_keep_their_gradient_except_for_known_positives():
    model = small_net().train()
    s = torch.zeros(8, C, requires_grad=True)
    loss = pu.blend_loss(model, X, s, Z[:8], torch.arange(4), torch.tensor([0.4]))
    (slope,) = torch.autograd.grad(loss, s)
    assert (slope[Z[:8] == 1] == 0).all() and (slope[Z[:8] != 1] != 0).all()


# --- local-global convolution --------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_a_local_global_convolution_starts_as_the_convolution(stride):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 3, stride, padding=1)
    x = torch.randn(4, 16, 8, 8)
    plain, ours = conv(x), pu.LgConv(conv)(x)
    assert ours.shape == plain.shape
    assert 0 < (ours - plain).abs().max() < 1e-2 * plain.abs().max()


def test_the_global_branch_is_its_definition():
    torch.manual_seed(0)
    branch = pu.GlobalBranch(16, 8, heads=4)
    x = torch.randn(2, 16, 3, 3)
    r = F.relu(branch.reduce(x))
    h = torch.cat([r, r.mean((2, 3), keepdim=True).expand(2, 4, 3, 3)], 1)
    a, b, v = branch.collect(h), branch.deliver(h).sigmoid(), branch.value(x)
    y = x.clone()
    for n in range(2):
        for head in range(4):
            weight = a[n, head].flatten().softmax(0).view(3, 3)
            for c in range(4 * head, 4 * head + 4):
                y[n, c] += (weight * v[n, c]).sum() * b[n, head]
    assert torch.allclose(branch(x), branch.norm(branch.project(y)), atol=1e-6)


def test_localising_keeps_the_first_convolution_and_the_weights():
    model = lc.manylabels.convnet(C, 8).eval()
    before = model(X)
    pu.localise(model)
    kinds = [type(m) for m in model.body if isinstance(m, nn.Conv2d | pu.LgConv)]
    assert kinds == [nn.Conv2d, pu.LgConv, pu.LgConv, pu.LgConv]
    assert torch.allclose(model.eval()(X), before, atol=0.05)


# --- rivals ----------------------------------------------------------------------------------------------


def test_rivals_are_their_definitions():
    y = POSITIVE
    bce = F.binary_cross_entropy_with_logits(S, y, reduction="none")
    assert torch.allclose(pu.bce_negative(S, Z), bce.sum() / N)
    assert torch.allclose(pu.bce_known(S, Z), bce[Z != 0].mean() * C)
    assert torch.allclose(pu.asl(S, Z, 0.0, 0.0), bce.sum() / N)
    p = torch.sigmoid(S)
    m = (p - 0.05).clamp_min(0)
    assert torch.allclose(pu.asl(S, Z), -(y * p.log() + (1 - y) * m**4 * (1 - m).log()).sum() / N)


def test_nnpu_with_all_positives_known_is_the_supervised_risk():
    z = (draw(N, C, seed=3) > 0).long()
    full = F.binary_cross_entropy_with_logits(S, z.double(), reduction="none").mean(0).sum()
    assert torch.allclose(pu.nnpu(S, z, z.double().mean(0)), full)


def test_nnpu_steps_back_where_the_negative_part_is_negative():
    s = torch.tensor([[9.0], [-9.0], [-9.0], [-9.0]]).double()
    z = torch.tensor([[1], [0], [0], [0]])
    prior = torch.tensor([0.9]).double()
    rest = lambda s: F.softplus(s).mean() - 0.9 * F.softplus(s[0]).sum()  # noqa: E731
    assert rest(s) < 0
    back = gradient(lambda s: pu.nnpu(s, z, prior), s)
    assert torch.allclose(back, -gradient(rest, s))


def test_an_absent_class_gives_nnpu_no_estimate():
    slope = gradient(lambda s: pu.nnpu(s, Z, torch.full((C,), 0.3).double()))
    assert (slope[:, 2] == 0).all() and (slope[:, 0] != 0).any()


# --- judging, and the loop -------------------------------------------------------------------------------


def test_the_chosen_threshold_uses_known_labels_alone():
    p = torch.tensor([[0.9], [0.3], [0.25], [0.2], [0.1], [0.05]])
    z = torch.tensor([[0], [1], [1], [-1], [-1], [0]])
    t = pu.choose_threshold(p, z)
    assert 0.2 <= t < 0.25 and pu.cf1_of_known(p, z, t) == pytest.approx(1)
    assert pu.cf1_of_known(p, z, 0.15) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert pu.choose_threshold(p, torch.zeros_like(z)) == 0.5


def test_recall_by_size_asks_for_the_order_alone():
    y = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    area = torch.tensor([[0.1], [0.5], [0.0], [0.0]])
    s = torch.tensor([[0.2], [0.9], [0.3], [0.1]])
    assert pu.recall_by_size(s, y, area, 2) == [0.0, 1.0]
    assert pu.recall_by_size(s / 100, y, area, 2) == [0.0, 1.0]
    assert pu.recall_by_size(y, y, area, 2) == [1.0, 1.0]


def train(second=None, **change):
    model, z = small_net(), Z[:8]
    own = dict(lr=0.01, epochs=2, batch=4, generator=torch.Generator().manual_seed(2))
    return pu.train_on(model, X, z, pu.bce_negative, second=second, **own | change)


def test_a_second_pass_sees_the_same_batches_and_adds_its_gradient():
    met = []

    def nothing(model, x, s, z):
        met.append(x)
        return 0.0 * s.sum()

    a, b = train(), train(nothing)
    assert torch.allclose(a.head.weight, b.head.weight)
    assert len(met) == 4 and torch.cat(met[:2]).sum() == pytest.approx(float(X.sum()), rel=1e-5)
    c = train(lambda *batch: pu.blends(*batch, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(a.head.weight, c.head.weight, atol=1e-6)


# --- the paper's setting, and the exercises --------------------------------------------------------------

# What `--budget full` must be, and where it is said (the released commands, and the paper's experiments).
PAPER = {
    "dataset": ("voc2007", "README, second command"),
    "net": ("resnet101", "README, --model-name"),
    "size": (448, "README, --cropSize"),
    "known": (0.1, "README, --prob"),
    "alpha": (2.0, "README, --alpha"),
    "gamma": (0.85, "README, --gamma"),
    "lr": (4e-5, "README, --lr"),
    "batch": (90, "README, --b 45 on two GPUs"),
    "epochs": (55, "README, --Stop_epoch"),
    "weight_decay": (1e-4, "train.py"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("pu-mlc"), PAPER)


def slope(phi, positive, w, t, literal=False):
    u = (1 - positive) * phi if literal else phi
    return (1 - phi) / t * (w * u / u.sum(0) - positive / positive.sum(0).clamp_min(1))


def order(eta, score):
    return float(((eta[:, None] > eta) & (score[:, None] < score)).sum())


WRONG = {
    "check_gradient": [
        (lambda f, p, w, t: -slope(f, p, w, t), "sign"),
        (lambda f, p, w, t: slope(f, p, w, t) * t, "factor 1 / t"),
        (lambda f, p, w, t: slope(f, p, torch.ones_like(w), t), "it is missing"),
        (lambda f, p, w, t: slope(f, p, w, t, True), "they share the push down"),
        (lambda f, p, w, t: (1 - f) / t * (w * f / f.sum(0) - p / p.sum(0)), "divide by zero"),
    ],
    "check_line": [
        (lambda prior, m, gamma: 0.5, "stretched"),
        (lambda prior, m, gamma: prior / 2, "gamma = 1 only"),
        (lambda prior, m, gamma: prior / 2 * m ** (1 - gamma), "exponent's sign"),
        (lambda prior, m, gamma: prior / (2 * m), "gamma is missing"),
    ],
    "check_swapped": [
        (lambda eta, k: 0.5, "a constant k changes no order"),
        (lambda eta, k: order(eta, k * eta), "number of pairs"),
        (lambda eta, k: order(eta, k) / 6, "k alone"),
        (lambda eta, k: order(eta, k * eta) / len(eta) ** 2, "not by all"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("pu-mlc", WRONG, name, k)


@pytest.mark.realdata
def test_runs_on_a_folder_of_photographs(tmp_path):
    assert_runs_on_a_voc_folder("pu-mlc", tmp_path, train=80, val=60, test=40, known=0.5)
