"""The own forward pass against transformers', and against itself in other steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine import bundled
from engine.kv import Cache
from engine.model import read
from engine.network import Segment
from engine.quantize import fp32_linear, int8_linear, int8_supported
from engine.qwen2 import MakeLinear, Qwen2, Shape
from tests.fakes.random_model import in_memory

VOCABULARY = 300
SHAPES = {
    "grouped heads, tied": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "one head a group, untied": {"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "one key for all heads": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True},
}
needs_int8 = pytest.mark.skipif(not int8_supported(), reason="this build of torch has no int8 kernel for this CPU")


def reference(**sizes: object) -> Qwen2ForCausalLM:
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **sizes,
    )
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3) if parameter.ndim > 1 else parameter.data.uniform_(0.5, 1.5)
    return model


def own(model: Qwen2ForCausalLM, linear: MakeLinear = fp32_linear, kept: torch.dtype = torch.float32) -> Qwen2:
    weights = model.state_dict()
    return Qwen2(
        Shape.of(json.loads(model.config.to_json_string())), weights.__getitem__, in_memory(weights), linear, kept
    )


@pytest.fixture(autouse=True, scope="module")
def _without_gradients():  # type: ignore[no-untyped-def]
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[Qwen2ForCausalLM, Qwen2]:
    model = reference(**SHAPES[request.param])
    return model, own(model)


TOKENS = [(7 * number * number + 3) % VOCABULARY for number in range(50)]


def test_the_logits_are_those_of_transformers(pair: tuple[Qwen2ForCausalLM, Qwen2]) -> None:
    model, ours = pair
    expected = model(torch.tensor([TOKENS])).logits[0]
    found = ours.logits(ours.forward([Segment(Cache(ours.shape), TOKENS)]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_logits_of_the_bundled_model_are_those_of_transformers() -> None:
    model = Qwen2ForCausalLM.from_pretrained(bundled.PATH, dtype=torch.float32)
    ours = read(bundled.PATH, fp32_linear, lambda share: None).network
    expected = model(torch.tensor([TOKENS])).logits[0]
    found = ours.logits(ours.forward([Segment(Cache(ours.shape), TOKENS)]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.data())
def test_in_whatever_steps_and_company_it_is_read_a_text_is_the_same(sizes: list[int], data: st.DataObject) -> None:
    ours = NETWORK
    text = (TOKENS * 4)[: sum(sizes)]
    whole = ours.forward([Segment(Cache(ours.shape), text)])
    cache, others, parts, at = Cache(ours.shape), [Cache(ours.shape) for _ in range(3)], [], 0
    for size in sizes:
        beside = [Segment(other, TOKENS[: data.draw(st.integers(1, 5))]) for other in others]
        place = data.draw(st.integers(0, len(beside)))
        before = sum(len(segment.tokens) for segment in beside[:place])
        hidden = ours.forward([*beside[:place], Segment(cache, text[at : at + size]), *beside[place:]])
        parts.append(hidden[before : before + size])
        at += size
    assert cache.tokens == text
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)


MODEL = reference(**SHAPES["grouped heads, tied"])
NETWORK, HALVED = own(MODEL), own(MODEL, kept=torch.bfloat16)


def test_a_copied_and_a_shortened_cache_go_on_as_if_read_anew() -> None:
    cache = Cache(NETWORK.shape)
    NETWORK.forward([Segment(cache, TOKENS)])
    copy = cache.copy(20)
    cache.keep(20)
    expected = NETWORK.forward([Segment(Cache(NETWORK.shape), TOKENS[:30])])[20:]
    for each in (cache, copy):
        found = NETWORK.forward([Segment(each, TOKENS[20:30])])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert copy.pairs.data_ptr() != cache.pairs.data_ptr()


def test_keys_and_values_in_bf16_take_half_the_room_and_tell_nearly_the_same_in_whatever_steps() -> None:
    exact, cache = NETWORK.forward([Segment(NETWORK.begin(), TOKENS)]), HALVED.begin()
    whole = HALVED.forward([Segment(HALVED.begin(), TOKENS)])
    parts = torch.cat([HALVED.forward([Segment(cache, TOKENS[at : at + 7])]) for at in range(0, len(TOKENS), 7)])
    copied = HALVED.forward([Segment(cache.copy(40), TOKENS[40:])])
    assert whole.dtype == torch.float32
    assert 2 * HALVED.begin().nbytes == NETWORK.begin().nbytes
    for found, expected in ((whole, exact), (parts, whole), (copied, whole[40:])):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_the_logits_of_a_few_tokens_are_those_of_the_whole_vocabulary() -> None:
    hidden = NETWORK.forward([Segment(Cache(NETWORK.shape), TOKENS)])
    few = torch.tensor([5, 250, 17])
    torch.testing.assert_close(NETWORK.logits_of(hidden, few), NETWORK.logits(hidden)[:, few])


# -- int8 --------------------------------------------------------------------------------------------


@needs_int8
def test_int8_is_close_to_fp32() -> None:
    torch.manual_seed(1)
    weight, bias, x = torch.randn(96, 128), torch.randn(96), torch.randn(5, 128)
    expected = fp32_linear("", lambda: weight, bias)(x)
    found = int8_linear("", lambda: weight, bias)(x)
    assert (found - expected).norm() / expected.norm() < 0.02


@needs_int8
@given(st.floats(1e-6, 1e6), st.integers(0, 30))
def test_in_int8_no_row_changes_another(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    layer = int8_linear("", lambda: torch.randn(32, 64), torch.randn(32))
    mine, other = torch.randn(1, 64), torch.randn(3, 64) * scale
    assert torch.equal(layer(mine)[0], layer(torch.cat([other, mine]))[3])


@needs_int8
@pytest.mark.parametrize(("out", "inner"), [(16, 64), (48, 96), (64, 100), (300, 176), (384, 128)])
def test_in_int8_a_row_is_the_same_among_few_and_many(out: int, inner: int) -> None:
    torch.manual_seed(1)
    layer = int8_linear("", lambda: torch.randn(out, inner) * torch.rand(out, 1), torch.randn(out))
    x = torch.randn(70, inner) * torch.rand(70, 1)
    alone = torch.cat([layer(row[None]) for row in x])
    for rows in (5, 16, 31, 32, 33, 48, 70):
        assert torch.equal(layer(x[:rows]), alone[:rows])


_WITHOUT_VNNI = """
import torch
from engine.quantize import input_levels, int8_linear
torch.manual_seed(1)
weight, x = torch.full((16, 1024), -1.0), torch.ones(4, 1024)
mixed, y = torch.randn(64, 512), torch.randn(8, 512)
for matrix, rows in ((weight, x), (mixed, y)):
    right = rows @ matrix.T
    print(float((int8_linear("", lambda: matrix, None)(rows) - right).norm() / right.norm()), input_levels())
"""


@needs_int8
def test_without_vnni_int8_does_not_saturate_either() -> None:
    environment = {**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    script = [sys.executable, "-c", _WITHOUT_VNNI]
    said = subprocess.run(script, capture_output=True, text=True, check=True, env=environment, timeout=120).stdout
    errors = [float(line.split()[0]) for line in said.splitlines()]
    assert len(errors) == 2
    assert max(errors) < 0.02, said


@needs_int8
def test_in_int8_the_largest_products_do_not_saturate() -> None:
    found = int8_linear("", lambda: torch.full((16, 1024), -1.0), None)(torch.ones(4, 1024))
    torch.testing.assert_close(found, torch.full((4, 16), -1024.0), rtol=0.01, atol=0)


@needs_int8
@pytest.mark.parametrize("rows", [2, 40])
def test_a_row_of_zeros_is_the_bias(rows: int) -> None:
    bias = torch.randn(64)
    found = int8_linear("", lambda: torch.randn(64, 16), bias)(torch.zeros(rows, 16))
    torch.testing.assert_close(found, bias.expand(rows, 64))


@needs_int8
@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none_and_in_its_row(rows: int, wrong: float) -> None:
    x = torch.randn(rows, 16)
    x[1, 3] = wrong
    found = int8_linear("", lambda: torch.randn(64, 16), None)(x).isfinite().all(dim=1)
    assert found.tolist() == [row != 1 for row in range(rows)]
