"""lefcourse: learning with few, noisy, weak or missing labels, one chapter notebook for each of 61 papers.

In a notebook: `import lefcourse as lc`. The method of a chapter stands in the chapter; here are the
things that several chapters share. What is heavy is imported when it is first used.
"""

import importlib

# Bound here at once, because a module of the same name would otherwise take their place.
from lefcourse.page.explore import explore as explore
from lefcourse.progress import progress as progress

__version__ = "0.1.0"

# What `import lefcourse as lc` offers: a public name -> the module that defines it.
OFFERED = {
    "Run": "running.run",
    "seed_everything": "science.seeds",
    "resolve_device": "science.seeds",
    "methods": "chapter.methods",
    "show": "page.plot",
    "say": "page.plot",
    "checker": "page.exercise",
    "load": "science.data",
    "Data": "science.data",
    "few_labels": "science.data",
    "fit": "science.training",
    "batches": "science.training",
    "predict": "science.evaluate",
    "accuracy": "science.evaluate",
    "diverged": "science.evaluate",
    "UsageError": "errors",
    "DataError": "errors",
}
# Whole modules: a public name -> its room.
MODULES = {
    "augment": "science",
    "data": "science",
    "detection": "science",
    "evaluate": "science",
    "labels": "science",
    "manylabels": "science",
    "miniclip": "science",
    "nets": "science",
    "scene_annotator": "science",
    "segmentation": "science",
    "training": "science",
    "worlds": "science",
    "plot": "page",
    "results": "ledger",
}
__all__ = sorted([*OFFERED, *MODULES, "catalogue", "explore", "progress"])


def __getattr__(name: str):
    if name in MODULES:
        value = importlib.import_module(f"{__name__}.{MODULES[name]}.{name}")
    elif name in OFFERED:
        value = getattr(importlib.import_module(f"{__name__}.{OFFERED[name]}"), name)
    elif name == "catalogue":
        return importlib.import_module(f"{__name__}.catalogue")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
