"""A Qwen2 of random weights: what it says means nothing, and so tests can only lean on how it is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.bundled import tokenizer
from engine.bundled.train import save
from engine.qwen2 import Rows

SEED = 20
ENTRIES = 2048
WORDS = {
    kind: " ".join(lines).split()
    for kind, lines in json.loads((Path(__file__).parent / "words.json").read_text("utf-8")).items()
}

# Wide layers drown the input token in the residual stream: with tied embeddings the model would repeat it for ever.
WIDTH = 0.5


def in_memory(weights: Mapping[str, Tensor]) -> Callable[[str], Rows]:
    """What engine.rows reads from a file, of weights that are here."""
    return lambda name: lambda numbers: weights[name][torch.tensor(numbers)].float()


def make(directory: Path) -> Path:
    """Write the model's files into `directory` and return it."""
    words = tokenizer.train(_training_words(), ENTRIES)
    generator = torch.Generator().manual_seed(SEED)
    model = Qwen2ForCausalLM(_config(words))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_((torch.rand(parameter.shape, generator=generator) - 0.5) * 2 * WIDTH)
        model.model.embed_tokens.weight[_broken(words)] /= 64
    save(model, words, directory)
    return directory


def _training_words() -> Iterator[str]:
    """English words as they stand at the start and inside a sentence."""
    yield from WORDS["chinese"]
    for word in WORDS["english"]:
        yield word
        yield f" {word}"
    yield from ("，", "。", "？", "！", "、", "：", "……", ". ", ", ", "? ", "! ") * 5


def _broken(words: Tokenizer) -> list[int]:
    """Entries that are no whole, printable characters, and the special ones.

    They are made improbable, so that random replies can be read and do not end by chance.
    """
    texts = ((index, words.decode([index])) for index in range(words.get_vocab_size()))
    return [index for index, text in texts if not text or "\ufffd" in text or not text.replace("\n", "").isprintable()]


def _config(words: Tokenizer) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=words.get_vocab_size(),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=words.token_to_id("<|endoftext|>"),
        eos_token_id=words.token_to_id("<|im_end|>"),
    )
