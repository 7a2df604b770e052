import pytest
import torch

import lefcourse as lc
from lefcourse.errors import DataError
from lefcourse.science import scene_annotator
from lefcourse.science.worlds import scenes


@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(0)
    model = lc.manylabels.convnet(scene_annotator.CLASSES)
    path = tmp_path / "new" / "annotator.safetensors"
    scene_annotator.save(model, path, {"seed": 3, "images": [1, 2]})
    return model.eval(), path


def test_what_is_saved_is_read(stored):
    model, path = stored
    again, facts = scene_annotator.load(path=path)
    x = torch.rand(2, 3, 48, 48)
    assert facts == {"seed": 3, "images": [1, 2]}
    assert not again.training and torch.equal(again(x), model(x))


def test_an_absent_and_a_broken_file_are_named_with_the_command_that_makes_it(stored, tmp_path):
    _, path = stored
    with pytest.raises(DataError, match=r"absent.safetensors is absent: make it by `lefcourse run"):
        scene_annotator.load(path=tmp_path / "absent.safetensors")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"annotator.safetensors is broken .*: make it by"):
        scene_annotator.load(path=path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "annotator.safetensors"
    scene_annotator.save(lc.manylabels.convnet(3), path, {})
    with pytest.raises(DataError, match="broken"):
        scene_annotator.load(path=path)


def test_the_stored_one_knows_scenes_that_it_has_not_seen():
    model, facts = scene_annotator.load()
    how = dict(classes=scene_annotator.CLASSES, size=48, radius=(0.1, 0.24))
    drawn = scenes.make(300, seed=77, objects=(1, 4), overlap=0.0, **how)
    said = model(drawn.image).argmax(1)
    assert drawn.labels.gather(1, said[:, None]).mean() > 0.95  # a class that is there
    assert facts["taught"] == 12_000
