"""Linear layers for the CPU: fp32, 16-bit weights, and 8-bit weights per output channel with 8-bit inputs per row.

The quantised kernels of torch take one scale for all rows of an input. Each row is divided by its own largest value
first and multiplied by it afterwards, so that what one customer wrote never changes another's numbers. torch calls its
quantised tensors deprecated; this is the only file that uses them.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from engine.qwen2 import Linear

LEVELS = 127
"""Of a weight on either side of zero."""
INPUT_LEVELS = (127, 63)
"""Of an input. Without VNNI the kernel adds pairs of products in 16 bits, which hold seven bits of an input."""


def fp32_linear(name: str, weight: Tensor, bias: Tensor | None) -> Linear:
    """The layer as it is."""
    weight = weight.clone() if weight.dtype == torch.float32 else weight.float()
    return lambda x: functional.linear(x, weight, bias)


def fp16_linear(name: str, weight: Tensor, bias: Tensor | None) -> Linear:
    """The layer with 16-bit weights, multiplied in fp32. Raises RuntimeError where this build of torch lacks it."""
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)
    multiply = torch.ops.quantized.linear_dynamic_fp16
    return lambda x: multiply(x, packed)


def int8_linear(name: str, weight: Tensor, bias: Tensor | None) -> Linear:
    """The layer with 8-bit weights. Raises RuntimeError where this build of torch lacks the kernel (int8_supported)."""
    return _int8(weight, bias, input_levels() or INPUT_LEVELS[-1])


def int8_supported() -> bool:
    """Whether int8_linear works here, and its products do not saturate."""
    return input_levels() is not None


@cache
def input_levels() -> int | None:
    """The finest rounding of inputs at which this machine's kernel does not saturate; None without a kernel."""
    return next((levels for levels in INPUT_LEVELS if _exact(levels)), None)


def fp16_supported() -> bool:
    """Whether fp16_linear works here."""
    try:
        found = fp16_linear("", torch.ones(16, 64), torch.ones(16))(torch.ones(1, 64))
    except (RuntimeError, AttributeError):
        return False
    return bool((found - 65).abs().max() < 1)


def _exact(levels: int) -> bool:
    """Where inputs and weights are all at their largest, a kernel saturates if it ever does."""
    try:
        found = _int8(torch.ones(16, 64), None, levels)(torch.ones(1, 64))
    except (RuntimeError, AttributeError):
        return False
    return bool((found - 64).abs().max() < 1)


def _int8(weight: Tensor, bias: Tensor | None, levels: int) -> Linear:
    packed = _pack(weight)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def apply(x: Tensor) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12)
        found: Tensor = multiply(x / largest, 1 / levels, levels + 1, packed)
        found *= largest
        return found if bias is None else found.add_(bias)

    return apply


def _pack(weight: Tensor) -> torch.ScriptObject:
    weight = weight.float()
    scales = weight.abs().amax(dim=1).clamp_min(1e-12).double() / LEVELS
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation, see above
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(rounded, None)
    return packed
