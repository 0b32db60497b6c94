"""`frontdesk export labels`: what agents corrected, as `frontdesk eval` reads it."""

from __future__ import annotations

import csv
from pathlib import Path

from bot.config import Settings
from bot.errors import FrontdeskError
from bot.store.database import open_read_only
from bot.store.reader import Reader


def export_labels(settings: Settings, file: Path) -> int:
    """Write "text,label" lines; the label is the first that is not the negative one. Returns how many.

    Raises FrontdeskError when the file cannot be written.
    """
    engine = open_read_only(settings.database.url)
    try:
        texts = Reader(engine).corrections()
    finally:
        engine.dispose()
    mood = settings.sentiment
    label = next(each for each in mood.labels if each != mood.negative)
    try:
        with file.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([("text", "label"), *((text, label) for text in texts)])
    except OSError as error:
        raise FrontdeskError(f"{file} cannot be written: {error.strerror}") from None
    return len(texts)
