"""What a plan is made of: jobs with their seconds on each host, slots and what is planned there.

Flat records, since a plan goes through them hundreds of times; see `layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

Seconds: TypeAlias = list[float] | dict[int, float]
"""By host index. A dict where a job may go to few of them."""

Held = tuple[str, ...]
"""Runners in a host's memory, by token: a model's name, or name and options."""


State = tuple[float, Held, float]
"""A slot between two jobs: when, what is in memory, costs so far."""

Placed = tuple[float, float, float, str]
"""A job on a slot's host: seconds there, age and seconds as felt, weight, token."""


class Step(NamedTuple):
    """What it takes to bring a runner into memory.

    load_s: waited for. price_s: not waited for by the job: what it costs others.
    drain_s: not before this moment, since something that has to go is still in use.
    eviction_s: the part of the price for what has to be loaded again by and by.
    """

    held: Held
    load_s: float
    price_s: float
    drain_s: float
    eviction_s: float = 0.0


class Wish:
    """A waiting job. By host index: seconds without a load, token of its runner.

    order: its place in the queue. weight: of its time against that of others.
    felt_s: as own_s, with a price on what others on the host lose by it.
    loads_s: what a load there adds to felt_s at least; 0 = the runner is in memory.
    slots: those it may go to, the most promising first; of alike ones of a host, all.
    """

    __slots__ = ("age_s", "felt_s", "loads_s", "order", "own_s", "slots", "tokens", "weight")

    def __init__(
        self,
        order: int,
        weight: float,
        age_s: float,
        own_s: Seconds,
        felt_s: Seconds,
        tokens: Sequence[str],
        loads_s: Sequence[float],
        slots: Sequence[Slot] = (),
    ) -> None:
        self.order = order
        self.weight = weight
        self.age_s = age_s
        self.own_s = own_s
        self.felt_s = felt_s
        self.tokens = tokens
        self.loads_s = loads_s
        self.slots = slots


NOBODY = 1 << 60

NO_TOKENS: frozenset[str] = frozenset()

Ends: TypeAlias = dict[str, tuple[int, ...]]
"""By token, the places of the jobs of others that follow jobs of this runner."""


class Slot:
    """One unit of a host's concurrency, and what is planned for it.

    host: its index. step: how the host brings a runner into memory.
    ready_s: moment from which a runner may be used beside what runs there; absent = at once.
    most: jobs that may be planned here. placed: of `wishes`, what walking them needs.
    runs: runners that have been planned here. loaded: those of them that are loaded on the way.
    ends: where a run of one of them ends and another one's follows.
    first: order of the first job; beyond all where none is planned, below all where none may be
        added.
    slopes, bends: by place from behind, how the jobs from there on gain cost with each second they
        are delayed, and with its square. slope, bend: those of all.
    """

    __slots__ = (
        "bend",
        "bends",
        "ends",
        "first",
        "host",
        "loaded",
        "most",
        "placed",
        "ready_s",
        "runs",
        "slope",
        "slopes",
        "states",
        "step",
        "wishes",
    )

    def __init__(
        self,
        host: int,
        at_s: float,
        held: Held,
        step: Callable[[Held, str], Step],
        ready_s: dict[str, float],
        most: int,
    ) -> None:
        self.host = host
        self.step = step
        self.ready_s = ready_s
        self.most = most
        self.wishes: list[Wish] = []
        self.placed: list[Placed] = []
        self.runs: set[str] = set()
        self.first = NOBODY
        self.states: list[State] = [(at_s, held, 0.0)]
        self.slopes = [0.0]
        self.bends = [0.0]
        self.slope = self.bend = 0.0
        self.loaded = NO_TOKENS
        self.ends: Ends = {}

    def turn_s(self, index: int) -> float:
        """When the i-th job begins."""
        at_s, held, _ = self.states[index]
        token = self.placed[index][3]
        if token not in held:
            drain_s = self.step(held, token).drain_s
            if drain_s > at_s:
                at_s = drain_s
        return max(at_s, self.ready_s.get(token, 0.0)) if self.ready_s else at_s

    def end_s(self, index: int) -> float:
        """When the i-th job ends."""
        return self.states[index + 1][0]
