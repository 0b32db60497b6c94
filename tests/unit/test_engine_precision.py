"""8 bits are earned: a model with outliers is caught and mended, and what was found is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.errors import ConfigError
from engine import bundled, precision
from engine.kv import Cache
from engine.model import read
from engine.network import Segment
from engine.quantize import fp16_linear, fp16_supported, fp32_linear, int8_supported
from engine.qwen2 import MakeLinear

pytestmark = pytest.mark.skipif(not int8_supported(), reason="this build of torch has no int8 kernel for this CPU")

LAYERS = 2 * 4 + 1
"""Of the bundled model."""
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def ignore(share: float) -> None:
    """Nobody watches."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "SMALL", 0)
    monkeypatch.setattr(precision, "MOODS_EVERY", 16)
    monkeypatch.setattr(precision, "REPLIES_EVERY", 64)


@pytest.fixture
def with_outliers(tmp_path: Path) -> Path:
    """The bundled model with a few inner channels a thousand times larger, and what reads them a thousand times
    smaller: the same function, which 8 bits a row cannot hold."""
    path = tmp_path / "outliers"
    path.mkdir()
    for name in FILES:
        shutil.copy(bundled.PATH / name, path)
    weights = {name: weight.float() for name, weight in load_file(path / "model.safetensors").items()}
    for layer in (0, 1):
        weights[f"model.layers.{layer}.mlp.up_proj.weight"][:8] *= 1_000
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][:, :8] /= 1_000
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def served(path: Path, linear: MakeLinear) -> torch.Tensor:
    """Hidden states of a few tokens."""
    network = read(path, linear, ignore).network
    with torch.inference_mode():
        return network.forward([Segment(Cache(network.shape), [17, 230, 999, 4, 512, 76])])


def test_the_bundled_model_may_be_served_in_8_bits() -> None:
    report = precision.check(bundled.PATH, ignore)
    assert report.int8
    assert report.served.kl <= precision.MOST_KL
    assert report.served.labels >= precision.LEAST_AGREEMENT
    assert precision.stored(bundled.PATH) == report


def test_outliers_are_caught_and_mended(with_outliers: Path) -> None:
    report = precision.check(with_outliers, ignore)
    assert not report.all_narrow.good
    assert report.int8
    assert report.served.good
    assert {"layers.0.down", "layers.1.down"} <= set(report.wide)
    assert len(report.wide) < LAYERS
    exact, mended = (
        served(with_outliers, fp32_linear),
        served(with_outliers, precision.make_linear(with_outliers, "auto")),
    )
    narrow = served(with_outliers, precision.make_linear(with_outliers, "int8"))
    assert (mended - exact).norm() < 0.3 * (narrow - exact).norm()


@pytest.mark.parametrize("amx", [True, False])
def test_beside_8_bits_keys_and_values_are_in_bf16_where_the_cpu_multiplies_in_it(
    with_outliers: Path, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert precision.check(with_outliers, ignore).served.good
    linear = precision.make_linear(with_outliers, "auto")
    assert precision.kept_type(linear) == (torch.bfloat16 if amx else torch.float32)
    assert precision.kept_type(precision.make_linear(with_outliers, "fp32")) == torch.float32
    assert ("bf16" in precision.why(with_outliers, "auto")) == amx
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not amx})
    assert precision.stored(with_outliers) is None


def test_until_it_was_checked_a_model_is_served_in_fp32(with_outliers: Path) -> None:
    assert precision.stored(with_outliers) is None
    assert precision.make_linear(with_outliers, "auto") is fp32_linear
    assert "first start" in precision.why(with_outliers, "auto")


def test_a_small_model_is_served_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not precision.worth_it(bundled.PATH)
    assert precision.make_linear(bundled.PATH, "auto") is fp32_linear
    assert "small" in precision.why(bundled.PATH, "auto")


def test_where_16_bits_do_not_help_either_fp32_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MOST_KL", -1.0)
    report = precision.check(bundled.PATH, ignore)
    assert not report.int8
    assert len(report.wide) == LAYERS
    assert precision.make_linear(bundled.PATH, "auto") is fp32_linear
    assert precision.why(bundled.PATH, "auto").startswith("fp32: 8 bits differ too much")


def test_other_files_need_a_check_of_their_own(with_outliers: Path) -> None:
    precision.check(with_outliers, ignore)
    weights = load_file(with_outliers / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, with_outliers / "model.safetensors", metadata={"format": "pt"})
    assert precision.stored(with_outliers) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"int8": true}'])
def test_a_damaged_report_counts_as_none(tmp_path: Path, damage: str) -> None:
    precision.check(bundled.PATH, ignore)
    (file,) = (tmp_path / "cache").rglob("*.json")
    assert json.loads(file.read_text(encoding="utf-8"))["int8"] is True
    file.write_text(damage, encoding="utf-8")
    assert precision.stored(bundled.PATH) is None


def test_the_check_reports_how_far_it_is() -> None:
    shares: list[float] = []
    precision.check(bundled.PATH, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_precision_that_this_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(precision._PRECISIONS, "int8", (fp32_linear, lambda: False))
    with pytest.raises(ConfigError, match="int8"):
        precision.make_linear(bundled.PATH, "int8")


@pytest.mark.skipif(not fp16_supported(), reason="this build of torch has no 16-bit kernel for this CPU")
def test_16_bits_are_close_to_fp32() -> None:
    torch.manual_seed(1)
    weight, bias, x = torch.randn(96, 128), torch.randn(96), torch.randn(5, 128)
    expected = fp32_linear("", lambda: weight, bias)(x)
    assert (fp16_linear("", lambda: weight, bias)(x) - expected).norm() / expected.norm() < 0.001
