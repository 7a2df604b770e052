"""lefcourse: learning with few, noisy, weak or missing labels, one chapter notebook for each of 61 papers.

In a notebook: `import lefcourse as lc`. The method of a chapter stands in the chapter; here are the
things that several chapters share. What is heavy is imported when it is first used.
"""

import importlib

# Bound here at once, because a module of the same name would otherwise take their place.
from .explore import explore as explore
from .progress import progress as progress

__version__ = "0.1.0"

# public name -> module that defines it (under that name, unless another is given)
_HOME = {
    "Run": "run",
    "seed_everything": "run",
    "resolve_device": "run",
    "methods": "notebook.load_methods",
    "show": "plot",
    "say": "plot",
    "checker": "exercise",
    "load": "data",
    "Data": "data",
    "few_labels": "data",
    "fit": "training",
    "batches": "training",
    "predict": "evaluate",
    "accuracy": "evaluate",
    "UsageError": "errors",
    "DataError": "errors",
}
_MODULES = {
    "augment",
    "catalogue",
    "data",
    "detection",
    "evaluate",
    "labels",
    "miniclip",
    "nets",
    "plot",
    "results",
    "segmentation",
    "training",
    "worlds",
}
__all__ = sorted([*_HOME, *_MODULES, "explore", "progress"])


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        module, _, original = _HOME[name].partition(".")
        value = getattr(importlib.import_module(f"{__name__}.{module}"), original or name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
