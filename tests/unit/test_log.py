"""What reaches the log, and what never does."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from bot import log


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in log.NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_json_lines_carry_the_ids_of_the_message_they_are_about() -> None:
    stream = io.StringIO()
    log.set_up("INFO", "json", [], stream)
    with structlog.contextvars.bound_contextvars(conversation=7, message=9):
        structlog.get_logger("x").info("received", platform="telegram")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["conversation"], line["message"], line["platform"]) == ("received", 7, 9, "telegram")
    assert line["level"] == "info"


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_secret_never_passes_whoever_logs_it(style: str) -> None:
    stream = io.StringIO()
    log.set_up("DEBUG", style, ["123:CANARY", 'pass"word'], stream)
    logging.getLogger("httpx").info("POST https://api.telegram.org/bot%s/getMe", "123:CANARY")
    structlog.get_logger("x").warning("refused", detail="token 123:CANARY", password='pass"word')
    try:
        raise ValueError("bot123:CANARY failed")
    except ValueError:
        logging.getLogger("lib").exception("it raised")
    assert "CANARY" not in stream.getvalue()
    assert "word" not in stream.getvalue().replace("password", "")
    assert stream.getvalue().count(log.HIDDEN) >= 4


def test_libraries_that_print_urls_are_silent_at_info() -> None:
    stream = io.StringIO()
    log.set_up("INFO", "json", [], stream)
    logging.getLogger("httpx").info("POST https://api.telegram.org/bot123/getMe")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_variables(style: str) -> None:
    stream = io.StringIO()
    log.set_up("INFO", style, [], stream)
    try:
        words_of_a_customer = "".join(["my", "secret", "story"])
        raise ValueError(len(words_of_a_customer))
    except ValueError:
        structlog.get_logger("x").exception("it raised")
    assert "ValueError" in stream.getvalue()
    assert "mysecretstory" not in stream.getvalue()
