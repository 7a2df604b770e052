"""The U-Net and the measures of masks, against slow definitions."""

import math

import pytest
import torch
from torch import nn

from lefcourse.errors import UsageError
from lefcourse.science import segmentation


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("dims", "shape"), [(2, (16, 24)), (3, (8, 16, 12))])
def test_a_unet_labels_every_pixel(dims, shape, norm):
    torch.manual_seed(0)
    net = segmentation.UNet(2, 5, (4, 8, 16), dims=dims, norm=norm)
    x = torch.randn(3, 2, *shape, generator=rng())
    assert net(x).shape == (3, 5, *shape) and net.features(x).shape == (3, 4, *shape)
    assert torch.allclose(net(x), net.head(net.features(x)))
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters()), "every part is used"


def test_a_unet_sees_far_and_keeps_detail():
    """A pixel of the output depends on pixels beyond the reach of the finest level, and on its own."""
    torch.manual_seed(0)
    net = segmentation.UNet(1, 2, (4, 8, 16)).eval()
    x = torch.randn(1, 1, 32, 32, generator=rng()).requires_grad_()
    net(x)[0, 0, 16, 16].backward()
    reach = x.grad[0, 0].nonzero()
    assert (reach - 16).abs().max() > 6 and x.grad[0, 0, 16, 16] != 0


def test_sides_that_cannot_be_halved_are_refused():
    net = segmentation.UNet(1, 2, (4, 8, 16))
    with pytest.raises(UsageError, match=r"sides divisible by 4, not \(1, 1, 18, 16\)"):
        net(torch.zeros(1, 1, 18, 16))
    with pytest.raises(UsageError, match="in 2 dimensions takes"):
        net(torch.zeros(1, 1, 4, 16, 16))
    with pytest.raises(UsageError, match="2 or 3 dimensions, not 4"):
        segmentation.UNet(1, 2, dims=4)
    with pytest.raises(UsageError, match=r"norm 'layer'.*batch, group"):
        segmentation.UNet(1, 2, norm="layer")


def test_group_normalisation_does_not_see_the_batch():
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8, generator=rng())
    grouped, batched = (segmentation.UNet(1, 3, (4, 8), norm=n).train() for n in ("group", "batch"))
    assert torch.allclose(grouped(x)[:1], grouped(x[:1]), atol=1e-5)
    assert not torch.allclose(batched(x)[:1], batched(x[:1]), atol=1e-2)


def test_predict_is_argmax_in_evaluation_mode():
    torch.manual_seed(0)
    net = segmentation.UNet(1, 3, (4, 8)).train()
    x = torch.randn(7, 1, 8, 8, generator=rng())
    statistics = net.down[0][1].running_mean.clone()
    said = segmentation.predict(net, x, batch=3)
    assert net.training and torch.equal(net.down[0][1].running_mean, statistics)
    net.eval()
    with torch.no_grad():
        assert torch.equal(said, net(x).argmax(1))


def slow_dice(a, b, K):
    """Per class: the mean over images of 2 |A and B| / (|A| + |B|), where either shows the class."""
    out = []
    for k in range(1, K):
        rows = []
        for p, t in zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True):
            both = sum(i == k and j == k for i, j in zip(p, t, strict=True))
            sizes = p.count(k) + t.count(k)
            rows += [2 * both / sizes] if sizes else []
        out.append(sum(rows) / len(rows) if rows else 0.0)
    return torch.tensor(out)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_dice_is_its_definition(shape):
    a, b = (torch.randint(0, 4, (9, *shape), generator=rng(s)) for s in (1, 2))
    a[0][a[0] == 2] = 0
    b[0][b[0] == 2] = 0  # image 0 shows no class 2 at all
    assert torch.allclose(segmentation.dice(a, b, 4), slow_dice(a, b, 4))
    assert torch.equal(segmentation.dice(a, a, 4), torch.ones(3))


def test_dice_of_what_nobody_shows_and_of_what_one_shows():
    nothing, some = torch.zeros(2, 4, 4, dtype=torch.long), torch.ones(2, 4, 4, dtype=torch.long)
    assert segmentation.dice(nothing, some, 3).tolist() == [0.0, 0.0]
    one_right = torch.stack([nothing[0], some[0]])
    assert segmentation.dice(one_right, one_right, 2).tolist() == [1.0]


def slow_hausdorff95(a, b):
    """All distances between rims; a rim pixel has a neighbour outside, the border of the image included."""

    def rim(mask):
        inside = set(map(tuple, mask.nonzero().tolist()))
        steps = [(1, 0), (-1, 0), (0, 1), (0, -1)]
        return [p for p in inside if any((p[0] + i, p[1] + j) not in inside for i, j in steps)]

    def way(here, there):
        d = sorted(min(math.dist(p, q) for q in there) for p in here)
        at = 0.95 * (len(d) - 1)
        low = int(at)
        return d[low] + (at - low) * (d[min(low + 1, len(d) - 1)] - d[low])

    return max(way(rim(a), rim(b)), way(rim(b), rim(a)))


def test_hausdorff_is_its_definition():
    a = torch.zeros(3, 14, 16, dtype=torch.long)
    b = torch.zeros_like(a)
    for k, (p, q) in enumerate([((2, 3), (4, 5)), ((1, 1), (1, 1)), ((0, 0), (8, 9))]):
        a[k, p[0] : p[0] + 5, p[1] : p[1] + 6] = 1
        b[k, q[0] : q[0] + 4, q[1] : q[1] + 7] = 1
    wanted = sum(slow_hausdorff95(x == 1, y == 1) for x, y in zip(a, b, strict=True)) / 3
    assert segmentation.hausdorff95(a, b, 2).item() == pytest.approx(wanted)
    assert segmentation.hausdorff95(a, a, 2).item() == 0


def test_hausdorff_of_a_missing_class_is_the_diagonal():
    a = torch.zeros(2, 3, 4, dtype=torch.long)
    b = a.clone()
    b[0, 1, 1] = 1
    assert segmentation.hausdorff95(a, b, 3)[0].item() == pytest.approx(5.0), (
        "3-4-5, second image not counted"
    )
    assert segmentation.hausdorff95(a, b, 3)[1].isnan()


def test_the_network_can_learn():
    """A few steps are enough to find a bright square."""
    torch.manual_seed(0)
    y = torch.zeros(8, 16, 16, dtype=torch.long)
    for k, (i, j) in enumerate(torch.randint(0, 11, (8, 2), generator=rng()).tolist()):
        y[k, i : i + 5, j : j + 5] = 1
    x = y[:, None] + 0.3 * torch.randn(8, 1, 16, 16, generator=rng())
    net = segmentation.UNet(1, 2, (4, 8))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert segmentation.dice(segmentation.predict(net, x), y, 2).item() > 0.9
