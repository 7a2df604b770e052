"""The world of volumes: hearts that are hearts, patients that differ as asked, slices that belong to their scans."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lefcourse.errors import UsageError
from lefcourse.science.worlds import volumes


@pytest.fixture(scope="module")
def scans():
    return volumes.make(40, seed=3, size=40)


def test_a_seed_is_a_set_of_scans(scans):
    again, other = volumes.make(40, seed=3, size=40), volumes.make(40, seed=4, size=40)
    assert torch.equal(again.image, scans.image) and torch.equal(again.mask, scans.mask)
    assert not torch.equal(other.mask, scans.mask)
    torch.manual_seed(9)  # the global generator has no say
    assert torch.equal(volumes.make(40, seed=3, size=40).image, scans.image)


def test_shapes_and_kinds(scans):
    assert scans.image.shape == (40, 1, 16, 40, 40) and scans.image.dtype == torch.float32
    assert scans.mask.shape == (40, 16, 40, 40) and scans.mask.dtype == torch.int64
    assert len(scans) == 40 and scans.image.isfinite().all() and scans.image.min() >= 0
    assert set(scans.mask.unique().tolist()) == {0, 1, 2, 3} and len(volumes.CLASSES) == 4


@pytest.mark.parametrize("size", [32, 40, 64])
def test_every_slice_shows_each_structure_once(size):
    """All three are present and connected (corners count), which the largest-component filter relies on."""
    for mask in volumes.make(10, seed=1, size=size).mask.flatten(0, 1).numpy():
        assert [ndimage.label(mask == k, np.ones((3, 3)))[1] for k in (1, 2, 3)] == [1, 1, 1]


def test_the_wall_encloses_the_left_ventricle(scans):
    for mask in scans.mask[:12, 8].numpy():
        around = ndimage.binary_dilation(mask == 3) & (mask != 3)
        assert set(mask[around].tolist()) == {2}, "between blood and the rest lies the wall"
        assert ndimage.binary_fill_holes(mask == 2)[mask == 3].all()


def test_the_heart_tapers_towards_the_apex(scans):
    area = (scans.mask == 3).sum((2, 3)).float().mean(0)  # by slice
    assert (area.diff() <= 0).all() and area[-1] < 0.4 * area[0]


def test_vessels_are_as_bright_as_blood_but_belong_to_nothing():
    """They are the only bright background, and there are none without distractors."""

    def bright(count):
        scans = volumes.make(60, seed=1, noise=0.0, distractors=count)
        blood = torch.stack(
            [i[0][m == 3].median() for i, m in zip(scans.image, scans.mask, strict=True)]
        )
        like_blood = (scans.image[:, 0] > 0.85 * blood.view(-1, 1, 1, 1)) & (scans.mask == 0)
        away = torch.from_numpy(ndimage.binary_erosion(scans.mask == 0, iterations=2))
        return (like_blood & away).float().mean().item()

    assert bright(0) < 0.001 < 0.01 < bright(4) < bright(8)


def centres(scans):
    """Where the left ventricle of the middle slice lies, in pixels: (P, 2)."""
    return torch.stack([(m[8] == 3).nonzero().float().mean(0) for m in scans.mask])


def test_spread_is_how_much_patients_differ():
    narrow, wide, none = (volumes.make(80, seed=2, spread=s) for s in (0.3, 1.0, 0.0))
    assert centres(narrow).std(0).sum() == pytest.approx(
        0.3 * centres(wide).std(0).sum().item(), rel=0.1
    )
    assert centres(none).std(0).max() == 0 and (none.mask == none.mask[0]).all()
    assert not torch.equal(none.image[0], none.image[1]), "noise and vessels still differ"


def test_noise_is_rician():
    """Where there is nothing to see the mean of the noise is sigma sqrt(pi/2) or more, never zero."""
    quiet, loud = (volumes.make(6, seed=5, noise=s, distractors=0).image for s in (0.0, 0.2))
    assert (loud - quiet).mean() > 0.02 and loud.min() >= 0
    squares = (loud**2 - quiet**2).mean().item()  # E[image^2] = signal^2 + 2 sigma^2
    assert squares == pytest.approx(2 * 0.2**2, rel=0.05)


def test_slices_belong_to_their_scans(scans):
    x, y = scans.slices(4)
    assert x.shape == (160, 1, 40, 40) and y.shape == (160, 40, 40)
    for row in (0, 5, 159):
        scan, k = divmod(row, 4)
        at = (2, 6, 10, 14)[k]
        assert torch.equal(x[row, 0], scans.image[scan, 0, at])
        assert torch.equal(y[row], scans.mask[scan, at])
    assert torch.equal(scans.slices(16)[1].view(40, 16, 40, 40), scans.mask)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(spread=1.5), "spread 1.5 is outside"),
        (dict(size=8), "16 slices of 8 pixels"),
        (dict(depth=0), "0 slices of 48 pixels"),
    ],
)
def test_bad_descriptions_are_refused(bad, message):
    with pytest.raises(UsageError, match=message):
        volumes.make(1, **bad)


def test_too_many_slices_are_refused(scans):
    for count in (0, 17):
        with pytest.raises(UsageError, match=f"{count} slices per scan: a scan has 1 to 16"):
            scans.slices(count)
