import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux' /proc")

COUNT = """
import threading, time
from pathlib import Path
import torch
from engine.threads import apart

torch.set_num_threads(2)

def helpers():
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()

def settled(expected):
    until = time.monotonic() + 5
    while helpers() != expected and time.monotonic() < until:
        time.sleep(0.01)
    return helpers() - expected

def compute():
    return torch.ones(1 << 22).sum().item()

before = helpers()
"""


def _run(program: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", COUNT + program], check=True, capture_output=True, text=True
    ).stdout.split()


def test_a_thread_that_computes_keeps_a_helper_unless_it_computes_apart() -> None:
    assert _run("print(apart(compute), settled(before)); compute(); print(settled(before))") == ["4194304.0", "0", "1"]


def test_what_fails_apart_fails_for_the_caller() -> None:
    program = """
try:
    apart(lambda: 1 / 0)
except ZeroDivisionError:
    print("failed", settled(before))
"""
    assert _run(program) == ["failed", "0"]


def test_loading_leaves_nobody_behind_to_compete_with_the_engine() -> None:
    program = """
from engine import bundled
from engine.qwen import QwenEngine
from engine.types import EngineConfig
before = helpers()
QwenEngine.load(EngineConfig(precision="int8"), bundled.PATH)
print(settled(before))
"""
    assert _run(program) == ["0"]


def test_what_work_apart_has_freed_is_given_back() -> None:
    program = """
def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

def scatter():
    return [small for _, small in [(bytearray(100_000), bytearray(600)) for _ in range(500)]]

before = resident()
kept = apart(scatter)
print(resident() - before < 10e6)
"""
    assert _run(program) == ["True"]
