"""The tensor of the device: a shell with shape, strides and device around a CPU tensor that computes.

Autograd, modules and optimizers work above it unchanged. What reaches `__torch_dispatch__` are the
operations that a backend implements; each is run by the CPU's own kernel on the tensors held. Every
operation of a chapter passes here, so the paths that are usual do as little as they can.
"""

import copy

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from . import rules
from .backend import NAME

# Made before or after the device has got its name, it is the same one.
_CPU, _DEVICE = torch.device("cpu"), torch.device("privateuseone", 0)
_SHELL = torch.Tensor._make_wrapper_subclass
counted = [0]  # operations so far: for reports


class DeviceTensor(torch.Tensor):
    """A tensor on `sim:0`; `held` is the CPU tensor with its values, strides and memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        counted[0] += 1
        plan = _PLANS.get(func) or _plan(func)
        return plan(args, kwargs)

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    # torch refuses these to every subclass, but not to a tensor of CUDA.

    def tolist(self):
        return self.held.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __repr__(self, *, tensor_contents=None) -> str:
        ends = f", device='{NAME}:0'" + (", requires_grad=True" if self.requires_grad else "")
        return repr(self.held).removesuffix(")") + ends + ")"

    layout = property(lambda self: self.held.layout)
    is_sparse = property(lambda self: self.held.is_sparse)
    is_sparse_csr = property(lambda self: self.held.is_sparse_csr)

    def to_dense(self, dtype=None, **options):
        return (
            super().to_dense(dtype, **options)
            if self.layout is torch.strided
            else self._to_dense(dtype)
        )

    # These would copy the shell and forget what it holds.

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if type(value) is not DeviceTensor:
            raise RuntimeError("data set to a tensor that requires an incompatible tensor type")
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def __deepcopy__(self, memo: dict) -> Tensor:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support deepcopy")
        twin = wrap(copy.deepcopy(self.held, memo)).requires_grad_(self.requires_grad)
        memo[id(self)] = twin
        own = {name: value for name, value in self.__dict__.items() if name != "held"}
        twin.__dict__.update(copy.deepcopy(own, memo))
        if self.grad is not None and not getattr(self, "_is_param", False):
            twin.grad = copy.deepcopy(self.grad, memo)
        return twin

    def __reduce_ex__(self, protocol):
        return _restore, (self.held, self.requires_grad, getattr(self, "_is_param", False))


def _restore(held: Tensor, requires_grad: bool, is_param: bool) -> Tensor:
    tensor = wrap(held)
    if is_param:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


def wrap(held: Tensor) -> DeviceTensor:
    """Put a CPU tensor on the device, without a copy."""
    size = held.size()
    try:
        strides = held.stride()
    except RuntimeError:  # a sparse tensor has none: the shell pretends
        strides = torch._prims_common.make_contiguous_strides_for(size)
    # By position: keywords would cost as much as the rest.
    shell = _SHELL(
        DeviceTensor, size, strides, held.storage_offset(), None, held.dtype, torch.strided, _DEVICE
    )
    shell.held = held
    return shell


def _wrap_all(result):
    """Put what an operation returned on the device: a tensor, several, or a plain value."""
    if type(result) is Tensor:
        return wrap(result)
    if type(result) in (tuple, list):
        return type(result)(_wrap_all(one) for one in result)
    return result


def _held(value, func, args, kwargs):
    """Return what the CPU's kernel takes for an argument that is no tensor of the device."""
    kind = type(value)
    if kind is list or kind is tuple:
        if not value or type(value[0]) is int:
            return value
        return [
            one.held if type(one) is DeviceTensor else _held(one, func, args, kwargs)
            for one in value
        ]
    if isinstance(value, Tensor):
        rules.check(func, args, kwargs)
    return value


def _held_keywords(func, args, kwargs: dict) -> dict:
    return {
        name: value.held if type(value) is DeviceTensor else _held(value, func, args, kwargs)
        for name, value in kwargs.items()
    }


# --- how an operation is run: decided once for each ----------------------------------------------

_PLANS = {}
_PLAIN = frozenset((int, float, bool, type(None), str))


def _plan(func):
    names = {argument.name for argument in func._schema.arguments}
    writes = rules.written(func)
    if func in _OWN:
        plan = _OWN[func]
    elif torch.Tag.inplace_view in func.tags:
        plan = _reshaping(func)
    elif writes:
        plan = _writing(func, writes)
    elif "device" in names:
        plan = _placing(func)
    else:
        plan = _returning(func)
    _PLANS[func] = plan
    return plan


def _computing(func):
    """Run `func` on the tensors held; whatever it returns is still on the CPU."""
    kernel, plain = func._op, _PLAIN

    def compute(args, kwargs):
        held = [
            a.held
            if type(a) is DeviceTensor
            else (a if type(a) in plain else _held(a, func, args, kwargs))
            for a in args
        ]
        if kwargs:
            return kernel(*held, **_held_keywords(func, args, kwargs))
        return kernel(*held)

    return compute


def _returning(func):
    """For an operation that returns something new, or a view: both share the CPU's memory."""
    compute = _computing(func)

    def run(args, kwargs):
        result = compute(args, kwargs)
        return wrap(result) if type(result) is Tensor else _wrap_all(result)

    return run


def _writing(func, writes: tuple):
    """For an operation that returns what it has written to: `x.add_(y)`, `torch.add(x, y, out=z)`."""
    compute = _computing(func)
    resizes = any(isinstance(place, str) for place in writes)  # only `out=` may change the shape
    returned = writes if func._schema.returns else ()

    def run(args, kwargs):
        compute(args, kwargs)
        written = [_at(place, args, kwargs) for place in returned]
        if resizes:
            for tensor in written:
                _sync(tensor)
        return written[0] if len(written) == 1 else (tuple(written) or None)

    return run


def _at(place: int | str, args, kwargs):
    return kwargs[place] if isinstance(place, str) else args[place]


def _reshaping(func):
    """For an operation that changes the shape in place: `x.squeeze_()`, `x.resize_(3)`."""
    compute = _computing(func)

    def run(args, kwargs):
        # Shells may share what they hold; only this one shall change.
        args[0].held = torch.ops.aten.alias(args[0].held)
        compute(args, kwargs)
        _sync(args[0])
        return args[0]

    return run


def _sync(shell: Tensor) -> None:
    """Give the shell the shape and strides of what it holds."""
    held = getattr(shell, "held", None)
    if held is None or (held.size() == shell.size() and held.stride() == shell.stride()):
        return
    place = held.storage_offset(), held.size(), held.stride()
    with no_dispatch():
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            torch.ops.aten.set_.source_Storage_storage_offset(
                shell, shell.untyped_storage(), *place
            )
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _placing(func):
    """For an operation that chooses the device of its result: `x.to(device)`, `zeros_like(x)`."""
    compute = _computing(func)

    def run(args, kwargs):
        asked = kwargs.get("device")
        result = compute(args, kwargs | {"device": _CPU})
        return result if asked is not None and asked.type != NAME else _wrap_all(result)

    return run


def copy_(args, kwargs=None):
    """Copy from any device to any other."""
    to, source = args[:2]
    (to.held if type(to) is DeviceTensor else to).copy_(
        source.held if type(source) is DeviceTensor else source
    )
    return to


def _detach(args, kwargs):
    return wrap(args[0].held)


def _may_share_a_shell(args, kwargs=None) -> bool:
    """May one tensor take the other's place? Only on one device."""
    return len({type(a) is DeviceTensor for a in args}) == 1


_OWN = {
    torch.ops.aten._has_compatible_shallow_copy_type.default: _may_share_a_shell,
    torch.ops.aten.copy_.default: copy_,
    torch.ops.aten.detach.default: _detach,
    torch.ops.aten.alias.default: _detach,
}
