"""The commands: light to start, and an error that a person can mend is one sentence."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bot import cli
from bot.errors import ConfigError

HEAVY = {"torch", "transformers", "gradio", "telegram", "slack_bolt", "slack_sdk", "sqlalchemy"}


def frontdesk(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv[1:] = ['--help']; import bot.cli\ntry: bot.cli.main()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage" in done.stdout
    assert "bot.cli" in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()


def test_help_is_quick():
    frontdesk("--help")
    started = time.perf_counter()
    assert frontdesk("--help").returncode == 0
    seconds = time.perf_counter() - started
    print(f"frontdesk --help took {seconds:.2f} s")
    assert seconds < 5, "0.5 s are meant; this is the bound of a busy machine"


@pytest.mark.parametrize("module", ["bot.config", "bot.messages", "engine.types", "engine.roles"])
def test_what_everybody_imports_is_light(module: str):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_an_error_that_a_person_can_mend_is_one_sentence_and_exit_code_2(tmp_path: Path):
    done = frontdesk("run", "--config", str(tmp_path / "absent.toml"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "frontdesk init" in done.stderr


def test_what_an_error_says_is_not_read_as_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise ConfigError("write [business] first")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "write [business] first\n"


def test_the_migrations_make_the_tables_of_the_program():
    result = CliRunner().invoke(cli.app, ["db", "check"])
    assert result.exit_code == 0, result.output


def test_db_upgrade_makes_the_file_that_the_config_names(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text('[database]\nurl = "sqlite:///data/shop.db"\n', encoding="utf-8")
    result = CliRunner().invoke(cli.app, ["db", "upgrade", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "data" / "shop.db").exists()


def test_model_check_shows_what_8_bits_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from engine import precision, quantize

    if not quantize.int8_supported():
        pytest.skip("this build of torch has no int8 kernel for this CPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(precision, "MOODS_EVERY", 40)
    monkeypatch.setattr(precision, "REPLIES_EVERY", 100)
    result = CliRunner().invoke(cli.app, ["model", "check", "bundled", "--config", str(tmp_path / "absent.toml")])
    assert result.exit_code == 0, result.output
    assert "8 bits everywhere" in result.output
    assert "served in int8" in result.output
    assert list((tmp_path / "frontdesk").glob("*/precision-*.json"))


def test_where_8_bits_are_impossible_model_check_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from engine import quantize

    monkeypatch.setattr(quantize, "int8_supported", lambda: False)
    result = CliRunner().invoke(cli.app, ["model", "check", "bundled", "--config", str(tmp_path / "absent.toml")])
    assert isinstance(result.exception, ConfigError)
    assert "served in fp32" in str(result.exception)


def test_model_pull_of_the_bundled_model_needs_no_network(tmp_path: Path):
    result = CliRunner().invoke(cli.app, ["model", "pull", "bundled", "--config", str(tmp_path / "absent.toml")])
    assert result.exit_code == 0, result.output
    assert "MB" in result.output


def test_the_slack_manifest_can_be_printed():
    result = CliRunner().invoke(cli.app, ["slack", "manifest"])
    assert result.exit_code == 0, result.output
    assert "socket_mode_enabled: true" in result.output
