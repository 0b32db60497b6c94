"""Erasing, previews that begin messages, ratings, messages that were cut, and who claimed an escalation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("conversations", sa.Column("erased_at", BIG, nullable=True))
    op.add_column("conversations", sa.Column("begun", sa.Text(), nullable=False, server_default=""))
    op.add_column("messages", sa.Column("rating", sa.Text(), nullable=False, server_default=""))
    for name in ("cut", "corrected"):
        op.add_column("messages", sa.Column(name, BIG, nullable=False, server_default="0"))
    for table, name in (("messages", "media"), ("outbound", "copies"), ("outbound", "only_for")):
        op.add_column(table, sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in ("claimed_by", "claimed_name", "ended", "topic"):
        op.add_column("escalations", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in ("claimed_at", "reminded_at", "apologised_at", "came_back_at", "score"):
        op.add_column("escalations", sa.Column(name, BIG, nullable=True))
    op.create_index("ix_escalations_conversation_id", "escalations", ["conversation_id"])
