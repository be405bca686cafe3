"""The routes of the real lab host that ask no model: version, tags, ps, show, `/v1/models`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from sollol_proxy.lab.engine_runner import EngineRunner
from sollol_proxy.lab.inventory import Listing, Residence
from sollol_proxy.lab.pages import StatusPages

# The version whose routes and answers these are.
_VERSION = "0.33.0"


class EnginePages(StatusPages):
    """Answers from the runners."""

    def __init__(
        self, runners: Mapping[str, EngineRunner], listings: Mapping[str, Listing]
    ) -> None:
        super().__init__(_VERSION, listings)
        self._runners = runners

    def residences(self) -> Iterator[Residence]:
        """The models in memory: all of it the CPU's."""
        now = datetime.now(UTC)
        for key, runner in self._runners.items():
            if runner.is_loaded:
                left_s = runner.expires_in_s
                yield Residence(
                    listing=self.listings[key],
                    size_bytes=self.listings[key].size_bytes,
                    vram_bytes=0,
                    context_length=runner.model.context_length,
                    expires_at=None if left_s is None else now + timedelta(seconds=left_s),
                )
