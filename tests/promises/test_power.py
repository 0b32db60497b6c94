"""An acknowledged message survives the loss of power, on a disk that keeps nothing but what was synced.

The disk is ours: power_shim.c writes down what SQLite does to its files, power.py makes of it what a real disk may have
afterwards. Of what was not synced any sector may be there or not, which is more than most disks dare.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises.power import Cut, Disk

SOURCE = Path(__file__).with_name("power_shim.c")
WRITES = """
import os, sys
from pathlib import Path
from tests.promises.power import power_on

folder = Path(sys.argv[1])
power_on(folder, Path(sys.argv[2]), int(sys.argv[3]))

def put(name, words, sync=True):
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT)
    os.write(file, words)
    if sync:
        os.fsync(file)
    return file

def sync_folder():
    os.fsync(os.open(folder, os.O_RDONLY))

put("synced", b"kept")
put("forgotten", b"lost", sync=False)
both = put("both", b"kept")
os.pwrite(both, b"lost", 4)
shorter = put("shorter", b"kept")
os.ftruncate(shorter, 1)
put("gone", b"")
os.unlink(folder / "gone")
sync_folder()
put("unnamed", b"lost")
os.unlink(folder / "old")
"""


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process on our disk."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    shim = tmp_path_factory.mktemp("power") / "shim.so"
    options = ("-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run([compiler, *options, "-o", shim, SOURCE, "-ldl", "-lpthread"], check=True)
    return {**os.environ, "LD_PRELOAD": str(shim)}


def play(preloaded: dict[str, str], first: int, cuts: int, synchronous: str) -> list[Cut]:
    command = [sys.executable, "-m", "tests.promises.power", str(first), str(cuts), synchronous]
    played = subprocess.run(command, env=preloaded, stdout=subprocess.PIPE, check=True)
    results = [Cut(**json.loads(line)) for line in played.stdout.splitlines()]
    print(
        f"synchronous={synchronous}, seeds from {first}: {len(results)} cuts, "
        f"{sum(cut.in_commit for cut in results)} of them within a commit and "
        f"{sum(cut.in_checkpoint for cut in results)} within a checkpoint, "
        f"{sum(cut.acknowledged for cut in results)} messages acknowledged, "
        f"{sum(len(cut.lost) for cut in results)} lost"
    )
    return results


def write(preloaded: dict[str, str], tmp_path: Path, last: int) -> tuple[Disk, int]:
    """What WRITES leaves, cut after `last` operations; and how its process ended."""
    folder, log = tmp_path / "folder", tmp_path / "log"
    folder.mkdir()
    (folder / "old").write_bytes(b"kept")
    ended = subprocess.run([sys.executable, "-c", WRITES, folder, log, str(last)], env=preloaded, check=False)
    disk = Disk({"old": b"kept"})
    disk.replay(log)
    return disk, ended.returncode


def test_the_disk_keeps_what_was_synced_and_forgets_the_rest(preloaded: dict[str, str], tmp_path: Path) -> None:
    disk, ended = write(preloaded, tmp_path, last=1_000)
    assert ended == 0
    assert disk.cut(lambda: False) == {
        "old": b"kept",
        "synced": b"kept",
        "forgotten": b"",
        "both": b"kept",
        "shorter": b"kept",
    }
    assert disk.cut(lambda: True) == {file.name: file.read_bytes() for file in (tmp_path / "folder").iterdir()}, (
        "nothing that the process did escaped the shim"
    )


def test_a_process_is_killed_before_the_operation_after_its_last(preloaded: dict[str, str], tmp_path: Path) -> None:
    disk, ended = write(preloaded, tmp_path, last=2)
    assert ended == -9
    assert disk.cut(lambda: True) == {"old": b"kept", "synced": b"kept"}
    assert (tmp_path / "folder" / "synced").read_bytes() == b"kept"


def test_of_what_was_not_synced_any_sector_may_survive() -> None:
    disk, chance = Disk({"a": b""}), random.Random(0)
    disk.files["a"].since.append((0, b"x" * 4 * 512))
    left = {disk.cut(lambda: chance.random() < 0.5)["a"] for _ in range(100)}
    assert b"x" * 512 + bytes(512) + b"x" * 512 in left
    assert len(left) == 16


def test_no_acknowledged_message_is_lost_when_the_power_goes(preloaded: dict[str, str]) -> None:
    nothing_is_lost(play(preloaded, first=0, cuts=40, synchronous="FULL"))


@pytest.mark.slow
def test_no_acknowledged_message_is_lost_in_200_power_cuts(preloaded: dict[str, str]) -> None:
    nothing_is_lost(play(preloaded, first=1_000, cuts=200, synchronous="FULL"))


def nothing_is_lost(cuts: list[Cut]) -> None:
    assert [cut for cut in cuts if cut.lost or cut.integrity != "ok"] == []
    assert any(cut.in_commit for cut in cuts)
    assert any(cut.in_checkpoint for cut in cuts)
    assert sum(cut.acknowledged for cut in cuts) > len(cuts)


def test_without_a_sync_at_every_commit_messages_are_lost(preloaded: dict[str, str]) -> None:
    batches = (play(preloaded, first, cuts=12, synchronous="NORMAL") for first in range(0, 60, 12))
    assert any(cut.lost for cuts in batches for cut in cuts)


@pytest.mark.slow
def test_without_any_sync_the_file_is_damaged(preloaded: dict[str, str]) -> None:
    cuts = play(preloaded, first=0, cuts=20, synchronous="OFF")
    assert any(cut.integrity != "ok" for cut in cuts)
