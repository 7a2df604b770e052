"""Where the numbers come from: the device, and every random draw from the run's seed."""

import os
import random
import zlib

import numpy as np
import torch

from lefcourse.errors import UsageError, choice
from lefcourse.settings import DEVICES

# cuBLAS repeats its sums in the same order only with a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` is `LEFCOURSE_DEVICE` if set, else CUDA where there is one.

    Raises UsageError for an unknown name, and for `cuda` on a machine without it.
    """
    name = choice("device", name, DEVICES)
    if name == "auto":
        name = choice("device", os.environ.get("LEFCOURSE_DEVICE") or "auto", DEVICES)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device 'cuda' was asked for, but torch finds no CUDA device here; choices: auto, cpu"
        )
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask torch for algorithms that repeat their results."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # The same as use_deterministic_algorithms(True, warn_only=True), which takes two seconds to import a compiler.
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def stream_seed(seed: int, stream: str) -> int:
    """Return the seed of one named stream of draws of a run."""
    return seed * 1_000_003 + zlib.crc32(stream.encode())
