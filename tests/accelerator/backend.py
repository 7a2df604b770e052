"""The name and the hooks that torch wants of a device; registered once and for the whole process.

torch can neither rename nor remove a backend again: what stays behind is the name `sim`, which nothing
uses by itself. Everything that changes torch's behaviour is in `device.py` and can be undone.
"""

import contextlib
import ctypes
import functools

import torch
from torch.utils.backend_registration import (
    _DummyDeviceGuard,
    _setup_privateuseone_for_python_backend,
)

NAME = "sim"


class _Module:
    """What stands behind `torch.sim`: the questions that torch asks the module of a device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def synchronize(self, device=None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device=None) -> None:
        torch.set_rng_state(state)

    def device(self, device) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: the device draws from the CPU's default generator, which is seeded anyway."""

    def _is_in_bad_fork(self) -> bool:
        return False


# Errors that the guard took up while autograd was on its way out of a backward pass.
taken_up: list[BaseException] = []
_error_pending = ctypes.pythonapi.PyErr_Occurred


class _Guard(_DummyDeviceGuard):
    """Answers what kind of device this is, also while an error of Python's is on its way through C++.

    Autograd asks when it leaves a node. To answer with an error pending would end the process, so the
    error is kept in `taken_up`; `backward` in device.py raises it again.
    """

    def type_(self):
        try:
            _error_pending()  # ctypes raises a pending error as if this call had failed
        except BaseException as error:
            taken_up.append(error)
        return _TYPE


_TYPE = torch._C._autograd.DeviceType.PrivateUse1


@functools.cache
def device() -> torch.device:
    """Return the device `sim:0`; the first call makes it known to torch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), device_guard=_Guard())
    return torch.device(NAME, 0)
