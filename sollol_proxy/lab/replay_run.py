"""A log played once through the real scheduler, over hosts rebuilt from it, in virtual time.

Arrivals are those of the log, whatever became of the answers: clients that wait for one answer
before they ask again are not told apart from others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sollol_proxy.config.schema import Config
from sollol_proxy.core.types import HostSpec, Job, JobKind
from sollol_proxy.lab.replay_hosts import LoggedSpec
from sollol_proxy.lab.replay_log import Entry
from sollol_proxy.lab.replay_memory import has_loaded, is_load
from sollol_proxy.lab.simjobs import BLOCK_TOKENS
from sollol_proxy.lab.simspec import SimModel
from sollol_proxy.lab.simulate_proxy import ProxyFront
from sollol_proxy.lab.simulate_world import Served, World
from sollol_proxy.lab.workload import Request

_PATIENCE_S = 86_400.0
"""Clients of a replay do not leave: only what was answered is played."""

_NO_JOB = Job("", JobKind.GENERATE, "", 5, 0.0)


@dataclass(frozen=True, slots=True)
class LoggedRequest(Request):
    """A request with what the proxy saw of it, as the job it was."""

    seen: Job = _NO_JOB

    def blocks(self, *, answered: bool = False) -> tuple[int, ...]:
        """Cache blocks of its prompt: the log tells where prompts are alike, of answers nothing."""
        scale = self.prompt_tokens / self.prompt_tokens_est
        names: list[int] = []
        for block, end_tokens in zip(self.seen.prefix, self.seen.prefix_tokens, strict=True):
            whole = int(min(end_tokens * scale, self.prompt_tokens)) // BLOCK_TOKENS
            # A block of the log may be several of the cache, which need a name each.
            names += [block * 2**16 + place for place in range(len(names), whole)]
        return tuple(names)

    def prefix(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As the proxy saw it."""
        return self.seen.prefix, self.seen.prefix_tokens


@dataclass(frozen=True, slots=True)
class Setup:
    """A pool and how it is to be used. specs: what is configured of each host, in their order."""

    config: Config
    hosts: Sequence[LoggedSpec]
    specs: Sequence[HostSpec]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    host: empty = no host had it. queue_s, total_s: since arrival. is_cold: it waited for a load.
    """

    host: str
    priority: int
    queue_s: float
    total_s: float
    is_cold: bool
    ok: bool = True


def logged(entries: Sequence[Entry]) -> list[Answer]:
    """What the log itself says, in order of arrival."""
    return [Answer(e.host, e.priority, e.queue_s, e.total_s, has_loaded(e)) for e in entries]


def play(entries: Sequence[Entry], models: Mapping[str, SimModel], setup: Setup) -> list[Answer]:
    """Play the log; what came of each request, in order of arrival.

    Raises:
        ConfigError: there is no such policy.
    """
    requests = [_request(f"r{n}", entry, models) for n, entry in enumerate(entries)]
    deadline_s = setup.config.queue.deadline
    front = ProxyFront(
        setup.config.policy,
        setup.hosts,
        0,
        config=setup.config,
        specs=setup.specs,
        job_of=_jobs(deadline_s),
    )
    world = World(setup.hosts, requests, front, patience_s=_PATIENCE_S)
    world.run()
    by_id = {served.request.id: served for served in world.served}
    return [_answer(by_id[request.id]) for request in requests]


def _answer(served: Served) -> Answer:
    request, attempt = served.request, served.attempt
    sent_s = served.ended_s if attempt is None else attempt.sent_s
    load_s = None if attempt is None else attempt.observation().load_s
    return Answer(
        host=served.host_id,
        priority=request.priority,
        queue_s=max(0.0, sent_s - request.arrived_s),
        total_s=served.ended_s - request.arrived_s,
        is_cold=is_load(load_s or 0.0),
        ok=served.ok,
    )


def _request(request_id: str, entry: Entry, models: Mapping[str, SimModel]) -> LoggedRequest:
    return LoggedRequest(
        id=request_id,
        arrived_s=entry.at_s,
        model=models[entry.model],
        prompt_tokens=entry.prompt_tokens,
        output_tokens=entry.output_tokens,
        prompt_tokens_est=entry.prompt_tokens_est,
        priority=entry.priority,
        stream=entry.stream,
        num_ctx=entry.num_ctx,
        seen=Job(
            id=request_id,
            kind=entry.kind,
            model=entry.model,
            priority=entry.priority,
            arrived_s=entry.at_s,
            task_type=entry.task_type,
            complexity=entry.complexity,
            prompt_tokens_est=entry.prompt_tokens_est,
            output_limit_tokens=entry.output_limit_tokens,
            stream=entry.stream,
            options_key=entry.options_key,
            num_ctx=entry.num_ctx,
            prefix=entry.prefix,
            prefix_tokens=entry.prefix_tokens,
        ),
    )


def _jobs(deadline_s: float | None) -> Callable[[Request], Job]:
    def job_of(request: Request) -> Job:
        assert isinstance(request, LoggedRequest), "a replay has the requests of a log only"
        job = request.seen
        return job if deadline_s is None else replace(job, deadline_s=job.arrived_s + deadline_s)

    return job_of
