"""`frontdesk db backup FILE` and `frontdesk db copy --to URL`: the database once more, in a file or on a server."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bot.config import Secrets, Settings, parse
from bot.errors import ConfigError
from bot.store.copy import copy
from bot.store.database import back_up, is_file, name_of, single_writer


def write_backup(settings: Settings, file: Path, console: Console) -> None:
    """Copy the database to `file` with a progress bar.

    Raises FrontdeskError when the file exists or cannot be written, DatabaseUnavailable when there is no database.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("copying the database", total=None)
        size = back_up(
            settings.database.url, file, lambda done, total: progress.update(task, completed=done, total=total)
        )
    console.print(f"{size / 1e6:,.1f} MB in {file}, which only you can read", markup=False, highlight=False)


def write_copy(settings: Settings, to: str, console: Console) -> None:
    """Copy a SQLite database to the empty PostgreSQL database at the URL `to`, with a progress bar.

    Raises ConfigError when the two are not these, DatabaseInUse while a service runs on the file, and what copy() does.
    """
    source = settings.database.url
    target = parse({"database": {"url": to}}, Secrets(), source="--to").database.url
    if not is_file(source) or is_file(target):
        raise ConfigError(
            f"{name_of(source)} to {name_of(target)}: only a SQLite file is copied, and only to PostgreSQL"
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with single_writer(source), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("copying rows", total=None)
        rows = copy(source, target, lambda done, total: progress.update(task, completed=done, total=total))
    console.print(f"{rows:,} rows are in {name_of(target)}: name it in database.url", markup=False, highlight=False)
