"""Generators of the device: they draw the CPU's numbers, but not for a CPU tensor."""

import functools

import torch

from .backend import NAME

_CpuGenerator = torch._C.Generator
# Every public function that takes a generator; the first group are functions, the second methods.
_FUNCTIONS = (
    "_sample_dirichlet", "_standard_gamma", "bernoulli", "binomial", "multinomial", "normal", "poisson",
    "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm",
)  # fmt: skip
_METHODS = (
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "multinomial",
    "normal_", "random_", "uniform_",
)  # fmt: skip


class DeviceGenerator(_CpuGenerator):
    """To torch's C++ a CPU generator, so that the same seed draws the same numbers as there."""

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


class _Either(type):
    """Every generator is an instance of what stands in the place of `torch.Generator`."""

    def __instancecheck__(cls, instance) -> bool:
        return isinstance(instance, _CpuGenerator)


class Generator(_CpuGenerator, metaclass=_Either):
    """Takes the place of `torch.Generator`: makes a generator of either device."""

    def __new__(cls, device="cpu"):
        if torch.device(device).type == NAME:
            return DeviceGenerator()
        return _CpuGenerator(device)


def _guarded(draw):
    """Refuse a draw from a generator of the other device: to C++ they are all of the CPU."""

    @functools.wraps(draw)
    def guarded(*args, **kwargs):
        drawn = draw(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != drawn.device.type:
            raise RuntimeError(
                f"Expected a '{drawn.device.type}' device type for generator but found "
                f"'{generator.device.type}' (in {draw.__name__})"
            )
        return drawn

    return guarded


def replacements() -> list[tuple[object, str, object]]:
    """Return (owner, name, what takes its place) for `torch.Generator` and all that draws."""
    places = [(torch, name) for name in _FUNCTIONS] + [(torch.Tensor, name) for name in _METHODS]
    guarded = [(owner, name, _guarded(getattr(owner, name))) for owner, name in places]
    return [(torch, "Generator", Generator), *guarded]
