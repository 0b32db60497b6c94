"""The model that comes with frontdesk: files beside this one, made by train.py, described in card.md."""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).parent
