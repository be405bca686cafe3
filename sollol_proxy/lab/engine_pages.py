"""The routes of the real lab host that ask no model: version, tags, ps, show, `/v1/models`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from sollol_proxy.lab.account import Account
from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.engine_runner import EngineRunner
from sollol_proxy.lab.inventory import Listing, Residence
from sollol_proxy.lab.pages import StatusPages

# The version whose routes and answers these are.
_VERSION = "0.33.0"


class EnginePages(StatusPages):
    """Answers from the disk and the runners."""

    def __init__(
        self,
        disk: Disk,
        account: Account,
        runners: Mapping[str, EngineRunner],
        loaded_as: Mapping[str, Listing],
    ) -> None:
        """runners, loaded_as: by weights; the model in whose name each was loaded last."""
        super().__init__(_VERSION, disk, account)
        self._runners = runners
        self._loaded_as = loaded_as

    def residences(self) -> Iterator[Residence]:
        """The models in memory: all of it the CPU's."""
        now = datetime.now(UTC)
        for key, runner in self._runners.items():
            if runner.is_loaded:
                left_s = runner.expires_in_s
                yield Residence(
                    listing=self._loaded_as[key],
                    size_bytes=self._loaded_as[key].size_bytes,
                    vram_bytes=0,
                    context_length=runner.model.context_length,
                    expires_at=None if left_s is None else now + timedelta(seconds=left_s),
                )

    def cloud_listing(self, name: str) -> Listing:
        """Never asked: the cloud is switched off on this host."""
        raise AskError(404, f"model '{name}' not found")
