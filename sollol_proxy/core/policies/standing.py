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
        self.tokens = [""] * len(rows)
        self.loads_s = [0.0] * len(rows)
        self.before_s = [0.0] * len(rows)
        self._memory = memory
        self._hosts, self._slots = hosts, slots
        self._ratio = memory.prompt_ratio(job.model)
        self._indexes: list[int] = []
        self._rates: list[tuple[float, float]] = []
        self._harm: list[tuple[int, float]] = []
        self._loading: list[tuple[int, float]] = []
        for index, row in enumerate(rows):
            if row is None:
                continue
            token, prefill_s, decode_s, slowed, load_s, harm, _ = row
            host = hosts[index]
            self.tokens[index] = token
            self._indexes.append(index)
            self._rates.append((prefill_s * slowed, decode_s * slowed))
            if load_s:
                self.loads_s[index] = load_s * load_price
            if token not in host.held:
                if slots[index]:
                    step = host.step(host.held, token)
                    self.before_s[index] = step[3] + step[1]
            elif host.view.loading and host.free() > 0:
                self._loading.append((index, host.loading_s(job.model)))
            if harm:
                self._harm.append((index, 1 + harm))
        self._is_everywhere = len(self._rates) == len(rows)

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
        return Wish(order, weight, age_s, own_s, felt_s, self.tokens, self.loads_s, self.slots)

    def find_slots(self, wish: Wish) -> None:
        """Put the slots in order. wish: of the first job."""
        own_s, before_s = wish.own_s, self.before_s
        found = [
            (own_s[index] + before_s[index] + slot.states[0][0], index, place, slot)
            for index in self._indexes
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
        prompt, tokens = work_of(memory, job, self._ratio)
        own_s: Seconds = [prompt * reads_s + tokens * writes_s for reads_s, writes_s in self._rates]
        if not self._is_everywhere:
            own_s = dict(zip(self._indexes, own_s, strict=True))
        if job.prefix and prompt:
            matching = memory.affinity.matching(job)
            if matching:
                most, ratio = max(job.prompt_tokens_est - 1, 0), self._ratio
                for index, (prefill_s, _) in zip(self._indexes, self._rates, strict=True):
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
