"""`frontdesk db backup FILE`: a copy of the database, while the service runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bot.config import Settings
from bot.store.database import back_up


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
