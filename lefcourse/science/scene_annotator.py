"""A classifier of scenes that comes with the course: it has seen more of them than the students of any chapter.

It has the small network of `manylabels` for the first 12 classes, and learned from single labels. The training stands
in the chapter `relabel`; the stored weights were made there by `lefcourse run relabel -p annotator ship -p seed 1000`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from lefcourse.errors import DataError
from lefcourse.paths import ASSETS
from lefcourse.science import manylabels
from lefcourse.science.nets import Classifier

CHECKPOINT = ASSETS / "relabel/annotator.safetensors"
MADE_BY = "lefcourse run relabel -p annotator ship -p seed 1000"
CLASSES = 12
# Data set, network, classes, and sides in pixels of the images that it learned from and of the crops from them.
FITS = ("scenes", "convnet", CLASSES, 48, 32)


def save(model: Classifier, path: Path, facts: Mapping) -> None:
    """Write the weights (safetensors), and with them how they were made: `facts`, of what JSON can say."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, path, metadata={"facts": json.dumps(dict(facts))})


def load(device: str | torch.device = "cpu", path: Path = CHECKPOINT) -> tuple[Classifier, dict]:
    """Return the network, in evaluation mode, and how it was made. Raises DataError if the file is absent or broken."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"{path} is absent: make it by `{MADE_BY}`")
    model = manylabels.convnet(CLASSES)
    try:
        model.load_state_dict(load_file(path), strict=True)
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
    except (SafetensorError, RuntimeError, OSError, KeyError, ValueError) as problem:
        first = " ".join(str(problem).split())[:200]
        raise DataError(f"{path} is broken ({first}): make it by `{MADE_BY}`") from None
    return model.to(device).eval(), facts
