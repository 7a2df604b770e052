"""Augmentation: the identity in the middle of every range, exact moves, and samples that do not mix."""

import math

import pytest
import torch

from lefcourse.science import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=16, channels=3, size=12, seed=0):
    return torch.rand(n, channels, size, size, generator=generator(seed))


def draws(n, *values):
    return torch.tensor(values).expand(n, -1)


# name -> (function of images and keywords, number of draws)
AUGMENTATIONS = {
    "shift": (lambda x, **kw: augment.shift(x, 3, **kw), 2),
    "crop_pad": (lambda x, **kw: augment.crop_pad(x, 3, **kw), 2),
    "flip": (lambda x, **kw: augment.flip(x, **kw), 1),
    "cutout": (lambda x, **kw: augment.cutout(x, 5, **kw), 2),
    "affine": (lambda x, **kw: augment.affine(x, 25, (0.8, 1.25), 0.2, **kw), 4),
    "colour_jitter": (lambda x, **kw: augment.colour_jitter(x, 0.4, 0.4, 0.4, **kw), 3),
    "randaugment": (lambda x, **kw: augment.randaugment(x, 3, **kw), 6),
}
each = pytest.mark.parametrize("change, k", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


@each
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range_are_kept_and_the_input_is_untouched(change, k, channels):
    x = images(channels=channels)
    before = x.clone()
    changed = change(x, generator=generator())
    assert changed.shape == x.shape and changed.dtype == x.dtype
    assert changed.min() >= 0 and changed.max() <= 1 + 1e-6
    assert torch.equal(x, before)


@each
def test_a_seed_repeats_and_another_differs(change, k):
    x = images()
    assert torch.equal(change(x, generator=generator(1)), change(x, generator=generator(1)))
    assert not torch.equal(change(x, generator=generator(1)), change(x, generator=generator(2)))


@each
def test_a_generator_gives_the_same_as_its_draws(change, k):
    x = images()
    u = torch.rand(len(x), k, generator=generator(5))
    assert torch.equal(change(x, generator=generator(5)), change(x, draws=u))


@each
def test_a_batch_is_changed_as_its_samples_one_by_one(change, k):
    x = images(40)
    u = torch.rand(40, k, generator=generator(1))
    single = torch.cat([change(x[i : i + 1], draws=u[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(change(x, draws=u), single, atol=1e-5, rtol=0)


@each
def test_samples_are_changed_each_in_its_own_way(change, k):
    x = images(1).expand(32, -1, -1, -1)
    assert len(change(x, generator=generator()).flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("name", ["shift", "crop_pad", "affine", "colour_jitter"])
def test_the_middle_of_the_range_changes_nothing(name):
    change, k = AUGMENTATIONS[name]
    x = images()
    torch.testing.assert_close(change(x, draws=torch.full((16, k), 0.5)), x, atol=1e-5, rtol=0)


def test_shift_moves_by_whole_pixels():
    x = images(2, size=8)
    up_left = augment.shift(x, 2, draws=draws(2, 0.0, 0.0))
    assert torch.equal(up_left[:, :, :-2, :-2], x[:, :, 2:, 2:])
    assert up_left[:, :, -2:].sum() == 0 and up_left[:, :, :, -2:].sum() == 0
    right = augment.shift(x, 2, draws=draws(2, 0.5, 0.999))
    assert torch.equal(right[:, :, :, 2:], x[:, :, :, :-2])


def test_all_shifts_are_equally_likely():
    x = torch.zeros(50_000, 1, 3, 3)
    x[:, :, 1, 1] = 1
    mean = augment.shift(x, 1, generator=generator()).mean((0, 1))
    torch.testing.assert_close(mean, torch.full((3, 3), 1 / 9), atol=0.01, rtol=0)


def test_crop_pad_fills_with_the_mirrored_image():
    x = images(2, size=8)
    left = augment.crop_pad(x, 2, draws=draws(2, 0.5, 0.0))
    assert torch.equal(left[:, :, :, :6], x[:, :, :, 2:])
    assert torch.equal(left[:, :, :, 6:], x[:, :, :, [6, 5]])


def test_flipping_twice_restores_the_image():
    x = images()
    once = augment.flip(x, draws=draws(16, 0.0))
    assert torch.equal(once, x.flip(-1))
    assert torch.equal(augment.flip(once, draws=draws(16, 0.0)), x)
    assert torch.equal(augment.flip(x, p=0.0, generator=generator()), x)
    assert torch.equal(augment.flip(x, p=1.0, generator=generator()), x.flip(-1))


def test_cutout_covers_the_square_around_its_centre():
    x = torch.ones(1, 1, 8, 8)
    cut = augment.cutout(x, 4, draws=draws(1, 0.5, 0.5))[0, 0]
    assert cut.sum() == 64 - 16 and cut[2:6, 2:6].sum() == 0
    corner = augment.cutout(x, 4, fill=0.5, draws=draws(1, 0.0, 0.0))[0, 0]
    assert (corner[:2, :2] == 0.5).all() and corner.sum() == 60 + 4 * 0.5


def test_a_quarter_turn_is_counter_clockwise():
    x = images(3, size=9)
    matrix = augment.affine_matrix(*torch.tensor([[math.pi / 2], [1], [0], [0]]).expand(4, 3))
    torch.testing.assert_close(augment.warp(x, matrix), x.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_affine_moves_right_and_down_in_sides():
    x = images(2, size=10)
    moved = augment.affine(x, translate=0.4, draws=draws(2, 0.5, 0.5, 1.0, 0.75))
    torch.testing.assert_close(moved[:, :, 2:, 4:], x[:, :, :-2, :-4], atol=1e-5, rtol=0)
    assert moved[:, :, :2].abs().max() < 1e-5 and moved[:, :, :, :4].abs().max() < 1e-5


def test_zoom_enlarges():
    x = torch.zeros(1, 1, 16, 16)
    x[:, :, 6:10, 6:10] = 1
    larger = augment.affine(x, scale=(1.0, 2.0), draws=draws(1, 0.5, 1.0, 0.5, 0.5))
    assert larger.sum() == pytest.approx(4 * 16, rel=0.05)


def test_colour_jitter_at_its_ends():
    x = images() * 0.5
    bright = augment.colour_jitter(x, brightness=0.5, draws=draws(16, 0.0, 0.5, 0.5))
    torch.testing.assert_close(bright, 0.5 * x)
    grey = augment.colour_jitter(x, saturation=1.0, draws=draws(16, 0.5, 0.5, 0.0))
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    flat = augment.colour_jitter(x[:, :1], contrast=1.0, draws=draws(16, 0.5, 0.0, 0.5))
    assert flat.std((2, 3)).max() < 1e-6


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_every_operation_of_randaugment(name):
    """In range at full strength; without effect at strength 0, apart from the two that have no strength."""
    x = (images(size=20) * 127).round() / 255
    operation = augment.OPERATIONS[name]
    for strength in (-1.0, 1.0):
        changed = operation(x, torch.full((16,), strength))
        assert changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6
        assert (changed - x).abs().max() > 0.01 or name == "identity"
    if name not in ("autocontrast", "equalize"):
        torch.testing.assert_close(operation(x, torch.zeros(16)), x, atol=1e-5, rtol=0)


def test_photometric_operations_agree_with_torchvision():
    from torchvision.transforms.v2 import functional as reference

    x = (images() * 255).round() / 255
    full = torch.ones(16)
    checks = {
        "autocontrast": (0.0, reference.autocontrast(x)),
        "brightness": (1.0, reference.adjust_brightness(x, 1.95)),
        "contrast": (1.0, reference.adjust_contrast(x, 1.95)),
        "colour": (-1.0, reference.adjust_saturation(x, 0.05)),
        "posterize": (1.0, reference.posterize((x * 255).byte(), 4).float() / 255),
        "solarize": (0.5, reference.solarize(x, 0.5)),
    }
    for name, (strength, expected) in checks.items():
        changed = augment.OPERATIONS[name](x, strength * full)
        torch.testing.assert_close(changed, expected, atol=4e-3, rtol=0, msg=name)
    sharp = augment.OPERATIONS["sharpness"](x, full)[:, :, 1:-1, 1:-1]
    expected = reference.adjust_sharpness(x, 1.95)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(sharp, expected, atol=4e-3, rtol=0)


def test_randaugment_draws_all_operations_alike():
    kinds = (torch.rand(14_000, generator=generator()) * len(augment.OPERATIONS)).long()
    assert (torch.bincount(kinds) - 1000).abs().max() < 150


def test_mixup_blends_images_and_targets_with_the_same_share():
    x, targets = images(), torch.eye(16)
    mixed, blended = augment.mixup(x, targets, 0.75, generator=generator())
    torch.testing.assert_close(blended.sum(1), torch.ones(16))
    assert blended.min() >= 0
    # With one-hot rows as identities, the blended target says what the image must be.
    torch.testing.assert_close(mixed, torch.einsum("ij,jchw->ichw", blended, x))


def test_mixup_at_its_ends():
    x, targets, order = images(), torch.eye(16), torch.randperm(16, generator=generator())
    for lam, image, target in ((1.0, x, targets), (0.0, x[order], targets[order])):
        mixed, blended = augment.mixup(x, targets, 1, lam=torch.full((16,), lam), order=order)
        assert torch.equal(mixed, image) and torch.equal(blended, target)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_beta_has_the_right_moments(alpha):
    lam = augment.beta(alpha, 100_000, torch.device("cpu"), generator())
    assert lam.isfinite().all()
    assert lam.mean() == pytest.approx(0.5, abs=0.01)
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.005)


def test_cutmix_box_has_the_promised_area():
    x = images(200, size=32)
    lam = torch.rand(200, generator=generator(3))
    mask = augment.cutmix_box(x, lam, generator=generator())
    assert mask.shape == (200, 1, 32, 32) and mask.dtype == torch.bool
    area = mask.float().mean((1, 2, 3))
    assert (area - (1 - lam)).abs().max() < 0.05
    assert augment.cutmix_box(x, torch.ones(200), generator=generator()).sum() == 0
    assert augment.cutmix_box(x, torch.zeros(200), generator=generator()).all()
