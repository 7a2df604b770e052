"""A simulated accelerator: tensors that live on the device `sim` and are computed on the CPU.

What CUDA would refuse is refused, everything else gives the CPU's result to the last digit.
"""
