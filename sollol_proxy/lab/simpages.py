"""The status routes of a simulated host."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sollol_proxy.lab.account import Account
from sollol_proxy.lab.inventory import Listing, Residence
from sollol_proxy.lab.pages import StatusPages
from sollol_proxy.lab.places import without_cloud
from sollol_proxy.lab.simdisk import SimDisk, listing_of
from sollol_proxy.lab.simdriver import SimDriver
from sollol_proxy.lab.simspec import SimModel, SimSpec

_CLOUD_MODELS_DATE = datetime(2026, 1, 1, tzinfo=UTC)


class SimPages(StatusPages):
    """Answers from the disk and the virtual host's memory."""

    def __init__(self, spec: SimSpec, disk: SimDisk, account: Account, driver: SimDriver) -> None:
        super().__init__(spec.version, disk, account)
        self._spec = spec
        self._driver = driver

    def residences(self) -> Iterator[Residence]:
        """The runners, as they are now."""
        self._driver.catch_up()
        now = datetime.now(UTC)
        for runner in self._driver.virtual.runners.values():
            if runner.keep_alive_s < 0:
                expires_at = None
            elif runner.expires_s is not None:
                expires_at = now + timedelta(seconds=self._driver.until_s(runner.expires_s))
            else:
                expires_at = now + timedelta(seconds=self._driver.wall_s(runner.keep_alive_s))
            memory_bytes = runner.model.memory_bytes
            yield Residence(
                listing=self._disk.remembered(runner.model.name, runner.model.blob),
                size_bytes=memory_bytes,
                vram_bytes=memory_bytes if self._spec.has_gpu else 0,
                context_length=runner.context_length,
                expires_at=expires_at,
            )

    def cloud_listing(self, name: str) -> Listing:
        """Whatever is asked for: ollama.com has every model here."""
        return listing_of(SimModel(without_cloud(name)), _CLOUD_MODELS_DATE)
