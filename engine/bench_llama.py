"""llama.cpp at a named shape in Q8_0, for `frontdesk bench --against llama.cpp`: the extra `peers`.

It does the same work with what makes it fast: instructions and histories are read once, and the customers' replies are
written together, a token of each in one call. Tokens are the likeliest ones, which costs it less than drawing them.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from engine import roles
from engine.bench import REPLY, SHAPES, Message, rss, work
from engine.chat import Chat
from engine.kv import common
from engine.qwen2 import Shape

AT_ONCE = 512
"""Tokens of one call."""
ROOM = 600
"""Tokens of one customer's history, message and reply."""


def llama(chat: Chat, shape: str, customers: int, messages: int) -> tuple[list[Message], float, float]:
    """What each message took, the time for all of them in seconds, and bytes of memory in use."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        _write(Shape.of(SHAPES[shape]), file)
        model = _Llama(file, customers + 1, Shape.of(SHAPES[shape]).vocabulary)
    shared = chat.question(roles.sentiment(), "")
    for each in range(customers):
        model.read({each: chat.prompt(*work(chat, each, 0)[:2])[:-3]})
    model.read({customers: shared[:-3]})
    _round(model, chat, customers, 0)
    started = time.perf_counter()
    found = [message for number in range(messages) for message in _round(model, chat, customers, 1 + number)]
    return found, time.perf_counter() - started, rss()


def _round(model: _Llama, chat: Chat, customers: int, number: int) -> list[Message]:
    """A message of every customer: the moods one after another, then the replies together."""
    started = time.perf_counter()
    asked = [work(chat, each, number) for each in range(customers)]
    moods = list[float]()
    for _, _, message in asked:
        model.read({customers: chat.question(roles.sentiment(), message)})
        moods.append(time.perf_counter() - started)
    last = model.read({each: chat.prompt(role, turns) for each, (role, turns, _) in enumerate(asked)})
    first = time.perf_counter() - started
    for _ in range(REPLY - 1):
        last = model.read({each: [*model.tokens[each], last[each]] for each in range(customers)})
    total = time.perf_counter() - started
    return [Message(mood, first, total) for mood in moods]


class _Llama:
    """A model and what it remembers of several sequences."""

    def __init__(self, file: Path, sequences: int, vocabulary: int) -> None:
        llama_cpp.llama_backend_init()
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = sequences * ROOM, AT_ONCE, AT_ONCE
        options.n_seq_max, options.kv_unified = sequences, True
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        self._kept_alive = quiet, model
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError("llama.cpp refuses the model")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(AT_ONCE, 0, 1)
        self._vocabulary = vocabulary
        self.tokens: list[list[int]] = [[] for _ in range(sequences)]

    def read(self, wanted: dict[int, Sequence[int]]) -> dict[int, int]:
        """Read what of these sequences is new; the likeliest token after each."""
        new = list[tuple[int, int, int, bool]]()
        for sequence, tokens in wanted.items():
            known = min(common(self.tokens[sequence], tokens), len(tokens) - 1)
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, known, -1)
            rows = range(known, len(tokens))
            new += [(sequence, at, tokens[at], at == rows[-1]) for at in rows]
            self.tokens[sequence] = list(tokens)
        found = dict[int, int]()
        for start in range(0, len(new), AT_ONCE):
            found |= self._decode(new[start : start + AT_ONCE])
        return found

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> dict[int, int]:
        batch = self._batch
        batch.n_tokens = len(rows)
        for place, (sequence, at, token, last) in enumerate(rows):
            batch.token[place], batch.pos[place], batch.logits[place] = token, at, last
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp cannot read this batch")
        return {sequence: self._likeliest(place) for place, (sequence, _, _, last) in enumerate(rows) if last}

    def _likeliest(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


# -- random weights in its own format ----------------------------------------------------------------


def begin_file(shape: Shape, file: Path, kind: gguf.LlamaFileType) -> GGUFWriter:
    """A model file of llama.cpp's with the sizes of a Qwen2 model; tokenizer and weights (named()) are to be added."""
    writer = GGUFWriter(file, "qwen2")
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_file_type(kind)
    return writer


def end_file(writer: GGUFWriter) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write(shape: Shape, file: Path) -> None:
    writer = begin_file(shape, file, gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(1)
    row: Any = random.normal(0, 0.02, 1 << 20).astype(np.float32)
    for name, size in shape.sizes().items():
        if len(size) == 1:
            content = np.zeros(size, np.float32) if name.endswith("bias") else np.ones(size, np.float32)
            writer.add_tensor(named(name), content)
        else:
            values = np.resize(row, size)
            packed = gguf.quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(named(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)
    end_file(writer)


def named(name: str) -> str:
    """llama.cpp's name of a weight."""
    for ours, theirs in (
        *(("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("model.layers.", "blk.")),
        *(("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"), ("input_layernorm", "attn_norm")),
        *(("post_attention_layernorm", "ffn_norm"), ("mlp.", "ffn_"), ("_proj", ""), ("lm_head", "output")),
    ):
        name = name.replace(ours, theirs)
    return name
