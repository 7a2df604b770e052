"""The device, and seeds for every draw."""

import pytest
import torch

from lefcourse.errors import UsageError
from lefcourse.science import seeds


def test_cuda_that_is_absent_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        seeds.resolve_device("cuda")
    monkeypatch.setenv("LEFCOURSE_DEVICE", "cuda")
    with pytest.raises(UsageError, match="no CUDA device"):
        seeds.resolve_device("auto")
    assert seeds.resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:0", ""])
def test_other_devices_are_unknown(name):
    with pytest.raises(UsageError, match="unknown device"):
        seeds.resolve_device(name)
