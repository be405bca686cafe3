"""The big numbers at the top of the status page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from sollol_proxy.config.schema import AlertsSection
from sollol_proxy.core.snapshots import Snapshot
from sollol_proxy.core.types import RequestRecord
from sollol_proxy.server.alerts import states_in_words
from sollol_proxy.server.calibration import CalibrationRow
from sollol_proxy.server.figures import (
    count,
    duration,
    figure,
    instant,
    percent,
    plural,
    size,
)
from sollol_proxy.server.request_row import TONES, Tone


@dataclass(frozen=True, slots=True)
class Tile:
    """One big number. note: a few words below it."""

    label: str
    value: str
    note: str
    tone: Tone = Tone.QUIET


def tiles(
    snapshot: Snapshot,
    records: Sequence[RequestRecord],
    section: AlertsSection,
    now_iso: str,
    calibration: Sequence[CalibrationRow] = (),
) -> tuple[Tile, ...]:
    """Hosts, load, queue, and what the requests of `records` came to; newest first.

    A policy that predicts no time has no tile of how near its predictions came.
    """
    hosts = snapshot.hosts
    up = sum(host.state.is_routable for host in hosts)
    busy = sum(host.in_flight > 0 for host in hosts)
    resident = [model for host in hosts for model in host.resident]
    deep = snapshot.waiting_total >= section.queue_depth
    late = snapshot.oldest_wait_s >= section.queue_wait
    return (
        Tile(
            "Hosts up",
            f"{up} / {len(hosts)}",
            states_in_words(snapshot) or "all take jobs" if hosts else "none named",
            Tone.QUIET if up == len(hosts) else Tone.WARN if up else Tone.BAD,
        ),
        Tile(
            "In flight",
            count(sum(host.in_flight for host in hosts)),
            f"on {plural(busy, 'host')}" if busy else "all idle",
        ),
        Tile(
            "Waiting",
            count(snapshot.waiting_total),
            f"alert at {count(section.queue_depth)}",
            Tone.WARN if deep else Tone.QUIET,
        ),
        Tile(
            "Oldest wait",
            duration(snapshot.oldest_wait_s),
            f"alert at {duration(section.queue_wait)}",
            Tone.WARN if late else Tone.QUIET,
        ),
        _success_tile(records, section),
        Tile("Requests", count(len(records)), _span(records, now_iso)),
        _token_tile(records),
        Tile(
            "In memory",
            size(sum(model.size_bytes for model in resident)),
            f"{plural(len(resident), 'model')}, "
            f"{size(sum(model.size_vram_bytes for model in resident))} on GPUs"
            if resident
            else "no model",
        ),
        *_prediction_tile(calibration),
    )


def _prediction_tile(calibration: Sequence[CalibrationRow]) -> tuple[Tile, ...]:
    """Over all hosts, each as often as it had requests."""
    ratios: list[float] = []
    errors_s: list[float] = []
    for row in calibration:
        if row.ratio_median is not None and row.total_error_s is not None:
            ratios += [row.ratio_median] * row.count
            errors_s += [row.total_error_s] * row.count
    if not ratios:
        return ()
    note = f"of {plural(len(ratios), 'request')}; off by {duration(fmean(errors_s))} on average"
    return (Tile("Real / predicted", figure(median(ratios)), note),)


def _success_tile(records: Sequence[RequestRecord], section: AlertsSection) -> Tile:
    tones = Counter(TONES[record.outcome] for record in records)
    judged = len(records) - tones[Tone.QUIET]
    failed = judged - tones[Tone.OK]
    ratio = tones[Tone.OK] / judged if judged else None
    low = ratio is not None and ratio < section.success_ratio
    return Tile(
        "Success",
        percent(ratio),
        f"{count(failed)} failed of {count(judged)}" if judged else "nothing to judge yet",
        Tone.WARN if low else Tone.QUIET,
    )


def _token_tile(records: Sequence[RequestRecord]) -> Tile:
    seen = [record.observation for record in records if record.observation]
    came_in = sum(observation.prompt_tokens or 0 for observation in seen)
    went_out = sum(observation.output_tokens or 0 for observation in seen)
    return Tile("Tokens out", count(went_out), f"{count(came_in)} in")


def _span(records: Sequence[RequestRecord], now_iso: str) -> str:
    oldest = instant(records[-1].started_at) if records else None
    now = instant(now_iso)
    if oldest is None or now is None:
        return "none yet" if not records else "finished"
    waits = [record.first_byte_s for record in records if record.first_byte_s is not None]
    typical = f", first byte {duration(median(waits))}" if waits else ""
    return f"in {duration((now - oldest).total_seconds())}{typical}"
