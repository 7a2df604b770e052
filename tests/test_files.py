import json

import torch

from lefcourse import files


def test_write_json_leaves_no_partial_file(tmp_path):
    files.write_json(tmp_path / "a" / "r.json", {"x": float("inf"), "y": torch.tensor([1, 2])})
    assert json.loads((tmp_path / "a" / "r.json").read_text()) == {"x": None, "y": [1, 2]}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["r.json"]
