"""The documents in which a host lists its models: tags, ps, show, `/v1/models`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sollol_proxy.lab.modelfile import modelfile_text, parameter_lines
from sollol_proxy.lab.shapes import timestamp


@dataclass(frozen=True, slots=True)
class Layer:
    """A part of a model as it lies on the disk.

    kind: `model`, `template`, `system`, `license`, `params`, `messages` or `config`.
    digest: with `sha256:`.
    """

    kind: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What a host says about an installed model.

    name: as Ollama spells it. digest: 64 hex digits. parameter_size: as Ollama prints it, `7.6B`.
    model_info: GGUF keys. weights: equal for models that one runner can serve.
    parent: the model that it was created from. parameters: Modelfile parameters.
    remote_model, remote_host: of a stub, what stands for it elsewhere and where.
    """

    name: str
    digest: str
    size_bytes: int
    modified_at: datetime
    family: str
    parameter_size: str
    quantization: str
    context_length: int
    embedding_length: int
    capabilities: tuple[str, ...]
    model_info: Mapping[str, Any] = field(default_factory=dict)
    template: str = "{{ .Prompt }}"
    weights: str = ""
    layers: tuple[Layer, ...] = ()
    parent: str = ""
    system: str = ""
    license: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()
    remote_model: str = ""
    remote_host: str = ""

    @property
    def is_stub(self) -> bool:
        """Whether another host stands behind it."""
        return bool(self.remote_model)

    def remote_fields(self) -> dict[str, str]:
        """What lists and answers say of the other host; nothing for a model of this one."""
        if not self.is_stub:
            return {}
        return {"remote_model": self.remote_model, "remote_host": self.remote_host}

    def details(self, parent: str = "") -> dict[str, Any]:
        """The `details` object; only show names the parent."""
        return {
            "parent_model": parent,
            "format": "" if self.is_stub else "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
        }


@dataclass(frozen=True, slots=True)
class Residence:
    """A model in memory. expires_at: None = never."""

    listing: Listing
    size_bytes: int
    vram_bytes: int
    context_length: int
    expires_at: datetime | None


def tags_document(listings: Iterable[Listing]) -> dict[str, Any]:
    """`/api/tags`, newest first."""
    newest_first = sorted(listings, key=lambda listing: listing.modified_at, reverse=True)
    return {"models": [_tags_entry(listing) for listing in newest_first]}


def ps_document(residences: Iterable[Residence]) -> dict[str, Any]:
    """`/api/ps`, the one that stays longest first."""
    rows = [_ps_entry(residence) for residence in residences]
    return {"models": sorted(rows, key=lambda row: str(row["expires_at"]), reverse=True)}


def show_document(listing: Listing) -> dict[str, Any]:
    """`/api/show`; what a model does not have is left out."""
    document = {
        "license": listing.license,
        "modelfile": modelfile_text(
            listing.name,
            blob=next((each.digest for each in listing.layers if each.kind == "model"), ""),
            template=listing.template,
            system=listing.system,
            parameters=listing.parameters,
            messages=listing.messages,
            license_=listing.license,
        ),
        "parameters": parameter_lines(listing.parameters),
        "template": listing.template,
        "system": listing.system,
        "details": listing.details(listing.parent),
        "messages": list(listing.messages),
        "model_info": dict(listing.model_info),
        "capabilities": list(listing.capabilities),
        "modified_at": timestamp(listing.modified_at),
        **listing.remote_fields(),
    }
    return {name: value for name, value in document.items() if value or name == "model_info"}


def v1_models_document(listings: Iterable[Listing]) -> dict[str, Any]:
    """`/v1/models`; `data` is null where there are none, as with Ollama."""
    newest_first = sorted(listings, key=lambda listing: listing.modified_at, reverse=True)
    data = [v1_model_document(listing, listing.name) for listing in newest_first]
    return {"object": "list", "data": data or None}


def v1_model_document(listing: Listing, name_as_asked: str) -> dict[str, Any]:
    """`/v1/models/:model`."""
    namespace, slash, _ = listing.name.rpartition("/")
    return {
        "id": name_as_asked,
        "object": "model",
        "created": int(listing.modified_at.timestamp()),
        "owned_by": namespace if slash else "library",
    }


def _tags_entry(listing: Listing) -> dict[str, Any]:
    lengths = {
        "context_length": listing.context_length,
        "embedding_length": listing.embedding_length,
    }
    return {
        "name": listing.name,
        "model": listing.name,
        **listing.remote_fields(),
        "modified_at": timestamp(listing.modified_at),
        "size": listing.size_bytes,
        "digest": listing.digest,
        "details": listing.details(listing.parent) | lengths,
        "capabilities": list(listing.capabilities),
    }


def _ps_entry(residence: Residence) -> dict[str, Any]:
    listing = residence.listing
    expires_at = residence.expires_at
    return {
        "name": listing.name,
        "model": listing.name,
        "size": residence.size_bytes,
        "digest": listing.digest,
        "details": listing.details(),
        # Ollama's "never" is some 292 years ahead.
        "expires_at": timestamp(expires_at) if expires_at else "2319-01-01T00:00:00Z",
        "size_vram": residence.vram_bytes,
        "context_length": residence.context_length,
    }
