"""The status routes of a simulated host."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sollol_proxy.lab.inventory import Listing, Residence
from sollol_proxy.lab.pages import StatusPages
from sollol_proxy.lab.simdriver import SimDriver
from sollol_proxy.lab.simspec import SimModel, SimSpec

_INSTALLED_AT = datetime(2026, 1, 1, tzinfo=UTC)
_EMBEDDING_LENGTH = 4096


class SimPages(StatusPages):
    """Answers from the specification and the virtual host's memory."""

    def __init__(self, spec: SimSpec, driver: SimDriver) -> None:
        # Listed in the order of the specification: the first is the newest.
        listings = {
            model.key: _listing(model, _INSTALLED_AT - timedelta(minutes=age))
            for age, model in enumerate(spec.models)
        }
        super().__init__(spec.version, listings)
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
                listing=self.listings[runner.model.key],
                size_bytes=memory_bytes,
                vram_bytes=memory_bytes if self._spec.has_gpu else 0,
                context_length=runner.context_length,
                expires_at=expires_at,
            )


def _listing(model: SimModel, modified_at: datetime) -> Listing:
    return Listing(
        name=model.key,
        digest=model.digest,
        size_bytes=model.size_bytes,
        modified_at=modified_at,
        family="llama",
        parameter_size=f"{model.params_b:.1f}B",
        quantization="Q4_K_M",
        context_length=model.context_length,
        embedding_length=_EMBEDDING_LENGTH,
        capabilities=model.capabilities,
        model_info={
            "general.architecture": "llama",
            "general.parameter_count": int(model.params_b * 1e9),
            "llama.context_length": model.context_length,
            "llama.embedding_length": _EMBEDDING_LENGTH,
        },
    )
