"""Runs the migrations on the connection that bot.store.database.upgrade hands over."""

from __future__ import annotations

from alembic import context

from bot.store.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
)
context.run_migrations()
