"""SimCLRv2's loss, head, fine-tuning and distillation against slow definitions and limits; its exercises."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, checks, each, full_budget
from realdata import assert_runs

import lefcourse as lc

sim = lc.methods("simclrv2")
N, K = 6, 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(n=2 * N, d=7, seed=0):
    return torch.randn(n, d, generator=rng(seed), dtype=torch.float64)


def images(n=20, channels=1, side=8, seed=3):
    return torch.rand(n, channels, side, side, generator=rng(seed))


def stage_1(width=3, d=6):
    torch.manual_seed(1)
    encoder = lc.nets.convnet(1, K, width, size=8).body
    return encoder, sim.projection_head(4 * width, d)


# --- stage 1: the contrastive loss ---------------------------------------------------------------


def brute_force(v, tau):
    n, total = len(v), 0.0
    unit = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in v.tolist()]

    def s(a, b):
        return sum(x * y for x, y in zip(unit[a], unit[b], strict=True)) / tau

    for i in range(n):
        j = (i + n // 2) % n
        total -= math.log(math.exp(s(i, j)) / sum(math.exp(s(i, k)) for k in range(n) if k != i))
    return total / n


@pytest.mark.parametrize("tau", [0.1, 0.2, 1.0])
def test_the_loss_is_its_definition(tau):
    assert abs(sim.nt_xent(vectors(), tau).item() - brute_force(vectors(), tau)) < 1e-10


def test_what_the_loss_must_not_depend_on():
    v = vectors()
    loss, order = sim.nt_xent(v, 0.2), torch.randperm(N, generator=rng(2))
    assert torch.allclose(sim.nt_xent(v.roll(N, 0), 0.2), loss)  # the two views change places
    scale = torch.rand(2 * N, 1, generator=rng(4), dtype=torch.float64) + 0.1
    assert torch.allclose(sim.nt_xent(scale * v, 0.2), loss)
    assert torch.allclose(sim.nt_xent(torch.cat([v[:N][order], v[N:][order]]), 0.2), loss)
    assert not torch.allclose(sim.nt_xent(torch.cat([v[:N], v[N:][order]]), 0.2), loss)


def test_orthonormal_images_with_identical_views():
    v, tau = torch.eye(N, dtype=torch.float64).repeat(2, 1), 0.3
    expected = -1 / tau + math.log(math.exp(1 / tau) + 2 * N - 2)
    assert abs(sim.nt_xent(v, tau).item() - expected) < 1e-12


def test_the_gradient_is_softmax_minus_partner_and_zero_for_itself():
    v, tau = vectors().requires_grad_(), 0.2
    sim.nt_xent(v, tau).backward()
    with torch.no_grad():
        length = v.norm(dim=1, keepdim=True)
        unit = v / length
        s = (unit @ unit.T / tau).fill_diagonal_(-math.inf)
        in_s = (s.softmax(1) - torch.eye(2 * N).roll(N, 1)) / (2 * N)
        assert (in_s.diagonal() == 0).all()
        in_unit = (in_s + in_s.T) @ unit / tau
        expected = (in_unit - unit * (in_unit * unit).sum(1, keepdim=True)) / length
    assert torch.allclose(v.grad, expected)


def test_excluded_pairs_leave_the_sum():
    v, out = vectors(), torch.zeros(2 * N, 2 * N, dtype=torch.bool)
    assert torch.equal(sim.nt_xent(v, 0.2, out), sim.nt_xent(v, 0.2))
    j = torch.arange(2 * N).roll(N)
    out[:] = True
    out[torch.arange(2 * N), j] = False  # nothing is left but the partner
    assert abs(sim.nt_xent(v, 0.2, out)) < 1e-12


def test_the_head_is_the_papers():
    """model_util.py, projection_head: batch norm after every layer, no bias, the last one without shift, ReLU but there."""
    head = sim.projection_head(12, 6)
    assert [(layer[0].in_features, layer[0].out_features) for layer in head] == [(12, 12), (12, 12), (12, 6)]  # fmt: skip
    assert all(layer[0].bias is None for layer in head)
    assert [isinstance(layer[-1], torch.nn.ReLU) for layer in head] == [True, True, False]
    assert [layer[1].bias.requires_grad for layer in head] == [True, True, False]
    v = torch.randn(40, 12, generator=rng())
    for layer in head:
        v = layer(v)
    assert v.mean(0).abs().max() < 1e-5 and v.min() < 0
    assert len(sim.projection_head(12, 6, layers=2)) == 2


def test_pre_training_passes_both_views_at_once_and_moves_all_but_the_last_shift():
    encoder, head = stage_1()
    before, sizes = copy.deepcopy((encoder, head)), []
    encoder.register_forward_hook(lambda m, given, o: sizes.append(len(given[0])))
    how = dict(steps=3, batch=8, lr=1e-2, tau=0.2, optimizer="sgd", generator=rng(7))
    losses = sim.pretrain(encoder, head, images(), lambda x: x + 0.1 * x.flip(2), **how)
    assert sizes == [16] * 3 and losses.isfinite().all() and len(losses) == 3
    assert head[-1][1].bias.abs().max() == 0
    for old, new in zip(before, (encoder, head), strict=True):
        for a, b in zip(old.parameters(), new.parameters(), strict=True):
            assert not b.requires_grad or not torch.equal(a, b)


def test_wrong_partners_are_what_is_shown():
    seen = []
    encoder, head = stage_1()
    sim.pretrain(encoder, head, images(), lambda x: seen.append(x) or x, steps=1, batch=8, lr=1e-2,
                 tau=0.2, partners=lambda i: i.roll(1), optimizer="sgd", generator=rng(7))  # fmt: skip
    assert torch.equal(seen[1], seen[0].roll(1, 0))


# --- the optimizer and the schedule --------------------------------------------------------------


def test_lars_is_the_authors():
    """lars_optimizer.py, apply_gradients with classic momentum; biases and normalisation are left out."""
    weight = torch.nn.Parameter(torch.randn(3, 4, generator=rng()))
    bias = torch.nn.Parameter(torch.randn(4, generator=rng(1)))
    w, b, v_w, v_b = weight.detach().clone(), bias.detach().clone(), 0.0, 0.0
    opt = sim.LARS([weight, bias], lr=2.0, weight_decay=0.01)
    for k in range(3):
        weight.grad = torch.randn(3, 4, generator=rng(5 + k))
        bias.grad = torch.randn(4, generator=rng(8 + k))
        g = weight.grad + 0.01 * w
        v_w = 0.9 * v_w + 2.0 * (0.001 * w.norm() / g.norm()) * g
        v_b = 0.9 * v_b + 2.0 * bias.grad
        w, b = w - v_w, b - v_b
        opt.step()
        assert torch.allclose(weight, w, atol=1e-6) and torch.allclose(bias, b, atol=1e-6)
    zero = torch.nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    sim.LARS([zero], lr=0.5).step()
    assert torch.equal(zero, torch.full((2, 2), -0.5))  # a zero head has no length: a plain step


def test_the_rate_warms_up_and_falls_to_zero():
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule, rates = sim.warm_cosine(opt, 100), []
    for _ in range(100):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    assert np.allclose(rates[:6], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 1e-3
    assert abs(rates[5 + 47] - (1 + math.cos(math.pi * 47 / 95)) / 2) < 1e-9
    sim.warm_cosine(opt, 100, warm=0)
    assert opt.param_groups[0]["lr"] == 1.0


# --- views ---------------------------------------------------------------------------------------


def test_a_crop_of_everything_is_the_image_and_a_corner_is_that_corner():
    x = images(2, 3, 32)
    whole = torch.tensor([[1.0, 0.5, 0.3, 0.7]] * 2)
    assert torch.allclose(sim.crop_resize(x, draws=whole), x, atol=1e-5)
    quarter = torch.tensor([[(0.25 - 0.08) / 0.92, 0.5, 0.0, 1.0]] * 2)  # left, bottom
    mean = sim.crop_resize(x, draws=quarter).mean((2, 3))
    assert torch.allclose(mean, x[:, :, 16:, :16].mean((2, 3)), atol=0.02)


def test_views_repeat_stay_in_range_and_photographs_turn_grey_one_time_in_five():
    x, d = images(400, 3, 12), images(50)
    assert torch.equal(sim.photo_view(x, rng(2)), sim.photo_view(x, rng(2)))
    assert torch.equal(sim.drawing_view(d, 2, rng(2)), sim.drawing_view(d, 2, rng(2)))
    for v in (sim.photo_view(x, rng(2)), sim.drawing_view(d, 2, rng(2))):
        assert v.min() >= 0 and v.max() <= 1
    v = sim.photo_view(x, rng(2))
    grey = (v - v.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.12 < grey.float().mean() < 0.28


def test_digits_are_never_mirrored():
    ramp = torch.linspace(0, 1, 8).expand(200, 1, 8, 8).clone()  # dark left, bright right
    v = sim.drawing_view(ramp, 0, rng(4))
    assert (v[..., 5:7].mean((1, 2, 3)) > v[..., 1:3].mean((1, 2, 3))).all()


# --- stage 2: from the middle of the head --------------------------------------------------------


def test_the_selector_counts_the_layers_that_stay():
    (encoder, head), D = stage_1(), 12
    x = images()
    with torch.no_grad():  # statistics other than at the start
        head[0](encoder(x))
    for selector, width in enumerate((D, D, D, 6)):
        model = sim.from_layer(encoder, head, selector, K).eval()
        f = model.features(x)
        assert f.shape == (20, width) and model(x).shape == (20, K)
        kept = encoder.eval()(x)
        for layer in head.eval()[:selector]:
            kept = layer(kept)
        assert torch.allclose(f, kept, atol=1e-6)
        assert selector != 1 or (f.min() >= 0 and (f == 0).any())  # with its ReLU
    linear = head[0][0](encoder(x))
    assert not torch.allclose(sim.from_layer(encoder, head, 1, K).eval().features(x), linear.relu())  # and its norm  # fmt: skip


def fine_tuned(steps, **change):
    encoder, head = stage_1()
    model = sim.from_layer(encoder, head, change.pop("selector", 1), K)
    before = copy.deepcopy(model)
    y = torch.arange(20) % K
    how = dict(augment=lambda v: v, steps=steps, batch=20, lr=0.1, generator=rng(7))
    return before, sim.fine_tune(model, images(), y, **how | change)


def test_a_zero_head_starts_at_chance_and_teaches_nothing_below_it():
    encoder, head = stage_1()
    model, y = sim.from_layer(encoder, head, 1, K).train(), torch.arange(20) % K
    z = model(images())
    loss = F.cross_entropy(z, y)
    loss.backward()
    assert (z == 0).all() and abs(loss.item() - math.log(K)) < 1e-6
    assert all((p.grad == 0).all() for p in model.body.parameters())
    assert model.head.weight.grad.abs().max() > 0
    before, after = fine_tuned(1)
    moved = [not torch.equal(a, b) for a, b in zip(before.body.parameters(), after.body.parameters(), strict=True)]  # fmt: skip
    assert not any(moved) and after.head.weight.abs().max() > 0


def test_after_a_few_steps_every_weight_has_moved_and_the_source_has_not():
    source = copy.deepcopy(stage_1())
    before, after = fine_tuned(6)
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        assert not torch.equal(a, b)
    encoder, head = stage_1()
    sim.fine_tune(sim.from_layer(encoder, head, 1, K), images(), torch.arange(20) % K,
                  augment=lambda v: v, steps=2, batch=20, lr=0.1)  # fmt: skip
    for a, b in zip(source, (encoder, head), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))  # fmt: skip


def test_frozen_means_weights_and_statistics():
    before, after = fine_tuned(4, frozen=True)
    for a, b in zip(before.body.state_dict().values(), after.body.state_dict().values(), strict=True):  # fmt: skip
        assert torch.equal(a, b)
    assert after.head.weight.abs().max() > 0


# --- stage 3: distillation -----------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.5, 1.0, 3.0])
def test_the_gradient_of_distillation(t):
    z_t, z_s = vectors(N, K).requires_grad_(), vectors(N, K, seed=1).requires_grad_()
    sim.distillation_loss(z_t, z_s, t).backward()
    expected = t * (F.softmax(z_s / t, 1) - F.softmax(z_t / t, 1)) / N
    assert torch.allclose(z_s.grad, expected) and z_t.grad is None


def test_the_least_loss_is_the_teachers_entropy_up_to_a_constant_in_the_logits():
    z = vectors(N, K)
    p = F.softmax(z, 1)
    entropy = -(p * p.log()).sum(1).mean()
    assert torch.allclose(sim.distillation_loss(z, z + 3.0, 1.0), entropy)
    assert sim.distillation_loss(z, vectors(N, K, seed=1), 1.0) > entropy


def test_a_cold_teacher_gives_hard_labels():
    z_t, t = vectors(N, K), 1e-3
    z_s = vectors(N, K, seed=1)
    cold = sim.distillation_loss(z_t, t * z_s, t) / t**2  # the student's logits count as they are
    assert torch.allclose(cold, F.cross_entropy(z_s, z_t.argmax(1)))


def test_teacher_and_student_see_the_same_images_and_the_teacher_stays_as_it_is():
    _, teacher = fine_tuned(3)
    torch.manual_seed(2)
    student, g, seen = lc.nets.convnet(1, K, 2, size=8), rng(9), []
    before, start = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student)
    for model in (teacher, student):
        model.register_forward_pre_hook(lambda m, given: seen.append((given[0], m.training)))
    noisy = lambda v: v + 0.1 * torch.randn(v.shape, generator=g)  # noqa: E731
    sim.distil(teacher, student, images(), augment=noisy, steps=2, batch=8, lr=0.01, optimizer="sgd", generator=rng(7))  # fmt: skip
    assert [training for _, training in seen] == [False, True] * 2
    assert torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][0], seen[2][0])
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not torch.equal(student.head.weight, start.head.weight)


def test_distillation_knows_no_labels():
    names = inspect.signature(sim.distil).parameters
    assert {"x", "y", "labels"}.isdisjoint(names)


# --- the full budget -----------------------------------------------------------------------------

PAPER = {  # README: the commands for CIFAR-10 (pre-training) and for 1 % of ImageNet (fine-tuning)
    "dataset": ("cifar10", "--dataset"),
    "net": ("resnet18", "--resnet_depth=18"),
    "optimizer": ("lars", "run.py, the flag's default"),
    "pre_batch": (512, "--train_batch_size"),
    "pre_steps": (45_000 * 1000 // 512, "--train_epochs=1000, of the 45,000 images left"),
    "pre_lr": (1.0 * 512 / 256, "--learning_rate=1.0, scaled linearly by the batch over 256"),
    "tau": (0.5, "--temperature"),
    "out": (128, "run.py: proj_out_dim"),
    "selector": (1, "--ft_proj_selector=1"),
    "ft_steps": (60, "--train_epochs=60, one batch of all labels each"),
    "lr": (round(0.005 * 250**0.5, 3), "--learning_rate=0.005, scaled by the root of the batch"),
    "distil_lr": (round(0.1 * 512**0.5, 2), "as in pre-training (section 3.1): 0.1, root scaling"),
    "steps": (45_000 * 400 // 512, "400 epochs of distillation (section 3.1)"),
    "t": (1.0, "tf2/colabs/distillation_self_training.ipynb: temperature"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("simclrv2"), PAPER)


# --- the exercises -------------------------------------------------------------------------------


def pull(z_t, z_s, kind, least=0.95, *, sign=1, n=1, over="probability", masked=True, one_hot=True):
    target = z_t.softmax(1)
    certainty = {"probability": target, "logit": z_t, "student": z_s.softmax(1)}[over]
    sure = certainty.amax(1, keepdim=True) >= least
    if kind != "soft" and one_hot:
        target = F.one_hot(z_t.argmax(1), z_t.shape[1]).to(z_s)
    gradient = sign * (z_s.softmax(1) - target) / n
    return gradient * sure if kind == "confident" and masked else gradient


def negatives(y, *, views=2, partner=False, itself=False, own=True):
    image, label = torch.arange(len(y)).repeat(views), y.repeat(views)
    same = (label[:, None] == label) if own else (label[:, None] != label)
    out = same if partner else same & (image[:, None] != image)
    return out | torch.eye(len(out), dtype=torch.bool) if itself else out


def bigness(s, b, *, sign=1, percent=1, share="errors"):
    gone = (b - s).sum()
    shares = dict(errors=gone / (1 - s).sum(), accuracy=gone / s.sum(), big=gone / (1 - b).sum(),
                  mean=((b - s) / (1 - s)).mean())  # fmt: skip
    return sign * percent * (b - s).mean(), shares[share]


RIGHT = {"check_pull": pull, "check_negatives": negatives, "check_bigness": bigness}
WRONG = {
    "check_pull": [
        (lambda *a: pull(*a, sign=-1), "the sign"),
        (lambda *a: pull(*a, n=3), "do not divide by n"),
        (lambda z_t, z_s, *a: z_s - z_t, "softmax first"),
        (lambda *a: pull(*a, one_hot=False), "favourite class in place"),
        (lambda *a: pull(*a, masked=False), "pulls nothing"),
        (lambda *a: pull(*a, over="logit"), "two large logits"),
        (lambda *a: pull(*a, over="student"), "teacher's certainty"),
    ],
    "check_negatives": [
        (lambda y: negatives(y, views=1), "two views of every image"),
        (lambda y: negatives(y, partner=True), "nothing is left to find"),
        (lambda y: negatives(y, itself=True), "leaves them out already"),
        (lambda y: negatives(y, own=False), "other classes stay in"),
        (lambda y: negatives(y).triu(), "if a is excluded for b"),
    ],
    "check_bigness": [
        (lambda s, b: bigness(s, b, sign=-1), "big minus small"),
        (lambda s, b: bigness(s, b, percent=100), "not in percent"),
        (lambda s, b: bigness(s, b, share="accuracy"), "relative to the accuracy"),
        (lambda s, b: bigness(s, b, share="big"), "errors of the big one"),
        (lambda s, b: bigness(s, b, share="mean"), "sum before you divide"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("simclrv2", WRONG, name, k)


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    checks("simclrv2")[name](RIGHT[name], strict=True)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_runs_as_it_is_on_real_data(name, tmp_path):
    assert_runs("simclrv2", name, tmp_path, cutout=8)
