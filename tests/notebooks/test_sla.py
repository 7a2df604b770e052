"""Joint labels of class and transformation: the reductions, the indices, the three ways of reading, distillation.

Brief sources: paper (loss, Table 1) and the authors' repository hankook/SLA (trainers.py, augmentations.py, train.py).
"""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs

import lefcourse as lc

sla = lc.methods("sla")
B, N, M, D = 5, 3, 4, 7


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FEATURES = drawn(B * M, D)  # of B images in M views, sample-major
y = torch.tensor([0, 2, 1, 1, 0])
JOINT = drawn(B * M, N * M, seed=1)


def cell(z, b, j, i, k):
    """The joint logit of image b in view j for class i and transformation k."""
    return z[b * M + j, i * M + k]


# --- views and targets -----------------------------------------------------------------------------


def test_views_are_sample_major_and_start_with_the_image():
    x = drawn(2, 1, 3, 3)
    views = sla.rotations(x)
    assert views.shape == (8, 1, 3, 3)
    for b in range(2):
        for j in range(4):
            assert views[4 * b + j].equal(torch.rot90(x[b], j, (1, 2)))
    colour = sla.colour_turns(drawn(2, 3, 2, 2))
    assert colour[::3].equal(drawn(2, 3, 2, 2))
    assert colour[1].equal(drawn(2, 3, 2, 2)[0][[2, 0, 1]])
    assert len({tuple(v.flatten().tolist()) for v in colour[:3]}) == 3


def test_targets_are_class_first():
    assert sla.joint_targets(torch.tensor([0, 2]), 4).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_the_loss_is_a_double_loop():
    total = 0.0
    for b in range(B):
        for j in range(M):
            log = [cell(JOINT, b, j, i, k).item() for i in range(N) for k in range(M)]
            total += math.log(sum(map(math.exp, log))) - cell(JOINT, b, j, int(y[b]), j).item()
    assert sla.sla_loss(JOINT, y, M).item() == pytest.approx(total / (B * M))


def test_zero_weights_and_one_view():
    assert sla.sla_loss(torch.zeros(B * M, N * M), y, M).item() == pytest.approx(math.log(N * M))
    z = drawn(B, N)
    assert sla.sla_loss(z, y, 1).item() == pytest.approx(F.cross_entropy(z, y).item())
    assert sla.single(z, 1).equal(z) and sla.aggregate(z, 1).equal(z)


# --- the two reductions ----------------------------------------------------------------------------


def both(joint_rows, loss_of_two):
    """Values and gradients in the features of the joint loss with these rows, and of another loss."""
    found = []
    for loss in (lambda f: sla.sla_loss(f @ joint_rows.T, y, M), loss_of_two):
        f = FEATURES.clone().requires_grad_()
        value = loss(f)
        found.append((value.item(), torch.autograd.grad(value, f)[0]))
    return found


def test_rows_that_do_not_depend_on_the_view_give_augmentation_plus_log_m():
    u = drawn(N, D, seed=2)
    (joint, g), (plain, h) = both(
        u.repeat_interleave(M, 0), lambda f: sla.augmentation_loss(f @ u.T, y, M)
    )
    assert joint - plain == pytest.approx(math.log(M))
    assert torch.allclose(g, h)


def test_additive_rows_give_multitask_learning():
    u, v = drawn(N, D, seed=2), drawn(M, D, seed=3)
    rows = (u[:, None] + v).flatten(0, 1)
    (joint, g), (two, h) = both(rows, lambda f: sla.multitask_loss(f @ torch.cat([u, v]).T, y, M))
    assert joint == pytest.approx(two)
    assert torch.allclose(g, h)


# --- reading ---------------------------------------------------------------------------------------


def test_single_and_aggregated_logits_by_loops():
    si, ag = sla.single(JOINT[::M], M), sla.aggregate(JOINT, M)
    for b in range(B):
        for i in range(N):
            assert si[b, i] == cell(JOINT, b, 0, i, 0)
            mean = sum(cell(JOINT, b, j, i, j) for j in range(M)) / M
            assert ag[b, i].item() == pytest.approx(mean.item())


def test_a_spike_on_the_right_row_is_read_right_and_a_transposed_order_is_not():
    spike = torch.zeros(B * M, N * M).scatter(1, sla.joint_targets(y, M)[:, None], 1.0)
    assert sla.single(spike[::M], M).argmax(1).equal(y)
    assert sla.aggregate(spike, M).argmax(1).equal(y)
    assert sla.sla_loss(50 * spike, y, M) < 1e-6
    wrong = (torch.arange(M) * N + y[:, None]).flatten()  # j N + i
    transposed = torch.zeros(B * M, N * M).scatter(1, wrong[:, None], 1.0)
    assert sla.sla_loss(50 * transposed, y, M) > 1
    assert not sla.aggregate(transposed, M).argmax(1).equal(y)


def test_single_inference_conditions_on_the_known_view():
    p = F.softmax(JOINT[::M], 1).unflatten(1, (N, M))[:, :, 0]
    assert torch.allclose(F.softmax(sla.single(JOINT[::M], M), 1), p / p.sum(1, keepdim=True))


def test_a_constant_on_all_rows_of_one_view_changes_no_answer():
    shift = torch.zeros(N, M, dtype=torch.float64)
    shift[:, 0], shift[:, 2] = 3.0, -5.0
    moved = JOINT + shift.flatten()
    assert torch.allclose(
        F.softmax(sla.single(moved[::M], M), 1), F.softmax(sla.single(JOINT[::M], M), 1)
    )
    assert torch.allclose(
        F.softmax(sla.aggregate(moved, M), 1), F.softmax(sla.aggregate(JOINT, M), 1)
    )


def test_renaming_the_transformations_changes_neither_loss_nor_average():
    order = torch.tensor([2, 0, 3, 1])
    rows = (torch.arange(B)[:, None] * M + order).flatten()
    columns = (torch.arange(N)[:, None] * M + order).flatten()
    renamed = JOINT[rows][:, columns]
    assert sla.sla_loss(renamed, y, M).item() == pytest.approx(sla.sla_loss(JOINT, y, M).item())
    assert torch.allclose(sla.aggregate(renamed, M), sla.aggregate(JOINT, M))


# --- distillation ----------------------------------------------------------------------------------


def test_distillation_adds_up():
    z = torch.cat([JOINT, drawn(B * M, N, seed=4)], 1)
    for T, beta in [(1.0, 1.0), (2.0, 0.5)]:
        q = z[::M, N * M :]
        p = F.softmax(sla.aggregate(JOINT, M) / T, 1)
        kl = (p * (p.log() - F.log_softmax(q / T, 1))).sum(1).mean()
        by_hand = sla.sla_loss(JOINT, y, M) + T**2 * kl + beta * F.cross_entropy(q, y)
        assert sla.distillation_loss(z, y, M, T, beta).item() == pytest.approx(by_hand.item())


def test_the_teacher_is_held_fixed_and_the_student_sees_the_upright_view():
    z = torch.cat([JOINT, drawn(B * M, N, seed=4)], 1).requires_grad_()
    (whole,) = torch.autograd.grad(sla.distillation_loss(z, y, M), z)
    joint = JOINT.clone().requires_grad_()
    (alone,) = torch.autograd.grad(sla.sla_loss(joint, y, M), joint)
    assert torch.allclose(whole[:, : N * M], alone)  # nothing of the KL reaches the joint rows
    student = whole[:, N * M :].abs().sum(1) > 0
    assert student.tolist() == [True, False, False, False] * B


def test_a_student_that_says_what_the_average_says_has_no_distance():
    ordinary = sla.aggregate(JOINT, M).repeat_interleave(M, 0)
    z = torch.cat([JOINT, ordinary], 1)
    assert sla.distillation_loss(z, y, M, 1.0, 0.0).item() == pytest.approx(
        sla.sla_loss(JOINT, y, M).item()
    )


# --- exercises and budget --------------------------------------------------------------------------


def doubles(x, y, N, turns=(1, 2, 3), own=False, squared=False):
    mean = torch.stack([x[y == c].mean(0) for c in range(N)])
    turned = torch.stack([mean.rot90(j, (2, 3)) for j in turns])
    distance = torch.cdist(turned.flatten(2), mean.flatten(1)).amin(0)
    if not own:
        distance.fill_diagonal_(math.inf)
    best = distance.min(1)
    return best.indices, best.values**2 if squared else best.values


def slices(z, M):
    return z.unflatten(1, (-1, M)).unflatten(0, (-1, M))


def own(z, M):
    return slices(z, M).diagonal(dim1=1, dim2=3)


WRONG = {
    "check_tie": [
        (lambda u, v: (v[:, None] + u).flatten(0, 1), "class first"),
        (lambda u, v: u.repeat_interleave(len(v), 0), "v is missing"),
        (lambda u, v: (u[:, None] * v).flatten(0, 1), "not a product"),
        (lambda u, v: torch.cat([u, v]), "N M = 12 rows"),
        (lambda u, v: (u[:, None] - v).flatten(0, 1), "must agree"),
    ],
    "check_doubles": [
        (lambda x, y, N: doubles(x, y, N, own=True, turns=(0, 1, 2, 3)), "no double of itself"),
        (lambda x, y, N: doubles(x, y, N, turns=(0,)), "not turned yet"),
        (lambda x, y, N: doubles(x, y, N, squared=True), "Euclidean distance"),
        (
            lambda x, y, N: ((torch.arange(N) + 1) % N, torch.zeros(N)),
            "class 1 turned by 180 degrees is class 0",
        ),
    ],
    "check_average": [
        (
            lambda z, M: (
                F.softmax(z, 1)
                .unflatten(1, (-1, M))
                .unflatten(0, (-1, M))
                .diagonal(dim1=1, dim2=3)
                .mean(2)
            ),
            "over the classes of its column",
        ),
        (lambda z, M: F.softmax(sla.aggregate(z, M), 1), "the paper's"),
        (lambda z, M: F.softmax(slices(z, M), 2).mean(1)[:, :, 0], "not all by the first"),
        (lambda z, M: F.softmax(slices(z, M), 2).mean((1, 3)), "not by all rows"),
        (lambda z, M: F.softmax(own(z, M), 1).sum(2), "divide by M"),
        (lambda z, M: F.softmax(own(z, M), 1).mean((1, 2)), "two images and three classes"),
        (lambda z, M: F.softmax(own(z, M), 2).mean(2), "you say"),
    ],
}


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("sla", WRONG, name, k, math=math)


# What `--budget full` must be, and where it is said (the authors' train.py).
PAPER = {
    "dataset": ("cifar10", "train.py"),
    "steps": (80_000, "train.py"),
    "batch": (128, "train.py"),
    "weight_decay": (1e-4, "train.py"),
    "T": (1.0, "trainers.py"),
    "beta": (1.0, "trainers.py: always 1; the paper has 0 or 1 by setting"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("sla"), PAPER)


@pytest.mark.realdata
def test_it_runs_on_mnist(tmp_path):
    assert_runs("sla", "mnist", tmp_path)
