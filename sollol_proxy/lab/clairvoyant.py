"""A reference that no proxy can reach: it knows every length, every speed and every load.

One queue; at every arrival and end the first waiting requests are laid out anew as sequences, one
for each slot, each new one where it adds least to the sum of

    (age + price · wait + its own load, prefill and decode + eviction) ^ power

where eviction is the time to load again what has to go, as far as it will be asked for soon;
then each is taken out and put back once more. What stands first on a free slot goes; the rest
waits. There are several of these planners, from patient to greedy and from order of arrival to
shortest first, because none is best everywhere; `clairvoyant` is the best of them, run by run.
It shares no code with the proxy's policies, so that it can show what they miss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sollol_proxy.core.types import AttemptResult
from sollol_proxy.lab.simjobs import BLOCK_TOKENS
from sollol_proxy.lab.simulate_host import Attempt, FallibleHost
from sollol_proxy.lab.simulate_world import World
from sollol_proxy.lab.workload import Request

LOOKED_AT = 32
"""Waiting requests that a plan lays out."""

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Manner:
    """One planner. boost_s: how far short requests move ahead in the order of laying out."""

    price: float
    power: float
    boost_s: float


MANNERS = (
    Manner(price=1.75, power=1.2, boost_s=40.0),
    Manner(price=1.75, power=1.0, boost_s=40.0),
    Manner(price=1.2, power=1.0, boost_s=200.0),
    Manner(price=1.0, power=1.0, boost_s=1000.0),
)


class _Model(NamedTuple):
    """A model on a host."""

    memory_bytes: int
    load_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """A waiting request as one plan sees it. own_s: by host id, without a load."""

    request: Request
    model: str
    key: float
    weight: float
    age_s: float
    own_s: dict[str, float]


@dataclass(slots=True)
class _Sequence:
    """What one slot will do. busy_until_s: by model, where other slots still use it.

    states: before each wish, and behind the last.
    """

    host: FallibleHost
    busy_until_s: dict[str, float]
    states: list[_State]
    wishes: list[_Wish] = field(default_factory=list)

    @property
    def value(self) -> float:
        """What all its wishes cost."""
        return self.states[-1].total


class _State(NamedTuple):
    """A slot between two wishes. held: models in memory by name. total: costs so far."""

    at_s: float
    held: tuple[str, ...]
    total: float


class Clairvoyant:
    """The front; one manner of planning. rates_rps: how often each model is asked for, by name."""

    def __init__(self, manner: Manner, rates_rps: Mapping[str, float]) -> None:
        self._manner = manner
        self._rates_rps = rates_rps
        self._holders: dict[str, int] = {}
        self._world: World | None = None
        self._waiting: dict[str, Request] = {}
        self._attempts: dict[str, Attempt] = {}
        self._tries: dict[str, int] = {}
        self._expected_end_s: dict[str, float] = {}
        self._alone_s: dict[str, dict[str, float]] = {}
        self._models: dict[str, dict[str, _Model]] = {}

    # Front

    def start(self, world: World) -> None:
        """Remember the world."""
        self._world = world
        for host in world.hosts.values():
            spec = host.spec
            self._models[spec.id] = {
                model.name: _Model(model.memory_bytes, spec.load_s_of(model))
                for model in spec.models
            }

    def arrive(self, request: Request) -> None:
        """Queue it and plan."""
        self._waiting[request.id] = request
        self._plan()

    def first_byte(self, attempt: Attempt) -> None:
        """No news to one who knows all."""

    def ended(self, attempt: Attempt, result: AttemptResult) -> None:
        """A slot is free."""
        request = attempt.request
        del self._attempts[request.id]
        tries = self._tries[request.id] = self._tries.get(request.id, 0) + 1
        if result is AttemptResult.FAILED and tries < ATTEMPTS:
            self._waiting[request.id] = request
        else:
            self._alone_s.pop(request.id, None)
            self.world.conclude(request, ok=result is AttemptResult.COMPLETED)
        self._plan()

    def gone(self, request: Request) -> None:
        """Forget it."""
        if self._waiting.pop(request.id, None) is None:
            self.world.cancel(self._attempts.pop(request.id))
        self._plan()

    @property
    def world(self) -> World:
        """The world it has been started in."""
        assert self._world is not None, "the front has not been started"
        return self._world

    # Planning

    def _plan(self) -> None:
        while self._waiting and (sequences := self._sequences()):
            now = self.world.now
            if min(sequence.states[0].at_s for sequence in sequences) > now:
                return
            wishes = sorted(map(self._wish, self._waiting.values()), key=lambda wish: wish.key)
            wishes = wishes[:LOOKED_AT]
            for wish in wishes:
                self._place(wish, sequences)
            for wish in wishes:
                self._replace(wish, sequences)
            if not self._send_firsts(sequences):
                return

    def _send_firsts(self, sequences: Sequence[_Sequence]) -> bool:
        """Send what starts now; whether it went to a host that may start more."""
        now = self.world.now
        for sequence in sequences:
            if not sequence.wishes or sequence.states[0].at_s > now:
                continue
            wish = sequence.wishes[0]
            begins_s, own_s, _, _ = self._step(sequence, wish, sequence.states[0])
            if begins_s > now:
                continue
            attempt = self.world.send(wish.request, sequence.host.spec.id)
            if attempt is None:
                continue
            del self._waiting[wish.request.id]
            self._attempts[wish.request.id] = attempt
            self._expected_end_s[wish.request.id] = now + own_s
            if sequence.host.spec.slots > 1:
                return True  # what was planned for its other slots is stale
        return False

    def _sequences(self) -> list[_Sequence]:
        """The slots of all hosts that work, each with what it knows of its future."""
        now = self.world.now
        by_host: dict[str, list[Attempt]] = {}
        for attempt in self._attempts.values():
            by_host.setdefault(attempt.host_id, []).append(attempt)
        sequences = []
        self._holders = {}
        for host_id, host in self.world.hosts.items():
            if host.is_down or host.is_hung:
                continue
            ends: list[float] = []
            busy_until_s: dict[str, float] = {}
            held = {runner.model.name for runner in host.virtual.runners.values()}
            for attempt in by_host.get(host_id, ()):
                name = attempt.request.model.name
                end_s = max(now + 1e-3, self._end_s(host, attempt))
                ends.append(end_s)
                busy_until_s[name] = max(busy_until_s.get(name, 0.0), end_s)
                held.add(name)
            free = host.spec.slots - len(ends)
            if free > 0:
                ends.append(now)  # free slots of one host are alike: one is enough a round
            for name in held:
                self._holders[name] = self._holders.get(name, 0) + 1
            models = tuple(sorted(held))
            sequences += [
                _Sequence(host, busy_until_s, [_State(end_s, models, 0.0)]) for end_s in ends
            ]
        return sequences

    def _end_s(self, host: FallibleHost, attempt: Attempt) -> float:
        end_s = host.virtual.end_s(attempt.job)
        return self._expected_end_s[attempt.request.id] if end_s is None else host.at_s(end_s)

    def _wish(self, request: Request) -> _Wish:
        own_s = self._own_s(request)
        service_s = min(own_s.values())
        boost_s = self._manner.boost_s
        # Short ones a little earlier, by at most what a long one cannot feel.
        ahead_s = boost_s * math.log(max(-math.expm1(-service_s / boost_s), 1e-9))
        return _Wish(
            request,
            request.model.name,
            key=request.arrived_s - 60.0 * request.priority + ahead_s,
            weight=1.5 ** (request.priority - 5),
            age_s=self.world.now - request.arrived_s,
            own_s=own_s,
        )

    def _own_s(self, request: Request) -> dict[str, float]:
        """Seconds alone on each host that has the model, without a load."""
        alone_s = self._alone_s.get(request.id)
        if alone_s is None:
            alone_s = self._alone_s[request.id] = {
                host_id: request.prompt_tokens / host.spec.prefill_tps_of(request.model)
                + request.output_tokens / host.spec.decode_tps_of(request.model)
                for host_id, host in self.world.hosts.items()
                if request.model.key in host.installed
            }
        if request.session is None:
            return alone_s
        return {
            host_id: seconds - self._cached_s(request, self.world.hosts[host_id])
            for host_id, seconds in alone_s.items()
        }

    @staticmethod
    def _cached_s(request: Request, host: FallibleHost) -> float:
        runner = host.virtual.runners.get(request.model.key)
        if runner is None:
            return 0.0
        tokens = runner.cache.hits(request.blocks()) * BLOCK_TOKENS
        return tokens / host.spec.prefill_tps_of(request.model)

    # One sequence

    def _step(
        self, sequence: _Sequence, wish: _Wish, state: _State
    ) -> tuple[float, float, float, tuple[str, ...]]:
        """When a wish begins, its seconds with a load, the price of evictions, models held then."""
        spec = sequence.host.spec
        at_s, held, _ = state
        own_s = wish.own_s[spec.id]
        if spec.slots > 1:
            streams = min(spec.slots, len(sequence.busy_until_s) + 1)
            own_s *= 1 + spec.alpha * (streams - 1)
        if wish.model in held:
            return at_s, own_s, 0.0, held
        models, busy_until_s = self._models[spec.id], sequence.busy_until_s
        model = models[wish.model]
        used = sum(models[name].memory_bytes for name in held) + model.memory_bytes
        keep, price_s = list(held), 0.0
        while keep and (used > spec.memory_bytes or len(keep) >= spec.max_models):
            # The host's own order among equals: by name, those in use last.
            victim = min(keep, key=lambda name: (busy_until_s.get(name, 0.0), name))
            at_s = max(at_s, busy_until_s.get(victim, 0.0))
            keep.remove(victim)
            used -= models[victim].memory_bytes
            price_s += models[victim].load_s * self._wanted_again(victim)
        return at_s, own_s + model.load_s, price_s, (*keep, wish.model)

    def _wanted_again(self, model: str) -> float:
        """How likely a host that gives a model up has to load it again within a minute."""
        return min(1.0, 60.0 * self._rates_rps.get(model, 0.0) / self._holders.get(model, 1))

    def _walk(self, sequence: _Sequence, wishes: Sequence[_Wish], state: _State) -> list[_State]:
        """The states behind each of the wishes when the slot does them in this order."""
        manner, now = self._manner, self.world.now
        states = []
        for wish in wishes:
            begins_s, own_s, price_s, held = self._step(sequence, wish, state)
            felt_s = wish.age_s + manner.price * (begins_s - now) + own_s + price_s
            cost = wish.weight * felt_s**manner.power
            state = _State(begins_s + own_s, held, state.total + cost)
            states.append(state)
        return states

    def _place(self, wish: _Wish, sequences: Sequence[_Sequence]) -> None:
        """Put a wish where the sum grows least: in order, or behind its like."""
        best: tuple[float, _Sequence, int, list[_State]] | None = None
        for sequence in sequences:
            if sequence.host.spec.id not in wish.own_s:
                continue
            for place in _places(wish, sequence.wishes):
                behind = [wish, *sequence.wishes[place:]]
                states = self._walk(sequence, behind, sequence.states[place])
                growth = states[-1].total - sequence.value
                if best is None or growth < best[0]:
                    best = (growth, sequence, place, states)
        if best is not None:
            _, sequence, place, states = best
            sequence.wishes.insert(place, wish)
            sequence.states[place + 1 :] = states

    def _replace(self, wish: _Wish, sequences: Sequence[_Sequence]) -> None:
        """Take a wish out and put it back at its best place."""
        for sequence in sequences:
            if wish in sequence.wishes:
                place = sequence.wishes.index(wish)
                del sequence.wishes[place]
                states = self._walk(sequence, sequence.wishes[place:], sequence.states[place])
                sequence.states[place + 1 :] = states
                break
        self._place(wish, sequences)


def _places(wish: _Wish, wishes: Sequence[_Wish]) -> list[int]:
    """Where in a sequence a wish may go: by its key, and where a run of its model ends."""
    model = wish.model
    places = {next((i for i, other in enumerate(wishes) if other.key > wish.key), len(wishes))}
    for place in range(1, len(wishes)):
        if wishes[place - 1].model == model != wishes[place].model:
            places.add(place)
    return sorted(places)
