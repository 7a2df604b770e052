"""Plain training for baselines and oracles, and batches for the chapters' own loops.

Data lies on the device as tensors, so a batch is an index: no loader, no worker processes.
"""

import math
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lefcourse.errors import UsageError, choice
from lefcourse.progress import progress as progress_bar

SCHEDULES = ("constant", "cosine")


def batches(
    n: int, size: int, generator: torch.Generator | None = None, *, steps: int | None = None
) -> Iterator[Tensor]:
    """Yield index tensors of at most `size` of `n` samples: one pass in random order.

    With `steps`: exactly so many batches of exactly `size`, cut from one random order after another,
    also where `size` exceeds `n` (few labels). Indices are on the generator's device (None: CPU).
    """
    device = generator.device if generator else "cpu"

    def order() -> Tensor:
        return torch.randperm(n, generator=generator, device=device)

    if steps is None:
        yield from order().split(size)
        return
    stock = order()
    for _ in range(steps):
        while len(stock) < size:
            stock = torch.cat([stock, order()])
        yield stock[:size]
        stock = stock[size:]


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch: int = 64,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    optimizer: str = "sgd",
    schedule: str = "constant",
    augment: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
    generator: torch.Generator | None = None,
    each_epoch: Callable[[int, nn.Module], dict] | None = None,
    progress: str | None = None,
) -> list[dict]:
    """Train `model` on `x`, `y` in place, for `epochs` passes or for `steps` steps.

    Args:
        x: images (N, C, H, W) on the model's device.
        y: what `loss(logits, y)` takes: labels (N,), or probabilities (N, n_classes).
        optimizer: `sgd` (with `momentum`) or `adam` (for which `lr` should be about 1e-3).
        schedule: `constant`, or `cosine` (to zero over all steps).
        augment: `augment(images, generator)`, applied to each batch.
        generator: draws the batches and the augmentation; on the device of `x`.
        each_epoch: called as `each_epoch(epoch, model)`; the dict it returns joins the history.
        progress: a name for a progress bar.

    Returns:
        One dict for each pass over the data: `epoch` (from 1), `step`, `loss` (mean over the pass), and
        what `each_epoch` returned. With `steps` the last pass may be a partial one.
        A loss that is not finite is warned of once; the training goes on, so that the history is whole.
    """
    if (epochs is None) == (steps is None):
        raise UsageError(f"give either epochs or steps, not epochs={epochs} and steps={steps}")
    per_epoch = -(-len(x) // batch)
    total = steps if epochs is None else epochs * per_epoch
    opt = _optimizer(model, optimizer, lr, momentum, weight_decay)
    annealing = anneal(opt, schedule, total)
    indices = _stream(len(x), batch, generator, epochs, steps)
    if progress:
        indices = progress_bar(indices, progress, total)

    history, seen, summed = [], 0, torch.zeros((), device=x.device)
    model.train()
    for step, i in enumerate(indices, start=1):
        images = augment(x[i], generator) if augment else x[i]
        batch_loss = loss(model(images), y[i])
        opt.zero_grad()
        batch_loss.backward()
        opt.step()
        annealing.step()
        seen, summed = seen + len(i), summed + batch_loss.detach() * len(i)
        if step % per_epoch == 0 or step == total:
            entry = {"epoch": len(history) + 1, "step": step, "loss": float(summed) / seen}
            if not math.isfinite(entry["loss"]) and (
                not history or math.isfinite(history[-1]["loss"])
            ):
                _warn_of_divergence(progress, entry)
            if each_epoch:
                entry |= each_epoch(entry["epoch"], model)
                model.train()
            history.append(entry)
            seen, summed = 0, torch.zeros_like(summed)
    return history


def _warn_of_divergence(name: str | None, entry: dict) -> None:
    message = f"{name or 'the network'} has diverged: in pass {entry['epoch']} the loss is {entry['loss']}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _stream(n, batch, generator, epochs, steps) -> Iterator[Tensor]:
    if steps is not None:
        yield from batches(n, batch, generator, steps=steps)
        return
    for _ in range(epochs):
        yield from batches(n, batch, generator)


def _optimizer(model, name, lr, momentum, weight_decay) -> torch.optim.Optimizer:
    if choice("optimizer", name, ("sgd", "adam")) == "adam":
        return torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    return torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay)


def anneal(
    opt: torch.optim.Optimizer, schedule: str, total: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the scheduler to step after each of `total` steps: `constant`, or `cosine` (to zero)."""
    if choice("schedule", schedule, SCHEDULES) == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(opt, total)
    return torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0)
