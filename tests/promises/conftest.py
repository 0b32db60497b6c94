"""Fixtures that several of these files use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.promises.trial import Carry, nursery


@pytest.fixture(scope="session")
def carry() -> Iterator[Carry]:
    with nursery() as carry:
        yield carry
