"""A host behind TLS: its certificate is read and checked when the first connection begins."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from ollama import Client, ResponseError

from tests.e2e.processes import LabHost, serving


class _Terminator:
    """A TLS server in a thread of its own, in front of a host that speaks plainly."""

    def __init__(self, host_url: str, authority: trustme.CA) -> None:
        self.url = ""
        self._host = urlsplit(host_url)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._loop = asyncio.new_event_loop()
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its address, for the block."""
        self._thread.start()
        try:
            assert self._ready.wait(30)
            yield self.url
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(30)
            self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0, ssl=self._context)
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = await asyncio.open_connection(self._host.hostname, self._host.port)
        await asyncio.gather(_copy(reader, host[1]), _copy(host[0], writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    return authority


def test_host_whose_certificate_the_system_trusts_serves_like_any_other(
    sim_hosts: tuple[LabHost, ...],
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    with (
        _Terminator(sim_hosts[0].url, authority).running() as url,
        serving(tmp_path, [url]) as proxy,
        Client(proxy.url) as client,
    ):
        proxy.until_up()
        records = list(client.generate("llama3", "hello", stream=True))
        vectors = client.embed("all-minilm", ["one", "two"]).embeddings
    assert [record.done for record in records] == [False] * (len(records) - 1) + [True]
    assert len(records) > 1
    assert len(vectors) == 2


def test_host_whose_certificate_nobody_vouches_for_gets_no_request(
    sim_hosts: tuple[LabHost, ...], authority: trustme.CA, tmp_path: Path
) -> None:
    asked = sim_hosts[0].stats()["requests"].get("/api/generate")
    with (
        _Terminator(sim_hosts[0].url, authority).running() as url,
        serving(tmp_path, [url], queue={"no_host_wait": "0s"}) as proxy,
        Client(proxy.url) as client,
    ):
        [host] = proxy.until_hosts(lambda hosts: hosts[0]["state"] not in ("unknown", "healthy"))
        with pytest.raises(ResponseError) as refused:
            client.generate("llama3", "hello")
    assert host["detail"].startswith("certificate not trusted: ")
    assert refused.value.status_code == 503
    # Others probe it meanwhile.
    assert sim_hosts[0].stats()["requests"].get("/api/generate") == asked


def test_host_that_does_not_speak_tls_says_so_where_its_state_is_told(
    sim_hosts: tuple[LabHost, ...], tmp_path: Path
) -> None:
    with serving(tmp_path, [sim_hosts[0].url.replace("http:", "https:")]) as proxy:
        [host] = proxy.until_hosts(lambda hosts: hosts[0]["state"] not in ("unknown", "healthy"))
    assert host["detail"].startswith("TLS failed: ")
