"""Put the device into torch, and take it out again."""

import contextlib
from collections.abc import Iterator

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._device import _device_constructors

from . import backend, generators, kernels


@contextlib.contextmanager
def installed() -> Iterator[torch.device]:
    """Let `sim` be a device that computes, within the `with`; what it changes in torch is undone after.

    Afterwards tensors on the device still exist, but generators for it can no longer be made.
    """
    device = backend.device()
    kernels.register()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    threaded = torch.autograd.is_multithreading_enabled()
    _device_constructors()  # torch remembers them at the first call: it shall know the true ones
    with contextlib.ExitStack() as undo:
        _replace(undo, torch.autograd, "_engine_run_backward", _backward)
        for owner, name, replacement in generators.replacements():
            _replace(undo, owner, name, replacement)
        # A parameter moved to the device stays the same object, as on CUDA.
        undo.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        torch.__future__.set_swap_module_params_on_conversion(True)
        # Autograd starts threads for the devices that it knows at its first backward pass, which
        # may have been before this one was registered. In one thread it needs none.
        undo.callback(torch._C._set_multithreading_enabled, threaded)
        torch._C._set_multithreading_enabled(False)
        yield device


def _replace(undo: contextlib.ExitStack, owner, name: str, replacement) -> None:
    """Set an attribute; afterwards the owner has its own one again, or none if it had none."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, replacement)


def _backward(*args, **kwargs):
    """Run a backward pass; an error that the device's guard had to take up is raised again."""
    backend.taken_up.clear()
    try:
        return _engine_run_backward(*args, **kwargs)
    except SystemError as nothing_set:
        if backend.taken_up:
            raise backend.taken_up[0] from None
        raise nothing_set
