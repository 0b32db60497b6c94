"""8-bit layers kept on disk are those that were rounded, or they are rounded anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine import bundled, precision, quantize
from engine.kv import Cache
from engine.model import read
from engine.network import Segment
from engine.packed import kept_in
from engine.quantize import int8_linear, int8_supported, rounded
from engine.qwen2 import MakeLinear

pytestmark = pytest.mark.skipif(not int8_supported(), reason="this build of torch has no int8 kernel for this CPU")


def unread() -> Tensor:
    raise AssertionError("the weight was read")


def hidden(linear: MakeLinear) -> Tensor:
    network = read(bundled.PATH, linear, lambda share: None).network
    with torch.inference_mode():
        return network.forward([Segment(Cache(network.shape), [17, 230, 999, 4, 512, 76])])


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(32, 64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 64)


def test_the_model_from_disk_is_the_one_that_was_rounded_bit_for_bit(tmp_path: Path) -> None:
    fresh, first, from_disk = hidden(int8_linear), hidden(kept_in(tmp_path)), hidden(kept_in(tmp_path))
    assert torch.equal(fresh, first)
    assert torch.equal(fresh, from_disk)


def test_a_layer_on_disk_spares_its_weight_the_reading(tmp_path: Path, weight: Tensor, x: Tensor) -> None:
    expected = kept_in(tmp_path)("head", lambda: weight, None)(x)
    assert torch.equal(kept_in(tmp_path)("head", unread, None)(x), expected)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_damaged_layer_is_rounded_and_written_again(tmp_path: Path, weight: Tensor, x: Tensor, place: int) -> None:
    expected = kept_in(tmp_path)("head", lambda: weight, None)(x)
    file = tmp_path / "head.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert torch.equal(kept_in(tmp_path)("head", lambda: weight, None)(x), expected)
    assert torch.equal(kept_in(tmp_path)("head", unread, None)(x), expected)


def test_a_layer_cut_short_is_rounded_again(tmp_path: Path, weight: Tensor, x: Tensor) -> None:
    expected = kept_in(tmp_path)("head", lambda: weight, None)(x)
    os.truncate(tmp_path / "head.safetensors", 500)
    assert torch.equal(kept_in(tmp_path)("head", lambda: weight, None)(x), expected)


def test_a_disk_that_cannot_be_written_to_is_done_without(tmp_path: Path, weight: Tensor, x: Tensor) -> None:
    (tmp_path / "file").touch()
    kept = kept_in(tmp_path / "file" / "folder")("head", lambda: weight, None)
    assert torch.equal(kept(x), int8_linear("head", lambda: weight, None)(x))


def test_a_weight_is_rounded_slice_by_slice_as_at_once(monkeypatch: pytest.MonkeyPatch, weight: Tensor) -> None:
    whole = rounded(weight.bfloat16())
    monkeypatch.setattr(quantize, "ROWS", 7)
    sliced = rounded(weight.bfloat16())
    assert torch.equal(whole.weight, sliced.weight)
    assert torch.equal(whole.scales, sliced.scales)


def test_a_model_worth_it_is_kept_and_a_small_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hidden(precision.make_linear(bundled.PATH, "int8"))
    assert list(tmp_path.rglob("*.safetensors")) == []
    monkeypatch.setattr(precision, "SMALL", 0)
    hidden(precision.make_linear(bundled.PATH, "int8"))
    assert (
        len(list(tmp_path.rglob("*.safetensors")))
        == 4 * read(bundled.PATH, int8_linear, lambda share: None).network.shape.layers + 1
    )
