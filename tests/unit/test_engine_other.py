"""Chat models of other families are served through transformers, behind the same port."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from bot.errors import ConfigError
from engine import precision
from engine.chat import Chat
from engine.model import tokenizer_of
from engine.qwen import QwenEngine
from engine.types import EngineConfig, LabelRole, Speaker, TextRole, Turn

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": None,
}
GREEDY = TextRole("reply", "You work in a shop.", temperature=0, repetition_penalty=1.3, max_new_tokens=20)
MOOD = LabelRole("mood", "Say 正面 or 负面.", "{text}", ("正面", "负面"))
TALK = [
    Turn(Speaker.USER, "你好，我的快递什么时候到？"),
    Turn(Speaker.ASSISTANT, "今天下午。"),
    Turn(Speaker.USER, "and the invoice?"),
]


@pytest.fixture(scope="module", params=["llama", "gemma2, which slides its window and caps its logits"])
def other(request: pytest.FixtureRequest, random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(random_model / name, path)
    sizes = {**SIZES, "vocab_size": json.loads((random_model / "config.json").read_text("utf-8"))["vocab_size"]}
    torch.manual_seed(4)
    if request.param == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, sliding_window=16, final_logit_softcapping=5.0))
    for parameter in model.parameters():
        parameter.data.uniform_(-0.5, 0.5)
    model.save_pretrained(path)
    shutil.copy(random_model / "generation_config.json", path)
    return path


@pytest.fixture
async def engine(other: Path) -> AsyncIterator[QwenEngine]:
    made = await asyncio.to_thread(QwenEngine.load, EngineConfig(threads=1, seed=1, penalise_prompt=True), other)
    yield made
    await made.close()


def reference(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


async def test_its_greedy_reply_is_transformers_own_token_for_token(engine: QwenEngine, other: Path) -> None:
    tokenizer = tokenizer_of(other)
    prompt = torch.tensor([Chat(tokenizer).prompt(GREEDY, TALK)])
    said = reference(other).generate(
        prompt, do_sample=False, repetition_penalty=1.3, max_new_tokens=20, eos_token_id=tokenizer.all_special_ids
    )
    expected = [token for token in said[0, prompt.shape[1] :].tolist() if token not in tokenizer.all_special_ids]
    for conversation in ("", "one", "one"):  # the third finds its history read
        reply = await engine.write(GREEDY, TALK, None, conversation)
        assert (reply.text, reply.tokens) == (Chat(tokenizer).text(expected), len(expected))


async def test_its_labels_are_scored_alike_alone_and_together(engine: QwenEngine) -> None:
    texts = ["好", "不好", "what a pity", "x" * 30]
    alone = [await engine.label(MOOD, text) for text in texts]
    together = await asyncio.gather(*(engine.label(MOOD, text) for text in texts), engine.write(GREEDY, TALK))
    for one, other in zip(alone, together[:-1], strict=True):
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert list(other.probabilities.values()) == pytest.approx(list(one.probabilities.values()), abs=1e-5)


def test_it_is_served_in_fp32_and_doctor_says_why(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SMALL", 0)
    assert not precision.worth_it(other)
    assert "by transformers" in precision.why(other, "auto")
    with pytest.raises(ConfigError, match="Qwen2 family"):
        precision.make_linear(other, "int8")
