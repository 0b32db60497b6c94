"""Power cuts: what a disk still has of what a process wrote, and the real store on such a disk.

`python -m tests.promises.power` plays the cuts. It is started with power_shim.c loaded, which a test cannot do to its
own process; each cut is a fork of it that accepts messages until the shim kills it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError

from bot.store import database
from bot.store.database import Writer, open_engine
from bot.store.schema import MessageRow
from bot.store.store import Store
from tests.conftest import inbound, migrated

ENTRY = struct.Struct("<c64sqq")
"""One operation in the shim's log: what it was, the file's name, an offset, the bytes of data that follow."""
SECTOR = 512
"""Bytes that a disk writes whole or not at all."""
NAME = "frontdesk.db"
MESSAGES, AT_ONCE = 24, 8
"""That a run accepts unless it is cut, and how many of them between two starts."""


def power_on(folder: Path, log: Path, last: int) -> None:
    """Note what this process does to `folder` from now on, and kill it after `last` operations."""
    shim = ctypes.CDLL(None).power_on
    shim.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)
    shim(bytes(folder), bytes(log), last)


# -- the disk --------------------------------------------------------------------------------------


@dataclass(slots=True)
class File:
    """What is on the disk for certain, and the writes since: (offset, data), or (length, None) for a truncation."""

    content: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        self.content = self.cut(lambda: True)
        self.since.clear()

    def cut(self, survives: Callable[[], bool]) -> bytes:
        """What is left when the power goes; `survives` is asked about every sector that was not synced."""
        left = bytearray(self.content)
        for offset, data in self.since:
            if data is not None:
                for start in range(0, len(data), SECTOR):
                    if survives():
                        _put(left, offset + start, data[start : start + SECTOR])
            elif survives():
                del left[offset:]
                _put(left, offset, b"")
        return bytes(left)


def _put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Disk:
    """One folder. A file is found again once the folder itself was synced after it was made."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {name: File(content) for name, content in files.items()}
        self.found = dict(self.files)

    def replay(self, log: Path) -> None:
        for what, name, offset, data in _entries(log):
            if name.endswith("-shm"):
                continue  # is made anew by whoever opens the database first
            match what:
                case b"C":
                    self.files[name] = File()
                case b"U":
                    del self.files[name]
                case b"W":
                    self.files[name].since.append((offset, data))
                case b"T":
                    self.files[name].since.append((offset, None))
                case b"S" if name == ".":
                    self.found = dict(self.files)
                case b"S":
                    self.files[name].sync()

    def cut(self, survives: Callable[[], bool]) -> dict[str, bytes]:
        """The folder as it is found when the power is back."""
        names = sorted(self.files.keys() | self.found.keys())
        left = {name: (self.files if survives() else self.found).get(name) for name in names}
        return {name: file.cut(survives) for name, file in left.items() if file is not None}


def _entries(log: Path) -> Iterator[tuple[bytes, str, int, bytes]]:
    noted, at = log.read_bytes(), 0
    while at < len(noted):
        what, name, offset, length = ENTRY.unpack_from(noted, at)
        at += ENTRY.size + length
        yield what, name.rstrip(b"\0").decode(), offset, noted[at - length : at]


# -- the store on it -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """What came of one: how many messages were acknowledged, which of them are gone, what SQLite says of the file.

    `in_checkpoint` and `in_commit` are whether the database or its log held something that was not synced.
    """

    seed: int
    acknowledged: int
    lost: list[str]
    integrity: str
    in_checkpoint: bool
    in_commit: bool


def play(seed: int, folder: Path) -> Cut:
    """One cut, in an empty folder, at an operation that the seed draws."""
    chance = random.Random(seed)
    pages = chance.choice((1, 5, 1_000))  # 1,000 is SQLite's own choice: only when it closes, with so few messages
    last = chance.randrange(_uncut(pages))
    before, log = folder / "before", folder / "log"
    before.mkdir()
    (before / NAME).write_bytes(migrated())
    acknowledged = _fork(before, log, last, pages)
    disk = Disk({NAME: migrated()})
    disk.replay(log)
    share = chance.choice((0.0, 0.5, 0.9))
    after = folder / "after"
    after.mkdir()
    for name, content in disk.cut(lambda: chance.random() < share).items():
        (after / name).write_bytes(content)
    integrity, kept = _look(after / NAME)
    in_checkpoint = bool(disk.files[NAME].since)
    in_commit = any(file.since for name, file in disk.files.items() if name != NAME)
    lost = [event for event in acknowledged if event not in kept]
    return Cut(seed, len(acknowledged), lost, integrity, in_checkpoint, in_commit)


@cache
def _uncut(pages: int) -> int:
    """How many operations a whole run takes."""
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name) / "whole", Path(name) / "log"
        folder.mkdir()
        (folder / NAME).write_bytes(migrated())
        assert len(_fork(folder, log, sys.maxsize, pages)) == MESSAGES
        return len(list(_entries(log)))


def _fork(folder: Path, log: Path, last: int, pages: int) -> list[str]:
    """Accept messages in a process of its own; the events that it acknowledged before it was killed."""
    listening, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(listening)
        try:
            power_on(folder, log, last)
            asyncio.run(_accept(f"sqlite:///{folder / NAME}", pages, told))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(told)
    with open(listening, encoding="ascii") as words:
        acknowledged = words.read().split()
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the process ended by itself: {status}"
    return acknowledged


async def _accept(url: str, pages: int, told: int) -> None:
    database._PRAGMAS += (f"wal_autocheckpoint={pages}",)
    for start in range(0, MESSAGES, AT_ONCE):
        engine, writer = open_engine(url), Writer()
        store = Store(engine)
        for number in range(start, start + AT_ONCE):
            await writer(store.accept, inbound(event=f"e{number}", customer=f"c{number % 3}", cursor=number))
            os.write(told, f"e{number}\n".encode())
        writer.close()
        engine.dispose()


def _look(file: Path) -> tuple[str, set[str | None]]:
    """Whether the database is whole, and the events whose messages it holds."""
    engine = open_engine(f"sqlite:///{file}")
    try:
        with engine.begin() as connection:
            integrity = str(connection.execute(text("PRAGMA integrity_check")).scalar())
            return integrity, set(connection.scalars(select(MessageRow.event_id)))
    except DatabaseError as error:
        return str(error.orig), set()
    finally:
        engine.dispose()


def main(first: int, cuts: int, synchronous: str) -> None:
    """Play the cuts with the seeds from `first` on, with this pragma; a line of JSON each."""
    database._PRAGMAS = tuple(
        f"synchronous={synchronous}" if pragma.startswith("synchronous=") else pragma for pragma in database._PRAGMAS
    )
    for seed in range(first, first + cuts):
        with tempfile.TemporaryDirectory() as folder:
            cut = play(seed, Path(folder))
        print(json.dumps(asdict(cut)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
