"""What the device registers with torch: the makers of new tensors, and composites that would differ.

All registrations are for the device's own keys, so that no other tensor meets them.
"""

import functools

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd.function import once_differentiable

from .rules import refuse
from .tensor import DeviceTensor, copy_, counted, wrap

_aten = torch.ops.aten
_CPU = torch.device("cpu")
_MAKERS = (
    "arange", "bartlett_window", "blackman_window", "empty", "empty_strided", "eye", "full",
    "hamming_window", "hann_window", "linspace", "logspace", "normal", "ones", "rand", "randint",
    "randn", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip


@functools.cache
def register() -> torch.library.Library:
    """Register everything, once for the process."""
    library = torch.library.Library("aten", "IMPL")
    for func in _makers():
        library.impl(func, _maker(func), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for func in (*_MIXED, _aten._local_scalar_dense.default):
        library.impl(func, _through_python(func), "PrivateUse1")
    for name, kernel in _COMPOSITES.items():
        library.impl(name, kernel, "AutogradPrivateUse1")
    return library


def _makers():
    """Yield the operations that make a tensor on a device out of no tensor."""
    for name in _MAKERS:
        packet = getattr(_aten, name)
        for overload in packet.overloads():
            func = getattr(packet, overload)
            arguments = func._schema.arguments
            tensors = [a for a in arguments if "Tensor" in str(a.type)]
            if not tensors and any(a.name == "device" for a in arguments):
                yield func


def _maker(func):
    def make(*args, device=None, **kwargs) -> DeviceTensor:
        counted[0] += 1
        kwargs.pop("pin_memory", None)
        return wrap(func(*args, device=_CPU, **kwargs))

    return make


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy where torch has switched the dispatch to Python off: inside `torch.tensor(..., device=)`."""
    return copy_((to, source))


# The only operations that have a kernel for the CPU, and are written as others for any other device:
# with a kernel of its own the device gets the CPU's.
_MIXED = (
    _aten.silu_backward.default,
    _aten.mish_backward.default,
    _aten.native_channel_shuffle.default,
)


def _through_python(func):
    def run(*args, **kwargs):
        return DeviceTensor.__torch_dispatch__(func, (), args, kwargs)

    return run


# torch writes these as other operations, and chooses them by the device. Here is the CPU's choice.


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    if p == 0 or not train or x.numel() == 0:
        return x
    if p == 1:
        return x * torch.zeros((), dtype=x.dtype, device=x.device)
    return x * torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


def _dropout_(x: Tensor, p: float, train: bool) -> Tensor:
    if p == 0 or not train or x.numel() == 0:
        return x
    if p == 1:
        return x.mul_(0)
    return x.mul_(torch.empty_like(x).bernoulli_(1 - p).div_(1 - p))


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *,
               scale=None, enable_gqa=False) -> Tensor:  # fmt: skip
    inputs = [x if x is None else _twin(x) for x in (query, key, value, attn_mask)]
    options = {"scale": scale, "enable_gqa": enable_gqa}
    choice = torch._fused_sdp_choice(*inputs, dropout_p, is_causal, **options)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(
            ~attn_mask, -torch.inf
        )
    if choice != torch.nn.attention.SDPBackend.FLASH_ATTENTION.value:
        inner = _aten._scaled_dot_product_attention_math
        return inner(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
    return _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def _twin(x: Tensor) -> Tensor:
    """Return a CPU tensor of the same kind, for a question about kinds."""
    if type(x) is not DeviceTensor:
        refuse("aten.scaled_dot_product_attention")
    return x.held.detach().requires_grad_(x.requires_grad)


class _GroupNorm(torch.autograd.Function):
    """torch's own formula would give the backward pass another memory format than on the CPU."""

    @staticmethod
    def forward(ctx, x, weight, bias, *sizes):
        if any(t is not None and type(t) is not DeviceTensor for t in (x, weight, bias)):
            refuse("aten.native_group_norm")
        held = [t if t is None else t.held for t in (x, weight, bias)]
        out, mean, rstd = (wrap(t) for t in _aten.native_group_norm.default(*held, *sizes))
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.sizes = sizes[:4]
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return out, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        x, weight, mean, rstd = (t if t is None else t.held for t in ctx.saved_tensors)
        gradient = gradient.held.contiguous(memory_format=suggest_memory_format(x))
        needed = list(ctx.needs_input_grad[:3])
        results = _aten.native_group_norm_backward.default(
            gradient, x, mean, rstd, weight, *ctx.sizes, needed
        )
        return *(t if t is None else wrap(t) for t in results), *(5 * [None])


_COMPOSITES = {
    "native_group_norm": _GroupNorm.apply,
    "dropout": _dropout,
    "dropout_": _dropout_,
    "scaled_dot_product_attention": _attention,
}
