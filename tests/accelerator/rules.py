"""Which operations CUDA lets mix devices, and what it says of the others."""

import functools

import torch
from torch import Tensor

from .backend import NAME

# Copies go from any device to any other.
_COPIES = {"aten::copy_", "aten::_copy_from", "aten::copy"}
# These take a CPU index into a tensor of the device; a device index into a CPU tensor they refuse.
_INDEXED = {
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
    "aten::_unsafe_index", "aten::_unsafe_index_put",
}  # fmt: skip
# Not elementwise in torch's catalogue, but a 0-dimensional CPU tensor may be their value.
_TAKE_NUMBERS = {
    "aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_", "aten::index_fill",
    "aten::index_fill_",
}  # fmt: skip


def check(func, args: tuple, kwargs: dict | None) -> None:
    """Raise RuntimeError, as CUDA does, if `func` must not see tensors of both devices."""
    name = func._schema.name
    if name in _COPIES:
        return
    if name in _INDEXED:
        _check_indexed(func, args)
        return
    writes = written(func)
    for position, value in [*enumerate(args), *(kwargs or {}).items()]:
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor) and tensor.device.type != NAME:
                number = tensor.dim() == 0 and takes_numbers(func) and position not in writes
                if not number:
                    refuse(func)


def _check_indexed(func, args: tuple) -> None:
    values, indices = args[:2]
    if values.device.type != NAME and any(i is not None and i.device.type == NAME for i in indices):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor "
            f"({values.device}) (in {func})"
        )
    new = args[2] if len(args) > 2 else None
    if new is not None and new.device != values.device and new.dim():
        refuse(func)


def refuse(func) -> None:
    """Say what CUDA says; `func` is the operation, or its name."""
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{NAME}:0 and cpu! (when checking arguments of {func})"
    )


@functools.cache
def takes_numbers(func) -> bool:
    """May a 0-dimensional CPU tensor be an operand, as a number would?"""
    name = func._schema.name
    elementwise = torch.Tag.pointwise in func.tags or name.startswith("aten::_foreach_")
    return elementwise or name in _TAKE_NUMBERS


@functools.cache
def written(func) -> tuple[int | str, ...]:
    """Return the positions (of keyword arguments: names) of what `func` writes to."""
    return tuple(
        argument.name if argument.kwarg_only else position
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
