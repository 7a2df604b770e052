"""The fixture that puts the device into torch for one test."""

from collections.abc import Iterator

import pytest
import torch

from .device import installed


@pytest.fixture
def accelerator() -> Iterator[torch.device]:
    """The simulated device, part of torch while the test runs.

    Elsewhere in the tests: `from accelerator.fixture import accelerator`.
    """
    with installed() as device:
        yield device
