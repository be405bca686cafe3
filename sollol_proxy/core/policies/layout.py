"""Laying out waiting jobs over slots: sequences, what they cost, and where one more costs least.

Pure arithmetic on seconds from now. Each slot has a sequence; its value is found by walking it from
the moment the slot is free, with the models that are in memory then:

    weight · (age + price · time before its turn + load + prefill + decode + eviction) ^ power

summed over its jobs. Invariant: `states[i]` is the slot before its i-th job, the last one behind
all, so a walk begins anywhere without repeating what comes before.

This is the hot path of a decision, hence the flat records and the one long loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from sollol_proxy.core.policies.slots import (
    NO_TOKENS,
    NOBODY,
    Ends,
    Held,
    Placed,
    Slot,
    Step,
    Wish,
)

TIE_RATIO = 0.999
"""A place has to be better by a thousandth: no measured figure is more exact."""

IMPROVED = 8
"""Jobs that are laid out twice. Measured in simulation: to do so with all gains nothing, since the
later ones are laid out again before their turn."""

_Start = tuple[Slot, int, str, float, bool, bool]
"""For the jobs of a lane: a slot, its host, the runner's token there, at least so many seconds as
felt before a job that comes first, whether the runner is in use then so that it has to wait
besides, and whether it is in memory."""


class Layout:
    """Fills slots job by job. price: of a second before a job's turn. power: of its seconds."""

    def __init__(self, price: float, power: float) -> None:
        self._price = price
        self._power = power
        self._rise, self._bent = power * price, (power - 1) * price / 2
        self._where: dict[int, Slot] = {}
        self._starts: dict[int, tuple[Sequence[Slot], list[_Start]]] = {}
        """By the identity of the slots, which are those of a lane."""

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
            wishes, placed = slot.wishes, _placed(wish, slot.host)
            wishes.insert(index, wish)
            slot.placed.insert(index, placed)
            slot.runs.add(placed[3])
            slot.first = wishes[0].order if len(wishes) < slot.most else -1
            self._walk(slot, index)
            self._where[wish.order] = slot

    def _best_place(self, wish: Wish) -> tuple[Slot | None, int]:  # noqa: C901 - the hottest loop
        """The slot and the place there.

        Where nothing has to be loaded, what the jobs behind it lose is read off the slopes: they
        all begin later by the job's own time, and the power is so near to 1 that two terms are
        all there is to it. Else the sequence is walked.

        A slot where the job alone would already feel too much (`limit_s`) is passed over, unless
        it may save another one a load there; where it would come first, so is one where what the
        others lose is too much beside that. No power is needed for it: one of at least 1 is
        convex, so the job's cost is nowhere below its tangent (`steep`) at what it feels on the
        best slot so far.
        """
        best = enough = limit_s = inf
        chosen, at, steep = None, 0, 0.0
        power, weight, age_s, order = self._power, wish.weight, wish.age_s, wish.order
        own, felt = wish.own_s, wish.felt_s
        starts = self._starts.get(id(wish.slots))
        if starts is None:
            starts = self._starts[id(wish.slots)] = wish.slots, self._make_starts(wish)
        for slot, host, token, before_s, is_late, is_held in starts[1]:
            feels_s = age_s + felt[host] + before_s
            if feels_s >= limit_s and token not in slot.loaded:
                continue
            if order > slot.first or is_late or token in slot.ends:
                growth, index = self._best_in(slot, wish, token, best, steep, limit_s)
                if index is not None:
                    best, enough, chosen, at = growth, _enough(growth), slot, index
                    steep, limit_s = self._tangent(growth, weight)
                continue
            own_s = own[host]
            if not is_held:
                least = slot.slope * own_s + steep * (feels_s - limit_s)
                if least >= 0 and token not in slot.loaded:
                    continue
                step = slot.step(slot.states[0][1], token)
                growth = self._growth_with_load(slot, wish, 0, step, best)
                if growth < enough:
                    best, enough, chosen, at = growth, _enough(growth), slot, 0
                    steep, limit_s = self._tangent(growth, weight)
                continue
            loses = (slot.slope + slot.bend * own_s) * own_s
            if loses + steep * (feels_s - limit_s) >= 0:
                continue
            cost: float = weight * feels_s**power
            growth = cost + loses
            if growth < enough:
                best, enough, chosen, at = growth, growth * TIE_RATIO, slot, 0
                if power >= 1 and feels_s > 0:
                    steep = power * cost / feels_s
                    limit_s = feels_s + loses / steep
        return chosen, at

    def _make_starts(self, wish: Wish) -> list[_Start]:
        """Of the slots that a job may go to, equal for all jobs of a lane."""
        price, starts = self._price, list[_Start]()
        for slot in wish.slots:
            host, (at_s, held, _) = slot.host, slot.states[0]
            token, before_s = wish.tokens[host], price * at_s
            is_late = bool(slot.ready_s) and slot.ready_s.get(token, 0.0) > at_s
            is_held = token in held
            if not is_held:
                before_s += wish.loads_s[host]
            starts.append((slot, host, token, before_s, is_late, is_held))
        return starts

    def _tangent(self, best: float, weight: float) -> tuple[float, float]:
        """Of the cost of a job by the seconds that it feels, where it is `best`: slope, seconds.

        Where there is none, nothing is ever too much.
        """
        if self._power < 1 or best <= 0:
            return 0.0, inf
        limit_s = (best / weight) ** (1 / self._power)
        return self._power * best / limit_s, limit_s

    def _best_in(
        self, slot: Slot, wish: Wish, token: str, best: float, steep: float, limit_s: float
    ) -> tuple[float, int | None]:
        """The least growth in a slot where the job may come behind others, and its place there.

        best: of other slots. None = nothing here is better.
        """
        host, at, enough = slot.host, None, _enough(best)
        own_s, base_s = wish.own_s[host], wish.age_s + wish.felt_s[host]
        price, states, ready_s = self._price, slot.states, slot.ready_s
        for index in _places(slot, wish, token):
            at_s, held, _ = states[index]
            if token in held:
                if ready_s:
                    at_s = max(at_s, ready_s.get(token, 0.0))
                feels_s, behind = base_s + price * at_s, ~index
                loses = (slot.slopes[behind] + slot.bends[behind] * own_s) * own_s
                if loses + steep * (feels_s - limit_s) >= 0:
                    continue
                growth: float = wish.weight * feels_s**self._power + loses
            else:
                step = slot.step(held, token)
                growth = self._growth_with_load(slot, wish, index, step, best)
            if growth < enough:
                best, enough, at = growth, _enough(growth), index
        return best, at

    def _growth_with_load(
        self, slot: Slot, wish: Wish, index: int, step: Step, best: float
    ) -> float:
        """The growth, or `best` where it is at least as large."""
        host, at_s = slot.host, slot.states[index][0]
        _, load_s, price_s, drain_s, _ = step
        if drain_s > at_s:
            at_s = drain_s
        if slot.ready_s:
            at_s = max(at_s, slot.ready_s.get(wish.tokens[host], 0.0))
        felt_s = wish.felt_s[host] + load_s + price_s
        cost: float = (wish.age_s + self._price * at_s + felt_s) ** self._power
        least = wish.weight * cost + slot.slopes[~index] * (wish.own_s[host] + load_s)
        if index == len(slot.wishes):
            return least
        # Those behind only lose, unless one of them needs the same runner and saves its load.
        if least >= best:
            token = wish.tokens[host]
            if token not in slot.runs or all(each[3] != token for each in slot.placed[index:]):
                return best
        return self.growth(slot, wish, index)

    def _after(
        self, slot: Slot, placed: Placed, at_s: float, held: Held, total: float
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
        if slot is None:
            return
        index = slot.wishes.index(wish)
        del slot.wishes[index], slot.placed[index]
        slot.first = slot.wishes[0].order if slot.wishes else NOBODY
        self._walk(slot, index)

    def _walk(self, slot: Slot, index: int) -> None:
        """Work the states out anew from the i-th job on, and the slopes."""
        placed, is_ready = slot.placed, not slot.ready_s
        price, power, rise, bent = self._price, self._power, self._rise, self._bent
        states = slot.states[: index + 1]
        at_s, held, total = states[index]
        loaded, last = NO_TOKENS, ""
        ends: Ends = {}
        if index:
            loaded, last = slot.loaded, placed[index - 1][3]
            ends = _ends_before(slot.ends, index)
            placed = placed[index:]
        felt: list[tuple[float, float]] = []
        for own_s, base_s, weight, token in placed:
            if token != last:
                if last:
                    ends[last] = (*ends.get(last, ()), len(states) - 1)
                last = token
            if is_ready and token in held:
                felt_s = base_s + price * at_s
                cost: float = weight * felt_s**power
                total += cost
                at_s += own_s
            else:
                if token not in held:
                    loaded = loaded | {token}
                before = total
                each = own_s, base_s, weight, token
                at_s, held, total, felt_s = self._after(slot, each, at_s, held, total)
                cost = total - before
            states.append((at_s, held, total))
            felt.append((felt_s, cost))
        # By place, what all from there on lose.
        slopes, bends, slope, bend = [0.0], [0.0], 0.0, 0.0
        for felt_s, cost in reversed(felt):
            its_slope = rise * cost / (felt_s + 1e-9)
            slope += its_slope
            bend += bent * its_slope / (felt_s + 0.5)
            slopes.append(slope)
            bends.append(bend)
        if index:
            more, bent_more = slope - slot.slopes[~index], bend - slot.bends[~index]
            slopes += [old + more for old in slot.slopes[len(slot.slopes) - index :]]
            bends += [old + bent_more for old in slot.bends[len(slot.bends) - index :]]
        slot.states, slot.slopes, slot.bends = states, slopes, bends
        slot.slope, slot.bend, slot.loaded, slot.ends = slopes[-1], bends[-1], loaded, ends


def _enough(best: float) -> float:
    """What another place has to stay below; a growth is below 0 where the job saves a load."""
    return best * TIE_RATIO if best > 0 else best


def _placed(wish: Wish, host: int) -> Placed:
    return wish.own_s[host], wish.age_s + wish.felt_s[host], wish.weight, wish.tokens[host]


def _ends_before(ends: Ends, index: int) -> Ends:
    """Those that a change from the i-th job on leaves where they are."""
    return {
        token: left for token, its in ends.items() if (left := tuple(n for n in its if n < index))
    }


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
    ends = slot.ends.get(token)
    if ends is None:
        return (first,)
    return (first, *[index for index in ends if index != first])
