"""The shape of Qwen1.5-0.5B itself, on random weights: minutes and gigabytes, so only in `make test-long`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine import bundled
from engine.bench import SHAPES
from engine.model import tokenizer_of
from engine.network import Segment
from engine.quantize import fp32_linear
from engine.qwen import QwenEngine
from engine.qwen2 import Qwen2, Shape
from engine.types import EngineConfig, Speaker, TextRole, Turn
from tests.fakes.random_model import in_memory

pytestmark = pytest.mark.slow

ROLE = TextRole("reply", "You work in a shop.", temperature=0, repetition_penalty=1.2, max_new_tokens=24)
TALK = [
    Turn(Speaker.USER, "你好，我的快递什么时候到？"),
    Turn(Speaker.ASSISTANT, "今天下午。"),
    Turn(Speaker.USER, "and the invoice, please?"),
]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Qwen2]:
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPES["qwen1.5-0.5b"])).eval()
    weights = model.state_dict()
    return model, Qwen2(
        Shape.of(json.loads(model.config.to_json_string())), weights.__getitem__, in_memory(weights), fp32_linear
    )


def test_its_logits_are_transformers_own(pair: tuple[Any, Qwen2]) -> None:
    model, ours = pair
    tokens = torch.randint(0, ours.vocabulary, (90,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
        past = ours.begin()
        parts = [ours.forward([Segment(past, tokens[at : at + 37])]) for at in (0, 37, 74)]
        found = ours.logits(torch.cat(parts))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


async def test_its_greedy_replies_are_transformers_own(pair: tuple[Any, Qwen2]) -> None:
    model, ours = pair
    tokenizer: Any = tokenizer_of(Path(bundled.PATH))
    engine = QwenEngine(ours, frozenset(), tokenizer, EngineConfig(penalise_prompt=True))
    try:
        reply, again = await asyncio.gather(engine.write(ROLE, TALK), engine.write(ROLE, TALK))
        prompt = torch.tensor([engine._chat.prompt(ROLE, TALK)])
        said = model.generate(
            prompt, do_sample=False, repetition_penalty=1.2, min_new_tokens=24, max_new_tokens=24, eos_token_id=-1
        )
        expected = said[0, prompt.shape[1] :].tolist()
        assert reply.text == again.text == engine._chat.text([token for token in expected if token < len(tokenizer)])
    finally:
        await engine.close()
