"""The model, as the settings name it: brought here, its precision found, loaded, or found on its server; and the roles
it is asked in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bot.config import Settings
from bot.errors import ConfigError, FrontdeskError
from engine import load, roles
from engine.threads import apart
from engine.types import Engine, EngineConfig, LabelRole, TextRole

if TYPE_CHECKING:
    from engine.precision import Report
    from engine.qwen import QwenEngine
    from engine.remote import RemoteEngine

log = structlog.get_logger(__name__)


def sentiment_role(settings: Settings) -> LabelRole:
    """How moods are asked for."""
    return roles.sentiment(settings.sentiment.labels)


def reply_role(settings: Settings) -> TextRole:
    """How replies are asked for."""
    business, speech = settings.business, settings.engine
    return roles.reply(
        business.name,
        business.about,
        business.facts,
        speech.temperature,
        speech.repetition_penalty,
        speech.max_new_tokens,
    )


def model_path(settings: Settings, console: Console) -> Path | None:
    """Where the model's files are; downloads them when they are not there yet. None where a server has the model.

    Raises ModelUnavailable.
    """
    if settings.engine.backend == "openai":
        return None
    model, revision = settings.engine.model, settings.engine.revision
    path = load.resolve(model, revision)
    return path or pull(model, revision, console)


def pull(model: str, revision: str, console: Console) -> Path:
    """Download a model with a progress bar. Raises ModelUnavailable."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"downloading {model}", total=None)
        return load.pull(model, revision, lambda done, total: progress.update(task, completed=done, total=total))


def check_precision(path: Path | None, model: str, console: Console) -> Report:
    """Compare 8 bits with 32 on this machine, with a progress bar.

    Raises ModelUnavailable, and ConfigError where this machine does not calculate in 8 bits, or not at all.
    """
    if path is None:
        raise ConfigError(f"{model} is run by its server, which has its own say on precision")
    from engine import precision, quantize  # import torch: seconds

    if not quantize.int8_supported():
        raise ConfigError("this build of torch has no 8-bit kernel for this CPU, so models are served in fp32")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"comparing 8 bits with 32 for {model}, once", total=1.0)
        return precision.check(path, lambda share: progress.update(task, completed=share))


def precision_table(report: Report) -> Table:
    """What the comparison found."""
    table = Table("", "layers in 16 bits", "same next token", "KL, nats", "same mood", "mood moved by")
    for name, kept, found in (
        ("8 bits everywhere", 0, report.all_narrow),
        ("as served", len(report.wide), report.served),
    ):
        figures = (f"{found.tokens:.1%}", f"{found.kl:.4f}", f"{found.labels:.1%}", f"{found.shift:.4f}")
        table.add_row(name, str(kept), *figures)
    return table


async def load_engine(settings: Settings, path: Path | None, console: Console) -> Engine:
    """The model in `path`, or where that is None the one on its server, ready for the roles it is asked in.

    Raises ModelUnavailable, and ConfigError for roles that the model cannot serve (labels that it cannot tell apart).
    """
    if path is None:
        return await connect(settings)
    engine = await _load(settings, path, console)
    await _check_roles(engine, settings)
    return engine


async def connect(settings: Settings) -> RemoteEngine:
    """The model on its server, ready for the roles it is asked in. What the server offers is logged.

    Raises ModelUnavailable, and ConfigError for a key, a model or roles that it does not serve.
    """
    try:
        from engine.remote import RemoteEngine
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"engine.backend is \"openai\" but {error.name} is not installed: pip install 'frontdesk[openai]'"
        ) from None

    url, key = settings.engine.base_url, settings.secrets.engine_api_key.get_secret_value()
    engine = await RemoteEngine.connect(_config(settings), url, key)
    await _check_roles(engine, settings)
    log.info("model server found", url=url, model=settings.engine.model, offers=str(engine.offers))
    return engine


async def _check_roles(engine: QwenEngine | RemoteEngine, settings: Settings) -> None:
    try:
        await engine.check(sentiment_role(settings))
        await engine.check(reply_role(settings))
    except FrontdeskError:
        await engine.close()
        raise


async def _load(settings: Settings, path: Path, console: Console) -> QwenEngine:
    """Load the model beside the event loop, with a progress bar; before its first start, find its precision."""
    speech, config = settings.engine, _config(settings)
    if speech.precision == "auto":
        await asyncio.to_thread(apart, partial(_settle_precision, path, speech.model, console))

    def loading(report: Callable[[float], None]) -> QwenEngine:
        from engine.qwen import QwenEngine  # imports torch and transformers: seconds

        return QwenEngine.load(config, path, report)

    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as progress:
        task = progress.add_task(f"loading {speech.model}", total=1.0)
        return await asyncio.to_thread(loading, lambda share: progress.update(task, completed=share))


def _config(settings: Settings) -> EngineConfig:
    speech = settings.engine
    return EngineConfig(
        model=speech.model,
        revision=speech.revision,
        context_tokens=speech.context_tokens,
        deadline_s=speech.deadline_seconds,
        penalise_prompt=speech.penalise_prompt,
        precision=speech.precision,
        cache_megabytes=speech.cache_megabytes,
        threads=speech.threads,
    )


def _settle_precision(path: Path, model: str, console: Console) -> None:
    from engine import precision

    if precision.worth_it(path) and precision.stored(path) is None:
        report = check_precision(path, model, console)
        console.print(f"{model} is served in {report.sentence}", highlight=False)
