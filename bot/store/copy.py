"""Moving from one database to another: every row, in one transaction."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Table, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from bot.errors import DatabaseUnavailable, FrontdeskError
from bot.store.database import name_of, open_engine, open_read_only, upgrade, why
from bot.store.schema import Base

ROWS_AT_ONCE = 1_000


def copy(source: str, target: str, report: Callable[[int, int], None]) -> int:
    """Copy every row of the database at the URL `source` into the empty PostgreSQL database at `target`.

    Makes the tables there. `report` is told the rows that are done, and all of them. Returns how many there were.
    Raises FrontdeskError when `target` is not empty, DatabaseUnavailable when either cannot be used; nothing is copied
    then.
    """
    reading = open_read_only(source)
    upgrade(target)
    writing = open_engine(target)
    try:
        with reading.begin() as old, writing.begin() as new:
            if any(_counts(new).values()):
                raise FrontdeskError(f"{name_of(target)} is in use already: name an empty database")
            return _copy(old, new, report)
    except SQLAlchemyError as error:
        raise DatabaseUnavailable(f"{name_of(source)} cannot be copied to {name_of(target)}: {why(error)}") from error
    finally:
        reading.dispose()
        writing.dispose()


def _copy(old: Connection, new: Connection, report: Callable[[int, int], None]) -> int:
    counts, done = _counts(old), 0
    for table in Base.metadata.sorted_tables:  # what is referred to comes first
        rows = old.execute(select(table).execution_options(yield_per=ROWS_AT_ONCE))
        for some in rows.mappings().partitions():
            new.execute(insert(table), [dict(row) for row in some])
            done += len(some)
            report(done, sum(counts.values()))
        _count_on(new, table)
    if _counts(new) != counts:
        raise FrontdeskError(f"the copy has {_counts(new)} rows instead of {counts}: stop whoever writes there")
    return done


def _counts(connection: Connection) -> dict[str, int]:
    tables = Base.metadata.sorted_tables
    return {table.name: connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables}


def _count_on(connection: Connection, table: Table) -> None:
    """The next id is given after the last that was copied."""
    number = table.autoincrement_column
    if number is not None:
        sequence = func.pg_get_serial_sequence(table.name, number.name)
        connection.execute(select(func.setval(sequence, func.max(number))))
