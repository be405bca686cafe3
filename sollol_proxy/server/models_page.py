"""What the page of the pool's models shows: who has what, where copies differ, what to pull.

Pure, as `status` is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sollol_proxy.core.types import HostState, InstalledModel, ResidentModel
from sollol_proxy.server.figures import NOTHING, clock, count, instant_iso, plural, size
from sollol_proxy.server.links import LINKS, Links, sync_href
from sollol_proxy.server.models_view import (
    Copy,
    HostModels,
    PoolModel,
    PoolModels,
    age_key,
    disk_bytes,
)

_MOST_UPRIGHT = 6
"""More hosts than these have their names written upwards over the matrix."""

_LISTED_HOSTS = 6
"""Of more hosts the matrix alone says which they are."""

_NAMED = 3
_DIGEST_DIGITS = 12
"""As `ollama list` shows them."""


class Mark(StrEnum):
    """What a host has to do with a model. Names the shape that is drawn."""

    HELD = "held"
    LOADED = "loaded"
    DIFFERS = "differs"
    STUB = "stub"
    LACKS = "lacks"
    UNKNOWN = "unknown"
    NONE = "none"


_WORDS = {
    Mark.HELD: "on disk",
    Mark.LOADED: "in memory",
    Mark.DIFFERS: "another model under this name",
    Mark.STUB: "runs elsewhere",
    Mark.LACKS: "missing",
    Mark.UNKNOWN: "has not answered yet",
    Mark.NONE: "not meant to hold it",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A model on a host. text: the mark in words, and what is to be said beside it."""

    mark: Mark
    text: str


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model. cells: one for each host, in the order of the pool."""

    name: str
    size: str
    disk: str
    copies: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One of several models under a name. model: empty but in the first row of a name."""

    model: str
    variants: int
    digest: str
    is_newest: bool
    modified: str
    size: str
    hosts: str


@dataclass(frozen=True, slots=True)
class HostRow:
    """What a host has and lacks.

    command: brings it up to date; empty where that is not needed, or cannot be done now.
    idle: what is said where nothing is known to be needed.
    """

    id: str
    url: str
    state: HostState
    models: str
    disk: str
    lacks: str
    differs: str
    command: str
    idle: str


@dataclass(frozen=True, slots=True)
class ModelsPage:
    """Everything the page of the models shows. legend: the marks that occur, with their words."""

    version: str
    links: Links
    now: str
    now_iso: str
    heading: str
    sentence: str
    is_upright: bool
    hosts: tuple[HostRow, ...]
    rows: tuple[ModelRow, ...]
    legend: tuple[Cell, ...]
    drifts: tuple[DriftRow, ...]


def models_page(pool: PoolModels, now_iso: str, version: str, base_url: str) -> ModelsPage:
    """The page of the pool's models.

    now_iso: wall time, ISO 8601 UTC. base_url: the proxy's address for the commands, without a
    slash at its end.
    """
    rows = tuple(_model_row(model, pool.hosts) for model in pool.models)
    used = {cell.mark for row in rows for cell in row.cells}
    return ModelsPage(
        version=version,
        links=LINKS,
        now=clock(now_iso),
        now_iso=now_iso,
        heading=plural(len(pool.models), "model"),
        sentence=_sentence(pool),
        is_upright=len(pool.hosts) <= _MOST_UPRIGHT,
        hosts=tuple(_host_row(host, base_url) for host in pool.hosts),
        rows=rows,
        legend=tuple(Cell(mark, _WORDS[mark]) for mark in Mark if mark in used),
        drifts=tuple(row for model in pool.models if model.has_drift for row in _drifts(model)),
    )


def _sentence(pool: PoolModels) -> str:
    total = sum(disk_bytes(host.host) for host in pool.hosts)
    parts = [f"{size(total)} on the disks of {plural(len(pool.hosts), 'host')}."]
    drifts = sum(model.has_drift for model in pool.models)
    if drifts:
        means = "name means" if drifts == 1 else "names mean"
        parts.append(f"{count(drifts)} {means} different models on different hosts.")
    lacking = sum(bool(host.lacks) for host in pool.hosts)
    if lacking:
        lacks = "host lacks" if lacking == 1 else "hosts lack"
        parts.append(f"{count(lacking)} {lacks} something.")
    return " ".join(parts)


def _model_row(model: PoolModel, hosts: Sequence[HostModels]) -> ModelRow:
    copies = {copy.host.spec.id: copy for copy in model.copies}
    missing = frozenset(model.missing_on)
    return ModelRow(
        name=model.name,
        size=size(model.size_bytes) if model.size_bytes else NOTHING,
        disk=size(model.disk_bytes) if model.disk_bytes else NOTHING,
        copies=f"{len(copies)} of {len(copies) + len(missing)}",
        cells=tuple(_cell(host, copies.get(host.host.spec.id), missing) for host in hosts),
    )


def _cell(host: HostModels, copy: Copy | None, missing: frozenset[str]) -> Cell:
    if copy is not None:
        mark = _mark_of(copy)
        return Cell(mark, ", ".join([_WORDS[mark], *_beside(mark, copy)]))
    if not host.is_known:
        return Cell(Mark.UNKNOWN, _WORDS[Mark.UNKNOWN])
    mark = Mark.LACKS if host.host.spec.id in missing else Mark.NONE
    return Cell(mark, _WORDS[mark])


def _mark_of(copy: Copy) -> Mark:
    if not copy.is_newest:
        return Mark.DIFFERS
    if copy.model.is_remote:
        return Mark.STUB
    return Mark.HELD if copy.resident is None else Mark.LOADED


def _beside(mark: Mark, copy: Copy) -> Iterable[str]:
    """What the mark alone does not tell of a copy."""
    if mark is Mark.DIFFERS and copy.resident is not None:
        yield _WORDS[Mark.LOADED]
    if copy.resident is not None and copy.resident.size_bytes:
        yield _memory(copy.resident)
    if copy.in_flight:
        yield f"{count(copy.in_flight)} in flight"


def _memory(resident: ResidentModel) -> str:
    if not resident.size_vram_bytes:
        return f"{size(resident.size_bytes)} CPU"
    return size(resident.size_bytes)


def _drifts(model: PoolModel) -> Iterable[DriftRow]:
    """The models under one name, the newest first."""
    variants: dict[str, list[Copy]] = {}
    for copy in model.copies:
        if copy.model.digest:
            variants.setdefault(copy.model.digest, []).append(copy)
    ordered = sorted(
        variants.values(),
        key=lambda copies: (copies[0].is_newest, max(age_key(copy.model) for copy in copies)),
        reverse=True,
    )
    for place, copies in enumerate(ordered):
        latest = max((copy.model for copy in copies), key=age_key)
        yield DriftRow(
            model="" if place else model.name,
            variants=len(ordered),
            digest=latest.digest.removeprefix("sha256:")[:_DIGEST_DIGITS],
            is_newest=copies[0].is_newest,
            modified=_day(latest),
            size=size(latest.size_bytes),
            hosts=_hosts(copies),
        )


def _hosts(copies: Sequence[Copy]) -> str:
    if len(copies) > _LISTED_HOSTS:
        return plural(len(copies), "host")
    return ", ".join(copy.host.spec.id for copy in copies)


def _day(model: InstalledModel) -> str:
    """`2026-03-01 11:59`, UTC."""
    iso = instant_iso(model.modified_ns)
    return NOTHING if iso is None else iso[:16].replace("T", " ")


def _host_row(host: HostModels, base_url: str) -> HostRow:
    found = host.host
    can_sync = found.state.is_routable and bool(host.lacks or host.differs)
    return HostRow(
        id=found.spec.id,
        url=found.spec.url,
        state=found.state,
        models=count(len(found.installed)) if host.is_known else NOTHING,
        disk=size(disk_bytes(found)) if host.is_known else NOTHING,
        lacks=_few(host.lacks),
        differs=_few(host.differs),
        idle="nothing" if host.is_known else "nobody knows yet",
        command=f"curl -N -X POST {_quoted(base_url + sync_href(found.spec.id))}"
        if can_sync
        else "",
    )


def _quoted(text: str) -> str:
    """A shell's single word; in quotes even where it needs none, for the `?` that may follow."""
    return "'" + text.replace("'", "'\\''") + "'"


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {count(more)} more" if more > 0 else shown
