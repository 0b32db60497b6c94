"""The tables, the same on SQLite and PostgreSQL. On SQLite all are STRICT, so columns are INTEGER, TEXT or REAL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    DOUBLE_PRECISION,
    REAL,
    BigInteger,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BIG = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's rowid alias must be spelled INTEGER
# REAL is 8 bytes on SQLite and 4 on PostgreSQL
_REAL: TypeEngine[float] = REAL().with_variant(DOUBLE_PRECISION(), "postgresql")


class Instant(TypeDecorator[datetime]):
    """An aware datetime as integer microseconds since 1970 UTC: exact, sortable, the same on every database."""

    impl = _BIG
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Words(TypeDecorator[str]):
    """Text without the character NUL, which PostgreSQL cannot hold: a name, a model's reply or an error may have it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.replace("\0", "")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Words, int: _BIG, float: _REAL, datetime: Instant}  # noqa: RUF012 - SQLAlchemy's own form


class CustomerRow(Base):
    __tablename__ = "customers"
    __table_args__ = (UniqueConstraint("platform", "account", "external_id"), {"sqlite_strict": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    platform: Mapped[str]
    account: Mapped[str]
    external_id: Mapped[str]
    name: Mapped[str]
    language: Mapped[str]
    chosen: Mapped[str] = mapped_column(server_default="", default="")
    created_at: Mapped[datetime]


class ConversationRow(Base):
    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("platform", "account", "chat", "thread", "customer_id"),
        {"sqlite_strict": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    platform: Mapped[str]
    account: Mapped[str]
    chat: Mapped[str]
    thread: Mapped[str]
    owner: Mapped[str]
    opened_at: Mapped[datetime]
    origin: Mapped[str] = mapped_column(server_default="", default="")
    unreachable: Mapped[str] = mapped_column(server_default="", default="")
    erased_at: Mapped[datetime | None]
    begun: Mapped[str] = mapped_column(server_default="", default="")


class MessageRow(Base):
    """One line of the history. `turn` numbers the exchanges of a conversation: 0 while the message waits."""

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("platform", "account", "event_id"),
        Index("ix_messages_conversation_id_turn_id", "conversation_id", "turn", "id"),
        {"sqlite_strict": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    conversation_id: Mapped[int] = mapped_column(ForeignKey("conversations.id"))
    platform: Mapped[str]
    account: Mapped[str]
    event_id: Mapped[str | None]
    author: Mapped[str]
    kind: Mapped[str]
    text: Mapped[str]
    reply_to: Mapped[str]
    at: Mapped[datetime]
    turn: Mapped[int]
    outcome: Mapped[str | None]
    settled_at: Mapped[datetime | None]
    label: Mapped[str | None]
    negative: Mapped[float | None]
    threshold: Mapped[float | None]
    rating: Mapped[str] = mapped_column(server_default="", default="")
    cut: Mapped[int] = mapped_column(server_default="0", default=0)
    corrected: Mapped[int] = mapped_column(server_default="0", default=0)
    media: Mapped[str] = mapped_column(server_default="", default="")


class EscalationRow(Base):
    """A call for a human; at most one open per conversation. `card_id` is the platform's id of the posted card,
    `topic` that of its place in a chat that has places."""

    __tablename__ = "escalations"
    __table_args__ = (
        Index(
            "uq_escalations_open",
            "conversation_id",
            unique=True,
            sqlite_where=text("resolved_at IS NULL"),
            postgresql_where=text("resolved_at IS NULL"),
        ),
        Index("ix_escalations_conversation_id", "conversation_id"),  # looked up at every message of a customer
        {"sqlite_strict": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    conversation_id: Mapped[int] = mapped_column(ForeignKey("conversations.id"))
    message_id: Mapped[int | None] = mapped_column(ForeignKey("messages.id"))
    reason: Mapped[str]
    times: Mapped[int]
    opened_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    card_id: Mapped[str]
    claimed_by: Mapped[str] = mapped_column(server_default="", default="")
    claimed_name: Mapped[str] = mapped_column(server_default="", default="")
    claimed_at: Mapped[datetime | None]
    reminded_at: Mapped[datetime | None]
    apologised_at: Mapped[datetime | None]
    ended: Mapped[str] = mapped_column(server_default="", default="")
    topic: Mapped[str] = mapped_column(server_default="", default="")
    came_back_at: Mapped[datetime | None]
    score: Mapped[int | None]


class OutboundRow(Base):
    """Something we say. A card has an escalation and no text: it is written when it is sent, from what is true then."""

    __tablename__ = "outbound"
    __table_args__ = (Index("ix_outbound_conversation_id", "conversation_id"), {"sqlite_strict": True})

    id: Mapped[str] = mapped_column(primary_key=True)
    conversation_id: Mapped[int] = mapped_column(ForeignKey("conversations.id"))
    message_id: Mapped[int | None] = mapped_column(ForeignKey("messages.id"))
    escalation_id: Mapped[int | None] = mapped_column(ForeignKey("escalations.id"))
    kind: Mapped[str]
    platform: Mapped[str]
    account: Mapped[str]
    chat: Mapped[str]
    thread: Mapped[str]
    reply_to: Mapped[str]
    text: Mapped[str]
    state: Mapped[str]
    unknowns: Mapped[int]
    created_at: Mapped[datetime]
    settled_at: Mapped[datetime | None]
    platform_id: Mapped[str]
    error: Mapped[str]
    copies: Mapped[str] = mapped_column(server_default="", default="")
    only_for: Mapped[str] = mapped_column(server_default="", default="")


class JobRow(Base):
    """Work to do. Jobs of one lane run one after the other, in order of id; `fence` grows with every claim.

    An id is never given twice (AUTOINCREMENT), so that a claim on a job that was done and deleted fits no later one.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_lane_id", "lane", "id"),
        Index("ix_jobs_kind_state_run_at", "kind", "state", "run_at"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    lane: Mapped[str]
    conversation_id: Mapped[int] = mapped_column(ForeignKey("conversations.id"))
    outbound_id: Mapped[str | None] = mapped_column(ForeignKey("outbound.id"))
    state: Mapped[str]
    attempts: Mapped[int]
    fence: Mapped[int]
    created_at: Mapped[datetime]
    run_at: Mapped[datetime]
    lease_until: Mapped[datetime | None]
    error: Mapped[str]


class CursorRow(Base):
    """How far a platform's events are stored (Telegram: the last update_id)."""

    __tablename__ = "cursors"
    __table_args__ = ({"sqlite_strict": True},)

    platform: Mapped[str] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]
