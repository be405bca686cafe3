"""Laying out waiting jobs over slots: sequences, what they cost, and where one more costs least.

Pure arithmetic on seconds from now. Each slot has a sequence; its value is found by walking it from
the moment the slot is free, with the models that are in memory then:

    weight · (age + price · time before its turn + load + prefill + decode + eviction) ^ power

summed over its jobs. Invariant: `states[i]` is the slot before its i-th job, the last one behind
all, so a walk begins anywhere without repeating what comes before.

This is the hot path of a decision, hence the flat records and the one long loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf
from typing import NamedTuple

TIE_RATIO = 0.999
"""A place has to be better by a thousandth: no measured figure is more exact."""

IMPROVED = 8
"""Jobs that are laid out twice. Measured in simulation: to do so with all gains nothing, since the
later ones are laid out again before their turn."""

Held = tuple[str, ...]
"""Runners in a host's memory, by token: a model's name, or name and options."""


State = tuple[float, Held, float]
"""A slot between two jobs: when, what is in memory, costs so far."""

_Placed = tuple[float, float, float, str]
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
    """A waiting job. By host index: seconds without a load (None = not there), token of its runner.

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
        own_s: Sequence[float | None],
        felt_s: Sequence[float | None],
        tokens: Sequence[str],
        loads_s: Sequence[float],
    ) -> None:
        self.order = order
        self.weight = weight
        self.age_s = age_s
        self.own_s = own_s
        self.felt_s = felt_s
        self.tokens = tokens
        self.loads_s = loads_s
        self.slots: Sequence[Slot] = ()


class Slot:
    """One unit of a host's concurrency, and what is planned for it.

    host: its index. step: how the host brings a runner into memory.
    ready_s: moment from which a runner may be used beside what runs there; absent = at once.
    most: jobs that may be planned here. placed: of `wishes`, what walking them needs.
    runs: runners that have been planned here.
    slopes, bends: by place, how the jobs from there on gain cost with each second they are
        delayed, and with its square.
    """

    __slots__ = (
        "bends",
        "host",
        "most",
        "placed",
        "ready_s",
        "runs",
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
        self.placed: list[_Placed] = []
        self.runs: set[str] = set()
        self.states: list[State] = [(at_s, held, 0.0)]
        self.slopes = [0.0]
        self.bends = [0.0]

    def turn_s(self, index: int) -> float:
        """When the i-th job begins."""
        at_s, held, _ = self.states[index]
        token = self.placed[index][3]
        if token not in held:
            at_s = max(at_s, self.step(held, token).drain_s)
        return max(at_s, self.ready_s.get(token, 0.0)) if self.ready_s else at_s

    def end_s(self, index: int) -> float:
        """When the i-th job ends."""
        return self.states[index + 1][0]


class Layout:
    """Fills slots job by job. price: of a second before a job's turn. power: of its seconds."""

    def __init__(self, price: float, power: float) -> None:
        self._price = price
        self._power = power
        self._where: dict[int, Slot] = {}

    def fill(self, wishes: Sequence[Wish], *, improve: bool) -> None:
        """Lay out jobs, given in queue order: the last first.

        improve: then take the first ones out and put them back where they are best.
        """
        for wish in reversed(wishes):
            self._put(wish)
        if improve and len(wishes) > 1:
            for wish in wishes[:IMPROVED]:
                self._take_out(wish)
                self._put(wish)

    def slot_of(self, wish: Wish) -> Slot | None:
        """Where a job has been laid out; None = no slot may take it."""
        return self._where.get(wish.order)

    def growth(self, slot: Slot, wish: Wish, index: int) -> float:
        """What the slot's value grows by when the job comes i-th, exactly."""
        at_s, held, total = slot.states[index]
        for each in (_placed(wish, slot.host), *slot.placed[index:]):
            at_s, held, total, _ = self._after(slot, each, at_s, held, total)
        return total - slot.states[-1][2]

    def _put(self, wish: Wish) -> None:
        """Put a job where the sum grows least."""
        slot, index = self._best_place(wish)
        if slot is not None:
            slot.wishes.insert(index, wish)
            slot.placed.insert(index, _placed(wish, slot.host))
            slot.runs.add(wish.tokens[slot.host])
            self._walk(slot, index)
            self._where[wish.order] = slot

    def _best_place(self, wish: Wish) -> tuple[Slot | None, int]:  # noqa: C901 - the hottest loop
        """The slot and the place there.

        Where nothing has to be loaded, what the jobs behind it lose is read off the slopes: they
        all begin later by the job's own time, and the power is so near to 1 that two terms are
        all there is to it. Else the sequence is walked.

        A slot where the job alone would already feel too much is passed over, unless it may save
        another one a load there; where it would come first, so is one where what the others lose
        is too much beside that. No power is needed for it: one of at least 1 is convex, so the
        job's cost is nowhere below its tangent (`steep`) at what it feels on the best slot so far.
        """
        best, chosen, at = inf, None, 0
        price, power, weight, age_s = self._price, self._power, wish.weight, wish.age_s
        own, felt, tokens = wish.own_s, wish.felt_s, wish.tokens
        loads, order, steep, offset = wish.loads_s, wish.order, 0.0, -inf
        for slot in wish.slots:
            host, wishes, runs = slot.host, slot.wishes, slot.runs
            at_s, held, _ = slot.states[0]
            token, base_s, own_s = tokens[host], age_s + (felt[host] or 0.0), own[host] or 0.0
            beyond = steep * (base_s + price * at_s + loads[host]) + offset
            if beyond >= 0 and token not in runs:
                continue
            is_first = not wishes or (
                order < wishes[0].order
                and len(wishes) < slot.most
                and (len(runs) < 2 or token not in runs)
            )
            if not is_first:
                for index in _places(slot, wish, token):
                    growth = self._growth_at(slot, wish, index, token, best)
                    if growth < best * TIE_RATIO:
                        best, chosen, at = growth, slot, index
                        steep, offset = self._tangent(best, weight)
                continue
            if token not in held:
                if beyond + slot.slopes[0] * own_s >= 0 and token not in runs:
                    continue
                growth = self._growth_with_load(slot, wish, 0, best)
                if growth < best * TIE_RATIO:
                    best, chosen, at = growth, slot, 0
                    steep, offset = self._tangent(best, weight)
                continue
            loses = (slot.slopes[0] + slot.bends[0] * own_s) * own_s
            if beyond + loses >= 0:
                continue
            if slot.ready_s:
                at_s = max(at_s, slot.ready_s.get(token, 0.0))
            feels_s = base_s + price * at_s
            cost: float = weight * feels_s**power
            growth = cost + loses
            if growth < best * TIE_RATIO:
                best, chosen, at = growth, slot, 0
                if power >= 1 and feels_s > 0:
                    steep = power * cost / feels_s
                    offset = cost - steep * feels_s - best
        return chosen, at

    def _tangent(self, best: float, weight: float) -> tuple[float, float]:
        """Of the cost of a job by the seconds that it feels, where it is `best`: slope, offset.

        The offset is taken against `best` as well. Where there is none, nothing is ever beyond it.
        """
        if self._power < 1 or best <= 0:
            return 0.0, -inf
        limit_s = (best / weight) ** (1 / self._power)
        steep = self._power * best / limit_s
        return steep, -steep * limit_s

    def _growth_at(self, slot: Slot, wish: Wish, index: int, token: str, best: float) -> float:
        """The growth at a place, or `best` where it is at least as large."""
        at_s, held, _ = slot.states[index]
        if token not in held:
            return self._growth_with_load(slot, wish, index, best)
        if slot.ready_s:
            at_s = max(at_s, slot.ready_s.get(token, 0.0))
        own_s = wish.own_s[slot.host] or 0.0
        felt_s = wish.age_s + (wish.felt_s[slot.host] or 0.0) + self._price * at_s
        cost: float = wish.weight * felt_s**self._power
        return cost + (slot.slopes[index] + slot.bends[index] * own_s) * own_s

    def _growth_with_load(self, slot: Slot, wish: Wish, index: int, best: float) -> float:
        """The growth, or `best` where it is at least as large."""
        host = slot.host
        token = wish.tokens[host]
        at_s, held, _ = slot.states[index]
        step = slot.step(held, token)
        if step.drain_s > at_s:
            at_s = step.drain_s
        own_s = (wish.own_s[host] or 0.0) + step.load_s
        felt_s = (wish.felt_s[host] or 0.0) + step.load_s + step.price_s
        cost: float = (wish.age_s + self._price * at_s + felt_s) ** self._power
        least = wish.weight * cost + slot.slopes[index] * own_s
        if index == len(slot.wishes):
            return least
        # Those behind only lose, unless one of them needs the same runner and saves its load.
        if least >= best and (
            token not in slot.runs or all(each[3] != token for each in slot.placed[index:])
        ):
            return best
        return self.growth(slot, wish, index)

    def _after(
        self, slot: Slot, placed: _Placed, at_s: float, held: Held, total: float
    ) -> tuple[float, Held, float, float]:
        """The slot's state behind a job that follows such a state, and what the job felt."""
        own_s, felt_s, weight, token = placed
        if token not in held:
            held, load_s, price_s, drain_s, _ = slot.step(held, token)
            own_s += load_s
            felt_s += load_s + price_s
            if drain_s > at_s:
                at_s = drain_s
        if slot.ready_s:
            at_s = max(at_s, slot.ready_s.get(token, 0.0))
        felt_s += self._price * at_s
        cost: float = weight * felt_s**self._power
        return at_s + own_s, held, total + cost, felt_s

    def _take_out(self, wish: Wish) -> None:
        slot = self._where.pop(wish.order, None)
        if slot is not None:
            index = slot.wishes.index(wish)
            del slot.wishes[index], slot.placed[index]
            self._walk(slot, index)

    def _walk(self, slot: Slot, index: int) -> None:
        """Work the states out anew from the i-th job on, and the slopes."""
        states, placed, is_ready = slot.states, slot.placed, not slot.ready_s
        price, power = self._price, self._power
        old_slope, old_bend = slot.slopes[index], slot.bends[index]
        del states[index + 1 :]
        at_s, held, total = states[index]
        rise, bent = power * price, (power - 1) * price / 2
        slopes: list[float] = []
        bends: list[float] = []
        for each in placed[index:] if index else placed:
            own_s, base_s, weight, token = each
            if is_ready and token in held:
                felt_s = base_s + price * at_s
                cost: float = weight * felt_s**power
                total += cost
                at_s += own_s
            else:
                before = total
                at_s, held, total, felt_s = self._after(slot, each, at_s, held, total)
                cost = total - before
            states.append((at_s, held, total))
            slope = rise * cost / (felt_s + 1e-9)
            slopes.append(slope)
            bends.append(bent * slope / (felt_s + 0.5))
        # By place, what all from there on lose.
        slopes = [*accumulate(reversed(slopes), initial=0.0)][::-1]
        bends = [*accumulate(reversed(bends), initial=0.0)][::-1]
        if index:
            more, bent_more = slopes[0] - old_slope, bends[0] - old_bend
            slopes = [old + more for old in slot.slopes[:index]] + slopes
            bends = [old + bent_more for old in slot.bends[:index]] + bends
        slot.slopes, slot.bends = slopes, bends


def _placed(wish: Wish, host: int) -> _Placed:
    own_s, felt_s = wish.own_s[host] or 0.0, wish.felt_s[host] or 0.0
    return own_s, wish.age_s + felt_s, wish.weight, wish.tokens[host]


_FIRST = (0,)


def _places(slot: Slot, wish: Wish, token: str) -> Sequence[int]:
    """Where in a sequence a job may go: by its key, and where a run of its runner ends."""
    wishes, order = slot.wishes, wish.order
    count = len(wishes)
    if count >= slot.most:
        return ()
    first = 0
    # Jobs are mostly put in from the last to the first.
    while first < count and wishes[first].order < order:
        first += 1
    if count < 2 or token not in slot.runs or len(slot.runs) < 2:
        return (first,) if first else _FIRST
    host = slot.host
    ends = [
        index
        for index in range(1, count)
        if index != first and wishes[index - 1].tokens[host] == token != wishes[index].tokens[host]
    ]
    return (first, *ends)
