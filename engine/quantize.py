"""Linear layers for the CPU: fp32, 16-bit weights, and 8-bit weights per output channel with 8-bit inputs per row.

The quantised kernels of torch take one scale for all rows of an input. Each row is divided by its own largest value
first and multiplied by it afterwards, so that what one customer wrote never changes another's numbers. torch calls its
quantised tensors deprecated; this is the only file that uses them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil, gcd

import torch
from torch import Tensor

from engine.qwen2 import OUTPUT, Linear, Weight

Product = Callable[[Tensor], Tensor]
"""(rows, in), none beyond 1 -> (rows, out)."""

LEVELS = 127
"""Of a weight on either side of zero."""
INPUT_LEVELS = (127, 63)
"""Of an input. Without VNNI the kernel adds pairs of products in 16 bits, which hold seven bits of an input."""

TILE = 16
"""Rows of an AMX tile."""
MANY = 32
"""Rows from which tiles are the faster way on a busy machine too: while others used its memory, a product by tiles took
twice as long, one by rows a quarter longer."""
BLOCKS = 16
"""Of a weight in fp32, at most."""
ROWS = 8_192
"""Of a weight rounded at once: the output layer has a hundred thousand, and all in fp32 would need 600 MB."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight in 8 bits, (out, in) int8, and the step of each row, (out,) fp32."""

    weight: Tensor
    scales: Tensor


def fp32_linear(name: str, weight: Weight, bias: Tensor | None) -> Linear:
    """The layer as it is, multiplied as a batch of blocks.

    A batch is shared among the cores, whatever its products are like; one product of a few rows is not: on a Zen 4 the
    blocks were three times as fast for one row, 1.4 times for 128.
    """
    found = weight()
    matrix = found.clone() if found.dtype == torch.float32 else found.float()
    blocks = matrix.view(gcd(len(matrix), BLOCKS), -1, matrix.shape[1])

    def product(x: Tensor) -> Tensor:
        # flatten(): one row would keep the strides of a column, with which the next product is five times as slow
        found = torch.bmm(blocks, x.T.expand(len(blocks), *x.T.shape)).view(-1, len(x)).T.flatten().view(len(x), -1)
        return found if bias is None else found.add_(bias)

    return layer_of(product)


def fp16_linear(name: str, weight: Weight, bias: Tensor | None) -> Linear:
    """The layer with 16-bit weights, multiplied in fp32. Raises RuntimeError where this build of torch lacks it."""
    packed = torch.ops.quantized.linear_prepack_fp16(weight().float(), bias)
    multiply = torch.ops.quantized.linear_dynamic_fp16
    return layer_of(lambda x: multiply(x, packed))


def layer_of(product: Callable[[Tensor], Tensor]) -> Linear:
    """A product that knows no shorter way to do what a layer does."""

    def apply(x: Tensor, divisor: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        found = product(x if divisor is None else x / divisor)
        return found if onto is None else onto.add_(found)

    return apply


def int8_linear(name: str, weight: Weight, bias: Tensor | None) -> Linear:
    """The layer with 8-bit weights. Raises RuntimeError where this build of torch lacks the kernel (int8_supported)."""
    return int8_of(name, rounded(weight()), bias)


def int8_of(name: str, layer: Rounded, bias: Tensor | None) -> Linear:
    """The same from a weight that is rounded already.

    Where the CPU multiplies tiles, a layer is kept twice, for few rows and for many: new prompts are read 1.2 to 1.4
    times as fast. Not the output layer, which meets only the last token of each sequence, nor what is smaller than four
    tiles, which oneDNN multiplies in another way.
    """
    tiled = name != OUTPUT and len(layer.scales) >= 4 * TILE and tiles_supported()
    return _int8(layer, bias, input_levels() or INPUT_LEVELS[-1], tiled)


def rounded(weight: Tensor) -> Rounded:
    """A weight of any float type in 8 bits, each row by its own largest value."""
    found = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        part = weight[rows].float()
        scales[rows] = part.abs().amax(dim=1).clamp_min_(1e-12) / LEVELS
        found[rows] = (part / scales[rows, None]).round_()
    return Rounded(found, scales)


def int8_supported() -> bool:
    """Whether int8_linear works here, and its products do not saturate."""
    return input_levels() is not None


@cache
def input_levels() -> int | None:
    """The finest rounding of inputs at which this machine's kernel does not saturate; None without a kernel."""
    return next((levels for levels in INPUT_LEVELS if _exact(levels)), None)


@cache
def tiles_supported() -> bool:
    """Whether this CPU multiplies 8 bits in tiles (AMX), and this build of torch does it as FBGEMM does."""
    if not torch.cpu.get_capabilities().get("amx_int8") or input_levels() != LEVELS:
        return False
    waves = torch.arange(4 * TILE * 128.0).sin().view(-1, 128)  # nobody's random numbers are used up
    layer, rows = rounded(waves), waves[:TILE]
    try:
        return torch.equal(_by_tiles(layer)(rows), _by_rows(layer, LEVELS)(rows))
    except (RuntimeError, AttributeError):
        return False


def fp16_supported() -> bool:
    """Whether fp16_linear works here."""
    try:
        found = fp16_linear("", lambda: torch.ones(16, 64), torch.ones(16))(torch.ones(1, 64))
    except (RuntimeError, AttributeError):
        return False
    return bool((found - 65).abs().max() < 1)


def _exact(levels: int) -> bool:
    """Where inputs and weights are all at their largest, a kernel saturates if it ever does."""
    try:
        found = _int8(rounded(torch.ones(16, 64)), None, levels)(torch.ones(1, 64))
    except (RuntimeError, AttributeError):
        return False
    return bool((found - 64).abs().max() < 1)


def _int8(layer: Rounded, bias: Tensor | None, levels: int, tiled: bool = False) -> Linear:
    few = _by_rows(layer, levels)
    many = _by_tiles(layer) if tiled else few

    def apply(x: Tensor, divisor: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True)
        found = (few if len(x) < MANY else many)(x / largest)
        if divisor is not None:
            largest /= divisor
        if onto is not None:
            return onto.addcmul_(found, largest) if bias is None else onto.addcmul_(found, largest).add_(bias)
        return found.mul_(largest) if bias is None else torch.addcmul(bias, found, largest)

    return apply


def _by_rows(layer: Rounded, levels: int) -> Product:
    """FBGEMM's product, the faster one for a few rows."""
    packed = _pack(layer)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return lambda x: multiply(x, 1 / levels, levels + 1, packed)  # whole numbers, also where 0 / 0 was


def _by_tiles(layer: Rounded) -> Product:
    """oneDNN's product, of inputs rounded as FBGEMM rounds them (QuantUtils.h): the same numbers to the last bit.

    Tiles are filled up, since oneDNN keeps a kernel of a megabyte for each number of rows that it has met.
    """
    packed = torch.ops.onednn.qlinear_prepack(layer.weight, None)
    scales = layer.scales.clone()  # else they would keep the file that they come from in memory
    multiply, zeros = torch.ops.onednn.qlinear_pointwise, torch.zeros(len(scales), dtype=torch.int)
    step, middle = 1 / LEVELS, LEVELS + 1
    offset, steps = torch.tensor(float(middle)), float(1 / torch.tensor(step))  # in fp32, as there

    def product(x: Tensor) -> Tensor:
        rows = x.new_empty(ceil(len(x) / TILE) * TILE, x.shape[1], dtype=torch.uint8)
        rows[: len(x)] = torch.add(offset, x, alpha=steps).round_()
        found: Tensor = multiply(rows, step, middle, packed, scales, zeros, None, 1, 0, torch.float32, "none", [], "")
        return found[: len(x)]

    return product


def _pack(layer: Rounded) -> torch.ScriptObject:
    zeros = torch.zeros(len(layer.scales), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation, see above
        matrix = torch._make_per_channel_quantized_tensor(layer.weight, layer.scales.double(), zeros, 0)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(matrix, None)
    return packed
