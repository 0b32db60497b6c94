"""Rows of a weight that stay in their file: the vectors of a vocabulary.

They are a third of a small model, 311 MB of Qwen1.5-0.5B, and a message needs a few hundred of the 151,936. Read row by
row, 1 to 2 microseconds each from the system's file cache, they take no memory of the process. Mapped into it they
would: Linux adds the pages around each one that is touched (fault_around_bytes, 64 KiB), so that a few thousand
different words bring most of the file in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bot.errors import ModelUnavailable


class RowsOnDisk:
    """The rows of `name` in a safetensors file, which stays open; called with their numbers, (rows, columns) in fp32.

    Not for several threads at once. Raises IndexError, and ModelUnavailable when the file was written to meanwhile.
    """

    def __init__(self, file: Path, name: str) -> None:
        with safe_open(file, framework="pt") as content:
            weight: Tensor = content.get_tensor(name)
            self._kind, (self._count, columns) = weight.dtype, weight.shape
        self._size = columns * self._kind.itemsize
        self._path, self._file = file, file.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(8), "little")  # https://huggingface.co/docs/safetensors: the format
        self._start = 8 + length + json.loads(self._file.read(length))[name]["data_offsets"][0]
        self._written = self._last_written()

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        if not all(0 <= number < self._count for number in numbers):
            raise IndexError(f"rows 0 to {self._count - 1} were asked for {list(numbers)}")
        content = bytearray()
        for number in numbers:
            self._file.seek(self._start + number * self._size)
            content += self._file.read(self._size)
        if self._last_written() != self._written:
            raise ModelUnavailable(f"{self._path} was changed while it was in use: restart frontdesk")
        return torch.frombuffer(content, dtype=self._kind).view(len(numbers), -1).float()

    def _last_written(self) -> int:
        return os.fstat(self._file.fileno()).st_mtime_ns
