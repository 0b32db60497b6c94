"""A store for Procrastinate: with every job it defers a token, which says that its lane is to be seen to.

The table of jobs stays the record: what is to be done, in which order, how often it was tried, who holds it. A token
holds a lane's name, commits with the job, and is deleted by who saw after that that nothing in the lane is left to do.
So each unfinished job has one, whatever happens to workers: docs/decisions/0011-procrastinate-hands-out-tokens.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from procrastinate import App, SyncPsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.schema import SchemaManager
from sqlalchemy import Engine, column, event, select, table, text
from sqlalchemy.orm import Session

from bot.errors import DatabaseUnavailable
from bot.store import jobs
from bot.store.jobs import Claim, JobKind, JobState
from bot.store.schema import JobRow
from bot.store.store import Store

_app = App(connector=SyncPsycopgConnector())
"""Never opened: it defers on connections of the store."""


class TokenStore(Store):
    """The store, where a job and its token are one transaction."""

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        with _TokenSession(self._engine) as session, session.begin():
            yield session

    def due(self, lane: str) -> timedelta | None:
        """How long until the next job of a lane may be claimed, 0 and less for now; None when nothing is left to do."""
        with self._look() as session:
            at = jobs.due(session, lane)
            return None if at is None else at - self._now()

    def claim_in(self, lane: str, kind: JobKind, lease: timedelta) -> Claim | None:
        with self._begin() as session:
            return jobs.claim(session, kind, self._now(), lease, lane)

    def hand_out(self, kind: JobKind) -> int:
        """Give a token to every lane that has something to do and none; returns how many.

        Jobs are without one that were stored while another queue was in use, or by a command.
        """
        tokens = table("procrastinate_jobs", column("lock"), column("status"))
        held = select(tokens.c.lock).where(text("status IN ('todo', 'doing') AND lock IS NOT NULL"))
        left = select(JobRow.lane).where(JobRow.kind == kind, JobRow.state != JobState.DEAD, JobRow.lane.not_in(held))
        with self._begin() as session:
            lanes = session.scalars(left.distinct()).all()
            for lane in lanes:
                _defer(session, kind, lane)
            return len(lanes)

    def server(self) -> str:
        """Where the database is, as libpq names it; with the password, if the address has one."""
        return self._engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


class _TokenSession(Session):
    pass


@event.listens_for(_TokenSession, "after_flush")
def _defer_for_new_jobs(session: Session, _: object) -> None:
    for row in session.new:
        if isinstance(row, JobRow):
            _defer(session, JobKind(row.kind), row.lane)


def _defer(session: Session, kind: JobKind, lane: str) -> None:
    connection = session.connection().connection.driver_connection
    try:
        _app.configure_task(kind.value, queue=kind.value, lock=lane, connection=connection).defer(lane=lane)
    except ConnectorException as error:
        raise DatabaseUnavailable(f"the database refused: {error.__cause__}") from error


def upgrade(engine: Engine) -> None:
    """Bring Procrastinate's tables to what its installed version wants.

    It keeps no version of them; ours is the name of its last migration, as a comment on its table. A migration is a
    transaction: some use what an earlier one has committed.
    """
    migrations = sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    known = "SELECT coalesce(obj_description(oid), '') FROM pg_class WHERE oid = to_regclass('procrastinate_jobs')"
    with engine.connect() as connection:
        version = connection.scalar(text(known))
    if version is None:
        scripts = {migrations[-1].name: SchemaManager.get_schema()}
    else:
        scripts = {each.name: each.read_text("utf-8") for each in migrations if each.name > version}
    for name, script in scripts.items():
        with engine.begin() as connection:
            connection.exec_driver_sql(script.replace("%", "%%"))
            connection.exec_driver_sql(f"COMMENT ON TABLE procrastinate_jobs IS '{name}'")
