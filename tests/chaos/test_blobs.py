"""A model file of 2 GiB to three hosts, one of which dies on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import ClientSession

from sollol_proxy.lab.simhost import spawned_simhost
from tests.chaos.pools import host_spec
from tests.chaos.processes import spawned_proxy

MIB = 2**20
PIECE = bytes(MIB)
PIECES = 2048
DIGEST = "sha256:a7c744c13cc101ed66c29f672f92455547889cc586ce6d44fe76ae824958ea51"
"""Of 2 GiB of zeros."""


@pytest.mark.timeout(600)
async def test_blob_of_two_gib_reaches_the_hosts_that_live_within_little_memory(
    session: ClientSession, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(spawned_simhost(host_spec(name))) for name in "abc"
        ]
        hosts = [
            {"url": child.url, "id": name} for name, child in zip("abc", children, strict=True)
        ]
        proxy = await stack.enter_async_context(spawned_proxy({"hosts": hosts}, tmp_path, session))

        async def body() -> AsyncIterator[bytes]:
            for number in range(PIECES):
                if number == PIECES // 2:
                    await children[2].kill()
                yield PIECE

        blob = f"{proxy.url}/api/blobs/{DIGEST}"
        async with session.post(blob, data=body()) as answer:
            assert (answer.status, await answer.read()) == (201, b"")
            assert answer.headers["X-SOLLOL-Hosts"] == "2/3"
            assert answer.headers["X-SOLLOL-Failed-Hosts"] == "c"
            request_id = answer.headers["X-SOLLOL-Request-Id"]
        for child in children[:2]:
            async with session.head(f"{child.url}/api/blobs/{DIGEST}") as found:
                assert found.status == 200
        async with session.get(f"{proxy.url}/sollol/requests/{request_id}") as page:
            record = await page.json()
            assert record["outcome"] == "partial"
            assert [failed["host"] for failed in record["failed_attempts"]] == ["c"]
            assert record["bytes_in"] == PIECES * MIB
        assert proxy.peak_bytes() < 150 * MIB
