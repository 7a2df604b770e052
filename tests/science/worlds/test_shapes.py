"""The world of shapes: every label agrees with the description, and with the picture."""

import math
import re
from dataclasses import fields, replace

import pytest
import torch

from lefcourse.errors import UsageError
from lefcourse.science.worlds import shapes as S


@pytest.fixture(scope="module")
def many():
    return S.make(60, objects=(1, 5), size=64, seed=3, style="mixed")


def alone(shape, radius=20.0, angle=0.0, size=64, **change):
    """One object in the middle of one scene."""
    scenes = S.sample(1, size=size, seed=0)
    at = torch.tensor([[[size / 2, size / 2]]])
    values = dict(shape=S.SHAPES.index(shape), radius=radius, angle=angle, texture=0)
    same = {k: torch.full_like(getattr(scenes, k), v) for k, v in values.items()}
    return replace(scenes, centre=at, **same, **change)


def test_the_same_seed_gives_the_same_scenes():
    a, b, c = (S.sample(20, objects=(1, 4), seed=s, style="mixed") for s in (1, 1, 2))
    for f in fields(S.Scenes):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert x == y if isinstance(x, int) else torch.equal(x, y)
    assert torch.equal(S.render(a), S.render(b))
    assert not torch.equal(S.render(a), S.render(c))


def test_a_scene_renders_alike_alone_and_among_others(many):
    index = torch.tensor([7, 3, 41])
    assert torch.equal(S.render(many.scenes[index]), many.image[index])
    assert torch.equal(S.masks(many.scenes[index]), many.masks[index])
    assert torch.equal(S.render(many.scenes[5])[0], many.image[5])
    assert torch.equal(S.render(many.scenes[-1])[0], many.image[-1])


def test_scenes_are_indexed_like_a_list(many):
    scenes = many.scenes
    assert [len(one) for one in scenes] == [1] * len(scenes)
    odd = torch.arange(len(scenes)) % 2 == 1
    for index, noise in (
        (-1, scenes.noise[-1:]),
        (torch.tensor(3), scenes.noise[3:4]),
        (slice(2, 5), scenes.noise[2:5]),
        ([4, 1], scenes.noise[[4, 1]]),
        (odd, scenes.noise[1::2]),
    ):
        assert torch.equal(scenes[index].noise, noise)
    with pytest.raises(IndexError):
        scenes[len(scenes)]


def test_chunks_do_not_show(many, monkeypatch):
    monkeypatch.setattr(S, "CHUNK", 1)
    assert torch.equal(S.render(many.scenes), many.image)


def test_images_are_images(many):
    assert many.image.shape == (60, 3, 64, 64) and many.image.dtype == torch.float32
    assert many.image.min() >= 0 and many.image.max() <= 1


def test_no_scenes_at_all():
    x, y = S.classification(0)
    assert x.shape == (0, 3, 32, 32) and y.shape == (0,)


def test_masks_do_not_overlap_and_belong_to_objects(many):
    assert many.masks.sum(1).max() <= 1
    assert not many.masks[~many.scenes.valid].any()


def test_boxes_are_tight_around_masks(many):
    for mask, box in zip(many.masks.flatten(0, 1), many.boxes.flatten(0, 1), strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        expected = [0, 0, 0, 0]
        if len(rows):
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [float(e) for e in expected]


def test_panoptic_and_semantic_agree_with_masks(many):
    ids, classes = many.panoptic
    for k in range(many.masks.shape[1]):
        assert torch.equal(ids == k + 1, many.masks[:, k])
    assert torch.equal(classes.gather(1, ids.flatten(1)).view_as(ids), many.semantic)
    assert (classes[:, 0] == 0).all() and (classes[:, 1:][~many.scenes.valid] == -1).all()


def test_the_matte_agrees_with_the_masks(many):
    assert many.alpha.shape == (60, 1, 64, 64)
    assert many.alpha.min() >= 0 and many.alpha.max() <= 1
    single = S.make(20, size=64, seed=4)
    assert torch.equal(single.alpha[:, 0] > 0.5, single.masks[:, 0])
    shown = S.visible(many.scenes)
    assert torch.allclose(shown.sum(1), torch.ones(60, 64, 64), atol=1e-5)
    assert torch.allclose(1 - shown[:, -1:], many.alpha, atol=1e-6)


def test_the_nearer_object_hides_the_farther(many):
    scenes = many.scenes
    full = S.coverage(scenes) > 0.99
    for n in range(len(scenes)):
        both = (full[n].sum(0) >= 2).nonzero()
        for row, column in both[:20]:
            there = full[n, :, row, column].nonzero().flatten()
            nearest = there[scenes.depth[n, there].argmin()]
            assert many.masks[n, nearest, row, column]
            assert many.depth[n, row, column] == scenes.depth[n, nearest]
    assert (many.depth[~many.masks.any(1)] == 1).all()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_keypoints_lie_on_their_object(size):
    world = S.make(200, size=size, seed=5)
    points, seen = world.keypoints
    assert points.shape == (200, 1, 5, 2)
    assert seen[:, 0].all(), "alone in the picture, all five points are seen"
    near = torch.nn.functional.max_pool2d(world.masks.float(), 3, stride=1, padding=1)
    x, y = points.int().unbind(-1)
    on = near.flatten(2).gather(2, (y * size + x).long())
    assert on.all(), "at most a pixel from the object's mask, also at a sharp corner"


def test_hidden_keypoints_are_not_seen(many):
    points, seen = many.keypoints
    hidden = 0
    for n, k in many.scenes.valid.nonzero().tolist():
        nearer = many.scenes.depth[n] < many.scenes.depth[n, k]
        for (x, y), is_seen in zip(points[n, k].int().tolist(), seen[n, k].tolist(), strict=True):
            assert is_seen != many.masks[n, nearer, y, x].any()
            hidden += not is_seen
    assert hidden > 0
    assert not seen[~many.scenes.valid].any()


def test_keypoints_turn_with_the_object():
    top = lambda angle: S.keypoints(alone("star", angle=angle))[0][0, 0, 0]  # noqa: E731
    assert torch.allclose(top(0.0), torch.tensor([32.0, 32 - 0.86 * 20]))
    assert torch.allclose(top(math.pi / 2), torch.tensor([32 + 0.86 * 20, 32.0]), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi * 0.95**2),
        ("ring", math.pi * (0.96**2 - 0.44**2)),
        ("square", 1.4**2),
        ("rectangle", 1.8 * 0.84),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("hexagon", 3 * math.sqrt(3) / 2),
        ("cross", 2 * 1.86 * 0.6 - 0.6**2),
        ("heart", 1.6**2 * (0.5 + math.pi / 8)),
        ("semicircle", math.pi / 2 * 0.9**2),
        ("diamond", 2 * 0.6 * 0.96),
        ("pentagon", 2.5 * math.sin(2 * math.pi / 5)),
        ("arrow", 0.7 * 0.83 + 0.52 * 1.02),
    ],
)
def test_areas(shape, area):
    for angle in (0.0, 0.4):
        covered = S.coverage(alone(shape, radius=40.0, angle=angle, size=128)).sum().item()
        assert covered / 40**2 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("shape", [s for s in S.SHAPES if s not in ("cross", "crescent")])
def test_exact_distances_are_those_to_the_nearest_point_of_the_edge(shape):
    step = 0.005
    at = torch.arange(-1.2, 1.2, step, dtype=torch.float64)
    d = S.SDF[shape](at[None, :], at[:, None])
    row, column = (d.abs() < step).nonzero(as_tuple=True)
    edge = torch.stack([at[column], at[row]], 1)
    g = torch.Generator().manual_seed(0)
    points = 2.2 * torch.rand(400, 2, generator=g, dtype=torch.float64) - 1.1
    nearest = torch.cdist(points, edge).amin(1)
    assert ((S.SDF[shape](*points.T).abs() - nearest).abs() < 2.5 * step).all()


@pytest.mark.parametrize("shape", S.SHAPES)
def test_distances_grow_by_one_per_unit_near_the_edge(shape):
    g = torch.Generator().manual_seed(0)
    x, y = (2.4 * torch.rand(2, 20_000, generator=g, dtype=torch.float64) - 1.2).requires_grad_()
    d = S.SDF[shape](x, y)
    slope = torch.hypot(*torch.autograd.grad(d.sum(), (x, y)))
    near = (d.abs() < 0.05) & slope.isfinite()
    assert (slope[near] - 1).abs().mean() < 0.02
    assert (d[torch.hypot(x, y) > 1.15] > 0).all(), "the object lies within its radius"


def test_every_shape_keeps_its_keypoints_inside():
    for name, points in S.KEYPOINTS.items():
        x, y = torch.tensor(points).T
        assert (S.SDF[name](x, y) < 0).all(), name


def test_captions_name_every_object_in_true_relations(many):
    pattern = r"a (small|large) (?:(striped|dotted|checked) )?(\w+) (\w+)"
    for n, caption in enumerate(many.captions):
        scenes, colours = many.scenes, list(S.COLOURS)
        there = [k for k in range(5) if scenes.valid[n, k]]
        there.sort(key=lambda k: scenes.centre[n, k, 0])
        found = re.findall(pattern, caption)
        assert len(found) == len(there)
        for (size, texture, colour, shape), k in zip(found, there, strict=True):
            assert size == S.SIZES[scenes.large[n, k]]
            assert (texture or "solid") == S.TEXTURES[scenes.texture[n, k]]
            assert colour == colours[scenes.colour[n, k]]
            assert shape == S.SHAPES[scenes.shape[n, k]]
        relations = re.findall(r"left of|above|below", caption)
        for relation, a, b in zip(relations, there, there[1:], strict=False):
            (ax, ay), (bx, by) = scenes.centre[n, a], scenes.centre[n, b]
            assert {"left of": ax < bx, "above": ay < by, "below": ay > by}[relation]


def test_attributes_are_those_of_the_objects(many):
    scenes, colours = many.scenes, list(S.COLOURS)
    for n in range(20):
        names = set()
        for k in scenes.valid[n].nonzero().flatten().tolist():
            names |= {S.SHAPES[scenes.shape[n, k]], colours[scenes.colour[n, k]]}
            names |= {S.TEXTURES[scenes.texture[n, k]], S.SIZES[scenes.large[n, k]]}
        hot = {S.ATTRIBUTES[i] for i in many.attributes[n].nonzero().flatten()}
        assert hot == names


def test_classes_and_superclasses(many):
    for index, group in zip(many.classes.flatten(), many.superclasses.flatten(), strict=True):
        if index < 0:
            assert group == -1
        else:
            assert S.SHAPES[index] in list(S.SUPERCLASSES.values())[group]
    assert sorted(s for g in S.SUPERCLASSES.values() for s in g) == sorted(S.SHAPES)


def test_long_tail():
    counts = (
        S.classification(6000, size=8, long_tail=20.0, seed=0)[1].bincount(minlength=16).float()
    )
    expected = 20.0 ** -(torch.arange(16) / 15)
    expected *= 6000 / expected.sum()
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_frequencies_of_the_shapes():
    scenes = S.sample(6000, shapes=("star", "heart", "bolt"), frequencies=(6, 3, 1), seed=0)
    counts = scenes.shape.flatten().bincount(minlength=16)
    for name, share in (("star", 0.6), ("heart", 0.3), ("bolt", 0.1)):
        assert counts[S.SHAPES.index(name)] / 6000 == pytest.approx(share, abs=0.03)
    assert counts.sum() == 6000


def test_radius_for_all_objects_or_for_each():
    scenes = S.sample(400, objects=2, radius=((0.2, 0.3), (0.1, 0.12)), size=100)
    low, high = scenes.radius.amin(0), scenes.radius.amax(0)
    assert torch.allclose(low, torch.tensor([20.0, 10.0]), atol=0.5)
    assert torch.allclose(high, torch.tensor([30.0, 12.0]), atol=0.5)
    assert torch.equal(scenes.large, scenes.radius > torch.tensor([25.0, 11.0]))
    same = S.sample(400, objects=2, radius=(0.2, 0.3), size=100).radius
    assert same.min() >= 20 and same.max() <= 30 and same[:, 1].max() > 29


def test_shares_of_the_styles():
    shares = {"flat": 0.5, "sketch": 0.2, "noisy": 0.3}
    scenes = S.sample(4000, style=shares)
    for index, name in enumerate(S.STYLES):
        found = (scenes.style == index).float().mean()
        assert found == pytest.approx(shares.get(name, 0), abs=0.03)
    for name in S.STYLES:
        assert (S.sample(50, style=name).style == S.STYLES.index(name)).all()


def test_a_sketch_is_an_outline():
    flat = alone("square", radius=40.0, size=128)
    sketch = replace(flat, style=torch.full_like(flat.style, S.STYLES.index("sketch")))
    gap = (S.render(sketch)[0] - (0.5 + 0.5 * sketch.background[0])[:, None, None]).abs().sum(0)
    inked = gap > 0.05
    assert not inked[64, 64] and not inked[0, 0], "neither the middle nor the paper"
    assert inked[64, 64 - 27] and inked[64, 64 + 26], "the edge, at 0.7 of the radius"
    assert not (inked & ~S.masks(sketch)[0, 0]).any(), "the pen stays inside the object"


def test_a_noisy_picture_is_blurred_around_the_same_mean():
    flat = S.sample(40, size=64, seed=8)
    noisy = replace(flat, style=torch.full_like(flat.style, S.STYLES.index("noisy")))
    a, b = S.render(flat), S.render(noisy)
    assert (a - b).abs().mean() > 0.05
    assert (a.mean((1, 2, 3)) - b.mean((1, 2, 3))).abs().max() < 0.05
    assert (b - b.roll(1, -1)).abs().mean() > (a - a.roll(1, -1)).abs().mean(), "grain"


def test_held_out_classes_and_compositions():
    exclude = [("red", "star"), ("blue", "star"), ("red", "heart")]
    scenes = S.sample(
        3000, shapes=("star", "heart"), colours=("red", "blue", "green"), exclude=exclude
    )
    names = list(S.COLOURS)
    pairs = {
        (names[c], S.SHAPES[s])
        for c, s in zip(scenes.colour.flatten(), scenes.shape.flatten(), strict=True)
    }
    assert pairs == {("green", "star"), ("blue", "heart"), ("green", "heart")}
    share = (scenes.shape == S.SHAPES.index("star")).float().mean()
    assert share == pytest.approx(0.5, abs=0.05), (
        "leaving pairs out does not change the classes' shares"
    )


def test_objects_are_seldom_much_hidden():
    scenes = S.sample(300, objects=5, size=96, seed=0)
    shown = S.visible(scenes)[:, :-1].sum((2, 3)) / S.coverage(scenes).sum((2, 3))
    assert (shown > 0.5).float().mean() > 0.95


@pytest.mark.parametrize("style", S.STYLES[1:])
def test_styles_differ_but_not_their_labels(style):
    flat = S.sample(10, seed=6)
    other = replace(flat, style=torch.full_like(flat.style, S.STYLES.index(style)))
    assert (S.render(flat) - S.render(other)).abs().mean() > 0.02
    assert torch.equal(S.masks(flat), S.masks(other))


def test_object_count_and_sizes():
    scenes = S.sample(500, objects=(2, 4), size=48)
    counts = scenes.valid.sum(1)
    assert counts.unique().tolist() == [2, 3, 4]
    assert (scenes.centre >= scenes.radius[..., None] - 1e-4).all()
    assert (scenes.centre <= 48 - scenes.radius[..., None] + 1e-4).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ("sqare",)}, "did you mean 'square'"),
        ({"colours": ("gren",)}, "did you mean 'green'"),
        ({"style": "reel"}, "did you mean 'real'"),
        ({"exclude": [("red", "sta")]}, "did you mean 'star'"),
        (
            {"colours": ("red",), "exclude": [("red", "star")]},
            "no colour is left for the shape 'star'",
        ),
        ({"objects": (3, 2)}, "objects"),
        ({"style": {"flat": 1, "reel": 1}}, "did you mean 'real'"),
        ({"style": {"flat": -1}}, "must be positive"),
        ({"frequencies": (1, 2)}, "2 frequencies for 16 shapes"),
        ({"radius": (0.3, 0.2)}, "radius"),
        ({"radius": ((0.1, 0.2), (0.1, 0.2))}, "radius"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(UsageError, match=message):
        S.sample(3, **change)
