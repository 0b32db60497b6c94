"""Checks a call of the Bot API against telegram_methods.json: names, types, what is required."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_TABLE = json.loads((Path(__file__).parents[1] / "fixtures" / "telegram_methods.json").read_text(encoding="utf-8"))
METHODS: Mapping[str, Any] = _TABLE["methods"]
TYPES: Mapping[str, Any] = _TABLE["types"]
_SCALARS: Mapping[str, tuple[type, ...]] = {
    "Integer": (int,),
    "Float": (int, float),
    "String": (str,),
    "Boolean": (bool,),
}


def decode(method: str, form: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values of a form, in which everything but text is JSON; and what is wrong with them."""
    if method not in METHODS:
        return {}, [f"{method}: no such method"]
    known = METHODS[method]["fields"]
    values = {name: _decode(raw, known.get(name, ["String"])) for name, raw in form.items()}
    return values, [f"{method}: {problem}" for problem in _problems(METHODS[method], values)]


def _decode(raw: str, types: list[str]) -> Any:
    if types == ["String"] or ("String" in types and not re.fullmatch(r"-?\d+", raw)):
        return raw
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _problems(described: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    for name in described["required"]:
        if name not in values:
            yield f"{name} is missing"
    for name, value in values.items():
        types = described["fields"].get(name)
        if types is None:
            yield f"{name} is unknown"
        elif not any(_fits(value, kind) for kind in types):
            yield f"{name} is not {' or '.join(types)}"


def _fits(value: Any, kind: str) -> bool:
    if kind.startswith("Array of "):
        return isinstance(value, list) and all(_fits(item, kind.removeprefix("Array of ")) for item in value)
    if kind in _SCALARS:
        return isinstance(value, _SCALARS[kind]) and isinstance(value, bool) == (kind == "Boolean")
    if "one_of" in TYPES[kind]:
        return any(_fits(value, each) for each in TYPES[kind]["one_of"])
    return isinstance(value, dict) and not list(_problems(TYPES[kind], value))
