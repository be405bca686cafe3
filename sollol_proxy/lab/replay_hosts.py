"""The hosts behind a log, as far as the log shows them.

A host is known by what it did: the models it served, the tokens a second of each, how long loads
took, how many jobs ran at once and how much they slowed each other down. What it could have done
besides is not in the log: a model that it never served it does not have here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from sollol_proxy.core.types import JobKind
from sollol_proxy.lab.pools import CONTEXT_LENGTH
from sollol_proxy.lab.replay_levels import Interval, Levels
from sollol_proxy.lab.replay_log import Entry
from sollol_proxy.lab.replay_memory import (
    MODEL_BYTES,
    has_loaded,
    keep_alive_s,
    room_bytes,
    sizes_bytes,
    usual_load_s,
)
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.workload import LONG_CONTEXT

_ALPHA = 0.15
"""Slowing of jobs beside each other where the log has none: that of the simulated hosts."""

_PREFILL_TPS, _DECODE_TPS, _LOAD_S = 1000.0, 30.0, 5.0
"""Where the log has nothing at all to go by."""

_ALONE, _BESIDE = 0.25, 0.5
"""Mean number of others below which a job ran alone, and above which it was slowed down."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Speeds of one model on one host, one stream alone."""

    prefill_tps: float
    decode_tps: float
    load_s: float


@dataclass(frozen=True, slots=True)
class LoggedSpec(SimSpec):
    """A host whose speeds are those of a log. paces: by canonical model."""

    paces: Mapping[str, Pace] = field(default_factory=dict)

    def decode_tps_of(self, model: SimModel) -> float:
        """As the log shows it."""
        return self.paces[model.key].decode_tps

    def prefill_tps_of(self, model: SimModel) -> float:
        """As the log shows it."""
        return self.paces[model.key].prefill_tps

    def load_s_of(self, model: SimModel) -> float:
        """As the log shows it."""
        return self.paces[model.key].load_s


@dataclass(frozen=True, slots=True)
class _Work:
    """A phase of a job. tokens: computed. others: jobs of the model beside it, on average."""

    tokens: int
    seconds: float
    others: float

    def alone_s(self, alpha: float) -> float:
        return self.seconds / (1 + alpha * self.others)


def models_of(entries: Sequence[Entry]) -> dict[str, SimModel]:
    """The models of a log; what was only ever embedded with is an embedder."""
    sizes = sizes_bytes(entries)
    kinds: dict[str, set[JobKind]] = {}
    for entry in entries:
        kinds.setdefault(entry.model, set()).add(entry.kind)
    return {
        name: SimModel(
            name,
            size_bytes=sizes.get(name, MODEL_BYTES),
            capabilities=("embedding",) if seen == {JobKind.EMBED} else ("completion",),
            context_length=LONG_CONTEXT,
        )
        for name, seen in kinds.items()
    }


def rebuild(entries: Sequence[Entry], models: Mapping[str, SimModel]) -> list[LoggedSpec]:
    """The hosts of a log, in the order of their names."""
    by_host: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.sent_s):
        by_host.setdefault(entry.host, []).append(entry)
    load_s = _load_s(entries, _LOAD_S)
    return [_host(name, by_host[name], models, load_s) for name in sorted(by_host)]


def _host(
    name: str, entries: Sequence[Entry], models: Mapping[str, SimModel], load_s: float
) -> LoggedSpec:
    """entries: of this host, as they were sent."""
    by_model: dict[str, list[Entry]] = {}
    for entry in entries:
        by_model.setdefault(entry.model, []).append(entry)
    levels = {model: Levels([_span(entry) for entry in mine]) for model, mine in by_model.items()}
    runners = Levels([span for level in levels.values() for span in level.covered()])
    decodes = {m: _decodes(mine, levels[m], runners) for m, mine in by_model.items()}
    prefills = {m: _prefills(mine, levels[m], runners) for m, mine in by_model.items()}
    alpha = _alpha(decodes.values())
    decode_tps = {m: tps for m, work in decodes.items() if (tps := _decode_tps(work, alpha))}
    prefill_tps = {m: tps for m, work in prefills.items() if (tps := _prefill_tps(work, alpha))}
    paces = {
        model: Pace(
            prefill_tps.get(model) or _usual(prefill_tps, _PREFILL_TPS),
            decode_tps.get(model) or _usual(decode_tps, _DECODE_TPS),
            _load_s(mine, load_s),
        )
        for model, mine in by_model.items()
    }
    installed = tuple(models[model] for model in by_model)
    stay_s = keep_alive_s(entries)
    room = room_bytes(entries, installed, stay_s)
    resident = [m for m, mine in by_model.items() if not has_loaded(mine[0])]
    return LoggedSpec(
        id=name,
        slots=max(1, *(level.peak for level in levels.values())),
        max_models=max(3, len(installed)),
        memory_bytes=room,
        alpha=alpha,
        models=installed,
        resident=_first_that_fit(resident, models, room),
        keep_alive_s=stay_s,
        context_length=CONTEXT_LENGTH,
        paces=paces,
    )


def _first_that_fit(
    names: Iterable[str], models: Mapping[str, SimModel], room: int
) -> tuple[str, ...]:
    kept = []
    for name in names:
        room -= models[name].memory_bytes
        if room >= 0:
            kept.append(name)
    return tuple(kept)


def _span(entry: Entry) -> Interval:
    """The time at the host, less what the instants of a log are uncertain by."""
    unsure_s = min(0.02, (entry.ended_s - entry.sent_s) / 4)
    return entry.sent_s + unsure_s, entry.ended_s


def _decodes(entries: Sequence[Entry], beside: Levels, runners: Levels) -> list[_Work]:
    return [
        _work(entry.output_tokens, entry.ended_s - entry.decode_s, entry.ended_s, beside, runners)
        for entry in entries
        if entry.decode_s and entry.output_tokens
    ]


def _prefills(entries: Sequence[Entry], beside: Levels, runners: Levels) -> list[_Work]:
    """Without the beginnings of prompts that the host must have had in its cache."""
    seen: set[int] = set()
    works = []
    for entry in entries:
        known = [e for b, e in zip(entry.prefix, entry.prefix_tokens, strict=True) if b in seen]
        seen.update(entry.prefix)
        cached = max(known, default=0) * entry.prompt_tokens / entry.prompt_tokens_est
        prefill_s = entry.prefill_s
        if prefill_s is None and entry.kind is JobKind.EMBED:
            prefill_s = entry.host_s - entry.load_s
        tokens = entry.prompt_tokens - round(cached)
        if prefill_s and prefill_s > 0 and tokens > 0:
            end_s = entry.ended_s - (entry.decode_s or 0.0)
            works.append(_work(tokens, end_s - prefill_s, end_s, beside, runners))
    return works


def _work(tokens: int, start_s: float, end_s: float, beside: Levels, runners: Levels) -> _Work:
    # Busy models share a host evenly; that is taken out here, jobs of one model later.
    busy = max(1.0, runners.mean(start_s, end_s))
    return _Work(tokens, (end_s - start_s) / busy, max(0.0, beside.mean(start_s, end_s) - 1))


def _alpha(by_model: Iterable[Sequence[_Work]]) -> float:
    """By how much one more job slows the others of its model; from those that ran alone."""
    slowed = []
    for works in by_model:
        alone = [work.seconds / work.tokens for work in works if work.others < _ALONE]
        if alone:
            best_s = median(alone)
            slowed += [
                (work.seconds / work.tokens / best_s - 1) / work.others
                for work in works
                if work.others > _BESIDE
            ]
    return min(1.0, max(0.0, median(slowed))) if slowed else _ALPHA


def _decode_tps(works: Sequence[_Work], alpha: float) -> float | None:
    rates = [work.tokens / work.alone_s(alpha) for work in works]
    return median(rates) if rates else None


def _prefill_tps(works: Sequence[_Work], alpha: float) -> float | None:
    """Over all tokens, because short prompts take longer than their length says."""
    seconds = sum(work.alone_s(alpha) for work in works)
    return sum(work.tokens for work in works) / seconds if seconds else None


def _usual(known: Mapping[str, float], otherwise: float) -> float:
    return median(known.values()) if known else otherwise


def _load_s(entries: Sequence[Entry], otherwise: float) -> float:
    loads_s = [entry.load_s for entry in entries if has_loaded(entry)]
    return usual_load_s(loads_s) if loads_s else otherwise
