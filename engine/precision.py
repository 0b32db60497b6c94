"""8 bits are earned: on this machine, for this model, by comparison with 32.

Real weights have outliers that 8 bits may lose, and no benchmark on random weights can show it. So both precisions read
the same conversations; while what follows differs too much, the layers whose outputs differ most get 16 bits. What
was found is kept beside other caches and holds until the files change. The comparison holds the file's own weights and
the 8-bit ones in memory, never all of them in fp32.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from bot.errors import ConfigError
from engine import roles
from engine.bundled import texts
from engine.chat import Chat
from engine.kv import common
from engine.load import size_on_disk, weights
from engine.model import Model, Weights, is_own, read, tokenizer_of
from engine.network import Segment
from engine.packed import kept_in
from engine.quantize import (
    fp16_linear,
    fp16_supported,
    fp32_linear,
    input_levels,
    int8_linear,
    int8_supported,
    layer_of,
)
from engine.qwen2 import Linear, MakeLinear, Qwen2, Weight
from engine.types import Speaker, Turn

MOST_KL, LEAST_AGREEMENT = 0.05, 0.99
SMALL = 100_000_000
"""Bytes of a model that 8 bits would not make faster."""
LAYOUT = 2
"""Of the layers that are kept; another one is another model's."""
GROUP = 512
"""Tokens read at once."""
MOODS_EVERY, REPLIES_EVERY = 2, 16
"""Of the packaged phrasings, which ones are compared by mood, and which by the reply to them."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How 8 bits differ from 32. `tokens` and `labels` are shares of agreement, `kl` nats, `shift` of a probability."""

    tokens: float
    kl: float
    labels: float
    shift: float

    @property
    def good(self) -> bool:
        return self.kl <= MOST_KL and self.labels >= LEAST_AGREEMENT


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `wide` names the layers that keep 16 bits; `int8` is False where even these do not help."""

    int8: bool
    wide: tuple[str, ...]
    all_narrow: Comparison
    served: Comparison
    checked: str

    @property
    def sentence(self) -> str:
        if not self.int8:
            return f"fp32: 8 bits differ too much (KL {self.served.kl:.3f}, moods {self.served.labels:.1%} alike)"
        kept = f", {len(self.wide)} layers in 16 bits" if self.wide else ""
        return f"int8{kept} (KL {self.served.kl:.4f}, moods {self.served.labels:.1%} alike, checked {self.checked})"


def worth_it(path: Path) -> bool:
    """Whether 8 bits would make this model faster here."""
    return int8_supported() and is_own(path) and size_on_disk(path) >= SMALL


def stored(path: Path) -> Report | None:
    """What was found for the files in `path` on this machine, if anything was."""
    try:
        found = json.loads(_report_file(path).read_text(encoding="utf-8"))
        narrow, served = Comparison(**found["all_narrow"]), Comparison(**found["served"])
        return Report(bool(found["int8"]), tuple(found["wide"]), narrow, served, str(found["checked"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def why(path: Path, precision: str) -> str:
    """What `precision` comes to for the model in `path`, and why. Raises ConfigError as make_linear() does."""
    make_linear(path, precision)
    if precision != "auto":
        return f"{precision}, as engine.precision says"
    if not int8_supported():
        return "fp32: this build of torch has no 8-bit kernel for this CPU"
    if not is_own(path):
        return "fp32, by transformers: only models of the Qwen2 family run on frontdesk's own, faster engine"
    if not worth_it(path):
        return "fp32: 8 bits would not make a model this small faster"
    report = stored(path)
    if report is None:
        return "found at the first start, or by `frontdesk model check`"
    wide = report.int8 and kept_beside_int8() == torch.bfloat16
    return report.sentence + (", keys and values in bf16, in which this CPU multiplies (AMX)" if wide else "")


def make_linear(path: Path, precision: str) -> MakeLinear:
    """How the layers of the model in `path` are made. "auto" is fp32 until check() has found 8 bits to be good.

    8-bit layers that are worth it are kept on disk. Raises ConfigError for a precision that this machine does not have.
    """
    if precision == "auto":
        report = stored(path) if worth_it(path) else None
        if report is None or not report.int8:
            return fp32_linear
        return _mixed(report.wide, kept_in(_kept(path)))
    make, supported = _PRECISIONS[precision]
    if precision != "fp32" and not is_own(path):
        raise ConfigError(f'engine.precision = "{precision}" is for models of the Qwen2 family: use "auto" or "fp32"')
    if not supported():
        raise ConfigError(f'this machine cannot calculate in engine.precision = "{precision}": use "auto" or "fp32"')
    return kept_in(_kept(path)) if precision == "int8" and worth_it(path) else make


def read_in(path: Path, precision: str, on_progress: Progress) -> Model:
    """The model in `path`, as it is served here in `precision`. Raises as make_linear() and model.read() do."""
    linear = make_linear(path, precision)
    return read(path, linear, on_progress, kept_type(linear))


def kept_type(linear: MakeLinear) -> torch.dtype:
    """What keys and values are kept in beside layers made by `linear`."""
    return torch.float32 if linear in (fp32_linear, fp16_linear) else kept_beside_int8()


def kept_beside_int8() -> torch.dtype:
    """bf16, half of fp32 to read, where the CPU multiplies in it. Elsewhere attention is five times as slow."""
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def check(path: Path, on_progress: Progress) -> Report:
    """Compare, mend, and store what was found. Takes about a minute for 0.5 B on two cores. Raises ModelUnavailable."""
    with torch.inference_mode():
        files = Weights(path)
        passages = _Passages(Chat(tokenizer_of(path)))
        narrow: dict[str, Linear] = {}
        errors: dict[str, float] = {}
        exact = files.network(_watched(narrow, errors), lambda share: on_progress(0.2 * share))
        expected = passages.read(exact, lambda share: on_progress(0.2 + 0.4 * share))

        def compared(wide: Sequence[str]) -> Comparison:
            layers = _mixed(wide, lambda name, weight, bias: narrow[name])
            network = files.network(layers, lambda share: None, kept_beside_int8())
            return passages.compare(exact, expected, network, passages.read(network, lambda share: None))

        wide: list[str] = []
        first = found = compared(wide)
        by_error = sorted(errors, key=lambda name: -errors[name])
        while not found.good and len(wide) < len(by_error):
            on_progress(0.8)
            wide = by_error[: max(4, 2 * len(wide))]
            found = compared(wide)
    on_progress(1.0)
    report = Report(found.good, tuple(wide), first, found, datetime.now(UTC).date().isoformat())
    _store(path, report)
    return report


def _watched(narrow: dict[str, Linear], errors: dict[str, float]) -> MakeLinear:
    """Layers that multiply by the file's own weights, and note how far 8 bits would have been off."""

    def make(name: str, weight: Weight, bias: Tensor | None) -> Linear:
        narrow[name] = small = int8_linear(name, weight, bias)
        matrix = weight()

        def watched(x: Tensor) -> Tensor:
            exact = functional.linear(x, matrix.float(), bias)
            off = (small(x) - exact).norm() / exact.norm()
            errors[name] = max(errors.get(name, 0.0), off.item())
            return exact

        return layer_of(watched)

    return make


def _mixed(wide: Sequence[str], others: MakeLinear) -> MakeLinear:
    """The layers named in `wide` in 16 bits, where this machine has them, and the others as `others` makes them."""
    widened = fp16_linear if fp16_supported() else fp32_linear
    return lambda name, weight, bias: (widened if name in wide else others)(name, weight, bias)


_PRECISIONS: dict[str, tuple[MakeLinear, Callable[[], bool]]] = {
    "fp32": (fp32_linear, lambda: True),
    "fp16": (fp16_linear, fp16_supported),
    "int8": (int8_linear, int8_supported),
}


# -- what is compared --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Passage:
    """Token ids, and from which on it matters what the model makes of them."""

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class _Read:
    """Hidden states (positions, hidden) in the replies, and the labels' probabilities (messages, labels)."""

    replies: Tensor
    moods: Tensor


class _Passages:
    """The packaged messages as prompts: what is asked about their moods, and what they are answered."""

    def __init__(self, chat: Chat) -> None:
        mood, reply, messages = roles.sentiment(), roles.reply(), texts.held_out_replies()
        self._labels = torch.tensor([chat.encode(label)[0] for label in mood.labels])
        asked = [*roles.CONTENT_FREE, *(message.text for message in messages[::MOODS_EVERY])]
        self._moods = [_ending(chat.question(mood, text)) for text in asked]
        self._replies = []
        for message in messages[::REPLIES_EVERY]:
            prompt = chat.prompt(reply, [Turn(Speaker.USER, message.text)])
            answer = texts.replies()[message.intent][message.language][0]
            self._replies.append(_Passage(prompt + chat.encode(answer), len(prompt) - 1))

    def read(self, network: Qwen2, on_progress: Progress) -> _Read:
        replies = _hidden(network, self._replies, lambda share: on_progress(0.5 * share))
        moods = _hidden(network, self._moods, lambda share: on_progress(0.5 + 0.5 * share))
        scores = network.logits_of(moods, self._labels).log_softmax(dim=-1)
        free = len(roles.CONTENT_FREE)
        prior = scores[:free].exp().mean(dim=0).log()  # as the engine calibrates
        return _Read(replies, (scores[free:] - prior).softmax(dim=-1))

    def compare(self, exact: Qwen2, expected: _Read, other: Qwen2, found: _Read) -> Comparison:
        same, divergence = list[Tensor](), list[Tensor]()
        for rows, others in zip(torch.split(expected.replies, 64), torch.split(found.replies, 64), strict=True):
            right, near = exact.logits(rows).log_softmax(dim=-1), other.logits(others).log_softmax(dim=-1)
            same.append(right.argmax(dim=-1) == near.argmax(dim=-1))
            divergence.append((right.exp() * (right - near)).sum(dim=-1))
        return Comparison(
            tokens=torch.cat(same).float().mean().item(),
            kl=torch.cat(divergence).mean().item(),
            labels=(expected.moods.argmax(dim=-1) == found.moods.argmax(dim=-1)).float().mean().item(),
            shift=(expected.moods - found.moods).abs().mean().item(),
        )


def _ending(ids: list[int]) -> _Passage:
    return _Passage(ids, len(ids) - 1)


def _hidden(network: Qwen2, passages: Sequence[_Passage], on_progress: Progress) -> Tensor:
    """Hidden states (positions, hidden) where they matter; what all passages begin with is read once."""
    shared = min(min(common(passages[0].ids, each.ids), each.start) for each in passages)
    prefix = network.begin()
    if shared:
        network.forward([Segment(prefix, passages[0].ids[:shared])])
    found, done = list[Tensor](), 0
    for group in _grouped(passages, shared):
        segments = [Segment(prefix.copy(shared, len(each.ids)), each.ids[shared:]) for each in group]
        hidden = torch.split(network.forward(segments), [len(each.tokens) for each in segments])
        found += [rows[each.start - shared :] for rows, each in zip(hidden, group, strict=True)]
        done += len(group)
        on_progress(done / len(passages))
    return torch.cat(found)


def _grouped(passages: Sequence[_Passage], shared: int) -> Iterator[list[_Passage]]:
    group, size = list[_Passage](), 0
    for each in passages:
        if group and size + len(each.ids) - shared > GROUP:
            yield group
            group, size = [], 0
        group.append(each)
        size += len(each.ids) - shared
    yield group


# -- the report on disk ------------------------------------------------------------------------------


def _kept(path: Path) -> Path:
    """Where things are kept, named after the weights in `path`: in the hub's cache a file's name is its checksum."""
    files = [file.resolve() for file in weights(path)]
    marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((LAYOUT, marks)).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "frontdesk" / key


def _report_file(path: Path) -> Path:
    """What was found holds for what this CPU calculates in, too."""
    kind = str(kept_beside_int8()).removeprefix("torch.")
    return _kept(path) / f"precision-{input_levels()}-{kind}.json"


def _store(path: Path, report: Report) -> None:
    file = _report_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    part.replace(file)
