"""How an Ollama host spends its time, as a pure machine: no clock, no sockets.

A request goes one of two ways. When its model has a runner with the same context length it
joins that runner's slot queue, first come first served and without a bound. Else it joins the
host's load queue, which is served in order and by one load at a time; while a load runs, or while
its head waits for a busy runner to be evicted, everything behind waits. Warm requests overtake.

    WAITING_FOR_LOAD → (LOADING) → WAITING_FOR_SLOT → PREFILL → DECODE → OVER

Between two changes every rate is constant, so `advance` moves from change to change exactly and
does not depend on how often it is called. Times are seconds on the caller's clock, never smaller
than in the call before.

Speed: b jobs in one runner each run at 1 ÷ (1 + alpha·(b-1)); busy runners of one host share it
evenly; a job in prefill counts as a stream, so it slows the decodes beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from sollol_proxy.lab.simjobs import (
    BLOCK_TOKENS,
    CHARACTERS_PER_TOKEN,
    HostCounts,
    Phase,
    Runner,
    SimJob,
    Slot,
)
from sollol_proxy.lab.simspec import SimModel, SimSpec


class LoadQueueFull(Exception):
    """As many requests wait for a load as may."""


@dataclass(frozen=True, slots=True)
class _Load:
    job: SimJob
    done_s: float


class VirtualHost:
    """The machine. Every method that takes `now` first lets the time pass until then."""

    def __init__(self, spec: SimSpec, now: float = 0.0) -> None:
        self.spec = spec
        self.counts = HostCounts()
        self.slowdown = 1.0
        """How many times slower than its specification the host computes; loads are not."""
        self.runners: dict[str, Runner] = {}
        """By `SimModel.blob`."""
        self._clock = now
        self._pending: deque[SimJob] = deque()
        self._head: SimJob | None = None
        self._load: _Load | None = None
        for name in spec.resident:
            model = spec.model(name)
            if model is None:
                raise ValueError(f"resident model {name!r} is not among the models")
            self._add_runner(model, spec.context_of(model, None))

    # What the world does to the host.

    def submit(self, job: SimJob, now: float) -> SimJob:
        """Take a request in.

        Raises:
            LoadQueueFull: it needs a load and too many wait for one.
        """
        self.advance(now)
        job.arrived_s = self._clock
        runner = self.runners.get(job.model.blob)
        if runner is not None and runner.context_length == self._context_of(job):
            self._join(job, runner)
        elif len(self._pending) >= self.spec.max_queue:
            raise LoadQueueFull
        else:
            self._pending.append(job)
        self._settle()
        return job

    def cancel(self, job: SimJob, now: float) -> None:
        """The client of the job has left. A job that is over stays as it is.

        One that waits for a load keeps its place in that queue until its turn; one whose own
        load runs takes the load with it.
        """
        self.advance(now)
        if job.is_over:
            return
        if self._load is not None and self._load.job is job:
            self._load = None
            self._head = None
            self.counts.aborted_loads += 1
        runner = self.runners.get(job.model.blob)
        if runner is not None:
            self._leave(job, runner)
        job.phase = Phase.OVER
        job.is_cancelled = True
        job.ended_s = self._clock
        self.counts.cancelled += 1
        self._settle()

    def unload(self, model: SimModel, now: float) -> None:
        """Let the model go as soon as it is idle."""
        self.advance(now)
        runner = self.runners.get(model.blob)
        if runner is not None:
            runner.keep_alive_s = 0.0
        self._settle()

    def slow_down(self, factor: float, now: float) -> None:
        """Compute `factor` times slower than specified from now on; 1.0 = as specified."""
        self.advance(now)
        self.slowdown = factor

    def advance(self, now: float) -> None:
        """Let the time pass until `now`."""
        while (change := self.next_change_s()) is not None and change <= now:
            self._move_to(max(change, self._clock))
        self._move_to(max(now, self._clock))

    # When something will happen.

    def next_change_s(self) -> float | None:
        """When the next phase of a job ends, or a load, or an idle runner's time; None = never."""
        instants = [self._due_s(job, runner) for runner, job in self._working()]
        if self._load is not None:
            instants.append(self._load.done_s)
        instants += [r.expires_s for r in self.runners.values() if r.expires_s is not None]
        return min(instants, default=None)

    def next_token_s(self, job: SimJob) -> float | None:
        """When the job's next output token exists; None unless it decodes."""
        if job.phase is not Phase.DECODE:
            return None
        rate = self._rate_tps(job, self.runners[job.model.blob])
        return self._clock + (job.emitted + 1 - job.work_tokens) / rate

    def emitted_at(self, job: SimJob, now: float) -> int:
        """Output tokens that the job has made by an instant before the next change."""
        if job.phase is not Phase.DECODE:
            return job.emitted
        rate = self._rate_tps(job, self.runners[job.model.key])
        return min(job.output_tokens, int(job.work_tokens + rate * max(0.0, now - self._clock)))

    def end_s(self, job: SimJob) -> float | None:
        """When the job will be over if none comes or goes; None while it waits."""
        if job.phase not in (Phase.PREFILL, Phase.DECODE):
            return None
        rest_s = (job.phase_tokens - job.work_tokens) / self._rate_tps(
            job, self.runners[job.model.key]
        )
        if job.phase is Phase.PREFILL and job.output_tokens:
            spec = self.spec
            slower = spec.prefill_tps_of(job.model) / self._rate_tps(
                job, self.runners[job.model.key]
            )
            rest_s += job.output_tokens * slower / spec.decode_tps_of(job.model)
        return self._clock + rest_s

    # The inside.

    def _working(self) -> Iterator[tuple[Runner, SimJob]]:
        for runner in self.runners.values():
            for job in runner.active:
                yield runner, job

    def _rate_tps(self, job: SimJob, runner: Runner) -> float:
        spec = self.spec
        alone = spec.decode_tps_of if job.phase is Phase.DECODE else spec.prefill_tps_of
        streams = len(runner.active)
        busy_runners = sum(1 for other in self.runners.values() if other.active)
        share = (1 + spec.alpha * (streams - 1)) * busy_runners * self.slowdown
        return alone(job.model) / share

    def _due_s(self, job: SimJob, runner: Runner) -> float:
        return self._clock + (job.phase_tokens - job.work_tokens) / self._rate_tps(job, runner)

    def _move_to(self, instant: float) -> None:
        passed_s = instant - self._clock
        # Who is due is decided before the work is added up: rounding must not miss an end.
        steps = [
            (runner, job, self._rate_tps(job, runner) * passed_s, self._due_s(job, runner))
            for runner, job in self._working()
        ]
        self._clock = instant
        for runner, job, work_tokens, due_s in steps:
            job.work_tokens += work_tokens
            if due_s <= instant:
                self._end_phase(job, runner)
        if self._load is not None and self._load.done_s <= instant:
            job = self._load.job
            self._load = None
            self._head = None
            self.counts.loads += 1
            self._join(job, self._add_runner(job.model, self._context_of(job)))
        self._settle()

    def _end_phase(self, job: SimJob, runner: Runner) -> None:
        job.work_tokens = 0.0
        if job.phase is Phase.PREFILL:
            job.prefilled_s = self._clock
            if job.output_tokens:
                job.phase = Phase.DECODE
                return
        job.phase = Phase.OVER
        job.ended_s = self._clock
        self._leave(job, runner)

    def _settle(self) -> None:
        """Do everything that takes no time."""
        for runner in self.runners.values():
            self._fill_slots(runner)
        self._expire()
        while self._load is None and (self._head or self._pending):
            self._head = self._head or self._pending.popleft()
            if not self._head.is_cancelled and not self._make_way(self._head):
                return
            if self._load is None:
                self._head = None
        self._expire()

    def _make_way(self, job: SimJob) -> bool:
        """Bring the head of the load queue on its way; False when it has to wait."""
        runner = self.runners.get(job.model.blob)
        if runner is not None and runner.context_length == self._context_of(job):
            self._join(job, runner)
            return True
        if runner is not None:
            if not runner.is_idle:
                return False
            del self.runners[job.model.blob]
            self.counts.reloads += 1
        while not self._has_room_for(job.model):
            idle = [runner for runner in self.runners.values() if runner.is_idle]
            if not idle:
                return False
            victim = min(idle, key=_eviction_order)
            del self.runners[victim.model.blob]
            self.counts.evictions += 1
        job.phase = Phase.LOADING
        self._load = _Load(job, self._clock + self.spec.load_s_of(job.model))
        return True

    def _has_room_for(self, model: SimModel) -> bool:
        """Whether it fits beside the runners; into an empty host everything goes, on the CPU."""
        if not self.runners:
            return True
        used_bytes = sum(runner.model.memory_bytes for runner in self.runners.values())
        fits = used_bytes + model.memory_bytes <= self.spec.memory_bytes
        return fits and len(self.runners) < self.spec.max_models

    def _add_runner(self, model: SimModel, context_length: int) -> Runner:
        slots = 1 if model.is_embedder else self.spec.slots
        runner = Runner(
            model=model,
            context_length=context_length,
            slots=[Slot() for _ in range(slots)],
            keep_alive_s=self.spec.keep_alive_s,
            idle_since_s=self._clock,
        )
        self.runners[model.blob] = runner
        return runner

    def _join(self, job: SimJob, runner: Runner) -> None:
        job.ready_s = self._clock
        if job.keep_alive_s is not None:
            runner.keep_alive_s = job.keep_alive_s
        if job.load_only:
            job.phase = Phase.OVER
            job.ended_s = self._clock
            runner.idle_since_s = self._clock
            return
        job.phase = Phase.WAITING_FOR_SLOT
        runner.waiting.append(job)
        self._fill_slots(runner)

    def _fill_slots(self, runner: Runner) -> None:
        while runner.waiting and (free := [s for s in runner.slots if s.job is None]):
            job = runner.waiting.popleft()
            slot = max(free, key=lambda slot: (_shared(slot.cache, job.prompt), -slot.used_s))
            job.cached_tokens = _shared(slot.cache, job.prompt) // CHARACTERS_PER_TOKEN
            if job.blocks:
                job.cached_tokens = runner.cache.hits(job.blocks) * BLOCK_TOKENS
            job.slot_s = self._clock
            job.phase = Phase.PREFILL
            slot.job = job

    def _leave(self, job: SimJob, runner: Runner) -> None:
        """Take the job out of the runner, if it is in it."""
        if job in runner.waiting:
            runner.waiting.remove(job)
            runner.idle_since_s = self._clock
        for slot in runner.slots:
            if slot.job is job:
                slot.job = None
                slot.cache = _cache_after(job)
                runner.cache.add(_blocks_after(job))
                slot.used_s = self._clock
                runner.idle_since_s = self._clock

    def _expire(self) -> None:
        for runner in list(self.runners.values()):
            if runner.expires_s is not None and runner.expires_s <= self._clock:
                del self.runners[runner.model.blob]
                self.counts.unloads += 1

    def _context_of(self, job: SimJob) -> int:
        return self.spec.context_of(job.model, job.num_ctx)


def _eviction_order(runner: Runner) -> tuple[float, str]:
    """Shortest keep-alive first, for ever last: Ollama's order, which is not the age."""
    keep_alive_s = runner.keep_alive_s
    return (float("inf") if keep_alive_s < 0 else keep_alive_s, runner.model.key)


def _cache_after(job: SimJob) -> str:
    """What a slot remembers of a job: less than everything when it was cut short."""
    if job.is_over:
        return job.prompt + job.answer
    return job.prompt if job.phase is Phase.DECODE else ""


def _blocks_after(job: SimJob) -> tuple[int, ...]:
    """The same for a job that names its blocks."""
    if job.is_over:
        return job.blocks_after
    return job.blocks if job.phase is Phase.DECODE else ()


def _shared(cache: str, prompt: str) -> int:
    """Characters both begin with."""
    if prompt.startswith(cache):
        return len(cache)
    for index, (left, right) in enumerate(zip(cache, prompt, strict=False)):
        if left != right:
            return index
    return len(prompt)
