"""Linear layers for the CPU: fp32, and int8 with 8-bit weights per output channel and 8-bit inputs per row.

The quantised kernels of torch take one scale for all rows of an input. Each row is divided by its own largest value
first and multiplied by it afterwards, so that what one customer wrote never changes another's numbers. torch calls its
quantised tensors deprecated; this is the only file that uses them.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from engine.qwen2 import Linear

LEVELS = 127


def fp32_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The layer as it is."""
    weight = weight.clone() if weight.dtype == torch.float32 else weight.float()
    return lambda x: functional.linear(x, weight, bias)


def int8_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The layer with 8-bit weights. Raises RuntimeError where this build of torch lacks the kernel (int8_supported)."""
    packed = _pack(weight)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def apply(x: Tensor) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12)
        found: Tensor = multiply(x / largest, 1 / LEVELS, LEVELS + 1, packed)
        found *= largest
        return found if bias is None else found.add_(bias)

    return apply


def int8_supported() -> bool:
    """Whether int8_linear works here, and its products do not saturate.

    Without VNNI the kernel adds pairs of products in 16 bits, which overflow where inputs and weights are all large.
    """
    if not torch.cpu._is_vnni_supported():
        return False
    try:
        found = int8_linear(torch.ones(16, 64), None)(torch.ones(1, 64))
    except (RuntimeError, AttributeError):
        return False
    return bool((found - 64).abs().max() < 1)


def _pack(weight: Tensor) -> torch.ScriptObject:
    scales = weight.abs().amax(dim=1).clamp_min(1e-12).double() / LEVELS
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation, see above
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(rounded, None)
    return packed
