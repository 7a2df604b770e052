"""UDA's losses against slow definitions and limits, its distortions, and its loop."""

import math
import os

import pytest
import torch
import torch.nn.functional as F

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.running import runner
from lefcourse.science import data

uda = lc.methods("uda")
N, K = 12, 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(n=N, seed=0, scale=2.0):
    return scale * torch.randn(n, K, generator=rng(seed), dtype=torch.float64)


# --- the consistency loss ------------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "beta"), [(0.4, 0.8), (1.0, 0.0), (0.7, 0.5)])
def test_the_loss_is_its_definition(tau, beta):
    z_u, z_a, total = logits(), logits(seed=1), 0.0
    for j in range(N):
        p = [math.exp(v) / sum(math.exp(w) for w in z_u[j]) for v in z_u[j]]
        q = [math.exp(v / tau) / sum(math.exp(w / tau) for w in z_u[j]) for v in z_u[j]]
        r = [math.exp(v) / sum(math.exp(w) for w in z_a[j]) for v in z_a[j]]
        if max(p) > beta:
            total += sum(q[c] * (math.log(q[c]) - math.log(r[c])) for c in range(K))
    loss, q, m = uda.consistency_loss(z_u, z_a, tau, beta)
    assert abs(loss.item() - total / N) < 1e-10 and loss >= 0
    assert torch.allclose(q, F.softmax(z_u / tau, 1))
    assert torch.equal(m.bool(), F.softmax(z_u, 1).amax(1) > beta)


def test_only_the_confident_augmented_views_are_pulled():
    z_u, z_a = logits().requires_grad_(), logits(seed=1).requires_grad_()
    loss, _, m = uda.consistency_loss(z_u, z_a, 0.4, 0.6)
    assert 0 < m.sum() < N
    loss.backward()
    assert z_u.grad is None or not z_u.grad.any()
    assert torch.equal(z_a.grad.abs().sum(1) > 0, m.bool())


def test_the_gradient_pulls_towards_the_sharpened_target():
    z_u, z_a = logits(), logits(seed=1).requires_grad_()
    loss, q, m = uda.consistency_loss(z_u, z_a, 0.4, 0.6)
    loss.backward()
    assert torch.allclose(z_a.grad, m[:, None] * (F.softmax(z_a.detach(), 1) - q) / N)


def test_without_distortion_and_sharpening_there_is_nothing_to_learn():
    z = logits().requires_grad_()
    loss, _, _ = uda.consistency_loss(z, z, 1.0, 0.0)
    loss.backward()
    assert abs(loss.item()) < 1e-12 and z.grad.abs().max() < 1e-12


def test_with_a_cold_temperature_it_is_fixmatch():
    z_u, z_a = logits(), logits(seed=1)
    hard = F.cross_entropy(z_a, z_u.argmax(1), reduction="none")
    mask = F.softmax(z_u, 1).amax(1) > 0.7
    loss, _, _ = uda.consistency_loss(z_u, z_a, 1e-3, 0.7)
    assert torch.allclose(loss, (mask * hard).mean())


def test_masked_images_count_in_the_mean():
    unsure = torch.zeros(1, K, dtype=torch.float64)
    before, _, _ = uda.consistency_loss(logits(), logits(seed=1), 0.4, 0.5)
    after, _, _ = uda.consistency_loss(
        torch.cat([logits(), unsure]), torch.cat([logits(seed=1), unsure]), 0.4, 0.5
    )
    assert torch.allclose(after, before * N / (N + 1))


# --- training signal annealing -------------------------------------------------------------------


def test_thresholds_at_both_ends():
    tail = math.exp(-5) * (1 - 1 / K) + 1 / K
    starts = {"linear": 1 / K, "log": 1 / K, "exp": tail}
    ends = {"linear": 1.0, "exp": 1.0, "log": (1 - math.exp(-5)) * (1 - 1 / K) + 1 / K}
    for schedule in starts:
        assert abs(uda.tsa_threshold(0.0, K, schedule) - starts[schedule]) < 1e-12
        assert abs(uda.tsa_threshold(1.0, K, schedule) - ends[schedule]) < 1e-12
        steps = [uda.tsa_threshold(t / 50, K, schedule) for t in range(51)]
        assert steps == sorted(steps)
    assert uda.tsa_threshold(0.5, K, "exp") < 0.3 < 0.59 < uda.tsa_threshold(0.5, K, "linear")
    assert uda.tsa_threshold(0.3, K, "none") == math.inf


def test_known_examples_drop_out_and_confident_mistakes_stay():
    z = torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [0.1, 0, 0]], requires_grad=True)
    y = torch.tensor([0, 1, 0])  # known, a confident mistake, unsure
    loss = uda.supervised_loss(z, y, 0.6)
    loss.backward()
    assert torch.allclose(loss, F.cross_entropy(z[1:], y[1:]))
    assert z.grad.abs().sum(1).bool().tolist() == [False, True, True]


def test_without_a_threshold_it_is_cross_entropy_and_all_known_is_zero():
    z, y = logits(), torch.arange(N) % K
    assert torch.allclose(uda.supervised_loss(z, y, math.inf), F.cross_entropy(z, y))
    sure = 20 * F.one_hot(y, K).double()
    assert uda.supervised_loss(sure, y, 0.5) == 0
    more = torch.cat([z, sure]), torch.cat([y, y])
    assert torch.allclose(uda.supervised_loss(*more, 0.999999), uda.supervised_loss(z, y, 0.999999))


# --- distortions ---------------------------------------------------------------------------------


def images(n=60, channels=1, side=8):
    return torch.rand(n, channels, side, side, generator=rng(3))


def test_given_draws_repeat_a_distortion():
    x = images()
    draws, noise = torch.rand(60, 10, generator=rng(4)), torch.randn(2, *x.shape, generator=rng(5))
    one = uda.strong_augment(x, 3, draws=draws, noise=noise)
    assert torch.equal(one, uda.strong_augment(x, 3, draws=draws, noise=noise))
    assert torch.equal(
        one[7:9], uda.strong_augment(x[7:9], 3, draws=draws[7:9], noise=noise[:, 7:9])
    )
    assert one.shape == x.shape and one.min() >= 0 and one.max() <= 1


def test_skipped_operations_change_nothing():
    x, draws = images(), torch.rand(60, 10, generator=rng(4))
    draws[:, [1, 5]] = 0.5  # neither of the two operations is applied
    assert torch.equal(uda.strong_augment(x, 0, draws=draws), x)
    covered = uda.strong_augment(x, 3, fill=0.25, draws=draws) != x
    assert covered.flatten(1).sum(1).max() == 9


def test_each_operation_does_what_it_says():
    x = images(1)
    kinds = {name: torch.tensor([k]) for k, name in enumerate(uda.OPERATIONS)}
    noise, full = torch.ones_like(x), torch.tensor([1.0])

    def apply(name, s=full):
        return uda.apply_operations(x, kinds[name], s, noise)

    for name in uda.OPERATIONS:
        assert torch.equal(apply(name, torch.tensor([0.0])), x), name
        assert not torch.allclose(apply(name), x), name
    assert torch.allclose(apply("shift right")[..., 2:], x[..., :-2], atol=1e-6)
    assert torch.allclose(apply("shift down")[..., 2:, :], x[..., :-2, :], atol=1e-6)
    assert torch.allclose(apply("brightness"), (x + 0.5).clamp(0, 1))
    assert torch.allclose(apply("noise"), (x + 0.3).clamp(0, 1))
    mean = x.mean()
    assert torch.allclose(
        apply("contrast", -full), (mean + 0.1 * (x - mean)).clamp(0, 1), atol=1e-6
    )
    assert torch.allclose(apply("blur")[..., 3, 3], x[..., 2:5, 2:5].mean(), atol=1e-6)


def test_half_of_the_operations_are_skipped_and_strengths_are_tenths():
    seen = []
    original = uda.apply_operations
    uda.apply_operations = lambda x, kind, s, noise: seen.append((kind, s)) or x
    uda.strong_augment(images(4000), 0, generator=rng(6))
    uda.apply_operations = original
    for kind, s in seen:
        assert abs((s == 0).float().mean() - 0.5) < 0.03
        assert set((s.abs() * 9).round().unique().tolist()) == set(range(10))
        assert len(kind.unique()) == len(uda.OPERATIONS)
    assert len(seen) == 2


# --- the loop ------------------------------------------------------------------------------------


def net(norm=None):
    torch.manual_seed(1)
    return lc.nets.convnet(1, K, 8, size=8, norm=norm)


def run(model, **change):
    x, y, u = images(10), torch.arange(10) % K, images(40)
    same = dict(weak=lambda v: v, strong=lambda v: 1 - v, steps=4, batch=6, batch_u=8, lr=0.1)
    same |= dict(weight_decay=0.0, ema=0.9, generator=rng(7), beta=0.0)
    return uda.train_uda(model, x, y, u, **same | change)


def test_without_weight_it_is_supervised_learning_step_for_step():
    ours, plain, x, y = net("batch"), net("batch"), images(10), torch.arange(10) % K
    run(ours, lam=0.0)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for i in lc.batches(10, 6, rng(7), steps=4):
        optimizer.zero_grad()
        F.cross_entropy(plain(x[i]), y[i]).backward()
        optimizer.step()
        schedule.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_one_forward_pass_for_all_views():
    model, sizes = net(), []
    model.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    run(model)
    assert sizes == [6 + 8 + 8] * 4


def test_the_loss_adds_both_parts():
    x, y, u = images(10), torch.arange(10) % K, images(40)
    model, seen = net(), {}
    i = next(iter(lc.batches(10, 6, rng(7), steps=1)))
    before = net()
    run(model, steps=1, lam=0.5, watch=lambda t, j, q, m, averaged: seen.update(j=j, q=q, m=m))
    z = before(torch.cat([x[i], u[seen["j"]], 1 - u[seen["j"]]]))
    consistency, q, _ = uda.consistency_loss(z[6:14], z[14:], 0.4, 0.0)
    assert torch.allclose(q, seen["q"], atol=1e-6)
    optimizer = torch.optim.SGD(before.parameters(), 0.1, momentum=0.9, nesterov=True)
    (F.cross_entropy(z[:6], y[i]) + 0.5 * consistency).backward()
    optimizer.step()
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_returned_weights_are_an_average():
    trained, start = net(), net()
    averaged = run(trained, steps=1, ema=0.5)
    for a, b, c in zip(
        averaged.parameters(), start.parameters(), trained.parameters(), strict=True
    ):
        assert torch.allclose(a, 0.1 * b + 0.9 * c, atol=1e-6)  # min(ema, 1/10) at the first step


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_runs_as_it_is_on_real_data(name, tmp_path):
    if "LEFCOURSE_DATA" not in os.environ:
        pytest.skip("LEFCOURSE_DATA is not set: no folder of real data sets")
    present, hint = data.available()[name]
    if not present:
        pytest.skip(f"{name} is absent: {hint}")
    chosen = {"dataset": name, "cutout": 8}
    record = runner.execute(catalogue.get("uda"), chosen, tmp_path, budget="smoke")
    assert record["status"] == "done", record.get("error")
    assert record["parameters"]["dataset"] == name
