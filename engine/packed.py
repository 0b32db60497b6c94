"""8-bit layers on disk, so that only a model's first start rounds them: a third of the bytes to read afterwards.

One safetensors file a layer, in a folder named after the model's files: weights in 8 bits, their scales, and a checksum
in the header. What is not there, or damaged, is rounded again and written again; a disk that cannot be written to
costs the time alone.
"""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.quantize import Rounded, int8_of, rounded
from engine.qwen2 import Linear, MakeLinear, Weight

CHECKSUM = "crc32"


def kept_in(folder: Path) -> MakeLinear:
    """quantize.int8_linear, whose weights are taken from `folder` where they are there, and put there where not."""

    def make(name: str, weight: Weight, bias: Tensor | None) -> Linear:
        file = folder / f"{name}.safetensors"
        found = _read(file)
        if found is None:
            found = rounded(weight())
            with contextlib.suppress(OSError, SafetensorError):
                _write(file, found)
        return int8_of(name, found, bias)

    return make


def _read(file: Path) -> Rounded | None:
    try:
        with safe_open(file, framework="pt") as content:
            found = Rounded(content.get_tensor("weight"), content.get_tensor("scales"))
            return found if content.metadata()[CHECKSUM] == _checksum(found) else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _write(file: Path, layer: Rounded) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file({"weight": layer.weight, "scales": layer.scales}, part, metadata={CHECKSUM: _checksum(layer)})
    part.replace(file)


def _checksum(layer: Rounded) -> str:
    found = 0
    for tensor in (layer.weight, layer.scales):
        content: Any = tensor.contiguous().view(torch.uint8).numpy()
        found = zlib.crc32(content, found)
    return f"{found:08x}"
