"""The world of scenes: labels agree with masks, and what is drawn is what was asked for."""

import pytest
import torch

from lefcourse.errors import UsageError
from lefcourse.science.worlds import scenes, shapes


@pytest.fixture(scope="module")
def seen():
    return scenes.make(300, seed=3, overlap=1.5)


def test_labels_agree_with_the_masks(seen):
    shown = seen.masks.flatten(2).float().mean(2)
    assert torch.allclose(shown, seen.area)
    assert torch.equal(seen.labels, (shown >= scenes.SEEN).float())
    drawn = torch.zeros_like(seen.labels)
    for k in range(seen.kind.shape[1]):
        there = seen.kind[:, k] >= 0
        drawn[there, seen.kind[there, k]] = 1
    assert (seen.labels <= drawn).all()  # nothing is present that was not drawn
    assert 0 < (drawn - seen.labels).sum() < 0.05 * drawn.sum()  # some are hidden, few


def test_masks_agree_with_those_of_shapes():
    seen = scenes.make(100, classes=("circle", "star", "ring"), objects=(1, 3), seed=3)
    table = torch.tensor([shapes.SHAPES.index(name) for name in seen.classes])
    classes = shapes.semantic(seen.scenes)  # 0 background, k + 1 the k-th of SHAPES
    for k in range(len(seen.classes)):
        assert torch.equal(seen.masks[:, k], classes == table[k] + 1)


def test_neither_colour_nor_shape_tells_a_class():
    for classes in (12, 15, 16):
        named = [name.split() for name in scenes.names(classes)]
        assert len(set(map(tuple, named))) == classes
        for part in (0, 1):
            words = [name[part] for name in named]
            assert min(words.count(word) for word in words) > 1


def test_every_object_is_of_another_class(seen):
    for kinds in seen.kind:
        there = kinds[kinds >= 0]
        assert 1 <= len(there) <= 4 and len(set(there.tolist())) == len(there)


def test_a_seed_is_a_set_of_scenes(seen):
    torch.manual_seed(9)  # the global generator has no say
    again, other = scenes.make(300, seed=3, overlap=1.5), scenes.make(300, seed=4, overlap=1.5)
    assert torch.equal(again.image, seen.image) and torch.equal(again.labels, seen.labels)
    assert not torch.equal(other.labels, seen.labels)
    some = seen[torch.tensor([5, 2])]
    assert torch.equal(some.image, seen.image[[5, 2]]) and torch.equal(some.area, seen.area[[5, 2]])
    assert len(seen[-1]) == 1


def test_a_tail_makes_the_first_classes_frequent():
    even, tailed = (
        scenes.make(4000, seed=0, objects=1, tail=t).labels.mean(0) for t in (1.0, 20.0)
    )
    assert even.max() < 1.5 * even.min()
    assert tailed[0] > 12 * tailed[-1] and (tailed[:-3] > tailed[3:]).all()
    often = scenes.frequencies(5, 16.0)
    assert often.tolist() == pytest.approx([16, 8, 4, 2, 1])


def test_coloured_shapes_are_classes():
    seen = scenes.make(
        50, classes=("red star", "blue star", "ring"), objects=(1, 3), size=48, seed=0
    )
    palette = [*shapes.COLOURS]
    for kind, shape, colour in zip(seen.kind, seen.scenes.shape, seen.scenes.colour, strict=True):
        for k, s, c in zip(kind.tolist(), shape.tolist(), colour.tolist(), strict=True):
            if k >= 0:
                assert shapes.SHAPES[s] == ("ring" if k == 2 else "star")
                assert k == 2 or palette[c] == ("red", "blue")[k]
    assert seen.image.shape == (50, 3, 48, 48) and seen.masks.shape == (50, 3, 48, 48)


def test_objects_can_be_taken_away(seen):
    alone = seen.kind.clone()
    alone[:, 1:] = -1
    first = scenes.dressed(seen.scenes, alone, seen.classes)
    assert (first.labels.sum(1) <= 1).all()
    assert (first.area.sum(1) >= seen.area.gather(1, seen.kind[:, :1])[:, 0] - 4 / 32**2).all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (dict(classes=1), "classes=1"),
        (dict(classes=17), "from 2 to 16"),
        (dict(classes=("red strar", "ring")), "strar"),
        (dict(classes=("rad star", "ring")), "rad"),
        (dict(classes=3, objects=(1, 4)), "no more than there are classes"),
        (dict(tail=0.5), "tail=0.5"),
        (dict(objects=(3, 2)), "objects="),
    ],
)
def test_what_cannot_be_drawn_is_refused(how, said):
    with pytest.raises(UsageError, match=said):
        scenes.make(3, **how)


def test_no_scenes_are_no_error():
    none = scenes.make(0)
    assert none.image.shape == (0, 3, 32, 32) and none.labels.shape == (0, 12)
