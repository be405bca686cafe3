"""`/api/create` of a lab host: a model made from another one, or from uploaded files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from sollol_proxy.lab.account import CLOUD_HOST
from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.inventory import Layer, Listing
from sollol_proxy.lab.progress import Say, status
from sollol_proxy.lab.pulls import Source
from sollol_proxy.ollama.names import canonical, is_cloud, is_valid

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_CONFIG_BYTES = 400
# What quantising reports in place of a digest.
_NO_DIGEST = "0000000000000000000"


@dataclass(frozen=True, slots=True)
class Create:
    """What a creation asks for. files: digest by path; adapters among them."""

    name: str
    source: str
    files: Mapping[str, str]
    adapters: Mapping[str, str]
    template: str
    system: str
    license: str
    parameters: Mapping[str, Any]
    messages: tuple[Mapping[str, str], ...]
    quantize: str
    remote_host: str


class Files(Protocol):
    """What a kind of host makes of uploaded files."""

    def listing(self, digests: Iterable[str], size_bytes: int) -> Listing:
        """A model of these blobs, its name left open, its weights known to the host.

        Raises:
            AskError: the host cannot read them.
        """


def read_create(fields: Mapping[str, Any]) -> Create:
    """What the body of the route asks for.

    Raises:
        AskError: Ollama refuses it before it begins.
    """
    name = str(fields.get("model") or fields.get("name") or "").strip()
    if not is_valid(name):
        raise AskError(400, "invalid model name")
    files, adapters = _files(fields.get("files")), _files(fields.get("adapters"))
    if files and fields.get("from"):
        raise AskError(400, "'from' and 'files' cannot be used together")
    return Create(
        name=name,
        source=str(fields.get("from") or "").strip(),
        files=files,
        adapters=adapters,
        template=str(fields.get("template") or ""),
        system=str(fields.get("system") or ""),
        license=_joined(fields.get("license")),
        parameters=fields.get("parameters") or {},
        messages=tuple(fields.get("messages") or ()),
        quantize=str(fields.get("quantize") or fields.get("quantization") or ""),
        remote_host=str(fields.get("remote_host") or ""),
    )


class Creator:
    """Makes models on one disk. source: for a `from` that is not there."""

    def __init__(self, disk: Disk, source: Source, files: Files) -> None:
        self._disk = disk
        self._source = source
        self._files = files

    async def create(self, wanted: Create, say: Say) -> None:
        """Make the model.

        Raises:
            AskError: something that it needs is missing.
        """
        # The first refusals come out of the stream that was about to begin.
        if not wanted.source and not wanted.files:
            raise AskError(400, "neither 'from' or 'files' was specified")
        if wanted.source and not is_valid(wanted.source):
            raise AskError(400, "invalid model name")
        if wanted.remote_host or is_cloud(wanted.source):
            base = _stub(wanted)
        elif wanted.source:
            base = await self._from(wanted.source, say)
        else:
            base = await self._from_files(wanted, say)
        await self._store(wanted, base, say)

    async def _from(self, name: str, say: Say) -> Listing:
        found = self._disk.find(name)
        if found is None:
            # Pulled within the creation, the pull's own `success` included.
            await self._source.pull(name, say)
            found = self._disk.find(name)
        if found is None:
            raise AskError(500, "pull model manifest: file does not exist")
        return replace(found, parent=found.name)

    async def _from_files(self, wanted: Create, say: Say) -> Listing:
        await say(status("parsing GGUF"))
        digests = [*wanted.files.values(), *wanted.adapters.values()]
        for digest in digests:
            if digest.replace("-", ":", 1) not in self._disk.blobs:
                path = f"/models/blobs/{digest.replace(':', '-')}"
                raise AskError(500, f"open {path}: no such file or directory")
        size_bytes = sum(self._disk.blobs[digest.replace("-", ":", 1)] for digest in digests)
        listing = self._files.listing(digests, size_bytes)
        await say(status("verifying conversion"))
        if wanted.quantize:
            text = f"quantizing F16 model to {wanted.quantize.upper()}"
            record = {"status": text, "digest": _NO_DIGEST, "total": size_bytes}
            await say(record)
            await say(record | {"completed": size_bytes})
            listing = replace(listing, quantization=wanted.quantize.upper())
        return listing

    async def _store(self, wanted: Create, base: Listing, say: Say) -> None:
        made = _with_settings(wanted, base)
        for layer in made.layers:
            if layer.kind != "config":
                verb = "using existing" if layer.digest in self._disk.blobs else "creating new"
                await say(status(f"{verb} layer {layer.digest}"))
        await say(status("writing manifest"))
        self._disk.put(replace(made, name=self._disk.spelling(wanted.name)))
        await say(status("success"))


def _with_settings(wanted: Create, base: Listing) -> Listing:
    """The model with what the creation changes; equal changes make equal digests."""
    parameters = {**base.parameters, **wanted.parameters}
    changed = {
        "template": wanted.template,
        "system": wanted.system,
        "license": wanted.license,
        "params": parameters if wanted.parameters else None,
        "messages": list(wanted.messages),
    }
    added = [_layer(kind, content) for kind, content in changed.items() if content]
    kinds = {layer.kind for layer in added} | {"config"}
    layers = [layer for layer in base.layers if layer.kind not in kinds] + added
    digest = _sha256(" ".join(layer.digest for layer in layers) + base.remote_model)
    layers.append(Layer("config", f"sha256:{_sha256('config ' + digest)}", _CONFIG_BYTES))
    return replace(
        base,
        digest=digest,
        size_bytes=sum(layer.size_bytes for layer in layers),
        modified_at=datetime.now(UTC),
        layers=tuple(layers),
        template=wanted.template or base.template,
        system=wanted.system or base.system,
        license=wanted.license or base.license,
        parameters=parameters,
        messages=wanted.messages or base.messages,
    )


def _stub(wanted: Create) -> Listing:
    """A model that another host runs."""
    remote_model = canonical(wanted.source).removesuffix(":cloud").removesuffix("-cloud")
    return Listing(
        name=wanted.name,
        digest="",
        size_bytes=0,
        modified_at=datetime.now(UTC),
        family="",
        parameter_size="",
        quantization="",
        context_length=0,
        embedding_length=0,
        capabilities=("completion",),
        weights=canonical(wanted.name),
        remote_model=remote_model,
        remote_host=wanted.remote_host or CLOUD_HOST,
    )


def _files(value: Any) -> dict[str, str]:
    files = value if isinstance(value, dict) else {}
    for path, digest in files.items():
        if path.startswith("/") or ".." in path.split("/"):
            raise AskError(400, "file path must be relative")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise AskError(400, "invalid digest format")
    return files


def _joined(value: Any) -> str:
    return "\n".join(str(item) for item in value) if isinstance(value, list) else str(value or "")


def _layer(kind: str, content: Any) -> Layer:
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return Layer(kind, f"sha256:{_sha256(f'{kind} {text}')}", len(text.encode()))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
