import json
from pathlib import Path

import pytest
import torch

from lefcourse import files
from lefcourse.errors import UsageError


def test_write_json_leaves_no_partial_file(tmp_path):
    files.write_json(tmp_path / "a" / "r.json", {"x": float("inf"), "y": torch.tensor([1, 2])})
    assert json.loads((tmp_path / "a" / "r.json").read_text()) == {"x": None, "y": [1, 2]}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["r.json"]


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for wrong in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        Path("/proc/nowhere"),
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(UsageError, match=r"^cannot write into the folder .*--out") as refused:
            files.writable(wrong)
        assert "\n" not in str(refused.value)
    made = files.writable(tmp_path / "new" / "folder")
    assert made.is_dir() and not [*made.iterdir()]
