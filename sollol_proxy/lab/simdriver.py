"""Runs a `VirtualHost` by the event loop's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from sollol_proxy.lab.simjobs import SimJob
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.virtualhost import VirtualHost

# A timer for every token of a fast stream would cost more than the stream. Tokens that are due
# earlier than this are let out together; the schedule itself does not shift.
_SHORTEST_SLEEP_S = 0.002


class SimDriver:
    """Owns the clock of one virtual host and wakes those who wait for its jobs.

    Times in and out of `virtual` are model seconds since the start; see `SimSpec.time_scale`.
    Use within a running loop; `stop` before the loop ends. `on_change` is called whenever the
    virtual host may have changed.
    """

    def __init__(self, spec: SimSpec, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.virtual = VirtualHost(spec)
        self._scale = spec.time_scale
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._waits: dict[SimJob, tuple[int, asyncio.Future[None]]] = {}
        self._arm()

    def submit(self, job: SimJob) -> None:
        """See `VirtualHost.submit`."""
        self.virtual.submit(job, self._now_s())
        self._wake()

    def cancel(self, job: SimJob) -> None:
        """See `VirtualHost.cancel`."""
        self.virtual.cancel(job, self._now_s())
        self._wake()

    def unload(self, model: SimModel) -> None:
        """See `VirtualHost.unload`."""
        self.virtual.unload(model, self._now_s())
        self._wake()

    def slow_down(self, factor: float) -> None:
        """See `VirtualHost.slow_down`."""
        self.virtual.slow_down(factor, self._now_s())
        self._wake()

    def catch_up(self) -> None:
        """Bring the virtual host to the present."""
        self.virtual.advance(self._now_s())
        self._wake()

    async def progress(self, job: SimJob, emitted: int | None) -> None:
        """Wait until the job is over or has more output tokens than `emitted`.

        None = only the end counts. One waiter a job.
        """
        enough = job.output_tokens if emitted is None else emitted
        if job.is_over or job.emitted > enough:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._waits[job] = (enough, future)
        self._arm()
        try:
            await future
        finally:
            self._waits.pop(job, None)

    def wall_s(self, model_s: float) -> float:
        """What a clock on the wall shows for so many model seconds."""
        return model_s / self._scale

    def until_s(self, instant: float) -> float:
        """Seconds on the wall from now to an instant of the virtual host."""
        return self.wall_s(instant - self._now_s())

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now_s(self) -> float:
        return (self._loop.time() - self._started_s) * self._scale

    def _wake(self) -> None:
        for job, (enough, future) in self._waits.items():
            if not future.done() and (job.is_over or job.emitted > enough):
                future.set_result(None)
        self._on_change()
        self._arm()

    def _arm(self) -> None:
        self.stop()
        instant = min(self._instants(), default=None)
        if instant is not None:
            due_s = self._started_s + self.wall_s(instant)
            self._timer = self._loop.call_at(
                max(due_s, self._loop.time() + _SHORTEST_SLEEP_S), self.catch_up
            )

    def _instants(self) -> Iterable[float]:
        """Instants at which somebody may have to be woken, or the host changes by itself."""
        change_s = self.virtual.next_change_s()
        if change_s is not None:
            yield change_s
        for job, (enough, _) in self._waits.items():
            token_s = self.virtual.next_token_s(job)
            if enough < job.output_tokens and token_s is not None:
                yield token_s
