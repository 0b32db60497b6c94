"""A plugin of pytest's that runs any tests at DEBUG and counts the secrets in all that is logged, whoever logs it.

`pytest -p tests.promises.canary_plugin`. Lines are looked at where a logger hands them to its handlers, before the
program takes known secrets out of them; so a secret that is not even known to it is found as well. Tests that replace
handlers or levels change nothing. A program that a test starts looks at its own log (tests/e2e/program.py).
"""

from __future__ import annotations

import logging
import re

import pytest

from bot import log
from tests.fakes.telegram import TOKEN

SECRET = re.compile(rf"canary|{re.escape(TOKEN)}|xoxb-[a-z]|xapp-[a-z]", re.IGNORECASE)
"""Every secret in the tests has one of these in it."""
_call_handlers = logging.Logger.callHandlers
_formatter = log.formatter("json", [])
_lines = 0
_hits: list[str] = []


def _look_and_call(logger: logging.Logger, record: logging.LogRecord) -> None:
    global _lines
    line = _formatter.format(record)
    _lines += 1
    if SECRET.search(line):
        _hits.append(line)
    _call_handlers(logger, record)


class _Printing(logging.Handler):
    """Some tests read what is printed."""

    def emit(self, record: logging.LogRecord) -> None:
        print(_formatter.format(record))


def pytest_configure() -> None:
    logging.Logger.callHandlers = _look_and_call  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _at_debug(_logging_as_before: None) -> None:
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for name in log.NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)
    root.addHandler(_Printing())
    log.use_structlog()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _hits:
        terminalreporter.write_line(f"SECRET LOGGED: {line}")
    terminalreporter.write_line(f"looked at {_lines} lines of the log, {len(_hits)} with a secret")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _hits:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
