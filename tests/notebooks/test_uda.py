"""UDA's losses against slow definitions and limits, its distortions, and its loop."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, checks, each, full_budget
from PIL import Image, ImageEnhance, ImageOps
from realdata import assert_runs

import lefcourse as lc

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
        assert torch.allclose((s.abs() * 10).round(), s.abs() * 10, atol=1e-5)
        assert set((s.abs() * 10).round().unique().tolist()) == set(range(10))
        assert len(kind.unique()) == len(uda.OPERATIONS)
    assert len(seen) == 2


# --- the authors' list for photographs -----------------------------------------------------------


def photographs(n=12):
    return (torch.rand(n, 3, 32, 32, generator=rng(8)) * 255).floor() / 255


def official(name, x, m, sign=1.0, place=0.5):
    n = len(x)
    magnitudes, signs = torch.full((n,), m), torch.full((n,), sign)
    return uda.official_operation(name, x, magnitudes, signs, torch.full((2, n), place))


def test_the_official_list_is_the_authors():
    """randaugment/policies.py, get_trans_list."""
    names = "Invert Cutout Sharpness AutoContrast Posterize ShearX TranslateX TranslateY ShearY Rotate Equalize Contrast Color Solarize Brightness"
    ours = [n.replace("_", "").replace("colour", "color") for n in uda.OFFICIAL]
    assert ours == names.lower().split()


@pytest.mark.parametrize("m", [1, 5, 9])
def test_official_operations_are_those_of_pillow(m):
    """randaugment/augmentation_transforms.py: levels m of 10."""
    x, factor = photographs(2), 0.18 * m + 0.1
    expected = {
        "invert": ImageOps.invert,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "posterize": lambda im: ImageOps.posterize(im, 4 - int(m * 4 / 10)),
        "solarize": lambda im: ImageOps.solarize(im, 256 - int(m * 256 / 10)),
        "contrast": lambda im: ImageEnhance.Contrast(im).enhance(factor),
        "colour": lambda im: ImageEnhance.Color(im).enhance(factor),
        "brightness": lambda im: ImageEnhance.Brightness(im).enhance(factor),
        "sharpness": lambda im: ImageEnhance.Sharpness(im).enhance(factor),
    }
    for name, operation in expected.items():
        for ours, image in zip(official(name, x, m), x, strict=True):
            pillow = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
            theirs = torch.from_numpy(np.array(operation(pillow))).permute(2, 0, 1) / 255
            off = (ours - theirs).abs()[:, 1:-1, 1:-1]  # at the border Pillow does not sharpen
            assert (off > 2.1 / 255).float().mean() < 0.01, (name, off.max())


def test_official_moves_and_cutout():
    x = photographs(2)
    moved = official("translate_x", x, 7)
    assert torch.allclose(moved[..., 7:], x[..., :-7], atol=1e-4) and not moved[..., :6].any()
    assert torch.allclose(
        official("translate_y", x, 4, -1.0)[..., :-4, :], x[..., 4:, :], atol=1e-4
    )
    cut = official("cutout", x, 6) != x
    assert (cut.any(1).flatten(1).sum(1) == 12 * 12).all()


def test_official_augmentation_repeats_and_skips():
    x, draws = photographs(40), torch.rand(40, 14, generator=rng(9))
    one = uda.official_augment(x, 16, draws=draws)
    assert torch.equal(one, uda.official_augment(x, 16, draws=draws))
    assert torch.allclose(one[5:8], uda.official_augment(x[5:8], 16, draws=draws[5:8]), atol=1e-6)
    assert one.min() >= 0 and one.max() <= 1
    draws[:, [1, 7]] = 0.5
    assert torch.equal(uda.official_augment(x, 0, draws=draws), x)


def test_the_wide_resnet_is_the_papers():
    wide = uda.wide_resnet(3, 10)
    assert 1.45e6 < lc.nets.count_parameters(wide) < 1.48e6  # WRN-28-2: 1.47 million
    convolutions = [m for m in wide.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(c.kernel_size == (3, 3) for c in convolutions) == 25
    assert wide(photographs(2)).shape == (2, 10)


# --- the full budget -----------------------------------------------------------------------------

PAPER = {  # each value with its source; files are those of google-research/uda, folder image/
    "dataset": "cifar10",  # scripts/run_cifar10_gpu.sh: task_name
    "per_class": 25,  # scripts/run_cifar10_gpu.sh: sup_size 250, the smallest
    "net": "wrn-28-2",  # section 4.3; main.py: wrn_size 32
    "steps": 500_000,  # scripts/run_cifar10_gpu.sh: train_steps
    "batch": 64,  # scripts/run_cifar10_gpu.sh: train_batch_size
    "batch_u": 448,  # scripts/run_cifar10_gpu.sh: unsup_ratio 7
    "lr": 0.03,  # main.py: learning_rate
    "weight_decay": 5e-4,  # main.py: weight_decay_rate
    "ema": 0.9999,  # main.py: moving_average_decay
    "lam": 1.0,  # main.py: unsup_coeff
    "tau": 0.4,  # scripts/run_cifar10_gpu.sh: uda_softmax_temp
    "beta": 0.8,  # scripts/run_cifar10_gpu.sh: uda_confidence_thresh
    "tsa": "none",  # main.py: tsa, "" and not set by the script
    "cutout": 16,  # randaugment/augmentation_transforms.py, cutout_numpy: size
}


def test_the_full_budget_is_the_papers_setting():
    ours = full_budget("uda")
    assert {name: ours[name] for name in PAPER} == PAPER


# --- the exercises -------------------------------------------------------------------------------


def log_schedule(t, T, K):
    return (1 - math.exp(-5 * t / T)) * (1 - 1 / K) + 1 / K


def confident(z, share, least, *, ranked=None, cut=round, floor=True):
    p = F.softmax(z, dim=1).amax(1)
    score = p if ranked is None else ranked(z)
    best = score.topk(cut(share * len(z))).indices
    return best[p[best] >= least] if floor else best


def joined(edges, y, *, order=True, drop=True, share="crossing"):
    ends = y[edges].sort(1).values if order else y[edges]
    across = ends[ends[:, 0] != ends[:, 1]]
    counted = across if drop else ends
    shares = dict(
        crossing=len(across) / len(edges), inside=1 - len(across) / len(edges), count=len(across)
    )
    if not len(counted):
        return shares[share], None
    pairs, counts = counted.unique(dim=0, return_counts=True)
    return shares[share], tuple(pairs[counts.argmax()].tolist())


RIGHT = {"check_tsa": log_schedule, "check_filter": confident, "check_crossings": joined}
WRONG = {
    "check_tsa": [
        (lambda t, T, K: t / T * (1 - 1 / K) + 1 / K, "linear schedule"),
        (lambda t, T, K: math.exp(5 * (t / T - 1)) * (1 - 1 / K) + 1 / K, "in exp it does not"),
        (lambda t, T, K: 1 - math.exp(-5 * t / T), "this is alpha itself"),
        (lambda t, T, K: log_schedule(t, 1, K), "not t"),
        (lambda t, T, K: (1 - math.exp(-4 * t / T)) * (1 - 1 / K) + 1 / K, "the factor is 5"),
    ],
    "check_filter": [
        (lambda z, share, least: confident(z, share, least, floor=False), "less confident than"),
        (
            lambda z, share, least: confident(z, share, 0.0, ranked=lambda z: z.amax(1)),
            "not logits",
        ),
        (lambda z, share, least: confident(z, 1.0, least), "`share` was not used"),
        (lambda z, share, least: confident(z, share, least, cut=int), "round"),
    ],
    "check_crossings": [
        (lambda edges, y: joined(edges, y, order=False), "put the two ends in order"),
        (lambda edges, y: joined(edges, y, drop=False), "drop them before you count"),
        (lambda edges, y: joined(edges, y, share="inside"), "you want the others"),
        (lambda edges, y: joined(edges, y, share="count"), "that is a count"),
        (lambda edges, y: (joined(edges, y)[0], (9, 6)), "smaller class first"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("uda", WRONG, name, k)


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    checks("uda")[name](RIGHT[name], strict=True)


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
    for t, i in enumerate(lc.batches(10, 6, rng(7), steps=4)):
        # main.py, model_fn: lr * cos(lrate * (7. / 8) * pi / 2), lrate the progress.
        optimizer.param_groups[0]["lr"] = 0.1 * math.cos(t / 4 * (7 / 8) * math.pi / 2)
        optimizer.zero_grad()
        F.cross_entropy(plain(x[i]), y[i]).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_one_forward_pass_for_all_views():
    model, sizes = net(), []
    model.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    run(model)
    assert sizes == [6 + 8 + 8] * 4


def test_looking_at_the_unlabeled_images_moves_statistics_and_nothing_else_in_the_loss():
    model, sizes = net(), []
    model.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    run(model, lam=0.0, look=True)
    assert sizes == [6 + 8 + 8] * 4
    plain = net()  # without normalisation the passing images cannot change a weight
    run(plain, lam=0.0)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with_them, without = net("batch"), net("batch")
    run(with_them, lam=0.0, look=True)
    run(without, lam=0.0)
    assert not torch.allclose(with_them.head.weight, without.head.weight)


def test_targets_come_from_the_training_pass_before_the_step():
    """main.py, model_fn: one build_model(is_training) on the concatenation; ori_logits are a slice of its output."""
    model, modes, seen = net("batch"), [], {}
    model.register_forward_hook(lambda module, given, out: modes.append((module.training, out)))
    run(model, steps=1, watch=lambda t, j, q, m, averaged: seen.update(q=q, on=averaged.training))
    ((training, z),) = modes
    assert training and not seen["on"]
    assert torch.allclose(seen["q"], F.softmax(z[6:14].detach() / 0.4, 1), atol=1e-6)


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
    assert_runs("uda", name, tmp_path, cutout=8)
