"""The bundled model's tokenizer: trained here, built and used as Qwen1.5's is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.roles import INTENT_LABELS, SENTIMENT_LABELS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LABELS = (*SENTIMENT_LABELS, *INTENT_LABELS)
LONGEST = 16
"""Bytes of an entry."""
LONGEST_CHINESE = 9
"""Bytes of one in a script without spaces, three characters: longer ones would swallow half a clause each."""

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

CONFIG: dict[str, Any] = {
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
"""tokenizer_config.json."""


def train(texts: Iterable[str], entries: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `entries` entries, special tokens included; every label word is one of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries + entries // 4,  # the long Chinese ones go again
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_labels(texts), trainer)
    tokenizer.model = _shortened(tokenizer, entries - len(SPECIAL))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    for label in LABELS:
        assert len(tokenizer.encode(label).ids) == 1, label  # noqa: S101 - a tool for developers, not the service
    return tokenizer


def _shortened(tokenizer: Tokenizer, entries: int) -> models.BPE:
    """The first `entries` of what was learned, without long Chinese ones. What is made of those goes with them."""
    learned = json.loads(tokenizer.to_str())["model"]
    by_age = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    kept = [entry for entry in by_age if len(entry) <= LONGEST_CHINESE or entry.isascii()][:entries]
    vocabulary = {entry: number for number, entry in enumerate(kept)}
    merges = [(one, other) for one, other in learned["merges"] if one + other in vocabulary]
    return models.BPE(vocabulary, merges)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same for transformers, before it is on disk."""
    options = {key: value for key, value in CONFIG.items() if key not in ("tokenizer_class", "chat_template")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)  # type: ignore[no-untyped-call]
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _with_labels(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for label in LABELS:
        yield from [label] * 2_000
