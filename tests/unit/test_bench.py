"""`frontdesk bench`, on the smallest shape: that every figure is there and means what it says."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from bot import bench
from bot.cli import app
from bot.errors import FrontdeskError
from engine import bundled
from engine.bench import HISTORY, MESSAGE, SYSTEM, bytes_per_token, run, work
from engine.chat import Chat
from engine.quantize import int8_supported

with_llama = pytest.mark.skipif(
    not (find_spec("llama_cpp") and find_spec("gguf")), reason="the extra `peers` is not installed"
)
PRECISIONS = [
    "fp32",
    pytest.param("int8", marks=pytest.mark.skipif(not int8_supported(), reason="no int8 kernel for this CPU")),
]


@pytest.mark.parametrize(
    "variant",
    [pytest.param("textbook", marks=pytest.mark.slow), pytest.param("llama.cpp", marks=with_llama), *PRECISIONS],
)
def test_every_variant_is_measured(variant: str) -> None:
    found = run(variant, "tiny", customers=2, messages=1)
    assert (found.variant, found.customers) == (variant, 2)
    assert found.sentiment_ms > 0
    assert 0 < found.first_token_ms < 1000 * found.seconds_per_message
    assert found.tokens_per_s > 0
    assert found.messages_per_min > 0
    assert 0.1 < found.rss_gb < 20


@pytest.mark.parametrize("variant", [pytest.param("textbook", marks=pytest.mark.slow), "fp32"])
def test_a_model_in_a_directory_is_measured(variant: str) -> None:
    assert run(variant, str(bundled.PATH), customers=1, messages=1).tokens_per_s > 0


def test_the_work_has_the_size_that_the_table_names() -> None:
    chat = Chat(AutoTokenizer.from_pretrained(bundled.PATH))
    role, turns, message = work(chat, 3, 1)
    assert len(chat.encode(role.system)) in (SYSTEM, SYSTEM + 1)
    assert len(chat.encode(message)) in (MESSAGE, MESSAGE + 1)
    assert HISTORY - 4 <= sum(len(chat.encode(turn.text)) for turn in turns[:-1]) <= HISTORY + 4
    assert work(chat, 3, 2)[1][:-1] == turns[:-1]
    assert work(chat, 3, 2)[2] != message


def test_a_token_of_the_real_model_reads_every_weight_once() -> None:
    assert bytes_per_token("qwen1.5-0.5b", 1) == pytest.approx(464e6, rel=0.01)


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "bench.json"
    command = ["bench", "--shape", "tiny", "--customers", "1", "--precision", "fp32", "--messages", "1"]
    done = CliRunner().invoke(app, [*command, "--against", "", "--json", str(out)])
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["shape"] == "tiny"
    assert figures["roofline"]["gb_per_s"] > 0
    assert [(each["variant"], each["precision"], each["customers"]) for each in figures["runs"]] == [
        ("fp32", "fp32", 1)
    ]
    assert "messages/min" in done.output


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--shape", "huge", "tiny"),
        ("--precision", "fp8", "fp32"),
        ("--customers", "x", "1,8"),
        ("--against", "x", "textbook"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_can(option: str, value: str, said: str) -> None:
    done = CliRunner().invoke(app, ["bench", option, value])
    assert isinstance(done.exception, FrontdeskError)
    assert said in str(done.exception)


@pytest.mark.parametrize(("ended", "hint"), [("ILL", "SIGILL: it was compiled for another CPU"), ("KILL", "is memory")])
def test_a_variant_that_dies_is_told_with_what_it_died_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str, hint: str
) -> None:
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\nkill -{ended} $$\n")
    dying.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(FrontdeskError, match=hint):
        bench._measured("textbook", "tiny", 1, 1)


def test_a_peer_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.bench.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["bench", "--shape", "tiny", "--against", "llama.cpp"])
    assert isinstance(done.exception, FrontdeskError)
    assert "peers" in str(done.exception)
