"""Fixtures of the tests on the simulated accelerator."""

from .fixture import accelerator

__all__ = ["accelerator"]
