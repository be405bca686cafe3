"""How the jobs of one lane stand to the hosts of one plan: what does not depend on a single job."""

from __future__ import annotations

from collections.abc import Sequence

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.lanes import Row
from sollol_proxy.core.policies.outlook import HostOutlook
from sollol_proxy.core.policies.slots import Seconds, Slot, Wish
from sollol_proxy.core.predict import phases, work_of
from sollol_proxy.core.types import Job, JobKind


class Standing:
    """A lane in one plan. job: any of its jobs. By host index: row (None = not there), slots.

    loads_s: what a load adds at least to what a job feels; never less, since a runner that was not
        in memory has to be loaded, whatever stands before.
    before_s: see the function; 0 where there are no slots.
    slots: those that its jobs may go to, the most promising for the first job of it first.
    idle: see `Scene`; None = not found yet.
    """

    def __init__(
        self,
        memory: Memory,
        job: Job,
        rows: Sequence[Row | None],
        hosts: Sequence[HostOutlook],
        slots: Sequence[Sequence[Slot]],
        load_price: float,
    ) -> None:
        self.rows = rows
        self.slots: Sequence[Slot] = ()
        self.idle: Sequence[tuple[int, str, float]] | None = None
        self.tokens = [row.token if row is not None else "" for row in rows]
        self.loads_s = [row.load_s * load_price if row is not None else 0.0 for row in rows]
        self.before_s = [
            0.0 if row is None or row.token in host.held or not its else before_s(host, row.token)
            for row, host, its in zip(rows, hosts, slots, strict=True)
        ]
        self._memory = memory
        self._hosts, self._slots = hosts, slots
        rates = [
            (index, row.prefill_s * row.slowed, row.decode_s * row.slowed)
            for index, row in enumerate(rows)
            if row is not None
        ]
        self._rates = rates
        self._is_everywhere = len(rates) == len(rows)
        self._harm = [(index, 1 + row.harm) for index, row in enumerate(rows) if row and row.harm]
        self._loading = [
            (index, loading_s)
            for index, (row, host) in enumerate(zip(rows, hosts, strict=True))
            if host.view.loading
            and row is not None
            and row.token in host.held
            and host.free() > 0
            and (loading_s := host.loading_s(job.model))
        ]

    def wish(self, order: int, job: Job, weight: float, age_s: float) -> Wish:
        """What one of its jobs wants."""
        own_s = self._own_s(job)
        if self._loading:
            for index, loading_s in self._loading:
                own_s[index] += loading_s
        felt_s = own_s
        if self._harm:
            # Busy runners share a host's time, so each job of another model loses what this takes.
            felt_s = own_s.copy()
            for index, harm in self._harm:
                felt_s[index] *= harm
        wish = Wish(order, weight, age_s, own_s, felt_s, self.tokens, self.loads_s)
        wish.slots = self.slots
        return wish

    def find_slots(self, wish: Wish) -> None:
        """Put the slots in order. wish: of the first job."""
        own_s, before_s = wish.own_s, self.before_s
        found = [
            (own_s[index] + before_s[index] + slot.states[0][0], index, place, slot)
            for index, _, _ in self._rates
            for place, slot in enumerate(self._slots[index])
        ]
        found.sort()  # no two have the same host and place
        wish.slots = self.slots = [slot for _, _, _, slot in found]

    def _own_s(self, job: Job) -> Seconds:
        """Seconds on each host without a load."""
        memory = self._memory
        if job.kind is JobKind.TRANSCRIBE:
            return {
                index: row.slowed * phases(memory, job, host.view, needs_load=False).decode_s
                for index, (row, host) in enumerate(zip(self.rows, self._hosts, strict=True))
                if row is not None
            }
        prompt, tokens = work_of(memory, job)
        own_s: Seconds
        if self._is_everywhere:
            own_s = [
                prompt * prefill_s + tokens * decode_s for _, prefill_s, decode_s in self._rates
            ]
        else:
            own_s = {
                index: prompt * prefill_s + tokens * decode_s
                for index, prefill_s, decode_s in self._rates
            }
        if job.prefix and prompt:
            matching = memory.affinity.matching(job)
            if matching:
                most, ratio = max(job.prompt_tokens_est - 1, 0), memory.prompt_ratio(job.model)
                for index, prefill_s, _ in self._rates:
                    matched = matching.get(self._hosts[index].view.spec.id, 0)
                    if matched:
                        own_s[index] -= min(matched, most) * ratio * prefill_s
        return own_s


def before_s(host: HostOutlook, token: str) -> float:
    """Seconds of loading, and of waiting for what has to leave, where a job would be next."""
    if token in host.held:
        return 0.0
    step = host.step(host.held, token)
    return step.drain_s + step.load_s
