"""`frontdesk eval FILE`: how well a model reads moods (or another role's labels), on anybody's labelled messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import quantiles
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bot import labelled
from bot.config import Settings
from bot.errors import ConfigError, DataError
from bot.labelled import Labelled
from bot.model import load_engine, model_path
from engine import roles
from engine.types import Engine, LabelRole, LabelScores

IN_FLIGHT = 64
"""Messages given to the engine at once."""
TIMED = 100
"""Messages judged one by one, for the latency that a lone customer sees."""
BINS = 10
"""Of equal width, for the expected calibration error."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. `confusion[i][j]`: how many of label i were judged as label j, in the order of `labels`."""

    n: int
    labels: tuple[str, ...]
    accuracy: float
    macro_f1: float
    per_class: dict[str, dict[str, float]]
    negative_recall_at_threshold: float | None
    threshold: float | None
    ece: float
    latency_ms: dict[str, float]
    confusion: list[list[int]]


@dataclass(frozen=True, slots=True)
class Judged:
    """The true label of every message, and the scores it got."""

    labels: tuple[str, ...]
    truth: tuple[str, ...]
    scores: tuple[LabelScores, ...]


def evaluate(
    settings: Settings,
    file: Path,
    *,
    role: str,
    text_column: str,
    label_column: str,
    limit: int | None,
    balanced: bool,
    json_file: Path | None,
    plot_file: Path | None,
    precision: float | None,
) -> None:
    """Judge the messages in `file` and print what came of it. Raises FrontdeskError."""
    _require_libraries()
    task = _role(settings, role)
    negative = settings.sentiment.negative if role == "sentiment" else ""
    rows = chosen(labelled.read(file, text_column, label_column), limit, balanced)
    truth = truths(file, rows, task, negative)
    console = Console()
    path = model_path(settings, console)
    judged, latency = asyncio.run(_judge(settings, path, console, task, rows, truth))
    threshold = settings.escalation.threshold if negative else None
    figures = measure(judged, latency, negative, threshold)
    _print(console, figures, f"{settings.engine.model} on {file.name}")
    if precision is not None and negative:
        _print_threshold(console, judged, negative, precision)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(figures), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if plot_file is not None:
        plot(figures, judged, plot_file)
        console.print(f"The plot is in {plot_file}", highlight=False)


def _require_libraries() -> None:
    """Before the model is loaded, not after the work is done."""
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'frontdesk[eval]'") from None


def _role(settings: Settings, name: str) -> LabelRole:
    return roles.sentiment(settings.sentiment.labels) if name == "sentiment" else roles.intent()


# -- what is judged ----------------------------------------------------------------------------------


def chosen(rows: Sequence[Labelled], limit: int | None, balanced: bool) -> list[Labelled]:
    """All rows, or `limit` of them drawn with a fixed seed; `balanced`: as many of each label."""
    if not balanced:
        return list(rows) if limit is None else _drawn(rows, limit)
    groups: dict[str, list[Labelled]] = {}
    for row in rows:
        groups.setdefault(row.label, []).append(row)
    most = min(len(group) for group in groups.values())
    each = most if limit is None else min(most, limit // len(groups))
    return [row for group in groups.values() for row in _drawn(group, each)]


def _drawn(rows: Sequence[Labelled], count: int) -> list[Labelled]:
    return sorted(Random(SEED).sample(rows, min(count, len(rows))), key=lambda row: row.row)


def truths(file: Path, rows: Sequence[Labelled], role: LabelRole, negative: str) -> list[str]:
    """Each row's label in the words of the role. Raises DataError for one that means none of them."""
    if not rows:
        raise DataError(f"{file}: no rows are left to judge; raise --limit")
    return [_truth(file, row, role, negative) for row in rows]


def _truth(file: Path, row: Labelled, role: LabelRole, negative: str) -> str:
    if row.label in role.labels:
        return row.label
    word = row.label.casefold()
    if negative and word in labelled.NEGATIVE:
        return negative
    others = [label for label in role.labels if label != negative]
    if negative and word in labelled.OTHER and len(others) == 1:
        return others[0]
    known = [*role.labels, *((*labelled.NEGATIVE, *labelled.OTHER) if negative else ())]
    raise DataError(f"{file}, row {row.row}: the label {row.label!r} is unknown; known are {', '.join(known)}")


async def _judge(
    settings: Settings,
    path: Path | None,
    console: Console,
    role: LabelRole,
    rows: Sequence[Labelled],
    truth: Sequence[str],
) -> tuple[Judged, list[float]]:
    engine = await load_engine(settings, path, console)
    try:
        columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=len(rows))
            await engine.label(role, rows[0].text)  # measures the role's prior, once
            latency = [await _timed(engine, role, row.text) for row in rows[:TIMED]]
            slots = asyncio.Semaphore(IN_FLIGHT)

            async def one(row: Labelled) -> LabelScores:
                async with slots:
                    scores = await engine.label(role, row.text)
                progress.advance(task)
                return scores

            scores = await asyncio.gather(*map(one, rows))
    finally:
        await engine.close()
    return Judged(role.labels, tuple(truth), tuple(scores)), latency


async def _timed(engine: Engine, role: LabelRole, text: str) -> float:
    started = perf_counter()
    await engine.label(role, text)
    return (perf_counter() - started) * 1000


# -- figures -----------------------------------------------------------------------------------------


def measure(judged: Judged, latency_ms: Sequence[float], negative: str = "", threshold: float | None = None) -> Figures:
    """The figures of scikit-learn, and the expected calibration error (Guo et al. 2017, arXiv 1706.04599)."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    labels, truth = list(judged.labels), list(judged.truth)
    best = [scores.best for scores in judged.scores]
    quiet: dict[str, Any] = {"labels": labels, "zero_division": 0}
    precision, recall, f1, count = precision_recall_fscore_support(truth, best, **quiet)
    each = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
        for label, p, r, f, n in zip(labels, precision, recall, f1, count, strict=True)
    }
    present = [label for label in labels if label in truth]
    return Figures(
        n=len(truth),
        labels=judged.labels,
        accuracy=float(accuracy_score(truth, best)),
        macro_f1=float(f1_score(truth, best, labels=present, average="macro", zero_division=0)),
        per_class=each,
        negative_recall_at_threshold=_recall(judged, negative, threshold),
        threshold=threshold,
        ece=calibration_error(judged),
        latency_ms=_percentiles(latency_ms),
        confusion=confusion_matrix(truth, best, labels=labels).tolist(),
    )


def _recall(judged: Judged, negative: str, threshold: float | None) -> float | None:
    if threshold is None or negative not in judged.truth:
        return None
    of_negative = [
        scores.probabilities[negative] >= threshold
        for truth, scores in zip(judged.truth, judged.scores, strict=True)
        if truth == negative
    ]
    return sum(of_negative) / len(of_negative)


def reliability(judged: Judged) -> list[tuple[float, float, int]]:
    """For each bin of confidence that holds any message: mean confidence, share judged right, how many."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for truth, scores in zip(judged.truth, judged.scores, strict=True):
        confidence = scores.probabilities[scores.best]
        bins[min(BINS - 1, int(confidence * BINS))].append((confidence, scores.best == truth))
    return [
        (sum(c for c, _ in each) / len(each), sum(r for _, r in each) / len(each), len(each)) for each in bins if each
    ]


def calibration_error(judged: Judged) -> float:
    """The mean distance between confidence and share judged right, over the bins, weighted by their messages."""
    total = len(judged.truth)
    return sum(abs(confidence - right) * count / total for confidence, right, count in reliability(judged))


def fitted_threshold(judged: Judged, negative: str, precision: float) -> tuple[float, float] | None:
    """The lowest threshold whose escalations are right with `precision`, and its recall; None when there is none."""
    from sklearn.metrics import precision_recall_curve

    odds = [scores.probabilities[negative] for scores in judged.scores]
    precisions, recalls, thresholds = precision_recall_curve([truth == negative for truth in judged.truth], odds)
    for reached, recall, threshold in zip(precisions, recalls, thresholds, strict=False):
        if reached >= precision:
            return float(threshold), float(recall)
    return None


def _percentiles(latency_ms: Sequence[float]) -> dict[str, float]:
    if len(latency_ms) < 2:
        return {"p50": float(sum(latency_ms)), "p95": float(sum(latency_ms))}
    cuts = quantiles(latency_ms, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94]}


# -- what is shown -----------------------------------------------------------------------------------


def _print(console: Console, figures: Figures, title: str) -> None:
    summary = Table(title=title, show_header=False)
    summary.add_row("messages", str(figures.n))
    summary.add_row("accuracy", f"{figures.accuracy:.3f}")
    summary.add_row("macro F1", f"{figures.macro_f1:.3f}")
    if figures.negative_recall_at_threshold is not None:
        summary.add_row(
            f"negative messages that reach {figures.threshold}", f"{figures.negative_recall_at_threshold:.3f}"
        )
    summary.add_row("expected calibration error", f"{figures.ece:.3f}")
    summary.add_row("one message alone, p50 / p95 ms", "{p50:.1f} / {p95:.1f}".format(**figures.latency_ms))
    console.print(summary)
    classes = Table("label", "precision", "recall", "F1", *(f"judged {label}" for label in figures.labels))
    for label, counts in zip(figures.labels, figures.confusion, strict=True):
        each = figures.per_class[label]
        classes.add_row(label, *(f"{each[name]:.3f}" for name in ("precision", "recall", "f1")), *map(str, counts))
    console.print(classes)


def _print_threshold(console: Console, judged: Judged, negative: str, precision: float) -> None:
    found = fitted_threshold(judged, negative, precision)
    if found is None:
        console.print(f"No threshold reaches a precision of {precision} on these messages.", highlight=False)
        return
    threshold, recall = found
    console.print(
        f"escalation.threshold = {threshold:.3f} calls a human rightly {precision:.0%} of the time here, "
        f"and for {recall:.1%} of the negative messages.",
        highlight=False,
    )


def plot(figures: Figures, judged: Judged, file: Path) -> None:
    """The confusion matrix and the reliability curve, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    matrix, curve = figure.subplots(1, 2)
    matrix.imshow(figures.confusion, cmap="Blues")
    names = [_drawable(label) for label in figures.labels]
    matrix.set(xlabel="judged", ylabel="true", title=f"macro F1 {figures.macro_f1:.3f}, n = {figures.n}")
    matrix.set_xticks(range(len(names)), names)
    matrix.set_yticks(range(len(names)), names)
    darkest = max(map(max, figures.confusion))
    for row, counts in enumerate(figures.confusion):
        for column, count in enumerate(counts):
            matrix.text(column, row, count, ha="center", va="center", color="w" if count > darkest / 2 else "k")
    confidence, right, _ = zip(*reliability(judged), strict=True)
    curve.plot([0, 1], [0, 1], "--", color="grey", label="perfect")
    curve.plot(confidence, right, "o-", label="model")
    curve.set(xlabel="confidence", ylabel="share judged right", title=f"calibration error {figures.ece:.3f}")
    curve.legend()
    figure.savefig(file, dpi=110)


def _drawable(label: str) -> str:
    """matplotlib's own fonts have no Chinese; the two labels of the default set have well-known names."""
    return {"正面": "positive", "负面": "negative"}.get(label, label)
