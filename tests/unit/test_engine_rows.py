"""Vectors of the vocabulary are read from the model's file, and are those that are in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bot.errors import ModelUnavailable
from engine.rows import RowsOnDisk

KINDS = [torch.bfloat16, torch.float16, torch.float32]


def written(folder: Path, kind: torch.dtype, rows: int = 300) -> tuple[Path, torch.Tensor]:
    """A file whose weight lies between two others."""
    weight = torch.randn(rows, 24, generator=torch.Generator().manual_seed(4)).to(kind)
    file = folder / "model.safetensors"
    save_file({"before": torch.ones(7, dtype=torch.float16), "rows": weight, "then": torch.ones(3, 3)}, file)
    return file, weight


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_rows_of_a_file_are_those_of_the_weight_in_it(tmp_path: Path, kind: torch.dtype) -> None:
    file, weight = written(tmp_path, kind)
    rows = RowsOnDisk(file, "rows")
    for numbers in ([0], [299], [5, 5, 0, 299, 17], range(300)):
        assert torch.equal(rows(numbers), weight[torch.tensor(numbers)].float())


@pytest.mark.parametrize("number", [-1, 300])
def test_a_row_that_is_not_there_is_no_row_of_another_weight(tmp_path: Path, number: int) -> None:
    rows = RowsOnDisk(written(tmp_path, torch.bfloat16)[0], "rows")
    with pytest.raises(IndexError, match="0 to 299"):
        rows([3, number])


def test_a_file_that_is_replaced_or_removed_is_read_as_it_was(tmp_path: Path) -> None:
    file, weight = written(tmp_path, torch.float32)
    rows = RowsOnDisk(file, "rows")
    (tmp_path / "new").write_bytes(b"another model")
    (tmp_path / "new").replace(file)
    assert torch.equal(rows([8]), weight[[8]])
    file.unlink()
    assert torch.equal(rows([9]), weight[[9]])


@pytest.mark.parametrize("content", [b"\0" * 20_000, b"cut off"])
def test_a_file_that_is_written_over_in_place_is_refused(tmp_path: Path, content: bytes) -> None:
    file, _ = written(tmp_path, torch.float32)
    os.utime(file, ns=(0, 0))
    rows = RowsOnDisk(file, "rows")
    with file.open("r+b") as same:
        same.truncate(0)
        same.write(content)
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors was changed while it was in use: restart"):
        rows([8])
