"""What the tests of a chapter ask of its notebook: the checks of its exercises, and its `full` budget."""

import ast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.chapter import notebook, params


def checks(slug, **names):
    """Return the check functions of a chapter by name; `names` are what they use beyond its methods."""
    space = dict(lc=lc, np=np, torch=torch, F=F) | vars(lc.methods(slug)) | names
    found = {}
    for cell in notebook.read(catalogue.get(slug).path).tagged("check"):
        for part in ast.parse(cell.source).body:
            if isinstance(part, ast.FunctionDef):
                exec(compile(ast.Module([part], []), f"<{slug}, {part.name}>", "exec"), space)
                found[part.name] = space[part.name]
    return found


def each(wrong):
    """Return the mark that runs a test for `name` and `k`: the k-th of the answers to the check `name` in `wrong`."""
    return pytest.mark.parametrize(
        ("name", "k"), [(name, k) for name, answers in wrong.items() for k in range(len(answers))]
    )


def assert_named(slug, wrong, name, k, **names):
    """Assert that the check `name` rejects the k-th of its answers in `wrong`, in the words that stand beside it there."""
    answer, said = wrong[name][k]
    with pytest.raises(AssertionError, match=said):
        checks(slug, **names)[name](answer, strict=True)


def full_budget(slug):
    """Return what every parameter of a chapter is at the budget `full`."""
    path = catalogue.get(slug).path
    return params.resolved(params.read(path), params.presets(path)["full"], {})


def assert_papers(full, paper):
    """Assert that the values `full` are those of `paper`: name -> (value, where it is said)."""
    assert {name: full[name] for name in paper} == {k: value for k, (value, _) in paper.items()}
