"""The mechanism of ELR, against closed forms and slow definitions. Brief sources: paper, section 4; authors' loss.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, each
from realdata import assert_runs

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.chapter import params

elr = lc.methods("elr")
N, C = 40, 5


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, 1, 3, 3, generator=g), torch.randint(C, (N,), generator=g)


def net():
    torch.manual_seed(1)
    return lc.nets.mlp((1, 3, 3), C, hidden=(16,))


def probabilities(*shape, seed=0):
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.softmax(logits, dim=-1)


def train(problem, model, **change):
    settings = dict(lam=3.0, beta=0.7, epochs=3, batch=8, lr=0.1)
    generator = torch.Generator().manual_seed(2)
    return elr.train_elr(model, *problem, generator=generator, **settings | change)


def test_without_the_regulariser_it_is_cross_entropy_step_for_step(problem):
    ours, plain = net(), net()
    train(problem, ours, lam=0.0)
    lc.fit(plain, *problem, epochs=3, batch=8, lr=0.1, generator=torch.Generator().manual_seed(2))
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_with_the_regulariser_it_is_not_cross_entropy(problem):
    ours, plain = net(), net()
    train(problem, ours, lam=3.0)
    train(problem, plain, lam=0.0)
    assert not torch.allclose(ours.head.weight, plain.head.weight)


def test_the_loss_is_its_definition():
    z = torch.randn(6, C, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y, t = torch.arange(6) % C, probabilities(6, C, seed=4) * 0.6
    total = 0.0
    for i in range(6):
        p = torch.exp(z[i]) / torch.exp(z[i]).sum()
        total += -torch.log(p[y[i]]) + 2.5 * torch.log(1 - sum(p[c] * t[i, c] for c in range(C)))
    assert torch.allclose(elr.elr_loss(z, y, t, 2.5), total / 6)


def test_agreement_lowers_the_loss_without_bound():
    t = F.one_hot(torch.tensor([1]), C).double()
    values = [
        elr.regulariser(torch.tensor([[0.0, s, 1 - s, 0, 0]]).double(), t)
        for s in (0.1, 0.9, 0.9999)
    ]
    assert 0 > values[0] > values[1] > values[2]
    assert values[2] < -9


def test_gradient_is_the_closed_form_and_sums_to_zero():
    z = torch.randn(
        7, C, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True
    )
    t = probabilities(7, C, seed=6) * 0.9
    p = F.softmax(z, dim=1)
    (by_autograd,) = torch.autograd.grad(7 * elr.regulariser(p, t), z)
    g = elr.regulariser_gradient(p, t)
    slow = torch.zeros_like(g)
    for i in range(7):
        for c in range(C):
            pull = sum((t[i, k] - t[i, c]) * p[i, k] for k in range(C))
            slow[i, c] = p[i, c] / (1 - (p[i] * t[i]).sum()) * pull
    assert torch.allclose(by_autograd, slow)
    assert torch.allclose(g, slow)
    assert torch.allclose(g.sum(1), torch.zeros(7, dtype=torch.float64), atol=1e-12)


def test_with_a_one_hot_target_the_term_is_log_of_one_minus_p():
    p, t = probabilities(4, C), F.one_hot(torch.tensor([2] * 4), C).double()
    assert torch.allclose(elr.regulariser(p, t), torch.log(1 - p[:, 2]).mean())
    by_hand = -(p[:, 2:3] / (1 - p[:, 2:3])) * (t - p)
    assert torch.allclose(elr.regulariser_gradient(p, t), by_hand)


def test_targets_after_k_visits():
    p, beta = probabilities(1, C), 0.7
    t = torch.zeros(3, C, dtype=torch.float64)
    for k in range(1, 5):
        elr.update_targets(t, torch.tensor([1]), p, beta)
        assert torch.allclose(t[1], (1 - beta**k) * p[0])
    assert not t[[0, 2]].any(), "rows outside the batch must not change"


def test_targets_are_renormalised_after_the_clamp():
    t = torch.zeros(1, 2)
    elr.update_targets(t, torch.tensor([0]), torch.tensor([[0.9999, 0.9999]]), beta=0.0)
    assert torch.allclose(t, torch.tensor([[0.5, 0.5]]))


def test_no_gradient_reaches_the_targets():
    z = torch.randn(4, C, requires_grad=True)
    t = torch.zeros(4, C)
    t_batch = elr.update_targets(t, torch.arange(4), elr.clamped_softmax(z), 0.7)
    assert not t.requires_grad and not t_batch.requires_grad
    (gradient,) = torch.autograd.grad(elr.regulariser(elr.clamped_softmax(z), t_batch), z)
    constant = elr.regulariser_gradient(F.softmax(z, 1), t_batch) / 4
    assert torch.allclose(gradient, constant, atol=1e-6)


def test_clamp_keeps_saturated_logits_finite():
    z = torch.tensor([[100.0, 0, 0], [-100.0, 0, 0]], requires_grad=True)
    t = elr.update_targets(torch.zeros(2, 3), torch.arange(2), elr.clamped_softmax(z), beta=0.0)
    loss = elr.elr_loss(z, torch.tensor([1, 0]), t, 5.0)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


def test_targets_are_updated_before_the_loss(problem):
    seen = []

    def loss(z, y, t, lam):
        seen.append((elr.clamped_softmax(z).detach(), t.clone()))
        return elr.elr_loss(z, y, t, lam)

    train(problem, net(), epochs=1, loss=loss)
    for p, t in seen:  # first visit of every row: the target already holds this prediction
        assert torch.allclose(t, 0.3 * p / p.sum(1, keepdim=True))


def test_targets_follow_the_index_of_the_data_set(problem):
    """Trained with a learning rate of zero the predictions are constant, so t must be (1 - beta^k) p, row by row."""
    model = net()
    t, _ = train(problem, model, lr=0.0, epochs=4)
    p = elr.clamped_softmax(lc.predict(model, problem[0]))
    expected = (1 - 0.7**4) * p / p.sum(1, keepdim=True)
    assert torch.allclose(t, expected, atol=1e-6)


def test_a_wrong_label_is_outweighed_during_early_learning():
    """At the prediction of the early phase, gradient descent must raise the true class in spite of the label."""
    z = torch.log(torch.tensor([[0.06, 0.78, 0.16]])).requires_grad_()
    t = torch.tensor([[0.03, 0.93, 0.04]])
    (alone,) = torch.autograd.grad(F.cross_entropy(z, torch.tensor([2])), z)
    (with_memory,) = torch.autograd.grad(elr.elr_loss(z, torch.tensor([2]), t, 5.0), z)
    assert alone[0, 1] > 0 > with_memory[0, 1]
    assert alone[0, 2] < 0 < with_memory[0, 2]


# --- the paper's setting, and the exercises ------------------------------------------------------

# What `--budget full` must be, and where it is said (files of the authors' repository; the paper, section 5).
PAPER = {
    "dataset": ("cifar10", "config_cifar10.json, data_loader"),
    "net": ("resnet34", "config_cifar10.json, arch"),
    "epochs": (150, "config_cifar10.json, trainer"),
    "batch": (128, "config_cifar10.json, data_loader"),
    "lr": (0.02, "config_cifar10.json, optimizer"),
    "weight_decay": (1e-3, "config_cifar10.json, optimizer"),
    "schedule": ("cosine", "config_cifar10.json, lr_scheduler (there with restarts)"),
    "augmented": (True, "data_loader/cifar10.py: crops with a margin of 4, flips"),
    "lam": (3.0, "config_cifar10.json, train_loss"),
    "beta": (0.7, "config_cifar10.json, train_loss"),
}


def test_the_full_budget_is_the_papers_setting():
    full = params.presets(catalogue.get("elr").path)["full"]
    assert {name: full[name] for name in PAPER} == {
        name: value for name, (value, _) in PAPER.items()
    }


def in_place(p, truth, rate):
    """Right, but it spoils what it was given."""
    rows = torch.arange(len(truth))
    doubtful = p[rows, truth].argsort(stable=True)[: round(rate * len(truth))]
    noisy = truth.clone()
    p[rows, truth] = -1
    noisy[doubtful] = p.argmax(1)[doubtful]
    return noisy


def ranked(by):
    def flip(p, truth, rate):
        rows = torch.arange(len(truth))
        doubtful = by(p, truth, rows).argsort(stable=True)[: round(rate * len(truth))]
        others = p.clone()
        others[rows, truth] = -1
        return truth.index_put((doubtful,), others.argmax(1)[doubtful])

    return flip


def lead(p, truth, rows):
    first, second = p.topk(2).values.T
    return first - second


WRONG = {
    "check_share": [
        (lambda t, y: (t.argmax(1) == y).float().mean().item(), "agree"),
        (lambda t, y: (t.gather(1, y[:, None]) < 0.5).float().mean().item(), "faint"),
        (lambda t, y: int((t.argmax(1) != y).sum()), "count"),
        (lambda t, y: (1 - t.gather(1, y[:, None])).mean().item(), "contradict two"),
    ],
    "check_visits": [
        (lambda beta, s: int(math.log(1 - s) / math.log(beta) - 1e-9), "round up"),
        (lambda beta, s: math.log(1 - s) / math.log(beta), "whole number"),
        (lambda beta, s: math.ceil(math.log(s) / math.log(beta)), "visits, you say"),
    ],
    "check_flip": [
        (in_place, "probabilities were changed in place"),
        (ranked(lead), "not by its lead"),
        (ranked(lambda p, truth, rows: p.max(1).values), "not by the largest probability"),
        (lambda p, truth, rate: truth, "two of five"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("elr", WRONG, name, k)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mnist", {}), ("cifar10", {"net": "convnet", "augmented": True, "noise": "asymmetric"})],
)
def test_runs_as_it_is_on_real_data(name, parameters, tmp_path):
    assert_runs("elr", name, tmp_path, **parameters)
