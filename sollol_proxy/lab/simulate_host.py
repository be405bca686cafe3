"""A `VirtualHost` that can crash, hang and slow down, on the simulation's clock.

A hung host stands still: its own clock stops, what is sent to it lies in its socket until it goes
on. A crashed one has lost everything and refuses connections until it is back, empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sollol_proxy.core.types import InstalledModel, Observation, ResidentModel
from sollol_proxy.lab.simjobs import Phase, SimJob
from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.lab.virtualhost import LoadQueueFull, VirtualHost
from sollol_proxy.lab.workload import Request

_ROUNDING_S = 1e-6


@dataclass(slots=True, eq=False)
class Attempt:
    """A request at a host. Instants are on the simulation's clock; None = not yet."""

    request: Request
    host_id: str
    sent_s: float
    job: SimJob
    prefilled_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None

    def observation(self) -> Observation:
        """What the answer's last record says, and what a proxy times itself."""
        job, ended_s = self.job, self.ended_s
        first_s = self.first_token_s if self.request.stream else ended_s
        return Observation(
            prompt_tokens=job.prompt_tokens,
            output_tokens=job.output_tokens,
            load_s=_between(job.arrived_s, job.ready_s),
            prefill_s=_between(job.slot_s, job.prefilled_s),
            decode_s=_between(self.prefilled_s, ended_s),
            first_byte_s=_between(self.sent_s, first_s),
            total_s=_between(self.sent_s, ended_s),
        )


@dataclass(slots=True)
class _Hang:
    """Since when the host stands still, and what has been sent to it."""

    since_s: float
    mail: list[Attempt] = field(default_factory=list)
    gone: list[Attempt] = field(default_factory=list)


class FallibleHost:
    """One host of a simulated pool, and the attempts that are there."""

    def __init__(self, spec: SimSpec) -> None:
        self.spec = spec
        self.virtual = VirtualHost(spec)
        self.is_down = False
        self._hang: _Hang | None = None
        self._lag_s = 0.0
        self._attempts: dict[SimJob, Attempt] = {}
        self._changed: list[Attempt] = []
        self._loads_before = 0
        self.installed = {
            model.key: InstalledModel(
                name=model.key,
                digest=model.digest,
                size_bytes=model.size_bytes,
                capabilities=frozenset(model.capabilities),
                spelling=model.name,
            )
            for model in spec.models
        }
        """What a probe of `/api/tags` brings."""

    @property
    def is_hung(self) -> bool:
        """Whether it stands still."""
        return self._hang is not None

    @property
    def loads(self) -> int:
        """Models loaded so far, before crashes too."""
        return self._loads_before + self.virtual.counts.loads

    @property
    def busy_slots(self) -> int:
        """Jobs that hold a slot."""
        return sum(len(runner.active) for runner in self.virtual.runners.values())

    def resident(self) -> dict[str, ResidentModel]:
        """What a probe of `/api/ps` brings."""
        has_gpu = self.spec.has_gpu
        return {
            key: ResidentModel(
                name=key,
                digest=runner.model.digest,
                size_bytes=runner.model.memory_bytes,
                size_vram_bytes=runner.model.memory_bytes if has_gpu else 0,
                context_length=runner.context_length,
            )
            for key, runner in self.virtual.runners.items()
        }

    def send(self, attempt: Attempt, now: float) -> bool:
        """Take an attempt in; False when there is no connection or no room."""
        if self.is_down:
            return False
        if self._hang is not None:
            self._hang.mail.append(attempt)
            return True
        before = self._phases()
        self._attempts[attempt.job] = attempt
        try:
            self.virtual.submit(attempt.job, self._local(now))
        except LoadQueueFull:
            del self._attempts[attempt.job]
            return False
        finally:
            self._note(before)
        return True

    def cancel(self, attempt: Attempt, now: float) -> None:
        """Whoever asked has closed the connection."""
        if self._hang is not None:
            self._hang.gone.append(attempt)
            return
        if self._attempts.pop(attempt.job, None) is not None:
            before = self._phases()
            self.virtual.cancel(attempt.job, self._local(now))
            self._note(before)

    def advance(self, now: float) -> list[Attempt]:
        """Let the time pass; the attempts that have been prefilled or have ended since."""
        if self._hang is None and not self.is_down:
            before = self._phases()
            local_s, due_s = self._local(now), self.virtual.next_change_s()
            if due_s is not None and due_s - local_s < _ROUNDING_S:
                # Two clocks differ by a rounding: what is due must not be missed for ever.
                local_s = max(local_s, due_s)
            self.virtual.advance(local_s)
            self._note(before)
        changed, self._changed = self._changed, []
        for attempt in changed:
            if attempt.job.is_over:
                self._attempts.pop(attempt.job, None)
        return changed

    def next_change_s(self, now: float) -> float | None:
        """When `advance` has something to do; None = not before somebody asks for something."""
        if self._changed:
            return now
        if self._hang is not None or self.is_down:
            return None
        at_s = self.virtual.next_change_s()
        return None if at_s is None else max(now, at_s + self._lag_s)

    def has(self, attempt: Attempt) -> bool:
        """Whether the attempt is here and not over."""
        return attempt.job in self._attempts and not attempt.job.is_over

    def emitted(self, attempt: Attempt, now: float) -> int:
        """Output tokens that the attempt has made so far."""
        if self._hang is not None or self.is_down:
            return attempt.job.emitted
        return self.virtual.emitted_at(attempt.job, self._local(now))

    def next_token_s(self, attempt: Attempt) -> float | None:
        """When the attempt's next token exists, if nothing changes; None = it does not decode."""
        if self._hang is not None or attempt.job not in self._attempts:
            return None
        at_s = self.virtual.next_token_s(attempt.job)
        return None if at_s is None else at_s + self._lag_s

    def at_s(self, instant_s: float) -> float:
        """An instant of the `virtual` host's clock on the simulation's."""
        return instant_s + self._lag_s

    # Faults

    def crash(self) -> list[Attempt]:
        """The process dies; the attempts that were cut off."""
        cut = list(self._attempts.values()) + (self._hang.mail if self._hang else [])
        gone = self._hang.gone if self._hang else []
        self._attempts.clear()
        self._changed.clear()
        self._hang = None
        self.is_down = True
        self._loads_before = self.loads
        self.virtual = VirtualHost(replace(self.spec, resident=()))
        return [attempt for attempt in cut if attempt not in gone]

    def restart(self, now: float) -> None:
        """The process is back, with nothing in memory."""
        self.is_down = False
        self._lag_s = 0.0
        self.virtual = VirtualHost(replace(self.spec, resident=()), now)

    def hang(self, now: float) -> None:
        """Stand still."""
        self._hang = _Hang(now)

    def resume(self, now: float) -> None:
        """Go on where it stood still."""
        hang = self._hang
        if hang is None:
            return
        self._hang = None
        self._lag_s += now - hang.since_s
        for attempt in hang.mail:
            self.send(attempt, now)
        for attempt in hang.gone:
            self.cancel(attempt, now)

    def slow_down(self, factor: float, now: float) -> None:
        """Compute `factor` times slower; 1 = as specified."""
        before = self._phases()
        self.virtual.slow_down(factor, self._local(now))
        self._note(before)

    def _local(self, now: float) -> float:
        return now - self._lag_s

    def _phases(self) -> list[tuple[SimJob, Phase]]:
        return [
            (slot.job, slot.job.phase)
            for runner in self.virtual.runners.values()
            for slot in runner.slots
            if slot.job is not None
        ]

    def _note(self, before: list[tuple[SimJob, Phase]]) -> None:
        for job, phase in before:
            if job.phase is not phase:
                attempt = self._attempts.get(job)
                if attempt is not None:
                    self._changed.append(attempt)


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else max(0.0, end_s - start_s)
