"""The world of eyes: what is drawn lies where an eye has it, and each disease shows in both views as it should."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from lefcourse.errors import UsageError
from lefcourse.science.worlds import retina
from lefcourse.science.worlds.retina import BLEEDING, DRUSEN, GLAUCOMA, NORMAL

N = 60


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def eyes_of(label, seed=0, **how):
    return retina.sample(N, labels=torch.full((N,), label), generator=draws(seed), **how)


def same(a, b):
    return all(
        torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(retina.Eyes)
    )


@pytest.fixture(scope="module")
def eyes():
    return retina.make(200, seed=3)


# --- determinism and shapes ------------------------------------------------------------------------


def test_a_seed_is_a_set_of_eyes(eyes):
    torch.manual_seed(9)  # the global generator has no say
    assert same(retina.make(200, seed=3), eyes) and not same(retina.make(200, seed=4), eyes)
    few = eyes[:5]
    for view in (few.fundus, few.oct):
        assert torch.equal(view(16, generator=draws()), view(16, generator=draws()))
        assert not torch.equal(view(16, generator=draws()), view(16, generator=draws(1)))


@pytest.mark.parametrize("size", [16, 24, 48])
def test_views_have_their_shapes_and_ranges(eyes, size):
    x, v = eyes[:4].fundus(size, generator=draws()), eyes[:4].oct(size, generator=draws())
    assert x.shape == (4, 3, size, size) and v.shape == (4, 1, size, size, size)
    for view in (x, v):
        assert view.dtype == torch.float32 and 0 <= view.min() < view.max() <= 1


def test_every_class_and_side_is_drawn_and_labels_can_be_given(eyes):
    assert set(eyes.label.tolist()) == {0, 1, 2, 3} and set(eyes.side.tolist()) == {-1.0, 1.0}
    assert len(eyes) == 200 and len(eyes[-1]) == 1 and len(eyes[eyes.side > 0]) < 200
    given = torch.tensor([3, 3, 0, 1])
    assert retina.sample(4, labels=given, generator=draws()).label.equal(given)
    assert len(retina.make(0)) == 0


# --- anatomy ---------------------------------------------------------------------------------------


def test_the_disc_lies_on_the_eyes_side_and_vessels_start_in_it(eyes):
    assert ((eyes.disc[:, 0] * eyes.side) > 0.5).all()
    assert (eyes.fovea.norm(dim=1) < 0.2).all()
    start = eyes.vessels[:, :, 0]
    assert torch.allclose(start, eyes.disc[:, None].expand_as(start))
    away = (eyes.vessels - eyes.fovea[:, None, None]).norm(dim=-1)
    assert away.min() > 0.12, "vessels go around the fovea"


def test_a_mirror_turns_right_eyes_into_left_ones(eyes):
    other = eyes.mirrored()
    assert other.side.equal(-eyes.side) and same(other.mirrored(), eyes)
    assert torch.allclose(other.vessel_map(24), eyes.vessel_map(24).flip(-1), atol=1e-4)
    # The camera's shading does not turn with the eye, the eye does.
    quiet = dict(size=24, noise=0.0)
    a, b = (e[:20].fundus(**quiet, generator=draws()) for e in (eyes, other))
    assert (a.flip(-1) - b).abs().mean() < 0.5 * (a - b).abs().mean()
    a, b = (e[:20].oct(**quiet, generator=draws()) for e in (eyes, other))
    assert (a.flip(-1) - b).abs().mean() < 0.8 * (a - b).abs().mean()


def test_vessels_are_polylines_of_their_width():
    """Against the distance to every segment, one at a time."""
    eyes, size = retina.make(2, seed=1), 40
    at = (torch.arange(size) + 0.5) / size * 2 - 1
    p = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)  # (size, size, 2): right, down
    for vessels, drawn in zip(eyes.vessels, eyes.vessel_map(size), strict=True):
        covered = torch.zeros(size, size)
        for line in vessels:
            for k, (a, b) in enumerate(pairwise(line)):
                t = (((p - a) @ (b - a)) / ((b - a) ** 2).sum()).clamp(0, 1)
                distance = (p - a - t[..., None] * (b - a)).norm(dim=-1)
                width = 0.035 - 0.023 * (k + t) / (retina.POINTS - 1)
                low, high = (distance - width), (distance + width)  # of the line, across the rim
                px = 2 / size
                share = (0.5 - low / px).clamp(0, 1) - (0.5 - high / px).clamp(0, 1)
                covered = covered.maximum(share)
        assert torch.allclose(drawn, covered, atol=2e-3)


# --- diseases --------------------------------------------------------------------------------------


def count(eyes):
    return (eyes.radius > 0).sum(1)


def test_severity_is_a_matter_of_number_and_width():
    normal, drusen, bleeding, glaucoma = (eyes_of(k) for k in range(4))
    assert (normal.severity == 0).all() and count(normal).max() <= 4 and count(glaucoma).max() <= 4
    for ill in (drusen, bleeding):
        assert ((ill.severity >= 0.15) & (ill.severity <= 1)).all()
        assert count(ill).equal((2 + 12 * ill.severity).round().long())
    assert drusen.bright.all() and not bleeding.bright.any()
    assert torch.allclose(glaucoma.cup, 0.45 + 0.4 * glaucoma.severity)
    assert ((normal.cup >= 0.25) & (normal.cup <= 0.55)).all()
    worse, better = eyes_of(GLAUCOMA, severity=(0.9, 1.0)), eyes_of(GLAUCOMA, severity=(0.15, 0.2))
    assert better.fibres.mean() - worse.fibres.mean() == pytest.approx(2 * 0.775, abs=0.1)


def test_lesions_lie_where_they_belong():
    drusen, bleeding = eyes_of(DRUSEN), eyes_of(BLEEDING)
    to_fovea = (drusen.lesions - drusen.fovea[:, None]).norm(dim=-1)[drusen.radius > 0]
    assert to_fovea.median() < 0.3 and to_fovea.max() < 0.6
    points = bleeding.vessels.flatten(1, 2)
    near = torch.cdist(bleeding.lesions, points).amin(2)[bleeding.radius > 0]
    inside = bleeding.lesions.abs().amax(2)[bleeding.radius > 0] < 0.949  # not moved to the border
    assert near[inside].max() < 0.095 and inside.float().mean() > 0.9
    assert (to_fovea.median()) < (bleeding.lesions - bleeding.fovea[:, None]).norm(dim=-1).median()


def test_diseases_show_in_the_photograph():
    quiet = dict(noise=0.0, generator=draws())
    hard = dict(severity=(0.8, 1.0))
    normal = eyes_of(NORMAL)
    normal = dataclasses.replace(normal, radius=0 * normal.radius)  # without its harmless spots

    def central(eyes):  # mean brightness around the fovea
        x = eyes.fundus(32, **quiet)
        near = torch.stack([eyes._distance(eyes.fovea, 32) < 0.4]).squeeze(0)[:, None]
        return ((x * near).sum((1, 2, 3)) / (3 * near.sum((1, 2, 3)))).mean()

    assert central(eyes_of(DRUSEN, **hard)) > central(normal) + 0.02

    def dark(eyes):  # green beside the centre, where blots lie
        return eyes.fundus(32, **quiet)[:, 1].mean()

    assert dark(eyes_of(BLEEDING, **hard)) < dark(normal) - 0.003

    def disc(eyes):  # blue is what tells the cup from the rest of the disc
        x = eyes.fundus(48, **quiet)[:, 2]
        near = eyes._distance(eyes.disc, 48) < 0.13
        return ((x * near).sum((1, 2)) / near.sum((1, 2))).mean()

    assert disc(eyes_of(GLAUCOMA, **hard)) > disc(normal) + 0.05


def test_diseases_show_in_the_volume():
    quiet, hard = dict(noise=0.0), dict(severity=(0.8, 1.0))

    def scan(eyes):
        return eyes.oct(24, **quiet, generator=draws())[:, 0]

    normal = eyes_of(NORMAL)
    normal = dataclasses.replace(normal, radius=0 * normal.radius)
    healthy = scan(normal)
    assert (scan(eyes_of(GLAUCOMA, **hard)) > 0.7).float().mean() < (
        healthy > 0.7
    ).float().mean() - 0.02, "fewer bright voxels: the fibre layer is thin"
    drusen = eyes_of(DRUSEN, **hard)
    flat = dataclasses.replace(drusen, radius=0 * drusen.radius)
    lifted = (scan(drusen) - scan(flat)).abs().amax(1)  # by column
    near = drusen._distance(drusen.fovea, 24)
    assert lifted[near < 0.3].mean() > 0.3 and lifted[near > 0.8].mean() < 0.02
    bleeding = eyes_of(BLEEDING, **hard)
    change = scan(bleeding) - scan(dataclasses.replace(bleeding, radius=0 * bleeding.radius))
    assert change.amax() > 0.3 and change.amin() < -0.1, "bright balls, and shadows below them"
    top = change.amax((2, 3)).argmax(1).float()  # the brightest change lies above the darkest
    assert (change.amin((2, 3)).argmin(1).float() > top).float().mean() > 0.8


def test_harmless_spots_are_as_many_in_normal_eyes_as_in_glaucoma():
    many = retina.make(2000, seed=7)
    means = [count(many[many.label == k]).float().mean() for k in (NORMAL, GLAUCOMA)]
    assert means[0] == pytest.approx(2, abs=0.15) and means[1] == pytest.approx(2, abs=0.15)
    for k in (NORMAL, GLAUCOMA):
        assert many.bright[many.label == k].float().mean() == pytest.approx(0.5, abs=0.08)


def test_the_noise_is_what_was_asked_for():
    eyes = retina.make(20, seed=5)
    mild = eyes.fundus(32, noise=0.04, generator=draws()) - eyes.fundus(
        32, noise=0.0, generator=draws()
    )
    assert mild.std().item() == pytest.approx(0.04, rel=0.05)
    clean, loud = (eyes.oct(24, noise=s, generator=draws()) for s in (0.0, 0.2))
    some = (clean > 0.2) & (clean < 0.45)
    relative = (loud - clean)[some] / clean[some]
    assert relative.std().item() == pytest.approx(math.hypot(0.2, 0.02 / 0.37), rel=0.05)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(severity=(0.0, 1.0)), r"severity from 0.0 to 1.0: it lies in \(0, 1\]"),
        (dict(severity=(0.9, 0.2)), "severity from 0.9 to 0.2"),
        (dict(severity=(0.5, 1.5)), "severity from 0.5 to 1.5"),
        (dict(labels=torch.tensor([0, 1, 4])), "labels from 0 to 4: classes are 0 to 3"),
        (dict(labels=torch.tensor([-1, 1, 2])), "labels from -1 to 2"),
        (dict(labels=torch.tensor([0, 1])), r"3 eyes need labels of shape \(3,\), not \(2,\)"),
    ],
)
def test_bad_descriptions_are_refused(bad, message):
    with pytest.raises(UsageError, match=message):
        retina.make(3, **bad)


def test_bad_views_are_refused(eyes):
    with pytest.raises(UsageError, match="15 pixels a side: at least 16"):
        eyes.fundus(15, generator=draws())
    with pytest.raises(UsageError, match="11 voxels a side: at least 12"):
        eyes.oct(11, generator=draws())
    for view in (eyes.fundus, eyes.oct):
        with pytest.raises(UsageError, match=r"noise -0\.1 is negative"):
            view(24, noise=-0.1, generator=draws())
