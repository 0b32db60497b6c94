"""Installs frontdesk into .venv beside this file: `python3 install.py web`. `make` calls it; a second call is instant.

The words after it name the extras of pyproject.toml that are wanted: web (the chat page), dev (tests and linters).
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed.txt"
LOCK = ROOT / "requirements.lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE_S = 10


def main(extras):
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"frontdesk needs Python 3.11 or newer, this is {version}: try `make PYTHON=python3.12 ...`")
    digest, installed = _digest(), _installed()
    wanted = sorted({*extras, *installed[1:]})
    if installed[:1] == [digest] and set(extras) <= set(installed):
        return
    print("Installing into .venv; the first time takes some minutes.", flush=True)
    _run(sys.executable, "-m", "venv", VENV) == 0 or sys.exit("Python could not make .venv: see its words above")
    _install_torch()
    project = f"{ROOT}[{','.join(wanted)}]" if wanted else str(ROOT)
    _pip("install", "-c", LOCK, "-e", project) or sys.exit("pip could not install the packages: see its words above")
    STAMP.write_text(" ".join([digest, *wanted]), encoding="utf-8")


def _digest():
    inputs = [str(sys.version_info[:2]).encode(), LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes()]
    return hashlib.sha256(b"".join(inputs)).hexdigest()[:16]


def _installed():
    return STAMP.read_text(encoding="utf-8").split() if STAMP.exists() else []


def _install_torch():
    """From PyTorch's CPU index where it answers: the plain package brings gigabytes of GPU libraries on Linux.

    Its dependencies come with the others: each would ask that index again, and wait for it again.
    """
    torch = next(line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    listed = subprocess.run([PYTHON, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True)
    if torch in listed.stdout:
        return
    once = ("--index-url", CPU_INDEX, "--retries", "0", "--timeout", str(PATIENCE_S))
    if _hangs(*once) or not _pip("install", "--no-deps", *once, torch):
        print("PyTorch's CPU index does not answer: the plain package comes with the others.", flush=True)


def _hangs(*options):
    """Whether the index keeps silent: pip has a time-out for each address of a name, this is one for all of them."""
    try:
        command = [PYTHON, "-m", "pip", "index", "versions", *options, "torch"]
        subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    return False


def _pip(*arguments):
    return _run(PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments) == 0


def _run(*command):
    return subprocess.run(list(map(str, command)), check=False).returncode


if __name__ == "__main__":
    main(sys.argv[1:])
