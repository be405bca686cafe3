"""What the proxy is compared with: simple ways of choosing a host.

Those that weigh know more than a real balancer could, namely the true speeds.
All but `fifo` send a request on at once and let it queue in the host. A host that fails is left
out for ten seconds, as nginx does it, and a request whose answer has not begun goes to another.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from sollol_proxy.core.types import AttemptResult
from sollol_proxy.lab.capacity import mean_service_s
from sollol_proxy.lab.simspec import REFERENCE_SIZE_BYTES, SimSpec
from sollol_proxy.lab.simulate_host import Attempt
from sollol_proxy.lab.simulate_world import World
from sollol_proxy.lab.workload import Demand, Request

LEFT_OUT_S = 10.0
ATTEMPTS = 3


@dataclass(slots=True)
class Known:
    """What a balancer knows of a host. weight: requests of the mix it could serve a second."""

    spec: SimSpec
    weight: float
    in_flight: int = 0
    turn: int = 0
    out_until_s: float = 0.0
    models: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.models = frozenset(model.name for model in self.spec.models)


class Balancer(ABC):
    """Chooses a host for each request as it arrives."""

    def __init__(self, hosts: Sequence[SimSpec], demands: Sequence[Demand], seed: int) -> None:
        self._rng = Random(seed)
        self._hosts = {
            host.id: Known(host, 1 / seconds if seconds else 0.0)
            for host in hosts
            for seconds in [mean_service_s(host, demands)]
        }
        self._attempts: dict[str, Attempt] = {}
        self._tries: dict[str, int] = {}
        self._turn = 0
        self._world: World | None = None

    @abstractmethod
    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """One of the hosts that have the model and are not left out."""

    # Front

    def start(self, world: World) -> None:
        """Remember the world."""
        self._world = world

    def arrive(self, request: Request) -> None:
        """Send it on."""
        able = [host for host in self._hosts.values() if request.model.name in host.models]
        up = [host for host in able if host.out_until_s <= self.world.now]
        self._send(request, self.choose(request, up or able))

    def first_byte(self, attempt: Attempt) -> None:
        """Of no interest to those who only count."""
        return

    def ended(self, attempt: Attempt, result: AttemptResult) -> None:
        """Count it off; after a failure, leave the host out and try another."""
        request = attempt.request
        del self._attempts[request.id]
        host = self._hosts[attempt.host_id]
        host.in_flight -= 1
        if result is not AttemptResult.COMPLETED:
            host.out_until_s = self.world.now + LEFT_OUT_S
        if result is AttemptResult.FAILED and self._tries[request.id] < ATTEMPTS:
            self.arrive(request)
            return
        self.world.conclude(request, ok=result is AttemptResult.COMPLETED)

    def gone(self, request: Request) -> None:
        """Close its connection."""
        attempt = self._attempts.pop(request.id)
        self.world.cancel(attempt)
        self._hosts[attempt.host_id].in_flight -= 1

    # For those who choose

    @property
    def world(self) -> World:
        """The world it has been started in."""
        assert self._world is not None, "the front has not been started"
        return self._world

    def in_turn(self, hosts: Sequence[Known]) -> Known:
        """The one of equals whose last turn was the longest ago."""
        return min(hosts, key=lambda host: host.turn)

    def least(self, hosts: Sequence[Known], cost: Callable[[Known], float]) -> Known:
        """The one that costs least; equals take turns."""
        cheapest = min(map(cost, hosts))
        return self.in_turn([host for host in hosts if cost(host) == cheapest])

    def _send(self, request: Request, host: Known) -> None:
        self._turn += 1
        host.turn = self._turn
        self._tries[request.id] = self._tries.get(request.id, 0) + 1
        attempt = self.world.send(request, host.spec.id)
        if attempt is not None:
            self._attempts[request.id] = attempt
            host.in_flight += 1
            return
        host.out_until_s = self.world.now + LEFT_OUT_S
        if self._tries[request.id] < ATTEMPTS:
            self.arrive(request)
        else:
            self.world.conclude(request, ok=False)


class RoundRobin(Balancer):
    """`rr`: hosts in turn."""

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """The next one."""
        return self.in_turn(hosts)


class LeastConnections(Balancer):
    """`lc`: fewest requests in flight for its slots, which is all that it knows of a host."""

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """Equals take turns: nginx's `least_conn`."""
        return self.least(hosts, lambda host: host.in_flight / host.spec.slots)


class Weighted(Balancer):
    """`wlc`: least connections with true weights."""

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """Fewest in flight, the request itself counted, for its true speed."""
        return self.least(hosts, _expected_s)


class Herd(Balancer):
    """`herd`: an additive score of residency, memory, queue and speed, after ollama-herd's."""

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """The highest score."""
        typical = sorted(_bandwidth_gb_s(host) for host in hosts)[len(hosts) // 2]
        return self.least(hosts, lambda host: -self._score(request, host, typical))

    def _score(self, request: Request, host: Known, typical_gb_s: float) -> float:
        runners = self.world.hosts[host.spec.id].virtual.runners
        is_hot = request.model.key in runners
        used = sum(runner.model.memory_bytes for runner in runners.values())
        room = (host.spec.memory_bytes - used) / request.model.memory_bytes
        fit = next((points for ratio, points in _MEMORY_FIT if is_hot or room > ratio), 0.0)
        bandwidth = _bandwidth_gb_s(host)
        relative = min(max(bandwidth / typical_gb_s, 0.25), 4.0)
        queue = min(30.0, 6.0 * host.in_flight / relative)
        wait = min(25.0, host.in_flight / host.weight / 10.0) if host.weight else 25.0
        return (50.0 if is_hot else 30.0) + fit - queue - wait + _affinity(request, bandwidth)


class Sticky(Balancer):
    """`sticky`: a conversation stays on the host its name hashes to, unless that one is busy."""

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """The conversation's host, or by weight when two wait there for each slot."""
        if request.session is None:
            return self.least(hosts, _expected_s)
        home = max(hosts, key=lambda host: _hash(request.session, host.spec.id))
        if home.in_flight >= 2 * home.spec.slots:
            return self.least(hosts, _expected_s)
        return home


class CacheAware(Balancer):
    """`cache`: the longest known beginning of the prompt, unless the load is uneven (SGLang's)."""

    def __init__(self, hosts: Sequence[SimSpec], demands: Sequence[Demand], seed: int) -> None:
        super().__init__(hosts, demands, seed)
        self._seen: dict[int, dict[str, int]] = {}

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """The best match above half of the prompt, else by weight; by weight under imbalance."""
        host = self._choose(request, hosts)
        if request.session is not None:
            tokens = request.prompt_tokens + request.output_tokens
            self._seen.setdefault(request.session, {})[host.spec.id] = tokens
        return host

    def _choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        loads = [host.in_flight for host in hosts]
        is_uneven = max(loads) - min(loads) > 2 and max(loads) > 1.5 * min(loads)
        known = self._seen.get(request.session if request.session is not None else -1, {})
        if not is_uneven and known:
            best = max(hosts, key=lambda host: known.get(host.spec.id, 0))
            if known.get(best.spec.id, 0) > 0.5 * request.prompt_tokens:
                return best
        return self.least(hosts, _expected_s)


class Fifo(Balancer):
    """`fifo`: one queue in order of arrival, and the fastest host with a free slot."""

    def __init__(self, hosts: Sequence[SimSpec], demands: Sequence[Demand], seed: int) -> None:
        super().__init__(hosts, demands, seed)
        self._lanes: dict[str, dict[str, tuple[int, Request]]] = {}
        self._arrived = 0

    def arrive(self, request: Request) -> None:
        """Join the end of the queue."""
        self._arrived += 1
        self._lanes.setdefault(request.model.name, {})[request.id] = (self._arrived, request)
        self._serve()

    def ended(self, attempt: Attempt, result: AttemptResult) -> None:
        """The slot is free for the next one."""
        super().ended(attempt, result)
        self._serve()

    def gone(self, request: Request) -> None:
        """Leave the queue, or free the slot."""
        if self._lanes[request.model.name].pop(request.id, None) is None:
            super().gone(request)
            self._serve()

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """The fastest; equals take turns."""
        return self.least(hosts, lambda host: -host.weight)

    def _serve(self) -> None:
        while (ready := self._ready()) is not None:
            request, free = ready
            del self._lanes[request.model.name][request.id]
            self._send(request, self.choose(request, free))

    def _ready(self) -> tuple[Request, list[Known]] | None:
        """The first request that some free host could take, and those hosts."""
        idle = [
            host
            for host in self._hosts.values()
            if host.in_flight < host.spec.slots and host.out_until_s <= self.world.now
        ]
        if not idle:
            return None
        heads = [next(iter(lane.values())) for lane in self._lanes.values() if lane]
        heads.sort(key=lambda head: head[0])
        for _, request in heads:
            if free := [host for host in idle if request.model.name in host.models]:
                return request, free
        return None


BASELINES: Mapping[str, Callable[[Sequence[SimSpec], Sequence[Demand], int], Balancer]] = {
    "rr": RoundRobin,
    "lc": LeastConnections,
    "wlc": Weighted,
    "herd": Herd,
    "fifo": Fifo,
    "sticky": Sticky,
    "cache": CacheAware,
}
"""By the name for `--policies`."""

_MEMORY_FIT = ((2.0, 20.0), (1.5, 15.0), (1.2, 8.0), (1.0, 3.0))
_BIG_BYTES = 8 * 10**9
_SMALL_BYTES = 4 * 10**9


def _expected_s(host: Known) -> float:
    return (host.in_flight + 1) / host.weight if host.weight else float("inf")


def _affinity(request: Request, bandwidth_gb_s: float) -> float:
    """Big models like fast hosts, small ones leave them alone; for others it only breaks ties."""
    points = min(25.0, 5.0 + bandwidth_gb_s / 40.0)
    size_bytes = request.model.size_bytes
    if size_bytes >= _BIG_BYTES:
        return points
    return 25.0 - points if size_bytes < _SMALL_BYTES else points / 100


def _bandwidth_gb_s(host: Known) -> float:
    """Bytes of weights read a second: what the decode speed of a known model amounts to."""
    return host.spec.decode_tps * REFERENCE_SIZE_BYTES / 1e9


def _hash(session: int | None, host_id: str) -> bytes:
    return hashlib.blake2b(f"{session} {host_id}".encode(), digest_size=8).digest()
