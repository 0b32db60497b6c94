"""Train the bundled model: `python -m engine.bundled.train FOLDER_OF_THE_PUBLIC_SETS [--out DIRECTORY]`.

About eighty minutes on two cores. Interrupted, the same command goes on from the last checkpoint. card.md says what
the model is for, where the public sets come from, and how well it does.

Prompts are rendered by engine.chat from engine.roles, as in serving. Of a mood or an intent only the label is learned,
of a conversation only the answers: no word of a customer, and so none of the public sets, can come out of the model.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from engine import roles
from engine.bundled import PATH, texts, tokenizer
from engine.bundled.lessons import Example, Teacher, fitted, held_back
from engine.bundled.texts import Message
from engine.chat import Chat
from engine.kv import common
from engine.sampling import penalise_rows

SEED = 20
ENTRIES = 8_000
STEPS, WARM_UP, END_STEPS = 9_500, 150, 4_500
RATE, END_RATE, FINAL_SHARE = 1.5e-3, 6e-4, 0.03
TURNED, END_TURNED = 0.08, 0.25
"""Share of messages in which a word turns the others' meaning; at the end, once the words are known, there are more."""
END_SHARE = 0.65
"""The model is a mean of its weights before and after the end, which alone costs some of what was known before."""
EMBEDDING_RATE = 8.0
"""How much faster words are learned than the rest: most of them are seldom seen."""
LABEL_TOKENS, OPENING_TOKENS, REPLY_TOKENS = 1_800, 450, 900
"""Of one step, beside the instructions, which are read once a batch; padding counts."""
REPLY_EVERY = 4
"""Conversations come in one step of so many. Most of an answer is soon known by heart; whether the question was
understood shows in its first word, and openings teach that in every step."""
INTENTS = 0.1
"""Share of the label batches that are about intents."""
HINT_WEIGHT, EFFECT_WEIGHT = 1.0, 4.0
LARGEST_EFFECT = 5.0
LOOK_BACK, SHARPNESS, FASTEST = (1, 2, 3), 6.0, 8
"""At first the first layer's heads look so many words back, but for the last head. So they do by their biases, in the
fastest turning parts of positions."""
HALF = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""A CPU without instructions for bf16 multiplies in it a hundred times slower than in fp32."""
REPORT, SAVE = 500, 1_000


# -- batches -----------------------------------------------------------------------------------------


def batches(draw: Callable[[int], list[Example]], tokens: int) -> Iterator[list[Example]]:
    """Batches of at most `tokens` beside what they begin with in common, of examples of like length."""
    order = Random(SEED)
    while True:
        pool = sorted(draw(tokens // 3), key=lambda example: len(example.ids))
        shared = _shared(pool)
        made: list[list[Example]] = [[]]
        for example in pool:
            if (len(made[-1]) + 1) * (len(example.ids) - shared) > tokens and made[-1]:
                made.append([])
            made[-1].append(example)
        order.shuffle(made)
        yield from made


def _shared(examples: Sequence[Example]) -> int:
    """How many tokens all begin with, which are read once; what is learned comes later."""
    first = examples[0].ids
    learned = (min([*each.targets, *each.hints]) for each in examples)
    return min(min(common(first, each.ids) for each in examples), *learned)


def loss_of(model: Qwen2ForCausalLM, probe: Tensor, examples: list[Example], penalty: float = 1.0) -> Tensor:
    """Mean cross-entropy at the targets, and of hints and effects. Padding is on the right, where a causal model does
    not see it.

    `probe`, (hidden size,), reads the effects. `penalty` is the repetition penalty the answers will be drawn with:
    logits are lowered here as they will be there.
    """
    shared, longest = _shared(examples), max(len(example.ids) for example in examples)
    ids = torch.tensor([example.ids[shared:] + [0] * (longest - len(example.ids)) for example in examples])
    rows = [(row, at - shared, odds) for row, each in enumerate(examples) for at, odds in each.targets.items()]
    with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
        cache = DynamicCache(config=model.config)
        model.model(input_ids=torch.tensor([examples[0].ids[:shared]]), past_key_values=cache)
        cache.batch_repeat_interleave(len(examples))
        said = model.model(input_ids=ids, past_key_values=cache, output_hidden_states=True)
        hidden, early = said.last_hidden_state, said.hidden_states[1]
        wanted = hidden[[row for row, _, _ in rows], [at for _, at, _ in rows]]
        logits = model.lm_head(wanted).float()
    target = torch.zeros_like(logits)
    for number, (_, _, odds) in enumerate(rows):
        for token, share in odds.items():
            target[number, token] = share
    if penalty != 1:
        logits = penalise_rows(logits, _said_before(examples, logits), penalty)
    hinted, effect = _hinted(model, examples, hidden, shared), _effect(probe, examples, early, shared)
    return functional.cross_entropy(logits, target) + HINT_WEIGHT * hinted + EFFECT_WEIGHT * effect


def _hinted(model: Qwen2ForCausalLM, examples: list[Example], hidden: Tensor, shared: int) -> Tensor:
    """Mean cross-entropy of what follows a message, among all that follow one here, at every word of it."""
    at = [(row, place - shared, odds) for row, each in enumerate(examples) for place, odds in each.hints.items()]
    if not at:
        return torch.zeros(())
    labels = sorted({token for _, _, odds in at for token in odds})
    asked = hidden[[row for row, _, _ in at], [place for _, place, _ in at]].float()
    target = torch.tensor([[odds.get(token, 0.0) for token in labels] for _, _, odds in at])
    return functional.cross_entropy(asked @ model.lm_head.weight[labels].T, target)


def _effect(probe: Tensor, examples: list[Example], early: Tensor, shared: int) -> Tensor:
    """How far what the probe reads in the first layer is from what each word did to the mood, in the judge's eyes."""
    at = [(row, place - shared, effect) for row, each in enumerate(examples) for place, effect in each.effects.items()]
    if not at:
        return torch.zeros(())
    read = early[[row for row, _, _ in at], [place for _, place, _ in at]].float() @ probe
    wanted = torch.tensor([effect for _, _, effect in at]).clamp(-LARGEST_EFFECT, LARGEST_EFFECT)
    return functional.smooth_l1_loss(read, wanted)


def _said_before(examples: list[Example], logits: Tensor) -> Tensor:
    """(targets, vocabulary): which tokens the answer already holds, for every target."""
    said = torch.zeros_like(logits, dtype=torch.bool)
    number = 0
    for example in examples:
        previous = -2
        for at in example.targets:
            if at == previous + 1:
                said[number] = said[number - 1]
                said[number, example.ids[at]] = True
            previous, number = at, number + 1
    return said


# -- training ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("public", type=Path, help="the folder with the public sets that card.md names")
    parser.add_argument("--out", type=Path, default=PATH, help="where the model's files go")
    parser.add_argument("--work", type=Path, default=Path("build/bundled"), help="where checkpoints go")
    options = parser.parse_args()
    train(texts.public(options.public), STEPS, END_STEPS, options.out, options.work)


def train(public: dict[str, list[Message]], steps: int, end_steps: int, out: Path, work: Path) -> None:
    """Learn for so many steps, the last ones besides, or go on from the checkpoint in `work`; write to `out`."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    words = _tokenizer(public, work / "tokenizer.json")
    chat = Chat(tokenizer.wrapped(words))
    model = Qwen2ForCausalLM(_config(words))
    _look_back(model)
    probe = torch.zeros(model.config.hidden_size, requires_grad=True)
    optimizer = _optimizer(model, probe)
    checkpoint, log = work / "checkpoint.pt", list[dict[str, float]]()
    done, before = 0, dict[str, Tensor]()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        probe.data = state["probe"]
        done, log, before = state["done"], state["log"], state["before"]
    watched = _watched(public)
    teacher, whole = Teacher(chat, words, public, fitted(public), Random(SEED + done)), steps + end_steps
    lessons = _lessons(teacher, Random(SEED + done), TURNED if done < steps else END_TURNED)
    recent: list[tuple[float, float]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=whole, completed=done)
        while done < whole:
            recent.append(_step(model, probe, optimizer, _rate(done, steps, end_steps), *next(lessons)))
            done += 1
            if done == steps:
                before = {name: weight.clone() for name, weight in model.state_dict().items()}
                lessons = _lessons(teacher, Random(SEED + done), END_TURNED)
            progress.update(task, completed=done)
            if done % REPORT == 0 or done in (steps, whole):
                log.append({"step": done, **_means(recent), **score(model, chat, watched)})
                progress.console.print("  ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))
                recent.clear()
            if done % SAVE == 0 or done in (steps, whole):
                kept = {"model": model.state_dict(), "probe": probe.data, "optimizer": optimizer.state_dict()}
                torch.save({**kept, "before": before, "done": done, "log": log}, work / "checkpoint.part")
                (work / "checkpoint.part").replace(checkpoint)
    after = model.state_dict()
    model.load_state_dict({name: torch.lerp(before[name], weight, END_SHARE) for name, weight in after.items()})
    save(model, words, out)
    plot(log, out / "training.png")


def _optimizer(model: Qwen2ForCausalLM, probe: Tensor) -> torch.optim.AdamW:
    embedding = model.model.embed_tokens.weight
    rest = [probe, *(weight for weight in model.parameters() if weight is not embedding)]
    words = {"params": [embedding], "pace": EMBEDDING_RATE, "weight_decay": 0.0}
    return torch.optim.AdamW([{"params": rest, "pace": 1.0}, words], betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def _lessons(teacher: Teacher, which: Random, turned: float) -> Iterator[tuple[list[Example], list[list[Example]]]]:
    """What is learned in each step: a batch of labels, and batches of answers. `turned`: Teacher.moods()."""
    moods = batches(partial(teacher.moods, turned=turned), LABEL_TOKENS)
    intents = batches(teacher.intents, LABEL_TOKENS)
    openings, conversations = batches(teacher.openings, OPENING_TOKENS), batches(teacher.conversations, REPLY_TOKENS)
    number = 0
    while True:
        answers = [next(openings)]
        if number % REPLY_EVERY == 0:
            answers.append(next(conversations))
        number += 1
        yield next(intents if which.random() < INTENTS else moods), answers


def _step(
    model: Qwen2ForCausalLM,
    probe: Tensor,
    optimizer: torch.optim.Optimizer,
    rate: float,
    labels: list[Example],
    answers: list[list[Example]],
) -> tuple[float, float]:
    """All batches count alike, however many targets each has: a mean over all tokens would drown the one label."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["pace"]
    label_loss = loss_of(model, probe, labels)
    label_loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    reply_loss = 0.0
    for batch in answers:
        loss = loss_of(model, probe, batch, roles.reply().repetition_penalty)
        loss.backward()  # type: ignore[no-untyped-call]
        reply_loss += loss.item() / len(answers)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return label_loss.item(), reply_loss


def _rate(done: int, steps: int, end_steps: int) -> float:
    """Warm-up, then a cosine down to FINAL_SHARE of the peak; and a smaller one for the end."""
    if done >= steps:
        return END_RATE * _cosine((done - steps) / end_steps)
    if done < WARM_UP:
        return RATE * (done + 1) / WARM_UP
    return RATE * _cosine((done - WARM_UP) / max(1, steps - WARM_UP))


def _cosine(part: float) -> float:
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * part))


def _means(recent: Sequence[tuple[float, float]]) -> dict[str, float]:
    answers = [reply for _, reply in recent if reply]
    return {
        "label_loss": sum(label for label, _ in recent) / len(recent),
        "reply_loss": sum(answers) / max(1, len(answers)),
    }


def _tokenizer(public: dict[str, list[Message]], file: Path) -> Tokenizer:
    if file.exists():
        return Tokenizer.from_file(str(file))
    answers = [text for languages in texts.replies().values() for found in languages.values() for text in found]
    instructions = [roles.sentiment().system, roles.sentiment().prompt, roles.intent().system, roles.intent().prompt]
    instructions.append(roles.reply().system)
    written = [message.text for message in texts.written()]
    filled = [template.fill(Random(number)).text for number in range(40) for template in texts.templates(texts.CORPUS)]
    lines = [each.text for found in public.values() for each in found for _ in range(1 + (each.language == "en"))]
    made = tokenizer.train([*answers * 60, *instructions * 400, *written * 4, *filled, *lines], ENTRIES)
    made.save(str(file))
    return made


def _config(words: Tokenizer) -> Qwen2Config:
    end, start = words.token_to_id("<|im_end|>"), words.token_to_id("<|endoftext|>")
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=words.get_vocab_size(),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=start,
        eos_token_id=end,
    )


@torch.no_grad()
def _look_back(model: Qwen2ForCausalLM) -> None:
    """Let heads of the first layer begin with the words before each word, which they would take long to find.

    Rotary positions turn the pair (i, i + half) of a query and a key by their distance times the pair's pace (Su et al.
    2021, arXiv 2104.09864): a constant query turned back by `distance` meets a constant key best at that distance.
    """
    attention, size = model.model.layers[0].self_attn, model.config.hidden_size // model.config.num_attention_heads
    pace = 10_000.0 ** (-torch.arange(FASTEST) / (size // 2))
    keys, queries = attention.k_proj.bias.view(-1, size), attention.q_proj.bias.view(-1, size)
    keys[:, :FASTEST] = SHARPNESS
    for query, distance in zip(queries, LOOK_BACK, strict=False):
        query[:FASTEST] = SHARPNESS * torch.cos(pace * distance)
        query[size // 2 : size // 2 + FASTEST] = -SHARPNESS * torch.sin(pace * distance)


# -- watching ----------------------------------------------------------------------------------------


def _watched(public: dict[str, list[Message]], most: int = 250) -> dict[str, list[Message]]:
    sources = {"written": list(texts.written()), **public}
    held = {name: [each for each in found if held_back(each)] for name, found in sources.items()}
    return {name: found[:: max(1, len(found) // most)] for name, found in held.items() if name != "bitext"}


@torch.inference_mode()
def score(model: Qwen2ForCausalLM, chat: Chat, watched: dict[str, list[Message]]) -> dict[str, float]:
    """Share of the held-back messages of each source whose mood is judged right."""
    model.eval()  # type: ignore[no-untyped-call]
    role = roles.sentiment()
    first = [chat.encode(label)[0] for label in role.labels]
    found = {}
    for name, messages in watched.items():
        right = 0
        ordered = sorted(messages, key=lambda message: len(message.text))
        for start in range(0, len(ordered), 50):
            part = ordered[start : start + 50]
            prompts = [chat.question(role, message.text) for message in part]
            longest = max(map(len, prompts))
            hidden = model.model(
                input_ids=torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts]), use_cache=False
            ).last_hidden_state
            last = hidden[range(len(part)), [len(ids) - 1 for ids in prompts]]
            chosen = model.lm_head(last)[:, first].argmax(dim=-1).tolist()
            right += sum(bool(best) == message.negative for best, message in zip(chosen, part, strict=True))
        found[name] = right / max(1, len(messages))
    model.train()
    return found


# -- the files ---------------------------------------------------------------------------------------


def save(model: Qwen2ForCausalLM, words: Tokenizer, out: Path) -> None:
    """config.json, generation_config.json, the tokenizer's two files and model.safetensors, in bf16."""
    out.mkdir(parents=True, exist_ok=True)
    words.save(str(out / "tokenizer.json"))
    end, start = words.token_to_id("<|im_end|>"), words.token_to_id("<|endoftext|>")
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    config["dtype"] = "bfloat16"
    generation = {"bos_token_id": start, "pad_token_id": start, "eos_token_id": [end, start]}
    files = {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": tokenizer.CONFIG}
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone


def plot(log: Sequence[dict[str, float]], file: Path) -> None:
    """Losses and the held-back scores over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    steps = [entry["step"] for entry in log]
    for name in log[-1]:
        if name != "step":
            axes = losses if name.endswith("loss") else scores
            axes.plot(steps, [entry[name] for entry in log], label=name)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    scores.set(xlabel="step", ylabel="mood judged right, held back from training", ylim=(0.5, 1.0))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
