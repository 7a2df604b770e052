"""The checks of a chapter's exercises, out of its notebook, so that tests can feed them wrong answers."""

import ast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.chapter import notebook


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
