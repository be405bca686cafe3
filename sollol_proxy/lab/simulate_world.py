"""The simulated world: clients, hosts and one heap of events in virtual time.

A `Front` stands between the clients and the hosts: the proxy, or something to compare it with. The
world tells it what happens and does what it says. Every request is concluded exactly once: by an
answer, by a failure, or by a client that gives up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Protocol

from sollol_proxy.core.types import AttemptResult
from sollol_proxy.lab.simjobs import SimJob
from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.lab.simulate_host import Attempt, FallibleHost
from sollol_proxy.lab.workload import Request, all_turns

PATIENCE_S = 300.0
"""A client that has no answer by then leaves."""

FAULT_EVERY_S = 600.0
"""Mean time from a host's recovery, or the start, to its next fault."""

_SAMPLE_EVERY = 10
"""The length of the queue is noted at every so many arrivals."""

_STILL_S = 1.0
"""How often a host that stands still is looked at for a first token."""

_ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class Served:
    """How a request ended.

    host_id, attempt: at the last host that had it; empty and None = none did.
    """

    request: Request
    ok: bool
    ended_s: float
    first_token_s: float | None = None
    host_id: str = ""
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The pool at one moment: requests in it that hold no slot of a host, and all."""

    at_s: float
    waiting: int
    unfinished: int


class Front(Protocol):
    """What decides which request goes to which host, when."""

    def start(self, world: World) -> None:
        """The first moment: nothing has arrived yet."""

    def arrive(self, request: Request) -> None:
        """A client asks."""

    def first_byte(self, attempt: Attempt) -> None:
        """A streamed answer has begun."""

    def ended(self, attempt: Attempt, result: AttemptResult) -> None:
        """An attempt is over: COMPLETED, FAILED or BROKE."""

    def gone(self, request: Request) -> None:
        """The client has given up; the world has concluded the request already."""


class World:
    """Runs one front over one pool and one list of requests.

    faults: draws the hosts' faults; None = there are none.
    patience_s: how long a client waits for the end of its answer.
    """

    def __init__(
        self,
        hosts: Sequence[SimSpec],
        requests: Sequence[Request],
        front: Front,
        *,
        faults: Random | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.now = 0.0
        self._patience_s = patience_s
        self.hosts: Mapping[str, FallibleHost] = {spec.id: FallibleHost(spec) for spec in hosts}
        self.served: list[Served] = []
        self.samples: list[Sample] = []
        self._front = front
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0
        self._wakes: dict[str, float] = {}
        self._unfinished: dict[str, Attempt | None] = {}
        self._left = all_turns(requests)
        self._arrived = 0
        for request in requests:
            self.at(request.arrived_s, partial(self._arrive, request))
        if faults is not None:
            for host in self.hosts.values():
                self._plan_fault(host, faults)

    # What a front may do

    def at(self, instant_s: float, action: Callable[[], object]) -> None:
        """Do something at an instant, not before now; equal instants in the order of asking."""
        self._serial += 1
        heappush(self._events, (max(instant_s, self.now), self._serial, action))

    def send(self, request: Request, host_id: str) -> Attempt | None:
        """Send a request to a host; None when the host cannot be reached or refuses."""
        job = SimJob(
            model=request.model,
            output_tokens=request.output_tokens,
            num_ctx=request.num_ctx,
            tokens=request.prompt_tokens,
            blocks=request.blocks(),
            blocks_after=request.blocks(answered=True),
        )
        attempt = Attempt(request, host_id, self.now, job)
        host = self.hosts[host_id]
        is_taken = host.send(attempt, self.now)
        self._wake(host)
        if not is_taken:
            return None
        self._unfinished[request.id] = attempt
        return attempt

    def cancel(self, attempt: Attempt) -> None:
        """Close the connection of an attempt."""
        host = self.hosts[attempt.host_id]
        host.cancel(attempt, self.now)
        self._wake(host)

    def conclude(self, request: Request, *, ok: bool) -> None:
        """The client has its answer, or the last word that there will be none.

        Raises:
            KeyError: the request is not, or no longer, unfinished.
        """
        attempt = self._unfinished.pop(request.id)
        self.served.append(
            Served(
                request,
                ok,
                self.now,
                attempt.first_token_s if attempt is not None else None,
                attempt.host_id if attempt is not None else "",
                attempt,
            )
        )
        self._left -= 1
        if request.follow is not None:
            arrived_s = self.now + request.pause_s
            self.at(arrived_s, partial(self._arrive, replace(request.follow, arrived_s=arrived_s)))

    def crash(self, host_id: str) -> None:
        """The host's process dies, and with it what it was doing."""
        for attempt in self.hosts[host_id].crash():
            has_begun = attempt.request.stream and attempt.first_token_s is not None
            result = AttemptResult.BROKE if has_begun else AttemptResult.FAILED
            self._front.ended(attempt, result)

    # The course of things

    def run(self) -> None:
        """Until every request has been concluded."""
        self._front.start(self)
        while self._left and self._events:
            self.now, _, action = heappop(self._events)
            action()

    def _arrive(self, request: Request) -> None:
        self._unfinished[request.id] = None
        if self._arrived % _SAMPLE_EVERY == 0:
            busy = sum(host.busy_slots for host in self.hosts.values())
            unfinished = len(self._unfinished)
            self.samples.append(Sample(self.now, max(0, unfinished - busy), unfinished))
        self._arrived += 1
        self.at(self.now + self._patience_s, partial(self._lose_patience, request))
        self._front.arrive(request)

    def _lose_patience(self, request: Request) -> None:
        if request.id in self._unfinished:
            self.conclude(request, ok=False)
            self._front.gone(request)

    def _wake(self, host: FallibleHost) -> None:
        """Make sure that there is an event at the host's next change."""
        at_s = host.next_change_s(self.now)
        if at_s is not None and at_s < self._wakes.get(host.spec.id, float("inf")):
            self._wakes[host.spec.id] = at_s
            self.at(at_s, partial(self._advance, host, at_s))

    def _advance(self, host: FallibleHost, due_s: float) -> None:
        if self._wakes.get(host.spec.id) != due_s:
            return  # an earlier event has taken its place
        del self._wakes[host.spec.id]
        for attempt in host.advance(self.now):
            if attempt.job.is_over:
                self._end(attempt)
            else:
                attempt.prefilled_s = self.now
                self._expect_token(host, attempt)
        self._wake(host)

    def _expect_token(self, host: FallibleHost, attempt: Attempt) -> None:
        at_s = host.next_token_s(attempt)
        if at_s is not None:
            self.at(at_s, partial(self._first_token, host, attempt))

    def _first_token(self, host: FallibleHost, attempt: Attempt) -> None:
        if attempt.first_token_s is not None or not host.has(attempt):
            return
        at_s = host.next_token_s(attempt)
        if at_s is None:
            self.at(self.now + _STILL_S, partial(self._first_token, host, attempt))
        elif attempt.job.emitted == 0 and at_s > self.now + _ROUNDING_S:
            self._expect_token(host, attempt)  # others have come and slowed it down
        else:
            self._answer_begins(attempt)

    def _answer_begins(self, attempt: Attempt) -> None:
        attempt.first_token_s = self.now
        if attempt.request.stream:
            self._front.first_byte(attempt)

    def _end(self, attempt: Attempt) -> None:
        attempt.ended_s = self.now
        if attempt.prefilled_s is None:
            attempt.prefilled_s = self.now
        if attempt.first_token_s is None:
            self._answer_begins(attempt)
        self._front.ended(attempt, AttemptResult.COMPLETED)

    # Faults

    def _plan_fault(self, host: FallibleHost, rng: Random) -> None:
        self.at(self.now + rng.expovariate(1 / FAULT_EVERY_S), partial(self._strike, host, rng))

    def _strike(self, host: FallibleHost, rng: Random) -> None:
        lot = rng.random()
        if lot < 0.6:
            lasts_s = rng.uniform(30.0, 120.0)
            self.crash(host.spec.id)
        elif lot < 0.85:
            lasts_s = rng.uniform(30.0, 90.0)
            host.hang(self.now)
        else:
            lasts_s = 120.0
            host.slow_down(4.0, self.now)
        self._wakes.pop(host.spec.id, None)
        self._wake(host)
        self.at(self.now + lasts_s, partial(self._recover, host, rng))

    def _recover(self, host: FallibleHost, rng: Random) -> None:
        if host.is_down:
            host.restart(self.now)
        elif host.is_hung:
            host.resume(self.now)
        else:
            host.slow_down(1.0, self.now)
        self._wake(host)
        self._plan_fault(host, rng)
