"""Make the bundled model anew, byte for byte: `python -m engine.bundled.make [DIRECTORY]`, a few seconds.

The weights are RANDOM with a fixed seed: the model stands in for a real one so that everything around it can be run
and tested offline. Only its outside is real: the Qwen2 architecture with tied embeddings, a byte-level BPE tokenizer
with Qwen's normaliser, splitting pattern and special tokens, and the chat template of Qwen1.5.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.bundled import PATH

SEED = 20
ENTRIES = 2045
WORDS = {kind: " ".join(lines).split() for kind, lines in json.loads((PATH / "words.json").read_text("utf-8")).items()}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# The splitting pattern of Qwen2's tokenizer (transformers, tokenization_qwen2.py).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Renders what Qwen1.5's template renders when a generation prompt is asked for.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

# How wide the uniform weights are; powers of two, so that the products are exact on every machine. Wide layers drown
# the input token in the residual stream: with tied embeddings the model would otherwise repeat it for ever.
EMBEDDING_WIDTH = 0.5
LAYER_WIDTH = 0.5


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    make(directory)


def make(directory: Path) -> None:
    """Write config.json, generation_config.json, the tokenizer's two files and model.safetensors into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    config = _config(tokenizer)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", _generation_config(tokenizer))
    weights = directory / "model.safetensors"
    save_file(random_weights(config, tokenizer), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it readable by its owner alone


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of at most ENTRIES entries and Qwen's special tokens; each label is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=ENTRIES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_training_words(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    for label in WORDS["labels"]:
        assert len(tokenizer.encode(label).ids) == 1, label  # noqa: S101 - a tool for developers, not the service
    return tokenizer


def _training_words() -> Iterator[str]:
    """Labels often enough to be merged first; English words as they stand at the start and inside a sentence."""
    yield from WORDS["labels"] * 50
    yield from WORDS["chinese"]
    for word in WORDS["english"]:
        yield word
        yield f" {word}"
    yield from ("，", "。", "？", "！", "、", "：", "……", ". ", ", ", "? ", "! ") * 5


def random_weights(config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Uniform bf16 weights: plain arithmetic on the generator's bits, so that every machine draws the same ones."""
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, shape in sorted(_shapes(config).items()):
        drawn = (torch.rand(shape, generator=generator) - 0.5) * 2
        width = EMBEDDING_WIDTH if "embed" in name else LAYER_WIDTH
        weights[name] = torch.ones(shape) if "norm" in name else drawn * width
    weights["model.embed_tokens.weight"][_broken(tokenizer)] /= 64
    return {name: weight.to(torch.bfloat16) for name, weight in weights.items()}


def _shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**config))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _broken(tokenizer: Tokenizer) -> list[int]:
    """Entries that are no whole, printable characters; made improbable, so that random replies can be read."""
    texts = ((index, tokenizer.decode([index])) for index in range(tokenizer.get_vocab_size()))
    return [index for index, text in texts if "\ufffd" in text or not text.replace("\n", "").isprintable()]


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "frontdesk_random_weights": True,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 176,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "vocab_size": tokenizer.get_vocab_size(),
    }


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    stops = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    return {"bos_token_id": stops[1], "pad_token_id": stops[1], "eos_token_id": stops}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "unk_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "model_max_length": 4096,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
