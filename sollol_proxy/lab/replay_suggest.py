"""Which other values of a few keys would have served a log better.

Each key is tried by itself, then the best of each together. Only what a configuration can say is
tried; all figures are those of replays, and a replay does not know what it costs a host to run
more jobs at once than the log ever saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sollol_proxy.config.units import format_duration
from sollol_proxy.core.policies import POLICIES
from sollol_proxy.core.policies.completion_time import CompletionTime
from sollol_proxy.lab.replay_log import Entry
from sollol_proxy.lab.replay_report import change, figures
from sollol_proxy.lab.replay_run import Answer, Setup, play
from sollol_proxy.lab.simspec import SimModel

AGEINGS_S = (15.0, 60.0, 240.0)
BOOSTS_S = (0.0, 40.0, 120.0, 300.0, 900.0)

MOST_HOSTS = 8
"""Hosts whose slots are tried: those that had the most requests."""

WORTH_RATIO = 0.98
"""What gains less is not worth a word: the replay is not as exact as that."""

_WORSE_P95_RATIO = 1.05
"""What makes the slow ones this much slower is no better, whatever the mean says."""


@dataclass(frozen=True, slots=True)
class Change:
    """A value of a key that is not the present one."""

    key: str
    value: str

    @property
    def text(self) -> str:
        """As the operator would write it."""
        return f"{self.key}: {self.value}"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Changes that go together, what they come to, and what that is against the present setup."""

    changes: Sequence[Change]
    figures: Mapping[str, Any]
    against: Mapping[str, Any]

    @property
    def is_better(self) -> bool:
        """Whether it is worth a word."""
        mean_ratio, p95_ratio = self.against["mean_ratio"], self.against["p95_ratio"]
        if mean_ratio is None or p95_ratio is None or self.figures["failed"]:
            return False
        return bool(mean_ratio <= WORTH_RATIO and p95_ratio <= _WORSE_P95_RATIO)

    @property
    def text(self) -> str:
        """All changes."""
        return ", ".join(each.text for each in self.changes)


def suggest(
    entries: Sequence[Entry],
    models: Mapping[str, SimModel],
    setup: Setup,
    present: Sequence[Answer],
) -> list[Suggestion]:
    """What was tried, the least mean first. present: what `setup` itself comes to."""

    def tried(changes: Sequence[Change]) -> Suggestion:
        changed = setup
        for each in changes:
            changed = _changed(changed, each)
        played = play(entries, models, changed)
        return Suggestion(changes, figures(played), change(present, played))

    suggestions = [tried([each]) for each in _grid(entries, setup)]
    best: dict[str, Suggestion] = {}
    for suggestion in sorted(suggestions, key=_order):
        if suggestion.is_better:
            best.setdefault(suggestion.changes[0].key, suggestion)
    if len(best) > 1:
        suggestions.append(tried([suggestion.changes[0] for suggestion in best.values()]))
    return sorted(suggestions, key=_order)


def _order(suggestion: Suggestion) -> tuple[int, float]:
    mean_s = suggestion.figures["mean_s"]
    return suggestion.figures["failed"], float("inf") if mean_s is None else mean_s


def _grid(entries: Sequence[Entry], setup: Setup) -> Iterator[Change]:
    for policy in POLICIES:
        if policy != setup.config.policy:
            yield Change("policy", policy)
    yield from _queue_grid(entries, setup)
    slots = {spec.id: spec.slots for spec in setup.specs}
    used = Counter(entry.host for entry in entries if entry.host in slots)
    for host_id, _ in used.most_common(MOST_HOSTS):
        for number in (slots[host_id] - 1, slots[host_id] + 1):
            if number:
                yield Change(f"slots of {host_id}", str(number))


def _queue_grid(entries: Sequence[Entry], setup: Setup) -> Iterator[Change]:
    """Keys of the queue that would change something here."""
    matters = {
        "queue.ageing": len({entry.priority for entry in entries}) > 1,
        "queue.boost": setup.config.policy == CompletionTime.name,
    }
    for key, (name, values_s) in _QUEUE_KEYS.items():
        for value_s in values_s:
            if matters[key] and value_s != getattr(setup.config.queue, name):
                yield Change(key, format_duration(value_s))


_QUEUE_KEYS: Mapping[str, tuple[str, Sequence[float]]] = {
    "queue.ageing": ("ageing", AGEINGS_S),
    "queue.boost": ("boost", BOOSTS_S),
}


def _changed(setup: Setup, to: Change) -> Setup:
    config = setup.config
    if to.key == "policy":
        return replace(setup, config=config.model_copy(update={"policy": to.value}))
    if to.key in _QUEUE_KEYS:
        name, values_s = _QUEUE_KEYS[to.key]
        value_s = next(each for each in values_s if format_duration(each) == to.value)
        queue = config.queue.model_copy(update={name: value_s})
        return replace(setup, config=config.model_copy(update={"queue": queue}))
    slots = int(to.value)
    is_it = [to.key == f"slots of {spec.id}" for spec in setup.specs]
    return replace(
        setup,
        hosts=[
            replace(host, slots=slots) if it else host
            for host, it in zip(setup.hosts, is_it, strict=True)
        ],
        specs=[
            replace(spec, slots=slots) if it else spec
            for spec, it in zip(setup.specs, is_it, strict=True)
        ],
    )
