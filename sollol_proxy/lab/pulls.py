"""Where a lab host's models come from: a simulated registry, or none at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.inventory import Layer, Listing
from sollol_proxy.lab.progress import Say, layer_status, status
from sollol_proxy.lab.simdisk import SimDisk, listing_of
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.simstats import Tally
from sollol_proxy.ollama.names import canonical, display

# Between two records of one layer: Ollama's, and the least that a timer keeps.
_RECORD_INTERVAL_S = 0.06
_SHORTEST_INTERVAL_S = 0.002


class Source(Protocol):
    """What a host pulls from."""

    async def pull(self, name: str, say: Say) -> None:
        """Bring a model onto the disk.

        Raises:
            AskError: there is no such model, or no way to it.
        """


class NoSource:
    """No way to a registry: what is there counts as up to date, all else fails."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    async def pull(self, name: str, say: Say) -> None:
        """See `Source`."""
        await say(status("pulling manifest"))
        listing = self._disk.find(name)
        if listing is None:
            raise unreachable(name)
        for layer in listing.layers:
            await say(layer_status("pulling", layer.digest, layer.size_bytes, layer.size_bytes))
        for text in ("verifying sha256 digest", "writing manifest", "success"):
            await say(status(text))


class Download:
    """A layer on its way; how much is there follows from the clock.

    have_bytes: there at the start. bytes_per_s: on the wall.
    """

    def __init__(self, layer: Layer, have_bytes: int, bytes_per_s: float) -> None:
        self._total = layer.size_bytes
        self._have_bytes = have_bytes
        self._bytes_per_s = bytes_per_s
        self._loop = asyncio.get_running_loop()
        self._began_s: float | None = None
        self.users = 0

    def begin(self) -> None:
        """Let the bytes come, if they do not already."""
        if self._began_s is None:
            self._began_s = self._loop.time()

    @property
    def completed(self) -> int:
        """Bytes that are there."""
        passed_s = 0.0 if self._began_s is None else self._loop.time() - self._began_s
        return min(self._total, self._have_bytes + int(passed_s * self._bytes_per_s))

    @property
    def is_complete(self) -> bool:
        """Whether all is there."""
        return self.completed >= self._total

    @property
    def left_s(self) -> float:
        """Seconds until all is there."""
        return (self._total - self.completed) / self._bytes_per_s


class Registry:
    """Models that a simulated host can download.

    Pulls that want the same layer share its download, which goes on until the last of them leaves;
    what is there by then stays, and the next pull goes on from it.
    """

    def __init__(self, spec: SimSpec, disk: SimDisk, tally: Tally) -> None:
        self._spec = spec
        self._disk = disk
        self._tally = tally
        self._downloads: dict[str, Download] = {}
        self._interval_s = max(_RECORD_INTERVAL_S / spec.time_scale, _SHORTEST_INTERVAL_S)

    async def pull(self, name: str, say: Say) -> None:
        """See `Source`."""
        with self._tally.pulling():
            await say(status("pulling manifest"))
            model = self._find(name)
            listing = listing_of(model, datetime.now(UTC))
            for layer in listing.layers:
                await self._fetch(layer, say)
            for text in ("verifying sha256 digest", "writing manifest"):
                await say(status(text))
            if self._is_news(listing) and self._disk.install(model, listing.modified_at):
                await say(status("removing unused layers"))
            await say(status("success"))

    async def push(self, listing: Listing, say: Say) -> None:
        """Send an installed model away."""
        for layer in listing.layers:
            upload = Download(layer, 0, self._wall_rate)
            await self._follow(upload, "pushing", layer, say)
        await say(status("pushing manifest"))
        await say(status("success"))

    @property
    def _wall_rate(self) -> float:
        return self._spec.pull_bytes_per_s * self._spec.time_scale

    def _find(self, name: str) -> SimModel:
        if self._spec.offline:
            raise unreachable(name)
        key = canonical(name)
        for model in self._spec.registry:
            if model.key == key:
                return model
        installed = self._spec.model(name)
        if installed is not None and key in self._disk.listings:
            return installed
        raise AskError(500, "pull model manifest: file does not exist")

    def _is_news(self, listing: Listing) -> bool:
        """Whether the disk has another model of this name, or none."""
        found = self._disk.find(listing.name)
        return found is None or found.digest != listing.digest

    async def _fetch(self, layer: Layer, say: Say) -> None:
        if layer.digest in self._disk.blobs:
            await say(layer_status("pulling", layer.digest, layer.size_bytes, layer.size_bytes))
            return
        with self._joined(layer) as download:
            await self._follow(download, "pulling", layer, say)

    async def _follow(self, download: Download, verb: str, layer: Layer, say: Say) -> None:
        while True:
            completed = download.completed
            await say(layer_status(verb, layer.digest, layer.size_bytes, completed))
            if completed >= layer.size_bytes:
                return
            download.begin()
            await asyncio.sleep(min(self._interval_s, download.left_s))

    @contextmanager
    def _joined(self, layer: Layer) -> Iterator[Download]:
        """The download of a layer that is not there, this pull being one of those that want it."""
        download = self._downloads.get(layer.digest)
        if download is None:
            have_bytes = self._disk.partial.get(layer.digest, 0)
            download = Download(layer, have_bytes, self._wall_rate)
            self._downloads[layer.digest] = download
        download.users += 1
        try:
            yield download
        finally:
            download.users -= 1
            if download.is_complete:
                self._disk.add_blob(layer.digest, layer.size_bytes)
            elif not download.users and download.completed:
                self._disk.partial[layer.digest] = download.completed
            if not download.users:
                del self._downloads[layer.digest]


def unreachable(name: str) -> AskError:
    """What a pull says on a machine without a way to the internet."""
    path, _, tag = display(name).rpartition(":")
    if "/" not in path:
        path = f"library/{path}"
    return AskError(
        500,
        f'pull model manifest: Get "https://registry.ollama.ai/v2/{path}/manifests/{tag}":'
        " dial tcp: lookup registry.ollama.ai on 192.0.2.53:53: no such host",
    )
