"""The disk of a simulated host: listings for the wire, models for the machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.inventory import Layer, Listing
from sollol_proxy.lab.simspec import (
    REFERENCE_PARAMS_B,
    REFERENCE_SIZE_BYTES,
    SimModel,
)
from sollol_proxy.ollama.names import display

_INSTALLED_AT = datetime(2026, 1, 1, tzinfo=UTC)
_EMBEDDING_LENGTH = 4096
# The small layers beside the weights, as real models have them; less for tiny ones.
_TEMPLATE_BYTES = 1_500
_CONFIG_BYTES = 480


class SimDisk(Disk):
    """A disk whose models a virtual host can run."""

    def __init__(self, models: Iterable[SimModel]) -> None:
        self._by_weights: dict[str, SimModel] = {}
        super().__init__()
        # Listed in the order given: the first is the newest.
        for age, model in enumerate(models):
            self.install(model, _INSTALLED_AT - timedelta(minutes=age))

    def install(self, model: SimModel, modified_at: datetime) -> bool:
        """Store a model; True when that left layers of an older one without use.

        modified_at: unless the model says when.
        """
        found = self._listings.get(model.key)
        if found is not None and found.digest != model.digest:
            # Another file under the old name: a runner of the old one goes on, but serves no more.
            model = replace(model, weights=f"{model.blob}@{model.digest[:12]}")
        self.add_weights(model)
        return self.put(listing_of(model, modified_at))

    def add_weights(self, model: SimModel) -> None:
        """Make the file known that a model of this disk is about to refer to."""
        self._by_weights[model.blob] = model

    def model_of(self, listing: Listing) -> SimModel:
        """What the virtual host is to run for an installed model."""
        model = self._by_weights[listing.weights]
        return replace(model, name=listing.name, weights=model.blob)


def listing_of(model: SimModel, modified_at: datetime) -> Listing:
    """What a host says about a model.

    modified_at: unless the model says when.
    """
    return Listing(
        name=display(model.name),
        digest=model.digest,
        size_bytes=model.size_bytes,
        modified_at=(
            datetime.fromisoformat(model.modified_at) if model.modified_at else modified_at
        ),
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
        weights=model.blob,
        layers=_layers(model),
        remote_model=model.remote_model,
        remote_host=model.remote_host,
    )


class SimFiles:
    """Takes every upload for the file of a model, as large as the upload and otherwise usual."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk

    def listing(self, digests: Iterable[str], size_bytes: int) -> Listing:
        """See `creates.Files`."""
        # The host writes files anew: what it stores has another digest than what came.
        digest = f"sha256:{_sha256(' '.join(digests))}"
        model = SimModel(
            name="file",
            size_bytes=size_bytes,
            params_b=REFERENCE_PARAMS_B * size_bytes / REFERENCE_SIZE_BYTES,
            weights=digest,
        )
        self._disk.add_weights(model)
        listing = listing_of(model, datetime.now(UTC))
        return replace(listing, layers=(Layer("model", digest, size_bytes),))


def _layers(model: SimModel) -> tuple[Layer, ...]:
    """Weights, template and configuration; they add up to the size of the model."""
    small = {
        "template": min(_TEMPLATE_BYTES, model.size_bytes // 8),
        "config": min(_CONFIG_BYTES, model.size_bytes // 16),
    }
    if model.remote_model:
        sizes = {"config": model.size_bytes}
    else:
        sizes = {"model": model.size_bytes - sum(small.values()), **small}
    return tuple(
        Layer(kind, f"sha256:{_sha256(f'{model.digest} {kind}')}", size)
        for kind, size in sizes.items()
        if size
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
