"""What lies on a lab host's disk: models, the layers they are made of, and halves of downloads.

Only digests and sizes are kept. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from sollol_proxy.lab.inventory import Listing
from sollol_proxy.ollama.names import canonical, display


class Disk:
    """The models and blobs of one host."""

    def __init__(self, listings: Iterable[Listing] = ()) -> None:
        self._listings: dict[str, Listing] = {}
        self._remembered: dict[tuple[str, str], Listing] = {}
        self._blobs: dict[str, int] = {}
        self.partial: dict[str, int] = {}
        """Bytes that are there of layers whose download was broken off, by digest."""
        for listing in listings:
            self.put(listing)

    @property
    def listings(self) -> Mapping[str, Listing]:
        """The models by canonical name; a view that follows the disk."""
        return MappingProxyType(self._listings)

    @property
    def blobs(self) -> Mapping[str, int]:
        """Sizes of the blobs by digest (`sha256:…`), those of the models included; a view."""
        return MappingProxyType(self._blobs)

    def find(self, name: str) -> Listing | None:
        """The model that a name reaches. `x:local` reaches no stub."""
        listing = self._listings.get(canonical(name))
        wants_local = name.strip().lower().endswith(":local")
        return None if listing is None or (wants_local and listing.is_stub) else listing

    def remembered(self, name: str, weights: str) -> Listing:
        """The last model of this name and file, which may be gone: what a runner was loaded as."""
        return self._remembered[canonical(name), weights]

    def spelling(self, name: str) -> str:
        """How a model of this name is listed: as the one that is there, if there is one."""
        listing = self._listings.get(canonical(name))
        return display(name) if listing is None else listing.name

    def put(self, listing: Listing) -> bool:
        """Store a model, over one of the same name; True when that left layers without use."""
        key = canonical(listing.name)
        replaced = self._listings.get(key)
        self._listings[key] = listing
        self._remembered[key, listing.weights] = listing
        for layer in listing.layers:
            self.add_blob(layer.digest, layer.size_bytes)
        return replaced is not None and self._drop_unused(replaced)

    def copy(self, source: Listing, destination: str, now: datetime) -> None:
        """Give a model another name, over what has that name."""
        self.put(replace(source, name=self.spelling(destination), modified_at=now))

    def delete(self, listing: Listing) -> None:
        """Forget a model, and the layers that no other one uses."""
        del self._listings[canonical(listing.name)]
        self._drop_unused(listing)

    def add_blob(self, digest: str, size_bytes: int) -> bool:
        """Store a blob; False when it was there."""
        is_new = digest not in self._blobs
        self._blobs[digest] = size_bytes
        self.partial.pop(digest, None)
        return is_new

    def _drop_unused(self, listing: Listing) -> bool:
        used = {layer.digest for each in self._listings.values() for layer in each.layers}
        unused = {layer.digest for layer in listing.layers} - used
        for digest in unused:
            self._blobs.pop(digest, None)
        return bool(unused)
