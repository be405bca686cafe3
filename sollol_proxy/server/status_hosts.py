"""One host as the status page shows it."""

from __future__ import annotations

from dataclasses import dataclass

from sollol_proxy.core.snapshots import HostSnapshot
from sollol_proxy.core.types import HostState, ResidentModel
from sollol_proxy.server.alerts import retry_in_words
from sollol_proxy.server.calibration import CalibrationRow
from sollol_proxy.server.figures import (
    NOTHING,
    count,
    duration,
    figure,
    percent,
    share,
    size,
)
from sollol_proxy.server.models_view import disk_bytes

_MOST_PIPS = 16
"""A model with more slots gets one continuous bar."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A labelled length. share: its width, `0%` to `100%`."""

    label: str
    text: str
    share: str


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model that a host has in memory, is loading or is running.

    pips: one for each slot, True where a job runs; empty where `share` is drawn instead.
    """

    name: str
    load: str
    pips: tuple[bool, ...]
    share: str
    memory: str
    is_loading: bool


@dataclass(frozen=True, slots=True)
class HostCard:
    """One host.

    state: names the colour and the shape. retry: empty unless ejected.
    installed: the number of models and what they take on disk.
    prediction: real ÷ predicted time and the mean error; empty where none was predicted.
    """

    id: str
    url: str
    state: HostState
    state_for: str
    detail: str
    retry: str
    version: str
    labels: tuple[str, ...]
    in_flight: str
    models: tuple[ModelLine, ...]
    memory: Bar | None
    installed: str
    success: str
    round_trip: str
    first_token: str
    speed: str
    completed: str
    failures: str
    prediction: str


def host_card(host: HostSnapshot, calibration: CalibrationRow | None = None) -> HostCard:
    """Everything about one host."""
    spec = host.spec
    return HostCard(
        id=spec.id,
        url=spec.url,
        state=host.state,
        state_for=duration(host.state_for_s),
        detail=host.detail,
        retry=retry_in_words(host) if host.state is HostState.EJECTED else "",
        version=host.version,
        labels=tuple(f"{key}={value}" if value else key for key, value in spec.labels.items()),
        in_flight=count(host.in_flight),
        models=_model_lines(host),
        memory=_memory_bar(host),
        installed=_installed(host),
        success=percent(host.success_ratio),
        round_trip=duration(host.round_trip_s),
        first_token=duration(host.first_token_s),
        speed=NOTHING if host.decode_tokens_per_s is None else figure(host.decode_tokens_per_s),
        completed=count(host.completed),
        failures=count(host.failures),
        prediction=_prediction(calibration),
    )


def _prediction(row: CalibrationRow | None) -> str:
    if row is None or row.ratio_median is None:
        return ""
    return f"{figure(row.ratio_median)} · ± {duration(row.total_error_s)}"


def _installed(host: HostSnapshot) -> str:
    number, on_disk = count(len(host.installed)), disk_bytes(host)
    return f"{number} · {size(on_disk)}" if on_disk else number


def _model_lines(host: HostSnapshot) -> tuple[ModelLine, ...]:
    resident = {model.name: model for model in host.resident}
    embedders = {model.name for model in host.installed if model.is_embedder}
    # A dict keeps the order: what is in memory first, then what is on its way there.
    names = dict.fromkeys([*resident, *host.loading, *host.in_flight_by_model])
    lines = []
    for name in names:
        slots = 1 if name in embedders else host.spec.model_slots.get(name, host.spec.slots)
        running = host.in_flight_by_model.get(name, 0)
        places = max(slots, running)
        lines.append(
            ModelLine(
                name=name,
                load=f"{running} of {slots}",
                pips=tuple(place < running for place in range(places))
                if places <= _MOST_PIPS
                else (),
                share=share(running, slots),
                memory=_in_memory(resident.get(name)),
                is_loading=name in host.loading,
            )
        )
    return tuple(lines)


def _in_memory(model: ResidentModel | None) -> str:
    if model is None or not model.size_bytes:
        return ""
    if not model.size_vram_bytes:
        return f"{size(model.size_bytes)} CPU"
    if model.size_vram_bytes >= model.size_bytes:
        return size(model.size_bytes)
    return f"{size(model.size_bytes)}, {percent(model.size_vram_bytes / model.size_bytes)} GPU"


def _memory_bar(host: HostSnapshot) -> Bar | None:
    room = host.spec.memory_bytes
    if not room:
        return None
    used = sum(model.size_vram_bytes for model in host.resident)
    return Bar("GPU memory", f"{size(used)} of {size(room)}", share(used, room))
