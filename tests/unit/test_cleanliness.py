"""What must never be in the repository: secrets, and traces of the machine it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACES = {
    "a path of somebody's machine": r"/root/|/home/[a-z]|/Users/[A-Za-z]|[A-Z]:\\\\?Users",
    "a private package index": r"(?i)artifactory|nexus|devpi|file:///[a-z]|\.(internal|corp)\b",
    "a Telegram token": r"\b\d{8,10}:[A-Za-z0-9_-]{35}\b",
    "a Slack token": r"\bxox[a-z]-\d{9,}-|\bxapp-\d-A[A-Z0-9]{8,}-\d{9,}-",
    "an API key": r"\b(hf_|sk-|ghp_|AKIA)[A-Za-z0-9]{16,}\b",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KEY",
}


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    """The text files that are in the repository, or would be with the next `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = {ROOT / name for name in listed.stdout.split("\0") if name} - {Path(__file__)}
    contents = {file: file.read_bytes() for file in files if file.is_file()}
    return {file: content.decode("utf-8", "replace") for file, content in contents.items() if b"\0" not in content}


@pytest.mark.parametrize("trace", TRACES)
def test_no_file_of_the_repository_holds(trace: str, texts: dict[Path, str]):
    pattern = re.compile(TRACES[trace])
    found = {f"{file.relative_to(ROOT)}: {hit[0]}" for file, text in texts.items() if (hit := pattern.search(text))}
    assert found == set()


def test_configuration_and_databases_of_an_owner_stay_out_of_the_repository():
    private = [".env", "config.toml", "frontdesk.db", "frontdesk.db-wal", "frontdesk.db.lock"]
    ignored = subprocess.run(["git", "check-ignore", *private], cwd=ROOT, capture_output=True, text=True, check=False)
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert ignored.stdout.split() == private
