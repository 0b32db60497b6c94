"""Labelled messages in files: CSV, TSV and JSON lines, as people have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from bot.errors import DataError

TEXT_COLUMNS = ("text", "review", "message", "sentence", "utterance", "content", "comment", "评论", "文本", "内容")
LABEL_COLUMNS = ("label", "sentiment", "mood", "class", "intent", "category", "polarity", "标签", "情感")

NEGATIVE = ("0", "-1", "-", "neg", "negative", "bad", "unhappy", "负面", "消极", "负", "差评")
OTHER = ("1", "+1", "+", "pos", "positive", "good", "happy", "正面", "积极", "正", "好评")


@dataclass(frozen=True, slots=True)
class Labelled:
    """One row: its number in the file, counted from 1 with the heading, its text and its label as written there."""

    row: int
    text: str
    label: str


def read(file: Path, text_column: str = "", label_column: str = "") -> list[Labelled]:
    """The rows of a file. Columns are names from its heading or numbers from 1; "" finds them.

    .jsonl holds an object a line, .csv is separated by commas, anything else by tabs. Raises DataError with the row.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; correct its name") from None
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}, row {row}: not UTF-8; save the file as UTF-8") from None
    rows = list(_objects(file, text) if file.suffix in (".jsonl", ".ndjson") else _cells(file, text))
    if not rows:
        raise DataError(f"{file} holds no rows")
    return list(_labelled(file, rows, text_column, label_column))


def _objects(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            raise DataError(f"{file}, row {number}: not JSON; each line must hold one object") from None
        if not isinstance(found, dict):
            raise DataError(f"{file}, row {number}: not a JSON object; each line must hold one")
        yield number, {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cells(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    comma = file.suffix == ".csv"
    lines = StringIO(text, newline="")  # not splitlines(): it also breaks at characters that a text may hold
    reader = csv.reader(lines, strict=True) if comma else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    heading: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if heading is None:
                heading = _heading(cells)
                if heading == cells:
                    continue
            if len(cells) != len(heading):
                raise DataError(
                    f"{file}, row {reader.line_num}: {len(cells)} columns where the first row has {len(heading)}"
                )
            yield reader.line_num, dict(zip(heading, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, row {reader.line_num}: {error}; is it a comma-separated file?") from None


def _heading(first: Sequence[str]) -> list[str]:
    """The first row when it reads like one, else numbers."""
    known = {*TEXT_COLUMNS, *LABEL_COLUMNS}
    if any(cell.strip().casefold() in known for cell in first):
        return list(first)
    return [str(number) for number, _ in enumerate(first, start=1)]


def _labelled(
    file: Path, rows: Sequence[tuple[int, Mapping[str, str]]], text_column: str, label_column: str
) -> Iterator[Labelled]:
    names = list(rows[0][1])
    label = _column(file, names, label_column, LABEL_COLUMNS, "label") or _guessed(file, names, rows)
    text = _column(file, names, text_column, TEXT_COLUMNS, "text")
    if not text:
        rest = [name for name in names if name != label]
        if len(rest) != 1:
            raise DataError(f"{file}: which column holds the text? Name it with --text-column: {', '.join(rest)}")
        text = rest[0]
    for number, row in rows:
        missing = next((name for name in (text, label) if not row.get(name, "").strip()), None)
        if missing is not None:
            raise DataError(f"{file}, row {number}: the column {missing} is empty; fill it in or remove the row")
        yield Labelled(number, row[text].strip(), row[label].strip())


def _column(file: Path, names: Sequence[str], wanted: str, known: Sequence[str], what: str) -> str:
    if wanted and wanted not in names:
        raise DataError(f"{file} has no column {wanted}: --{what}-column takes one of {', '.join(names)}")
    return wanted or next((name for name in names if name.strip().casefold() in known), "")


def _guessed(file: Path, names: Sequence[str], rows: Sequence[tuple[int, Mapping[str, str]]]) -> str:
    """The only column with nothing but words that we know for moods."""
    known = {*NEGATIVE, *OTHER}
    found = [name for name in names if all(row.get(name, "").strip().casefold() in known for _, row in rows)]
    if len(found) != 1:
        raise DataError(f"{file}: which column holds the label? Name it with --label-column: {', '.join(names)}")
    return found[0]
