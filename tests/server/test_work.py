"""How much is done for a record and for a request: calls are counted, so no clock is asked.

A bound is what was counted when it was written, and a little more. Whoever has a reason to do
more raises it, and says so in `docs/performance.md`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import sollol_proxy
from tests.server.scripted import Call, through

OURS = str(Path(sollol_proxy.__file__).parent)
CORE = f"{OURS}/core/"

CALLS_A_RECORD = 7
CALLS_A_REQUEST = 340

RELAY = ("connection.py", "relay.py", "direct.py", "wire.py", "protocol.py")

RECORDS = 160
REQUESTS = 20
ASK = json.dumps({"model": "m", "prompt": "hi"}).encode()
EMBED = json.dumps({"model": "m", "input": "x" * 1000}).encode()
_VECTORS = {"model": "m", "embeddings": [[0.5] * 1500], "prompt_eval_count": 3}
EMBEDDED = json.dumps(_VECTORS, separators=(",", ":")).encode()


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts calls that code of the package makes or is reached by, the scheduler's aside."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_call"):
            path = frame.f_code.co_filename
            if path.startswith(OURS) and not path.startswith(CORE):
                calls[f"{Path(path).name}:{frame.f_code.co_name}:{event}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


async def test_streamed_record_costs_a_bounded_number_of_calls() -> None:
    record = b'{"model":"m","response":"a","done":false}\n'
    whole = b"%x\r\n%b\r\n" % (len(record), record)

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n")
        await call.send(b"Transfer-Encoding: chunked\r\n\r\n" + whole)
        for _ in range(RECORDS):
            await taken.acquire()
            await call.send(whole)
        await call.until_left()

    taken = asyncio.Semaphore(0)
    async with through(script, probe_s=3600.0) as (_, _, client):
        client.ask("/api/generate", ASK)
        await client.head()
        await client.reader.readexactly(len(whole))
        with counted() as calls:
            for _ in range(RECORDS):
                taken.release()  # one at a time: two in one read would be cheaper
                await client.reader.readexactly(len(whole))
    # The sampler goes by time; what it does is not the record's.
    relayed = {name: count for name, count in calls.items() if name.startswith(RELAY)}
    assert relayed["relay.py:data_received:call"] == RECORDS
    assert sum(relayed.values()) <= CALLS_A_RECORD * RECORDS + 10, calls.most_common(20)


async def test_small_request_costs_a_bounded_number_of_calls() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n")
        await call.send(b"Content-Length: %d\r\n\r\n%b" % (len(EMBEDDED), EMBEDDED))

    async with through(script, probe_s=3600.0) as (_, _, client):

        async def ask() -> None:
            for _ in range(REQUESTS):
                client.ask("/api/embed", EMBED)
                await client.head()
                await client.reader.readexactly(len(EMBEDDED))

        await ask()  # whatever is kept is kept by now
        with counted() as calls:
            await ask()
    assert sum(calls.values()) <= CALLS_A_REQUEST * REQUESTS, (
        sum(calls.values()) / REQUESTS,
        calls.most_common(40),
    )
