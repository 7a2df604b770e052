"""What a trained model is worth. Scores come from scikit-learn and torchmetrics."""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int = 1024) -> Tensor:
    """Return the model's outputs for all of `x`, in evaluation mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(part) for part in x.split(batch)])
    finally:
        model.train(was_training)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of `x` (N, C, H, W) whose class `y` (N,) the model gives the largest logit.

    NaN for a network that has diverged: its largest logit would be that of class 0, and the share of
    class 0 looks like an accuracy.
    """
    logits = predict(model, x)
    if diverged(logits):
        return math.nan
    return (logits.argmax(1) == y).float().mean().item()


def diverged(what: Tensor | nn.Module) -> bool:
    """Is any number of an output, or of a network's weights and statistics, not finite?"""
    tensors = what.state_dict().values() if isinstance(what, nn.Module) else [what]
    return not all(bool(torch.isfinite(t).all()) for t in tensors)


def confusion(logits: Tensor, y: Tensor) -> Tensor:
    """Count true classes (rows) against predicted ones (columns): (C, C) int64, on the CPU."""
    n_classes = logits.shape[1]
    cells = y * n_classes + logits.argmax(1)
    return torch.bincount(cells, minlength=n_classes**2).view(n_classes, n_classes).cpu()


def macro_f1(logits: Tensor, y: Tensor) -> float:
    """Return the F1 score averaged over all classes with equal weight (an absent class counts as 0)."""
    from sklearn.metrics import f1_score

    labels = range(logits.shape[1])
    predicted = logits.argmax(1).cpu()
    return float(f1_score(y.cpu(), predicted, labels=labels, average="macro", zero_division=0))


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Return the average precision over the columns of multi-hot `targets` (N, K) that have a positive."""
    from sklearn.metrics import average_precision_score

    present = targets.bool().any(0).cpu()
    return float(
        average_precision_score(
            targets.cpu()[:, present], scores.cpu()[:, present], average="macro"
        )
    )


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of softmax(`logits`) (N, C): Guo et al. (2017)."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(logits.softmax(1), y, logits.shape[1], n_bins=bins)
    return error.item()
