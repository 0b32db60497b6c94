"""Slack's Web API: the client, and what its answers mean."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from bot.errors import DeliveryError, OutcomeUnknown, RetryLater, Undeliverable

MAX_CHARS = 4_000
"""Of one message, after escaping: Slack's advice for chat.postMessage, and the most that chat.update takes."""
ANSWER_S = 15
"""How long an answer of the Web API is waited for."""


class _Quiet(logging.Filter):
    """The library's complaints without socket addresses, which let anybody in, or a traceback for each lost try."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"wss?://[^\s']+", "[socket]", record.getMessage()), ()
        if record.exc_info and isinstance(record.exc_info[1], (OSError, aiohttp.ClientError, SlackApiError)):
            record.exc_info = None
        return True


library = logging.getLogger("slack_sdk.frontdesk")
library.setLevel(logging.WARNING)  # at DEBUG it prints every message
library.addFilter(_Quiet())


def web_client(token: str, api_url: str) -> AsyncWebClient:
    """One for a token, which never sends again by itself."""
    # retry_handlers: without the empty list the library itself sends again after a reset, and so perhaps twice
    return AsyncWebClient(token, api_url, ANSWER_S, logger=library, retry_handlers=[])


# -- what answers mean -----------------------------------------------------------------------------

REFUSALS = {
    "account_inactive": "the app was removed from the workspace: install it again and copy the new token",
    "cant_update_message": "the message is not the bot's own",
    "channel_not_found": "check the channel's id, and invite the bot if the channel is private",
    "file_type_not_allowed": "the workspace does not let files of this kind in: ask its administrator",
    "invalid_auth": "the token is wrong: copy it again from the app's page at api.slack.com/apps",
    "is_archived": "unarchive the channel or choose another one",
    "message_not_found": "the message was deleted",
    "messages_tab_disabled": "turn the Messages tab on under App Home on the app's page at api.slack.com/apps",
    "missing_scope": "update the app's manifest and install it again",
    "msg_too_long": f"Slack takes {MAX_CHARS} characters at most",
    "not_allowed_token_type": "the bot token starts with xoxb-, the app-level token with xapp-",
    "not_authed": "no token was given",
    "not_in_channel": "invite the bot: write /invite @frontdesk in the channel",
    "restricted_action": "the workspace does not let the bot write there: ask its administrator",
    "thread_not_found": "the thread was deleted",
    "token_expired": "copy the new token from the app's page at api.slack.com/apps and turn token rotation off",
    "token_revoked": "install the app again and copy the new token",
}
_NOT_NOW = ("ratelimited", "rate_limited", "request_timeout", "service_unavailable", "team_added_to_org")
_PERHAPS_DONE = ("fatal_error", "internal_error")  # "some aspect of the operation" may have succeeded


@contextlib.contextmanager
def verdicts(what: str) -> Iterator[None]:
    """Turn what the client raises into DeliveryError; `what` was asked of Slack, for the sentence."""
    try:
        yield
    except SlackApiError as error:
        raise verdict(error.response, what) from None
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
        raise RetryLater(f"Slack cannot be reached: {type(error).__name__}") from None
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        raise OutcomeUnknown(f"Slack did not answer about {what}: {type(error).__name__}") from None
    except (AttributeError, ValueError):  # the library's, over an answer that is no JSON object
        raise OutcomeUnknown(f"Slack's answer about {what} cannot be read") from None


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """As verdicts(), for what nobody sees: without an answer it is asked again, so nothing becomes unknown."""
    try:
        with verdicts(what):
            yield
    except OutcomeUnknown as error:
        raise RetryLater(str(error)) from None


def verdict(response: Any, what: str) -> DeliveryError:
    """`response` is the library's, or aiohttp's own where the body was no JSON.

    A 5xx counts as unknown, not as refused: Slack says of its internal errors that the operation may have been done,
    and it can be asked.
    """
    status = int(getattr(response, "status_code", 0) or getattr(response, "status", 0))
    data = _data(response)
    code = str(data.get("error", f"HTTP {status}"))
    if status == 429 or code in _NOT_NOW:
        return RetryLater(f"Slack asks to wait: {code}", _seconds(response.headers.get("Retry-After")))
    if status >= 500 or code in _PERHAPS_DONE or (status < 400 and "error" not in data):
        return OutcomeUnknown(f"Slack failed on {what}: {code}")
    advice = f"docs.slack.dev explains {code}" if "error" in data else "was it Slack? Look at slack.api_url"
    scope = f" (the scope {data['needed']} is missing)" if data.get("needed") else ""
    return Undeliverable(f"Slack refused {what}: {code}{scope}; {REFUSALS.get(code, advice)}")


def _data(response: Any) -> dict[str, Any]:
    data = getattr(response, "data", None)
    return data if isinstance(data, dict) else {}


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isdecimal() else None


@contextlib.contextmanager
def tolerating(*codes: str) -> Iterator[None]:
    """A refusal with one of these codes is as good as a yes."""
    try:
        yield
    except SlackApiError as error:
        if _data(error.response).get("error") not in codes:
            raise
