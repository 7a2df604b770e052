"""The world of range scans: every ray ends on the first surface it meets, and far objects have few points."""

import dataclasses
import math

import pytest
import torch

from lefcourse.errors import UsageError
from lefcourse.science.worlds import lidar

N = 40


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def of(name, n=N, seed=0, **how):
    labels = torch.full((n,), lidar.CLASSES.index(name))
    return lidar.sample(n, labels=labels, generator=draws(seed), **how)


def same(a, b):
    return all(
        torch.equal(getattr(a, f.name), getattr(b, f.name))
        for f in dataclasses.fields(lidar.Clouds)
    )


@pytest.fixture(scope="module")
def clouds():
    return lidar.make(200, seed=3)


def test_a_seed_is_a_set_of_clouds(clouds):
    torch.manual_seed(9)  # the global generator has no say
    assert same(lidar.make(200, seed=3), clouds) and not same(lidar.make(200, seed=4), clouds)
    assert same(lidar.make(200, seed=3)[:7], clouds[:7]) and len(clouds[-1]) == 1


def test_clouds_have_their_shapes_and_their_mean_at_the_origin(clouds):
    assert clouds.x.shape == (200, 128, 3) and clouds.x.dtype == torch.float32
    assert clouds.x.mean(1).abs().max() < 1e-4 and clouds.x.isfinite().all()
    assert set(clouds.label.tolist()) == set(range(8)), "every class is drawn"
    assert lidar.make(3, points=16).x.shape == (3, 16, 3) and len(lidar.make(0)) == 0


# --- rays ------------------------------------------------------------------------------------------


def inside(kind, centre, half, at):
    """Whether points (M, 3) lie in a part."""
    u = (at - centre) / half
    if kind == lidar.BOX:
        return (u.abs() <= 1).all(-1)
    if kind == lidar.CYLINDER:
        return (u[..., :2].square().sum(-1) <= 1) & (u[..., 2].abs() <= 1)
    return u.square().sum(-1) <= 1


@pytest.mark.parametrize("name", lidar.CLASSES)
def test_a_ray_ends_where_a_walk_along_it_first_enters_a_part(name):
    k, step = lidar.CLASSES.index(name), 0.004
    kind, centre, half = (table[[k]] for table in lidar._tables())
    away, heading = torch.tensor([7.0]), torch.tensor([0.8])
    at = {"generator": draws(), "device": "cpu"}
    origin, rays, _ = lidar._rays(centre, half, away, heading, at)
    some = rays[:, ::23]
    found = lidar._nearest(kind, centre, half, origin, some)[0]
    walk = torch.arange(0, 16, step)
    points = origin[0] + some[0, :, None] * walk[:, None]  # (rays, steps, 3)
    solid = torch.zeros(points.shape[:2], dtype=torch.bool)
    for part in range(lidar.MOST):
        solid |= inside(kind[0, part], centre[0, part], half[0, part], points)
    entered = torch.where(solid.any(1), walk[solid.float().argmax(1)], math.inf)
    assert found.isfinite().any()
    both = found.isfinite() & entered.isfinite()
    assert (found[both] - entered[both]).abs().max() < 0.02
    # A walk may step over a sliver at the rim; a ray must not find what no walk finds.
    assert (found.isfinite() != entered.isfinite()).float().mean() < 0.1


def test_the_window_holds_the_object():
    """No hits beyond it: with the window as it is, the outermost rows and columns of rays seldom meet a box."""
    wide = of("wall", distance=(8.0, 9.0), noise=0.0, variety=0.0)
    across = wide.x.amax(1)[:, 1] - wide.x.amin(1)[:, 1]
    expected = 6.0 * wide.heading.sin().abs() + 0.24 * wide.heading.cos().abs()
    assert (across < expected + 0.01).all() and (across > 0.8 * expected - 0.3).float().mean() > 0.9


def test_only_the_side_that_faces_the_sensor_is_seen():
    pole = of("pole", noise=0.0, variety=0.0)
    deep = pole.x[..., 0].amax(1) - pole.x[..., 0].amin(1)
    assert (deep < 0.1 + 1e-3).all() and deep.mean() > 0.07, "one radius, not two"


def test_the_heading_turns_the_object():
    car = of("car", 400, noise=0.0, variety=0.0, distance=(10.0, 12.0))
    across = car.x[..., 1].amax(1) - car.x[..., 1].amin(1)
    lengthwise, sideways = car.heading.cos().abs() > 0.98, car.heading.sin().abs() > 0.98
    assert across[lengthwise].mean() < 2.4 and across[sideways].mean() > 3.6


# --- how many points -------------------------------------------------------------------------------


def test_far_objects_have_fewer_distinct_points():
    near, far = (of("pedestrian", distance=d).distinct.float() for d in [(6, 9), (27, 30)])
    assert near.mean() > 2.5 * far.mean() and far.min() >= lidar.LEAST
    thin = of("pedestrian", density=0.01)
    assert (thin.distinct == lidar.LEAST).all(), "an object is never lost altogether"


def test_repeated_points_are_copies(clouds):
    few = clouds[clouds.distinct < 100]
    assert len(few) > 5
    for x, distinct in zip(few.x, few.distinct.tolist(), strict=True):
        assert len(x.unique(dim=0)) == distinct
        assert x[distinct:].equal(x[: 128 - distinct] if 2 * distinct >= 128 else x[distinct:])


def test_higher_beams_see_higher_points():
    pole = of("pole", noise=0.0)
    for x, beam in zip(pole.x, pole.beam, strict=True):
        pair = torch.stack([x[:, 2], beam.float()])
        assert torch.corrcoef(pair)[0, 1] > 0.95
    assert pole.beam.min() >= 0 and pole.beam.max() < lidar.BEAMS


def test_the_noise_lies_along_the_ray():
    clean, loud = (of("wall", distance=(10, 10), noise=s) for s in (0.0, 0.1))
    moved = (loud.x - clean.x).norm(dim=-1)
    assert moved.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.05)


def test_sizes_vary_as_asked():
    poles = [of("pole", 200, variety=v, noise=0.0, distance=(6, 8)).x[..., 2] for v in (0.0, 0.3)]
    same, other = ((z.amax(1) - z.amin(1)).std() for z in poles)
    assert other > 4 * same


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(distance=(3.0, 9.0)), "distance from 3.0 to 9.0 m: at least 4"),
        (dict(distance=(9.0, 5.0)), "distance from 9.0 to 5.0 m"),
        (dict(points=7), "7 points a cloud: at least 8"),
        (dict(density=0.0), "density 0.0 is not above 0"),
        (dict(variety=0.6), "variety 0.6: between 0 and 0.5"),
        (dict(noise=-1.0), r"noise -1\.0 is negative"),
        (dict(labels=torch.tensor([0, 1, 8])), "labels from 0 to 8: classes are 0 to 7"),
        (dict(labels=torch.tensor([0])), r"3 objects need labels of shape \(3,\), not \(1,\)"),
    ],
)
def test_bad_descriptions_are_refused(bad, message):
    with pytest.raises(UsageError, match=message):
        lidar.make(3, **bad)
