"""The model that comes with frontdesk: files beside this one, made by make.py, described in card.md."""

from __future__ import annotations

import json
from pathlib import Path

PATH = Path(__file__).parent


def is_random() -> bool:
    """Whether the weights are random (config.json says so): such a model speaks nonsense and judges nothing."""
    config = json.loads((PATH / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("frontdesk_random_weights", False))
