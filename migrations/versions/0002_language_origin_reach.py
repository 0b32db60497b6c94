"""The language a customer chose, where a conversation came from, and why it cannot be reached."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("customers", sa.Column("chosen", sa.Text(), nullable=False, server_default=""))
    op.add_column("conversations", sa.Column("origin", sa.Text(), nullable=False, server_default=""))
    op.add_column("conversations", sa.Column("unreachable", sa.Text(), nullable=False, server_default=""))
