"""config.toml and the environment become one frozen Settings; unknown keys and bad values are refused by name.

Secrets come only from the environment (a .env file beside config.toml is read): a token in config.toml is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from bot.errors import ConfigError
from bot.hours import Hours, read_span
from bot.messages import Platform

DEFAULT_MODEL = "Qwen/Qwen1.5-0.5B-Chat"

Text = Annotated[str, Field(min_length=1)]


def _is_place_of_its_own(value: str) -> str:
    address = urlsplit(value)
    whole = address.scheme in ("https", "http") and address.netloc
    if value and (not whole or address.path in ("", "/", "/health", "/metrics") or address.query):
        raise ValueError('use "https://HOST/PATH", such as "https://shop.example/hook", or "" for none')
    return value


Webhook = Annotated[str, AfterValidator(_is_place_of_its_own)]
Url = Annotated[str, Field(pattern="^https?://")]

_PLAIN = {
    "model_type": "should be a section with keys of its own",
    "tuple_type": 'should be a list of texts: ["one", "two"]',
    "dict_type": 'should be a table of texts: { U0123 = "Anna" }',
    "string_too_short": "should not be empty",
    "string_pattern_mismatch": "should start with https:// or http://",
}
"""What pydantic says in the words of Python, in the words of config.toml."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Business(_Section):
    """What the bot knows about the shop."""

    name: str = ""
    about: str = ""
    facts: tuple[str, ...] = ()
    thumbs: bool = True


class EngineSection(_Section):
    """The model and how it speaks. `revision` "" is the tested one of the default model, the newest of any other.

    `backend` is who runs it: this program, or a server at `base_url` that speaks OpenAI's language.
    """

    backend: Literal["own", "openai"] = "own"
    base_url: str = Field(default="", pattern="^(https?://|$)")
    model: Text = DEFAULT_MODEL
    revision: str = ""
    context_tokens: int = Field(default=1024, ge=128, le=32_768)
    max_new_tokens: int = Field(default=128, ge=1, le=2_048)
    temperature: float = Field(default=0.7, ge=0, le=2)
    repetition_penalty: float = Field(default=1.2, ge=1, le=2)
    penalise_prompt: bool = False
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    cache_megabytes: int = Field(default=200, ge=0, le=100_000)
    deadline_seconds: float = Field(default=60, gt=0, le=600)
    threads: int = Field(default=0, ge=0, le=256)

    @model_validator(mode="after")
    def _server_has_an_address(self) -> EngineSection:
        if "@" in self.base_url:
            raise ValueError("base_url holds a password: remove it there and set FRONTDESK_ENGINE_API_KEY")
        if self.backend == "openai" and not self.base_url:
            raise ValueError('backend = "openai" needs base_url: the server\'s address, "http://127.0.0.1:8000/v1"')
        return self


class SentimentSection(_Section):
    """The words the model answers with when it reads a mood."""

    labels: tuple[Text, ...] = ("正面", "负面")
    negative: str = "负面"

    @model_validator(mode="after")
    def _negative_is_a_label(self) -> SentimentSection:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels needs at least two different words")
        if self.negative not in self.labels:
            raise ValueError(f"negative must be one of labels: {', '.join(self.labels)}")
        return self


class EscalationSection(_Section):
    """When a human is called, and where."""

    channel: str = "console"
    threshold: float = Field(default=0.8, gt=0, le=1)
    keywords: tuple[Text, ...] = ("人工", "真人", "human", "agent")
    remind_minutes: int = Field(default=15, ge=0, le=10_080)
    apologise_minutes: int = Field(default=60, ge=0, le=10_080)
    idle_hours: int = Field(default=12, ge=0, le=8_760)
    agents: tuple[Text, ...] = ()
    names: dict[str, Text] = Field(default_factory=dict)
    ask_score: bool = True

    @field_validator("channel")
    @classmethod
    def _channel_names_a_platform(cls, value: str) -> str:
        platform, _, chat = value.partition(":")
        if value in ("", "console") or (platform in (Platform.TELEGRAM, Platform.SLACK) and chat):
            return value
        raise ValueError('use "telegram:CHAT_ID", "slack:CHANNEL_ID", "console", or "" for none')


class HoursSection(_Section):
    """When colleagues are there: spans of local time by weekday, and whole days on which nobody is."""

    timezone: Text = "UTC"
    monday: tuple[str, ...] = ()
    tuesday: tuple[str, ...] = ()
    wednesday: tuple[str, ...] = ()
    thursday: tuple[str, ...] = ()
    friday: tuple[str, ...] = ()
    saturday: tuple[str, ...] = ()
    sunday: tuple[str, ...] = ()
    holidays: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be_read(self) -> HoursSection:
        self.read()
        return self

    def read(self) -> Hours:
        """Raises ValueError, whose words name what is wrong."""
        days = (self.monday, self.tuesday, self.wednesday, self.thursday, self.friday, self.saturday, self.sunday)
        weekly = {number: tuple(map(read_span, spans)) for number, spans in enumerate(days)}
        return Hours(_zone(self.timezone), weekly, frozenset(map(_day, self.holidays)))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'"{name}" is no time zone: use a name such as "Europe/Berlin" or "Asia/Shanghai"') from None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f'"{text}" is no day: use "2026-12-25"') from None


class TelegramSection(_Section):
    """`webhook` is the public address at which Telegram finds us; "" for long polling."""

    enabled: bool = False
    api_url: Url = "https://api.telegram.org"
    webhook: Webhook = ""


class SlackSection(_Section):
    """`webhook` is the public address at which Slack finds us; "" for Socket Mode."""

    enabled: bool = False
    api_url: Url = "https://slack.com/api/"
    webhook: Webhook = ""


class WebSection(_Section):
    """The chat page and the /health and /metrics routes; `enabled` is the page, the routes are always there."""

    enabled: bool = True
    host: Text = "127.0.0.1"
    port: int = Field(default=7860, ge=0, le=65_535)
    user: str = "frontdesk"


class DatabaseSection(_Section):
    """A SQLite file or a PostgreSQL database; libpq finds the password of that where it always does."""

    url: str = "sqlite:///frontdesk.db"

    @field_validator("url")
    @classmethod
    def _names_a_database(cls, value: str) -> str:
        address = urlsplit(value)
        if address.scheme not in ("sqlite", "postgresql+psycopg") or not address.path.strip("/"):
            raise ValueError('use "sqlite:///FILE" or "postgresql+psycopg://USER@HOST:PORT/DATABASE"')
        if address.password is not None or "password" in parse_qs(address.query):
            raise ValueError(
                "holds a password: remove it there and set PGPASSWORD in the environment, or use ~/.pgpass"
            )
        _ = address.port  # raises ValueError when it is no number
        return value


class QueueSection(_Section):
    """How jobs are worked off. A job is dead after `max_attempts` claims that did not end in a shutdown."""

    backend: Literal["embedded", "procrastinate"] = "embedded"
    concurrency: int = Field(default=8, ge=1, le=256)
    lease_seconds: float = Field(default=20, gt=0, le=3_600)
    max_attempts: int = Field(default=3, ge=1, le=20)
    max_backoff_seconds: float = Field(default=30, gt=0, le=3_600)
    drain_seconds: float = Field(default=20, ge=0, le=600)


class LimitsSection(_Section):
    """How much one customer may write, and who may at all: "telegram:ID" or "slack:ID", a person's or a chat's."""

    max_text_chars: int = Field(default=4_000, ge=100, le=100_000)
    messages_per_minute: int = Field(default=30, ge=1, le=10_000)
    replies_per_minute: int = Field(default=20, ge=1, le=10_000)
    allow: tuple[Text, ...] = ()
    block: tuple[Text, ...] = ()

    @field_validator("allow", "block")
    @classmethod
    def _ids_name_a_platform(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            platform, _, rest = value.partition(":")
            if platform not in [each.value for each in Platform] or not rest:
                raise ValueError(f'"{value}" names nobody: use "telegram:ID" or "slack:ID"')
        return values


class PrivacySection(_Section):
    """How long what customers said is kept after the last word, in days; 0 is for ever."""

    keep_days: int = Field(default=0, ge=0, le=36_500)


class LogSection(_Section):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "json", "console"] = "auto"


class Secrets(BaseSettings):
    """Tokens and passwords, from FRONTDESK_TELEGRAM_TOKEN and so on, or a .env file beside config.toml."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_prefix="FRONTDESK_", env_ignore_empty=True, hide_input_in_errors=True
    )

    telegram_token: SecretStr = SecretStr("")
    slack_bot_token: SecretStr = SecretStr("")
    slack_app_token: SecretStr = SecretStr("")
    slack_signing_secret: SecretStr = SecretStr("")
    web_password: SecretStr = SecretStr("")
    engine_api_key: SecretStr = SecretStr("")

    def values(self) -> tuple[str, ...]:
        """Every secret in force, for the log's redaction."""
        found = (getattr(self, name).get_secret_value() for name in type(self).model_fields)
        return tuple(secret for secret in found if secret)


class Settings(_Section):
    """All of config.toml, with defaults for what it leaves out, and the secrets."""

    business: Business = Business()
    engine: EngineSection = EngineSection()
    sentiment: SentimentSection = SentimentSection()
    escalation: EscalationSection = EscalationSection()
    hours: HoursSection = HoursSection()
    telegram: TelegramSection = TelegramSection()
    slack: SlackSection = SlackSection()
    web: WebSection = WebSection()
    database: DatabaseSection = DatabaseSection()
    queue: QueueSection = QueueSection()
    limits: LimitsSection = LimitsSection()
    privacy: PrivacySection = PrivacySection()
    log: LogSection = LogSection()
    secrets: Secrets = Field(default_factory=Secrets)


def load(path: Path) -> Settings:
    """Read `path`, the environment and .env. A relative SQLite file or model directory is taken from the file's folder.

    Raises ConfigError with the key's name and what is allowed, and when a platform lacks its token.
    """
    settings = load_without_tokens(path)
    if missing := missing_tokens(settings):
        raise ConfigError(f"{path}: {'; '.join(missing)}")
    return settings


def load_without_tokens(path: Path) -> Settings:
    """The same for who looks after missing tokens itself."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors add a byte order mark
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: run `frontdesk init` to write it, or name one with --config"
        ) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from None
    return _anchored(parse(document, read_secrets(path), source=str(path)), path.parent)


def read_secrets(path: Path) -> Secrets:
    """The environment's tokens, and those of the .env beside the config file `path`. Raises ConfigError."""
    file = path.parent / ".env"
    try:
        return Secrets(_env_file=file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def parse(document: Mapping[str, Any], secrets: Secrets, *, source: str = "config.toml") -> Settings:
    """Validate a parsed document; whether tokens are missing is another question. Raises ConfigError."""
    _refuse_secrets(document, source)
    try:
        settings = Settings.model_validate({**document, "secrets": secrets})
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error)}") from None
    _refuse_channel_without_platform(settings, source)
    _refuse_procrastinate_on_a_file(settings, source)
    return settings


def missing_tokens(settings: Settings) -> list[str]:
    """One sentence for each token that an enabled platform lacks."""
    receiving = "slack_signing_secret" if settings.slack.webhook else "slack_app_token"
    needed = ["telegram_token", "slack_bot_token", receiving]
    return [
        f"{section}.enabled is true but FRONTDESK_{name.upper()} is not set: put it in the environment or in .env"
        for name in needed
        if getattr(settings, section := name.partition("_")[0]).enabled
        and not getattr(settings.secrets, name).get_secret_value()
    ]


def _refuse_secrets(document: Mapping[str, Any], source: str) -> None:
    for name in Secrets.model_fields:
        section, _, key = name.partition("_")
        table = document.get(section)
        if isinstance(table, Mapping) and key in table:
            raise ConfigError(
                f"{source}: {section}.{key} is a secret: remove it there and set FRONTDESK_{name.upper()} "
                "in the environment or in .env"
            )
    if "secrets" in document:
        raise ConfigError(f"{source}: secrets is not a section: set tokens in the environment or in .env")


def _sentence(error: ValidationError) -> str:
    return "; ".join(_problem(item["type"], item["loc"], item["msg"]) for item in error.errors())


def _problem(kind: str, location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"{key} is not a known key (known: {', '.join(_siblings(location))})"
    plain = _PLAIN.get(kind, message.removeprefix("Value error, ").removeprefix("Input "))
    return f"{key}: {plain}"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    return [name for name in model.model_fields if name != "secrets"]


def _refuse_channel_without_platform(settings: Settings, source: str) -> None:
    platform = settings.escalation.channel.partition(":")[0]
    if platform in (Platform.TELEGRAM, Platform.SLACK) and not getattr(settings, platform).enabled:
        raise ConfigError(
            f"{source}: escalation.channel is on {platform} but {platform}.enabled is false: "
            "enable it or name another channel"
        )


def _refuse_procrastinate_on_a_file(settings: Settings, source: str) -> None:
    if settings.queue.backend == "procrastinate" and settings.database.url.startswith("sqlite:"):
        raise ConfigError(
            f'{source}: queue.backend "procrastinate" needs PostgreSQL but database.url names a file: '
            'set database.url = "postgresql+psycopg://USER@HOST:PORT/DATABASE", or leave queue.backend out'
        )


def _anchored(settings: Settings, base: Path) -> Settings:
    update: dict[str, Any] = {}
    if (url := settings.database.url).startswith("sqlite:///"):
        file = (base / url.removeprefix("sqlite:///")).absolute()
        update["database"] = DatabaseSection(url=f"sqlite:///{file}")
    if settings.engine.backend == "own" and settings.engine.model.startswith((".", "~")):
        model = (base / Path(settings.engine.model).expanduser()).absolute()
        update["engine"] = settings.engine.model_copy(update={"model": str(model)})
    return settings.model_copy(update=update)
