"""What the tests under stress share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession

from tests.chaos.asking import patient_session


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with patient_session() as opened:
        yield opened
