"""The plain relay: what aiohttp alone needs to pass requests on. A contender of `bench overhead`.

A server and a client session with the settings that streams need; hosts take turns, and chunks are
copied as they come. No queue, no health, no metrics, no log: what a proxy in Python can hardly fall
below while it relays with aiohttp's own means.

As a process: `python -m sollol_proxy.lab.bench_plain --port N --host URL ...`. With `--alone` it
asks no host and answers embeddings itself: what no relay behind aiohttp's server can go below.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import cycle

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

from sollol_proxy.lab.ask import EMBED
from sollol_proxy.lab.bench_bytes import embedding
from sollol_proxy.lab.process import add_process_arguments, announce_and_wait
from sollol_proxy.server import lifecycle

_HOP_BY_HOP = ("Connection", "Host", "Keep-Alive", "Transfer-Encoding", "Content-Length")


class _Relay:
    def __init__(self, session: ClientSession, hosts: Sequence[str]) -> None:
        self._session = session
        self._hosts = cycle(hosts)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        url = URL(next(self._hosts) + request.raw_path, encoded=True)
        body = await request.read()
        headers = _end_to_end(request.headers.items())
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body or None
            ) as answer:
                response = web.StreamResponse(
                    status=answer.status, headers=_end_to_end(answer.headers.items())
                )
                response.content_length = answer.content_length
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except ClientError:
            if request.transport is not None:
                request.transport.abort()  # a cut answer must not look complete
            raise


class _Alone:
    def __init__(self) -> None:
        self._body = embedding(EMBED).partition(b"\r\n\r\n")[2]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.path != EMBED:
            raise web.HTTPNotFound
        return web.Response(body=self._body, content_type="application/json")


def _end_to_end(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept


async def _serve(port: int, hosts: Sequence[str], until_eof: bool, alone: bool) -> int:
    async with ClientSession(
        connector=TCPConnector(limit=0),
        timeout=ClientTimeout(total=None),
        auto_decompress=False,
        cookie_jar=DummyCookieJar(),
    ) as session:
        relay = _Alone() if alone else _Relay(session, hosts)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", relay.handle)
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=lifecycle.BACKLOG).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            await announce_and_wait(url, until_eof=until_eof)
        finally:
            await runner.cleanup()
    return 0


def main() -> None:
    """Serve until SIGTERM, SIGINT or the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m sollol_proxy.lab.bench_plain")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--host", action="append", help="base address; repeatable")
    where.add_argument("--alone", action="store_true", help="no host: answer embeddings itself")
    add_process_arguments(parser)
    options = parser.parse_args()
    hosts = options.host or []
    raise SystemExit(lifecycle.run(_serve(options.port, hosts, options.until_eof, options.alone)))


if __name__ == "__main__":
    main()
