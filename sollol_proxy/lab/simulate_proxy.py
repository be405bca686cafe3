"""The proxy in the simulated world: the real `Scheduler`, told what it would be told live.

It sees estimates of prompts, probes, first bytes, the figures of finished answers and failures,
and never a length before its end. Bounds and intervals are a configuration's, or the defaults; the
rules of second attempts are those of `server.forward`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from time import perf_counter

from sollol_proxy.config.rules import scheduler_rules
from sollol_proxy.config.schema import Config
from sollol_proxy.core.policies import make_policy
from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.core.types import (
    AttemptResult,
    Dispatch,
    Effect,
    Facts,
    HostReport,
    HostSpec,
    Job,
    JobKind,
    ProbeNow,
    Recall,
    Refuse,
)
from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.lab.simulate_host import Attempt, FallibleHost
from sollol_proxy.lab.simulate_world import World
from sollol_proxy.lab.simulate_wrong import Wrong
from sollol_proxy.lab.workload import Request
from sollol_proxy.ollama.describe import complexity

PROGRESS_EVERY_S = 0.25
"""How often the proxy looks at how far its streams are."""


class ProxyFront:
    """A scheduler with one of the core's policies.

    policy: a name of `core.policies` or a dotted path.
    config, specs: bounds, and what is configured of the hosts; None = the defaults, and what an
        operator would have written of `hosts`.
    job_of: what the proxy makes of a request.
    wrong: how far off its estimates are made.

    Raises:
        ConfigError: there is no such policy.
    """

    def __init__(
        self,
        policy: str,
        hosts: Sequence[SimSpec],
        seed: int,
        *,
        config: Config | None = None,
        specs: Sequence[HostSpec] | None = None,
        job_of: Callable[[Request], Job] | None = None,
        wrong: Wrong | None = None,
    ) -> None:
        rng = Random(seed)
        self._config = Config() if config is None else config
        self._job_of = _job_of if job_of is None else job_of
        memory = None
        if wrong is not None:
            memory = wrong.memory(seed)
            self._job_of = wrong.jobs(self._job_of, seed)
        self._scheduler = Scheduler(
            [_spec_of(host) for host in hosts] if specs is None else specs,
            make_policy(policy, rng),
            scheduler_rules(self._config),
            rng=rng,
            now=0.0,
            memory=memory,
        )
        self.decisions_s: list[float] = []
        """What each call of the scheduler that a request caused took, on the wall's clock."""
        self._world: World | None = None
        self._waiting: dict[str, tuple[Request, Job]] = {}
        self._attempts: dict[str, tuple[Attempt, Job]] = {}
        self._effects: deque[Effect] = deque()
        self._is_applying = False
        self._timer_s: float | None = None
        self._progress_s = 0.0
        self._tags_due_s: dict[str, float] = {}

    # Front

    def start(self, world: World) -> None:
        """Ask every host how it is, and go on doing so."""
        self._world = world
        for host in world.hosts.values():
            self._tags_due_s[host.spec.id] = 0.0
            self._watch(host)

    def arrive(self, request: Request) -> None:
        """Queue it."""
        self._submit(request, self._job_of(request))

    def first_byte(self, attempt: Attempt) -> None:
        """Say that its answer has begun."""
        self._ask(partial(self._scheduler.first_byte, attempt.request.id, self._now))

    def ended(self, attempt: Attempt, result: AttemptResult) -> None:
        """Give the slot back; after a failure before the first byte, try again."""
        request = attempt.request
        _, job = self._attempts.pop(request.id)
        if result is AttemptResult.COMPLETED:
            self._the_world.conclude(request, ok=True)
            observation = attempt.observation()
            self._ask(
                partial(
                    self._scheduler.finish, request.id, result, self._now, observation=observation
                )
            )
            return
        again = None if result is AttemptResult.BROKE else self._again(job, attempt.host_id, result)
        self._finish(request, job, result, again)

    def gone(self, request: Request) -> None:
        """Take it out of the queue, or close its connection."""
        self._tell_progress()  # rather now: it may bring the request to a host
        if self._waiting.pop(request.id, None) is not None:
            self._ask(partial(self._scheduler.withdraw, request.id, self._now))
            return
        attempt, _ = self._attempts.pop(request.id)
        self._the_world.cancel(attempt)
        result = AttemptResult.CLIENT_GONE
        self._ask(partial(self._scheduler.finish, request.id, result, self._now))

    # Inside

    @property
    def _the_world(self) -> World:
        assert self._world is not None, "the front has not been started"
        return self._world

    @property
    def _now(self) -> float:
        return self._the_world.now

    def _submit(self, request: Request, job: Job) -> None:
        self._waiting[job.id] = (request, job)
        self._ask(partial(self._scheduler.submit, job, self._now))

    def _finish(self, request: Request, job: Job, result: AttemptResult, again: Job | None) -> None:
        """An attempt has failed."""
        if again is None:
            self._the_world.conclude(request, ok=False)
        self._ask(
            partial(self._scheduler.finish, job.id, result, self._now, detail="the host failed")
        )
        if again is not None:
            self._submit(request, again)

    def _again(self, job: Job, host_id: str, result: AttemptResult) -> Job | None:
        if job.attempt >= self._config.retries.attempts:
            return None
        again = replace(job, attempt=job.attempt + 1)
        if result is AttemptResult.UNREACHABLE:
            return again
        if self._scheduler.has_alternative(job, host_id):
            return replace(again, excluded=job.excluded | {host_id})
        return again

    def _ask(self, question: Callable[[], list[Effect]]) -> None:
        """Tell the scheduler something that concerns a request, and do what it says."""
        self._tell_progress()
        started_s = perf_counter()
        effects = question()
        self.decisions_s.append(perf_counter() - started_s)
        self._apply(effects)

    def _tell_progress(self) -> None:
        """What the streams have brought, at most as often as live, when it may matter."""
        now = self._now
        if now < self._progress_s + PROGRESS_EVERY_S:
            return
        self._progress_s = now
        for job_id, (attempt, _) in list(self._attempts.items()):
            if attempt.request.stream and attempt.first_token_s is not None:
                tokens = self._the_world.hosts[attempt.host_id].emitted(attempt, now)
                self._apply(self._scheduler.progress(job_id, tokens, now))

    def _apply(self, effects: list[Effect]) -> None:
        self._effects.extend(effects)
        if self._is_applying:
            return  # the call below this one goes on with them
        self._is_applying = True
        while self._effects:
            effect = self._effects.popleft()
            if isinstance(effect, Dispatch):
                self._dispatch(effect.decision.job_id, effect.decision.host_id)
            elif isinstance(effect, Refuse):
                request, _ = self._waiting.pop(effect.job_id)
                self._the_world.conclude(request, ok=False)
            elif isinstance(effect, ProbeNow):
                host = self._the_world.hosts[effect.host_id]
                self._the_world.at(self._now, partial(self._probe, host))
            elif isinstance(effect, Recall):
                self._recall(effect.job_id)
        self._is_applying = False
        self._set_timer()

    def _dispatch(self, job_id: str, host_id: str) -> None:
        request, job = self._waiting.pop(job_id)
        attempt = self._the_world.send(request, host_id)
        if attempt is not None:
            self._attempts[job_id] = (attempt, job)
            return
        result = AttemptResult.UNREACHABLE
        self._finish(request, job, result, self._again(job, host_id, result))

    def _recall(self, job_id: str) -> None:
        attempt, job = self._attempts[job_id]
        if attempt.first_token_s is not None and attempt.request.stream:
            return
        del self._attempts[job_id]
        self._the_world.cancel(attempt)
        result = AttemptResult.FAILED
        self._finish(attempt.request, job, result, self._again(job, attempt.host_id, result))

    def _set_timer(self) -> None:
        due_s = self._scheduler.next_timer_s()
        if due_s is not None and (self._timer_s is None or due_s < self._timer_s):
            self._timer_s = due_s
            self._the_world.at(due_s, partial(self._tick, due_s))

    def _tick(self, due_s: float) -> None:
        if self._timer_s == due_s:
            self._timer_s = None
            self._tell_progress()
            self._apply(self._scheduler.tick(self._now))

    # Probes

    def _watch(self, host: FallibleHost) -> None:
        answered_s = self._probe(host)
        next_s = answered_s + self._config.probes.interval
        self._the_world.at(next_s, partial(self._watch, host))

    def _probe(self, host: FallibleHost) -> float:
        """Ask a host how it is; when its answer, or its silence, is known."""
        host_id, now = host.spec.id, self._now
        if host.is_hung:
            heard_s = now + self._config.probes.timeout
            silence = HostReport(host_id, ok=False, detail="no answer in time")
            self._the_world.at(heard_s, partial(self._report, silence))
            return heard_s
        if host.is_down:
            self._report(HostReport(host_id, ok=False, detail="connection refused"))
            return now
        tags_are_due = now >= self._tags_due_s[host_id]
        if tags_are_due:
            self._tags_due_s[host_id] = now + self._config.probes.tags_interval
        self._report(
            HostReport(
                host_id,
                ok=True,
                round_trip_s=0.0,
                version=host.spec.version,
                installed=host.installed if tags_are_due else None,
                resident=host.resident(),
            )
        )
        return now

    def _report(self, report: HostReport) -> None:
        self._apply(self._scheduler.report(report, self._now))


def _spec_of(host: SimSpec) -> HostSpec:
    """What an operator would have configured: address, slots, models at once."""
    return HostSpec(
        id=host.id, url=f"http://{host.id}:11434", slots=host.slots, max_models=host.max_models
    )


def _job_of(request: Request) -> Job:
    prefix, prefix_tokens = request.prefix()
    facts = Facts(
        JobKind.GENERATE,
        prompt_tokens_est=request.prompt_tokens_est,
        messages=len(request.messages),
    )
    return Job(
        id=request.id,
        kind=JobKind.GENERATE,
        model=request.model.key,
        priority=request.priority,
        arrived_s=request.arrived_s,
        complexity=complexity(facts, request.model.size_bytes),
        prompt_tokens_est=request.prompt_tokens_est,
        stream=request.stream,
        prefix=prefix,
        prefix_tokens=prefix_tokens,
    )
