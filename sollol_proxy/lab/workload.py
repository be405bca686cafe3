"""What clients ask of a simulated pool: requests with their times and true lengths.

A workload is a description; `Workload.requests` draws from it. The same rng state gives the same
requests. Rates are requests a second over the whole run, whatever the shape of the arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random

from sollol_proxy.lab.simjobs import BLOCK_TOKENS
from sollol_proxy.lab.simspec import SimModel

LONG_CONTEXT = 131_072
"""Trained context of the models here: what a runner holds is the host's choice alone."""

REFERENCE_MODEL = SimModel("llama3.1:8b", context_length=LONG_CONTEXT)

# Characters ÷ 4 is not a tokenizer: what the proxy takes for a prompt's size is this far off.
_ESTIMATE_SIGMA = 0.15
_SESSIONS_SAMPLED = 1000


class Arrivals(StrEnum):
    """The shape of the arrivals in time."""

    POISSON = "poisson"
    BURST = "burst"
    """Poisson at a rate that is `burst_factor` times higher for a part of every period."""
    TRACE = "trace"
    """Recorded distances, stretched to the wanted rate."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens, lognormal about a median and cut to `low` to `high`; sigma 0 = always the median."""

    median: float
    sigma: float = 0.0
    low: int = 1
    high: int = 8000

    def draw(self, rng: Random) -> int:
        """One length."""
        tokens = self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0)) if self.sigma else None
        return min(max(round(self.median if tokens is None else tokens), self.low), self.high)

    def mean(self) -> float:
        """The mean, cuts included, rounding not."""
        if not self.sigma:
            return min(max(self.median, self.low), self.high)
        low, high = ((math.log(cut / self.median) / self.sigma) for cut in (self.low, self.high))
        between = _normal(high - self.sigma) - _normal(low - self.sigma)
        within = self.median * math.exp(self.sigma**2 / 2) * between
        return self.low * _normal(low) + within + self.high * (1 - _normal(high))


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests that are alike. share: of all requests, in proportion to the other classes'.

    priority: of all of them; None = drawn as the workload's are.
    """

    name: str
    prompt: Lengths
    output: Lengths
    share: float = 1.0
    model: SimModel = REFERENCE_MODEL
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a share of the requests costs a host on average, in tokens."""

    share: float
    model: SimModel
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations: 1 + Exp(turns_mean) turns, the whole history sent with each.

    A session's first turn arrives by the workload's arrivals, each further one 1 + Exp(pause_mean)
    seconds after the answer. shared: part of the sessions that begin with the same system prompt.
    """

    turns_mean: float = 6.0
    pause_mean_s: float = 20.0
    system_tokens: int = 400
    shared: float = 1 / 3


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded request. gap_s: since the one before. priority, model, stream: None = drawn."""

    gap_s: float
    prompt_tokens: int
    output_tokens: int
    model: SimModel | None = None
    priority: int | None = None
    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client, with what only the simulation may know.

    prompt_tokens_est: what the proxy would take the prompt for. session: its conversation, else
        None. shared_tokens: how much of the prompt other conversations begin with too.
    messages: tokens from the prompt's start to the end of each of its messages; none for a bare
        prompt.
    follow: what the client asks next, `pause_s` after this one is over; its arrived_s is not set.
    num_ctx: the context length asked for; None = the host's own.
    """

    id: str
    arrived_s: float
    model: SimModel
    prompt_tokens: int
    output_tokens: int
    prompt_tokens_est: int
    priority: int = 5
    stream: bool = True
    session: int | None = None
    shared_tokens: int = 0
    messages: tuple[int, ...] = ()
    pause_s: float = 0.0
    follow: Request | None = None
    num_ctx: int | None = None

    def blocks(self, *, answered: bool = False) -> tuple[int, ...]:
        """Names of the whole cache blocks of its prompt, or of prompt and answer."""
        if self.session is None:
            return ()
        tokens = self.prompt_tokens + (self.output_tokens if answered else 0)
        shared = self.shared_tokens // BLOCK_TOKENS
        own = (self.session + 1) * 2**20
        return tuple(-1 - i if i < shared else own + i for i in range(tokens // BLOCK_TOKENS))

    def prefix(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a proxy sees of its messages: names as a chain, and estimated ends in tokens."""
        if self.session is None:
            return (), ()
        own = (self.session + 1) * 2**20
        names = [
            -1 if end_tokens <= self.shared_tokens else own + place
            for place, end_tokens in enumerate(self.messages)
        ]
        error = self.prompt_tokens_est / self.prompt_tokens
        return tuple(names), tuple(round(end_tokens * error) for end_tokens in self.messages)


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of traffic.

    classes: ignored where there are rows. rows: a recording, in order.
    is_resident: whether hosts hold the (then only) model at the start.
    priorities: (priority, share). stream_share: of requests whose answer is streamed.
    burst_factor, burst_s, period_s: for `Arrivals.BURST`.
    has_faults: hosts crash, hang and slow down.
    """

    name: str
    classes: tuple[RequestClass, ...] = ()
    rows: tuple[Row, ...] = ()
    arrivals: Arrivals = Arrivals.POISSON
    sessions: Sessions | None = None
    is_resident: bool = True
    priorities: tuple[tuple[int, float], ...] = ((5, 1.0),)
    stream_share: float = 1.0
    burst_factor: float = 8.0
    burst_s: float = 30.0
    period_s: float = 300.0
    has_faults: bool = False
    models: tuple[SimModel, ...] = field(init=False)

    def __post_init__(self) -> None:
        named = [c.model for c in self.classes] + [r.model or REFERENCE_MODEL for r in self.rows]
        object.__setattr__(self, "models", tuple(dict.fromkeys(named)))

    def requests(self, rate_rps: float | None, count: int, rng: Random) -> list[Request]:
        """At most `count` requests in order of arrival, later turns of sessions behind the first.

        rate_rps: None = the times of the recording as they are; only with rows.
        """
        if self.rows:
            drawn = self._from_rows(rate_rps, count, rng)
        elif rate_rps is None:
            raise ValueError(f"workload {self.name} is no recording: it needs a load")
        elif self.sessions is not None:
            return self._from_sessions(self.sessions, rate_rps, count, rng)
        else:
            weights = [c.share for c in self.classes]
            drawn = [
                self._request(serial, arrived_s, rng.choices(self.classes, weights)[0], rng)
                for serial, arrived_s in enumerate(self._arrivals(rate_rps, count, rng))
            ]
        return drawn

    def demands(self) -> list[Demand]:
        """The mix as shares with mean lengths, for the pool's capacity; no cache hits."""
        if self.rows:
            return _demands_of_rows(self.rows)
        if self.sessions is not None:
            return self._demands_of_sessions(self.sessions)
        total = sum(c.share for c in self.classes)
        return [
            Demand(c.share / total, c.model, c.prompt.mean(), c.output.mean()) for c in self.classes
        ]

    def _arrivals(self, rate_rps: float, count: int, rng: Random) -> list[float]:
        if self.arrivals is not Arrivals.BURST:
            now = 0.0
            return [now := now + rng.expovariate(rate_rps) for _ in range(count)]
        share = self.burst_s / self.period_s
        base_rps = rate_rps / (1 + (self.burst_factor - 1) * share)
        arrivals: list[float] = []
        now = 0.0
        while len(arrivals) < count:
            in_period = now % self.period_s
            in_burst = in_period < self.burst_s
            rate = base_rps * self.burst_factor if in_burst else base_rps
            ends_s = now - in_period + (self.burst_s if in_burst else self.period_s)
            then = now + rng.expovariate(rate)
            # The exponential distance has no memory: at a change of rate it is drawn anew.
            now = min(then, ends_s)
            if then < ends_s:
                arrivals.append(then)
        return arrivals

    def _request(self, serial: int, arrived_s: float, kind: RequestClass, rng: Random) -> Request:
        prompt_tokens = kind.prompt.draw(rng)
        return Request(
            id=f"r{serial}",
            arrived_s=arrived_s,
            model=kind.model,
            prompt_tokens=prompt_tokens,
            output_tokens=kind.output.draw(rng),
            prompt_tokens_est=_estimate(prompt_tokens, rng),
            priority=self._priority(rng, kind),
            stream=rng.random() < self.stream_share,
        )

    def _priority(self, rng: Random, kind: RequestClass | None = None) -> int:
        if kind is not None and kind.priority is not None:
            return kind.priority
        levels, weights = zip(*self.priorities, strict=True)
        priority: int = rng.choices(levels, weights)[0]
        return priority

    def _from_rows(self, rate_rps: float | None, count: int, rng: Random) -> list[Request]:
        """A stretch of the recording, from an arbitrary row on and over its end to its start."""
        first = rng.randrange(len(self.rows)) if rate_rps is not None else 0
        count = min(count, len(self.rows))
        rows = [self.rows[(first + i) % len(self.rows)] for i in range(count)]
        recorded_s = sum(row.gap_s for row in rows)
        stretch = 1.0
        if rate_rps is not None and recorded_s:
            stretch = count / rate_rps / recorded_s
        now = 0.0
        requests = []
        for serial, row in enumerate(rows):
            now += row.gap_s * stretch
            requests.append(
                Request(
                    id=f"r{serial}",
                    arrived_s=now,
                    model=row.model or REFERENCE_MODEL,
                    prompt_tokens=row.prompt_tokens,
                    output_tokens=row.output_tokens,
                    prompt_tokens_est=_estimate(row.prompt_tokens, rng),
                    priority=self._priority(rng) if row.priority is None else row.priority,
                    stream=rng.random() < self.stream_share if row.stream is None else row.stream,
                )
            )
        return requests

    def _from_sessions(
        self, sessions: Sessions, rate_rps: float, count: int, rng: Random
    ) -> list[Request]:
        now, left, serial = 0.0, count, 0
        firsts: list[Request] = []
        while left:
            now += rng.expovariate(rate_rps / _mean_turns(sessions))
            turns = self._turns(sessions, len(firsts), left, rng)
            left -= len(turns)
            chained: Request | None = None
            for number, turn in reversed(list(enumerate(turns, start=serial))):
                chained = replace(turn, id=f"r{number}", arrived_s=now, follow=chained)
            serial += len(turns)
            assert chained is not None
            firsts.append(chained)
        return firsts

    def _turns(self, sessions: Sessions, session: int, most: int, rng: Random) -> list[Request]:
        kind = rng.choices(self.classes, [c.share for c in self.classes])[0]
        priority = self._priority(rng, kind)
        stream = rng.random() < self.stream_share
        shared_tokens = sessions.system_tokens if rng.random() < sessions.shared else 0
        history = sessions.system_tokens
        messages: tuple[int, ...] = (history,)
        # A text is estimated alike each time it is sent.
        error = _estimate_error(rng)
        turns = []
        for _ in range(min(most, 1 + round(rng.expovariate(1 / sessions.turns_mean)))):
            prompt_tokens = history + kind.prompt.draw(rng)
            output_tokens = kind.output.draw(rng)
            messages = (*messages, prompt_tokens)
            turns.append(
                Request(
                    id="",
                    arrived_s=0.0,
                    model=kind.model,
                    prompt_tokens=prompt_tokens,
                    output_tokens=output_tokens,
                    prompt_tokens_est=max(1, round(prompt_tokens * error)),
                    priority=priority,
                    stream=stream,
                    session=session,
                    shared_tokens=shared_tokens,
                    messages=messages,
                    pause_s=1 + rng.expovariate(1 / sessions.pause_mean_s),
                )
            )
            history = prompt_tokens + output_tokens
            messages = (*messages, history)
        return turns

    def _demands_of_sessions(self, sessions: Sessions) -> list[Demand]:
        rng = Random(0)
        sample = [
            turn
            for session in range(_SESSIONS_SAMPLED)
            for turn in self._turns(sessions, session, 10**6, rng)
        ]
        return _demands_of_rows(
            [Row(0.0, turn.prompt_tokens, turn.output_tokens, turn.model) for turn in sample]
        )


def all_turns(requests: Iterable[Request]) -> int:
    """How many requests there are with those that follow."""
    count = 0
    for first in requests:
        turn: Request | None = first
        while turn is not None:
            count += 1
            turn = turn.follow
    return count


def _normal(z: float) -> float:
    """The distribution function of the standard normal distribution."""
    return (1 + math.erf(z / math.sqrt(2))) / 2


def _estimate(prompt_tokens: int, rng: Random) -> int:
    return max(1, round(prompt_tokens * _estimate_error(rng)))


def _estimate_error(rng: Random) -> float:
    return math.exp(rng.gauss(0.0, _ESTIMATE_SIGMA))


def _mean_turns(sessions: Sessions) -> float:
    """The mean of 1 + round(Exp(turns_mean))."""
    step = math.exp(-1 / sessions.turns_mean)
    return 1 + math.exp(-0.5 / sessions.turns_mean) / (1 - step)


def _demands_of_rows(rows: Sequence[Row]) -> list[Demand]:
    """Four kinds a model: prompts and answers each below or above the model's mean."""
    by_model: dict[SimModel, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row.model or REFERENCE_MODEL, []).append(row)
    demands = []
    for model, mine in by_model.items():
        prompt_mean = sum(row.prompt_tokens for row in mine) / len(mine)
        output_mean = sum(row.output_tokens for row in mine) / len(mine)
        kinds: dict[tuple[bool, bool], list[Row]] = {}
        for row in mine:
            key = (row.prompt_tokens > prompt_mean, row.output_tokens > output_mean)
            kinds.setdefault(key, []).append(row)
        demands += [
            Demand(
                len(alike) / len(rows),
                model,
                sum(row.prompt_tokens for row in alike) / len(alike),
                sum(row.output_tokens for row in alike) / len(alike),
            )
            for _, alike in sorted(kinds.items())
        ]
    return demands
