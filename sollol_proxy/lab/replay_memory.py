"""What the hosts of a log can hold in memory, from which requests had to wait for a load.

The log tells no sizes. A model that takes twice as long to load is taken for twice as large, and a
host's room is the one with which the same requests would best have found, or not found, their
model in memory. A model that leaves for another one is chosen as `VirtualHost` chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

from sollol_proxy.core.estimate import LOAD_THRESHOLD_S
from sollol_proxy.lab.replay_log import Entry
from sollol_proxy.lab.simspec import REFERENCE_SIZE_BYTES, SimModel

MODEL_BYTES = REFERENCE_SIZE_BYTES
"""A model of the usual size."""

KEEP_ALIVE_S = 300.0
"""Ollama's own, unless the log shows that models stay longer."""

UNBOUNDED_BYTES = 10**15

_LARGEST, _SMALLEST = 10.0, 0.1
_MOST_MODELS = 10
"""With more, only rooms for so many of the usual size are tried: the sums would be too many."""

_JUDGED = 2000
"""The last requests of a host by which its room is judged."""


def has_loaded(entry: Entry) -> bool:
    """Whether the request had to wait for a load of its model."""
    return is_load(entry.load_s)


def is_load(load_s: float) -> bool:
    """Whether it is more than the moment that asking for a model in memory takes."""
    return load_s >= LOAD_THRESHOLD_S


def usual_load_s(loads_s: Sequence[float]) -> float:
    """How long a load takes; not the median, because many have waited for their turn first."""
    return sorted(loads_s)[len(loads_s) // 4]


def sizes_bytes(entries: Sequence[Entry]) -> dict[str, int]:
    """Sizes of the models in proportion to how long they take to load."""
    loads_s: dict[tuple[str, str], list[float]] = {}
    for entry in entries:
        if has_loaded(entry):
            loads_s.setdefault((entry.host, entry.model), []).append(entry.load_s)
    usual_s = {place: usual_load_s(seen) for place, seen in loads_s.items()}
    by_host: dict[str, list[float]] = {}
    for (host, _), seconds in usual_s.items():
        by_host.setdefault(host, []).append(seconds)
    ratios: dict[str, list[float]] = {}
    for (host, model), seconds in usual_s.items():
        ratios.setdefault(model, []).append(seconds / median(by_host[host]))
    return {
        model: round(MODEL_BYTES * min(_LARGEST, max(_SMALLEST, median(seen))))
        for model, seen in ratios.items()
    }


def keep_alive_s(entries: Sequence[Entry]) -> float:
    """How long models stay unused, at least. entries: of one host, as they were sent."""
    longest_s = KEEP_ALIVE_S
    ended_s: dict[str, float] = {}
    for entry in entries:
        before_s = ended_s.get(entry.model)
        if before_s is not None and not has_loaded(entry):
            longest_s = max(longest_s, entry.sent_s - before_s + 1)
        ended_s[entry.model] = max(ended_s.get(entry.model, 0.0), entry.ended_s)
    return longest_s


def room_bytes(entries: Sequence[Entry], models: Sequence[SimModel], stay_s: float) -> int:
    """Memory for models; unbounded where none had to go. entries: of one host, as sent."""
    sizes = {model.key: model.memory_bytes for model in models}
    judged = entries[-_JUDGED:]
    rooms = [UNBOUNDED_BYTES, *sorted(_rooms(list(sizes.values())), reverse=True)]
    return min(rooms, key=lambda room: _mistakes(judged, sizes, room, stay_s))


def _rooms(sizes: Sequence[int]) -> set[int]:
    """Rooms that differ in what fits into them."""
    if len(sizes) > _MOST_MODELS:
        return {round(median(sizes) * number) for number in range(1, len(sizes))}
    return {
        sum(together) for number in range(1, len(sizes)) for together in combinations(sizes, number)
    }


def _mistakes(entries: Sequence[Entry], sizes: Mapping[str, int], room: int, stay_s: float) -> int:
    """Requests that would have waited for a load and did not, or the other way about."""
    ended_s: dict[str, float] = {}
    ready_s: dict[str, float] = {}
    mistakes = 0
    for entry in entries:
        model, now = entry.model, entry.sent_s
        is_there = model in ended_s and now - ended_s[model] < stay_s
        is_first = model not in ready_s
        if now >= ready_s.get(model, 0.0) and not is_first:
            mistakes += is_there is has_loaded(entry)
        if has_loaded(entry) or is_first:
            ready_s[model] = now + entry.load_s
        if not is_there:
            ended_s.pop(model, None)
            _make_way(ended_s, sizes, room - sizes[model], now)
        ended_s[model] = max(ended_s.get(model, 0.0), entry.ended_s)
    return mistakes


def _make_way(ended_s: dict[str, float], sizes: Mapping[str, int], room: int, now: float) -> None:
    """Let idle models go until the others fit."""
    for victim in sorted(model for model, end_s in ended_s.items() if end_s <= now):
        if sum(sizes[model] for model in ended_s) <= room:
            return
        del ended_s[victim]
