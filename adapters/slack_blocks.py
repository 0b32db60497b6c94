"""Slack's markup, as we write it: escaped, with or without buttons. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapters.text import split as cut
from bot.messages import Button, Rating, rating_token

BLOCK_CHARS = 3_000
"""Of one block of text, which a reply with buttons under it is."""


def escape(words: str) -> str:
    """So that no text can raise <!channel>, mention anybody or hide where a link goes."""
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def with_thumbs(words: str, outbound_id: str) -> list[dict[str, Any]]:
    """A reply that can be rated."""

    def button(face: str, rating: Rating) -> dict[str, Any]:
        return {"text": {"type": "plain_text", "text": face}, "value": rating_token(rating, outbound_id)}

    thumbs = {
        "type": "feedback_buttons",
        "action_id": "rating",
        "positive_button": button("👍", Rating.UP),
        "negative_button": button("👎", Rating.DOWN),
    }
    return [_section(words), {"type": "context_actions", "elements": [thumbs]}]


def with_buttons(words: str, buttons: Sequence[Button]) -> list[dict[str, Any]]:
    """A card, or a question."""
    found = [_section(part) for part in cut(words, BLOCK_CHARS)]
    elements = [
        {
            "type": "button",
            "action_id": each.token,
            "text": {"type": "plain_text", "text": each.label},
            "value": each.token,
        }
        for each in buttons
    ]
    return [*found, {"type": "actions", "elements": elements}] if elements else found


def _section(words: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": words, "verbatim": True}, "expand": True}
