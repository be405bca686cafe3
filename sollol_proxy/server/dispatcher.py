"""Futures, one timer and leases around the `Scheduler`. Owns the clock.

The scheduler decides in plain calls; here those who wait for a decision are woken, refusals
become exceptions, and the slot of a job comes back when its `lease` block is left, whichever way.
How far running streams have come is read off their counters now and then, all at one time: no
chunk of an answer calls the scheduler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.core.snapshots import Snapshot
from sollol_proxy.core.types import (
    AttemptResult,
    Decision,
    Dispatch,
    Effect,
    HostReport,
    InstalledModel,
    Job,
    Observation,
    Outcome,
    ProbeNow,
    Refuse,
)
from sollol_proxy.errors import (
    BadRequest,
    ClientGone,
    Draining,
    Expired,
    NoHost,
    NoModel,
    QueueFull,
    Refused,
)
from sollol_proxy.server.sampler import SAMPLE_EVERY_S, Sampler

_REFUSALS: dict[Outcome, type[Refused]] = {
    Outcome.REJECTED_QUEUE_FULL: QueueFull,
    Outcome.EXPIRED_IN_QUEUE: Expired,
    Outcome.NO_HOST: NoHost,
    Outcome.NO_MODEL: NoModel,
    Outcome.DRAINING: Draining,
}


class Lease:
    """A slot that is held for a block: what was decided, and how the attempt went.

    decision: there from entering on.
    """

    __slots__ = (
        "_dispatcher",
        "_is_recalled",
        "_is_released",
        "_job",
        "_take_back",
        "decision",
        "detail",
        "observation",
        "result",
    )

    decision: Decision

    def __init__(self, dispatcher: Dispatcher, job: Job) -> None:
        self._dispatcher = dispatcher
        self._job = job
        self._is_released = False
        self._is_recalled = False
        self._take_back: Callable[[], None] | None = None
        self.result: AttemptResult | None = None
        self.observation: Observation | None = None
        self.detail = ""

    async def __aenter__(self) -> Lease:
        self.decision = await self._dispatcher.begin(self._job, self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(exc, asyncio.CancelledError | ClientGone | BadRequest):
            self.result = self.result or AttemptResult.CLIENT_GONE
        self.release()

    def on_recall(self, take_back: Callable[[], None] | None) -> None:
        """Whom to call when the scheduler takes the attempt back; None = it is too late for that.

        It may have done so before anybody could be called: then this calls at once.
        """
        self._take_back = take_back
        if take_back is not None and self._is_recalled:
            take_back()

    @asynccontextmanager
    async def recallable(self) -> AsyncIterator[None]:
        """A block that the scheduler may end early, while the answer has not begun.

        Raises:
            TimeoutError: it did.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as scope:
            self.on_recall(lambda: scope.reschedule(loop.time()))
            try:
                yield
            finally:
                self.on_recall(None)

    def recall(self) -> None:
        """Take the attempt back, if its answer has not begun."""
        self._is_recalled = True
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back()

    def first_byte(self) -> None:
        """Tell the scheduler that a good answer has begun."""
        self._dispatcher.first_byte(self._job.id)

    def streams(self, tokens: Callable[[], int]) -> None:
        """The answer comes bit by bit. tokens: how many there are by now; asked until the end."""
        self._dispatcher.streams(self._job.id, tokens)

    def done(
        self, result: AttemptResult, observation: Observation | None = None, detail: str = ""
    ) -> None:
        """Say how the attempt ended; without it the exception that leaves the block decides."""
        self.result, self.observation, self.detail = result, observation, detail

    def release(self) -> None:
        """Give the slot back now rather than at the block's end; only the first time counts.

        For the moment when the host has ended its answer and the client has yet to take the rest.
        """
        if not self._is_released:
            self._is_released = True
            self._dispatcher.finish(self._job.id, self)


class Dispatcher:
    """Runs a scheduler in an event loop.

    clock: monotonic seconds. on_probe: called with a host id when the scheduler wants it asked.
    sample_every_s: between two looks at the running streams.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Callable[[], float],
        on_probe: Callable[[str], None],
        *,
        sample_every_s: float = SAMPLE_EVERY_S,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._on_probe = on_probe
        self._waiting: dict[str, asyncio.Future[Decision]] = {}
        self._leases: dict[str, Lease] = {}
        self._sampler = Sampler(self._progress, sample_every_s)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    def lease(self, job: Job) -> AbstractAsyncContextManager[Lease]:
        """Wait for a host and hold its slot for the block.

        Leaving by cancellation, `ClientGone` or `BadRequest` counts as the client's leaving, by
        any other exception as the host's failure, unless `Lease.done` said otherwise.

        Entering raises:
            Refused: the scheduler gave the job no host.
        """
        return Lease(self, job)

    async def begin(self, job: Job, lease: Lease) -> Decision:
        """The job's host, once it has one: what a lease does on entering."""
        effects = self._scheduler.submit(job, self._clock())
        self._idle.clear()
        first = effects[0] if len(effects) == 1 else None
        if isinstance(first, Dispatch) and first.decision.job_id == job.id:
            decision = first.decision  # nobody has to wait, nor to be woken
            self._set_timer()
        else:
            decision = await self._wait(job, effects)
        self._leases[job.id] = lease
        return decision

    def report(self, report: HostReport) -> None:
        """Pass a probe's result on."""
        self._apply(self._scheduler.report(report, self._clock()))

    def set_host_draining(self, host_id: str, is_draining: bool) -> None:
        """Take a host out, or back in.

        Raises:
            KeyError: no host of that id.
        """
        self._apply(self._scheduler.set_host_draining(host_id, is_draining, self._clock()))

    def lists(self, model: str) -> bool:
        """Whether some host, up or down, is known to have the model."""
        return self._scheduler.lists(model)

    def routable(self) -> list[str]:
        """Ids of the hosts that may be given jobs, in the order of the pool."""
        return self._scheduler.routable()

    def holders(self, model: str) -> list[str]:
        """Ids of the routable hosts that have the model, in the order of the pool."""
        return self._scheduler.holders(model)

    def inventory(self) -> Mapping[str, Mapping[str, InstalledModel]]:
        """What every host, up or down, was last known to have: id → canonical name → model."""
        return self._scheduler.inventory()

    def is_remote(self, model: str) -> bool:
        """Whether the routable hosts list the model only as one that runs elsewhere."""
        return self._scheduler.is_remote(model)

    def is_ejected(self, host_id: str) -> bool:
        """Whether a host is out after failures."""
        return self._scheduler.is_ejected(host_id)

    def spelling(self, model: str) -> str:
        """A model's name as a host that has it writes it; empty when none does."""
        return self._scheduler.spelling(model)

    def has_alternative(self, job: Job, host_id: str) -> bool:
        """Whether another routable host could take the job."""
        return self._scheduler.has_alternative(job, host_id)

    def model_bytes(self, model: str) -> int:
        """Size of a model on disk; 0 when unknown."""
        return self._scheduler.model_bytes(model)

    def snapshot(self) -> Snapshot:
        """The scheduler's state now."""
        return self._scheduler.snapshot(self._clock())

    async def drain(self, limit_s: float) -> bool:
        """Take nothing new and wait until all is done; False when the limit came first."""
        self._scheduler.drain()
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def learnt(self) -> dict[str, Any]:
        """What is worth keeping over a restart, as JSON-able values."""
        return self._scheduler.memory.export()

    def restore(self, learnt: object) -> None:
        """Take over what `learnt` gave; all of it or, if it is something else, nothing.

        Raises:
            ValueError: it is something else.
        """
        self._scheduler.memory.restore(learnt)

    def forget(self) -> None:
        """Begin anew, as if nothing had ever been learnt."""
        self._scheduler.memory.forget()

    def close(self) -> None:
        """Stop the timers."""
        self._sampler.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _wait(self, job: Job, effects: Iterable[Effect]) -> Decision:
        """What becomes of a job that was submitted. effects: of its submission."""
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._waiting[job.id] = future
        try:
            self._apply(effects)
            return await future
        except asyncio.CancelledError:
            self._give_up(job.id, self._waiting[job.id])
            raise
        finally:
            del self._waiting[job.id]
            self._check_idle()

    def _give_up(self, job_id: str, future: asyncio.Future[Decision]) -> None:
        """The client left while its job waited, or just when it got a host."""
        if future.done() and not future.cancelled():
            if future.exception() is not None:
                return
            effects = self._scheduler.finish(job_id, AttemptResult.CLIENT_GONE, self._clock())
        else:
            effects = self._scheduler.withdraw(job_id, self._clock())
        self._apply(effects)

    def first_byte(self, job_id: str) -> None:
        """A good answer to the job has begun; see `Lease.first_byte`."""
        self._apply(self._scheduler.first_byte(job_id, self._clock()))

    def streams(self, job_id: str, tokens: Callable[[], int]) -> None:
        """See `Lease.streams`."""
        self._sampler.add(job_id, tokens)

    def _progress(self, tokens: Mapping[str, int]) -> None:
        now = self._clock()
        effects: list[Effect] = []
        for job_id, count in tokens.items():
            effects += self._scheduler.progress(job_id, count, now)
        self._apply(effects)

    def finish(self, job_id: str, lease: Lease) -> None:
        """The attempt is over; see `Lease.release`."""
        del self._leases[job_id]
        self._sampler.remove(job_id)
        effects = self._scheduler.finish(
            job_id,
            lease.result or AttemptResult.FAILED,
            self._clock(),
            observation=lease.observation,
            detail=lease.detail,
        )
        self._apply(effects)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._waiting and self._scheduler.idle:
            self._idle.set()

    def _apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Dispatch):
                self._answer(effect.decision.job_id).set_result(effect.decision)
            elif isinstance(effect, Refuse):
                refusal = _REFUSALS[effect.outcome]
                self._answer(effect.job_id).set_exception(
                    refusal(effect.detail, retry_after_s=effect.retry_after_s)
                )
            elif isinstance(effect, ProbeNow):
                self._on_probe(effect.host_id)
            elif (lease := self._leases.get(effect.job_id)) is not None:
                lease.recall()
        self._set_timer()

    def _answer(self, job_id: str) -> asyncio.Future[Decision]:
        """The future that takes a job's answer.

        A waiter cancelled in this very tick sits in `_waiting` until its task runs, and its future
        takes nothing more. Another one then keeps the answer for `_give_up` to undo.
        """
        future = self._waiting[job_id]
        if future.cancelled():
            future = self._waiting[job_id] = asyncio.get_running_loop().create_future()
        return future

    def _set_timer(self) -> None:
        at_s = self._scheduler.next_timer_s()
        if self._timer is not None:
            if at_s == self._timer_at_s:
                return
            self._timer.cancel()
            self._timer = None
        if at_s is not None:
            delay_s = max(0.0, at_s - self._clock())
            self._timer_at_s = at_s
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self._scheduler.tick(self._clock()))
