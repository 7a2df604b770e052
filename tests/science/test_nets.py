"""Backbones: shapes at every size, the teacher's average in closed form."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lefcourse.errors import UsageError
from lefcourse.science import data, nets


@pytest.mark.parametrize("norm", ["batch", "group", None])
@pytest.mark.parametrize("size, channels", [(8, 1), (16, 3), (28, 1), (32, 3), (96, 3)])
def test_convnet_at_every_size(size, channels, norm):
    net = nets.convnet(channels, 5, width=8, size=size, norm=norm)
    x = torch.rand(3, channels, size, size)
    features = net.features(x)
    assert features.shape == (3, 32)
    torch.testing.assert_close(net.eval()(x), net.head(net.features(x)))
    assert net(x).shape == (3, 5)


def test_convnet_takes_other_sizes_than_it_was_made_for():
    net = nets.convnet(1, 4, size=8).eval()
    assert net(torch.rand(2, 1, 20, 20)).shape == (2, 4)


def test_mlp_sees_every_pixel():
    net = nets.mlp((1, 4, 4), 3, hidden=(7, 5))
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    assert net.features(x).shape == (2, 5)
    assert nets.count_parameters(net) == (16 * 7 + 7) + (7 * 5 + 5) + (5 * 3 + 3)
    assert nets.count_parameters(nets.mlp((1, 4, 4), 3, hidden=())) == 16 * 3 + 3


def test_resnet_keeps_the_resolution_at_its_entrance():
    net = nets.resnet("resnet18", 1, 7).eval()
    seen = {}
    net.body.layer1.register_forward_hook(lambda m, i, out: seen.update(shape=out.shape))
    x = torch.rand(2, 1, 16, 16)
    assert net(x).shape == (2, 7) and net.features(x).shape == (2, 512)
    assert seen["shape"] == (2, 64, 16, 16)


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet18"])
def test_build_fits_the_data(name):
    d = data.load("digits", train=4, val=0)
    net = nets.build(name, d)
    assert net(d.x_train).shape == (4, 10)


def test_build_names_the_choices():
    with pytest.raises(UsageError, match=r"unknown network 'resnet81'.*did you mean 'resnet18'"):
        nets.build("resnet81", None)
    with pytest.raises(UsageError, match="normalisation"):
        nets.convnet(1, 2, norm="layer")


def test_frozen_parameters_are_not_counted():
    net = nets.convnet(1, 10)
    net.body.requires_grad_(False)
    assert nets.count_parameters(net) == 128 * 10 + 10


def test_ema_after_k_updates_has_a_closed_form():
    torch.manual_seed(0)
    student = nets.convnet(1, 3, width=8)
    teacher = deepcopy(student)
    start = [p.detach().clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    for _ in range(7):
        nets.ema_update(teacher, student, 0.9)
    for p, p0 in zip(teacher.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), p0 + (1 - 0.9**7))
        assert p.grad is None


def test_ema_copies_the_statistics_of_normalisation():
    student, teacher = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    student(torch.rand(8, 3, 4, 4))
    nets.ema_update(teacher, student, 0.99)
    assert torch.equal(teacher.running_mean, student.running_mean)
    assert teacher.num_batches_tracked == 1


def test_ema_at_its_ends():
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    before = deepcopy(teacher)
    nets.ema_update(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before.weight)
    nets.ema_update(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)
