"""How hosts stand to jobs that differ in their lengths only, kept from plan to plan.

A plan looks at many hosts for many jobs, and between two plans one host has changed. So what does
not depend on the moment is kept by host, with the host's `changes` as its date.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.base import HostView
from sollol_proxy.core.predict import load_s, size_bytes, slow_down, slow_down_after, soonest_s
from sollol_proxy.core.types import HostState, Job

SEPARATOR = "\n"
"""Between a model's name and its options in a token; no name has it."""

MAX_LANES = 128
"""Options, exclusions and names come from clients, so what is kept has to be bounded."""

_MAX_LOG = 10_000


class Row(NamedTuple):
    """How a host stands to a lane.

    token: what stands for the runner that the jobs need there. prefill_s, decode_s: seconds a
        prompt and an output token, alone. slowed: how many times longer it takes beside what runs
        there. load_s: seconds to load the runner; 0 = it is in memory.
    harm: what other jobs there lose of each second. is_open: a job may begin there at once, beside
        no load that is under way and not as a trial.
    """

    token: str
    prefill_s: float
    decode_s: float
    slowed: float
    load_s: float
    harm: float
    is_open: bool

    def alone_s(self, prompt: float, tokens: float) -> float:
        """Seconds to read and write so many tokens there, alone and in memory."""
        return prompt * self.prefill_s + tokens * self.decode_s


_Dated = tuple[int, int | None, Row | None]
"""The host's changes, the epoch of the memory where the row rests on guesses, the row."""


def lane_key(job: Job) -> tuple[object, ...]:
    """What has to be equal for jobs to differ in their lengths only."""
    return (
        job.model,
        job.kind,
        job.options_key,
        job.num_ctx,
        job.excluded,
        job.only,
        job.route,
        bool(job.prefix),
    )


def token_of(view: HostView, model: str) -> str:
    """What stands for a runner that is in a host's memory: its name, and the options it has."""
    options_key = view.known.variants.last(model)
    return f"{model}{SEPARATOR}{options_key}" if options_key else model


def name_of(token: str) -> str:
    """The model's name in a token."""
    return token.partition(SEPARATOR)[0] if SEPARATOR in token else token


class LaneRates:
    """The rows of one lane. job: any of its jobs."""

    def __init__(self, job: Job, memory: Memory) -> None:
        self._job = job
        self._memory = memory
        self._rows: dict[str, _Dated] = {}
        self._side_rows: dict[str, _Dated] = {}

    def row(self, view: HostView, *, is_side: bool = False) -> Row | None:
        """How the host stands to the lane; None = it may not take its jobs.

        is_side: as a place beside what keeps it busy.
        """
        host_id, changes = view.spec.id, view.changes
        rows = self._side_rows if is_side else self._rows
        kept = rows.get(host_id)
        epoch = self._memory.epoch
        if kept is not None and kept[0] == changes and kept[1] in (None, epoch):
            return kept[2]
        row = self._look(view, joins=is_side or view.in_flight < view.concurrency)
        rows[host_id] = changes, epoch if self._memory.is_guess(host_id) else None, row
        return row

    def rows(self, views: Sequence[HostView]) -> list[Row | None]:
        """The rows of these hosts: the loop of `row`, since most of them have not changed."""
        kept_rows, epoch = self._rows, self._memory.epoch
        found = []
        for view in views:
            kept = kept_rows.get(view.spec.id)
            if kept is not None and kept[0] == view.changes and kept[1] in (None, epoch):
                found.append(kept[2])
            else:
                found.append(self.row(view))
        return found

    def _look(self, view: HostView, *, joins: bool) -> Row | None:
        job, model = self._job, self._job.model
        if not view.is_eligible(job):
            return None
        needs_load = view.needs_load(job)
        if not needs_load and (resident := view.runner(model)) is not None:
            token = token_of(view, resident.name)
        else:
            token = f"{model}{SEPARATOR}{job.options_key}" if job.options_key else model
        slowed = slow_down(view, model, joins=True) if joins else slow_down_after(view, model)
        in_flight, harm = view.in_flight, 0.0
        if joins and in_flight:
            harm = (in_flight - view.in_flight_by_model.get(model, 0)) / slowed
        prefill, decode = self._memory.pace(view.spec.id, model, size_bytes(view, model))
        return Row(
            token,
            1 / prefill,
            1 / decode,
            slowed,
            load_s(view, model) if needs_load else 0.0,
            harm,
            in_flight < view.concurrency
            and not view.loading
            and view.state is HostState.HEALTHY
            and view.free_slots(model) > 0,
        )


class _Table:
    """A lane's rows over a whole pool, by place: what choosing among many hosts needs of them.

    load_s: inf = the lane's jobs may not go there. least_prefill_s, least_decode_s: not more than
        any of them.
    seen: how far it has followed the log of changes. guesses: places where it rests on guesses.
    """

    def __init__(
        self, rates: LaneRates, hosts: Sequence[HostView], seen: int, memory: Memory
    ) -> None:
        self.seen = seen
        self.epoch = memory.epoch
        self.guesses: set[int] = set()
        self._memory = memory
        self.rates = rates
        self.prefill_s = [0.0] * len(hosts)
        self.decode_s = [0.0] * len(hosts)
        self.load_s = [0.0] * len(hosts)
        self.least_prefill_s = self.least_decode_s = inf
        for place, host in enumerate(hosts):
            self.renew(place, host)

    def renew(self, place: int, host: HostView) -> None:
        """The host has changed."""
        row = self.rates.row(host)
        if row is None:
            self.load_s[place] = inf
        else:
            self.prefill_s[place], self.decode_s[place] = row.prefill_s, row.decode_s
            self.load_s[place] = row.load_s
            self.least_prefill_s = min(self.least_prefill_s, row.prefill_s)
            self.least_decode_s = min(self.least_decode_s, row.decode_s)
        if self._memory.is_guess(host.spec.id):
            self.guesses.add(place)
        else:
            self.guesses.discard(place)

    def alone_s(self, prompt: float, tokens: float) -> list[float]:
        """Seconds to read and write so many tokens on each host of the lane."""
        return [
            prompt * prefill_s + tokens * decode_s
            for prefill_s, decode_s, load_s in zip(
                self.prefill_s, self.decode_s, self.load_s, strict=True
            )
            if load_s < inf
        ]


_NEARLY = 1 - 1e-9
"""Makes a sum a bound that rounding cannot break."""


class Survey:
    """Of many hosts those worth a close look, lane by lane.

    Looks at a host again when it has changed, so that most of a large pool costs an addition.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._hosts: list[HostView] = []
        self._dates: list[int] = []
        self._stale: set[int] = set()
        """Places whose end has to be worked out again."""
        self._waits_s: list[float] = []
        self._frees_s: list[float] = []
        self._free: list[int] = []
        self._busy: list[int] = []
        """Places, the soonest free first."""
        self._log: list[int] = []
        self._tables: dict[LaneRates, _Table] = {}

    def begin(self, hosts: Sequence[HostView], now: float) -> None:
        """A plan is made over these hosts."""
        self._follow(hosts)
        frees_s = self._frees_s
        for place in self._stale:
            host = hosts[place]
            is_full = host.in_flight >= host.concurrency
            # An end once expected is kept until the host changes or the end is overdue.
            frees_s[place] = now + soonest_s(self._memory, host, now) if is_full else -inf
        self._stale.clear()
        for place, free_s in enumerate(frees_s):
            if -inf < free_s <= now:
                frees_s[place] = now + soonest_s(self._memory, hosts[place], now)
        self._waits_s = waits_s = [free_s - now if free_s > now else 0.0 for free_s in frees_s]
        self._free = [place for place, wait_s in enumerate(waits_s) if not wait_s]
        self._busy = [place for place, wait_s in enumerate(waits_s) if wait_s]
        self._busy.sort(key=waits_s.__getitem__)

    def promising(
        self, rates: LaneRates, few: int, *, prompt: float, tokens: float
    ) -> tuple[set[str], bool]:
        """The best free hosts and the soonest free ones for a job of the lane.

        few: of each. prompt, tokens: to read and to write.
        Returns their ids, and whether free ones were left out.
        """
        table, waits_s = self._table(rates), self._waits_s
        prefills_s, decodes_s, loads_s = table.prefill_s, table.decode_s, table.load_s
        free = [
            (prompt * prefills_s[place] + tokens * decodes_s[place] + loads_s[place], place)
            for place in self._free
            if loads_s[place] < inf
        ]
        free.sort()
        least_s = (prompt * table.least_prefill_s + tokens * table.least_decode_s) * _NEARLY
        busy: list[tuple[float, int]] = []
        for place in self._busy:
            wait_s = waits_s[place]
            if len(busy) >= few and wait_s * _NEARLY + least_s > busy[-1][0]:
                break
            time_s = wait_s + prompt * prefills_s[place] + tokens * decodes_s[place]
            time_s += loads_s[place]
            if time_s < inf and (len(busy) < few or (time_s, place) < busy[-1]):
                insort(busy, (time_s, place))
                del busy[few:]
        hosts = self._hosts
        return {hosts[place].spec.id for _, place in free[:few] + busy}, len(free) > few

    def alone_s(
        self, rates: LaneRates, hosts: Sequence[HostView], prompt: float, tokens: float
    ) -> list[float]:
        """Seconds to read and write so many tokens on each of these hosts that may."""
        self._follow(hosts)
        return self._table(rates).alone_s(prompt, tokens)

    def _follow(self, hosts: Sequence[HostView]) -> None:
        """See which hosts have changed."""
        if len(self._log) > _MAX_LOG or self._hosts != list(hosts):
            self._hosts, self._log, self._tables = list(hosts), [], {}
            self._dates, self._frees_s = [0] * len(hosts), [0.0] * len(hosts)
            self._stale.clear()
        dates = self._dates
        changed = [
            place
            for place, (host, date) in enumerate(zip(hosts, dates, strict=True))
            if host.changes != date
        ]
        if changed:
            self._log += changed
            self._stale.update(changed)
            for place in changed:
                dates[place] = hosts[place].changes

    def _table(self, rates: LaneRates) -> _Table:
        """The rows of a lane as they are now."""
        table = self._tables.get(rates)
        if table is None:
            if len(self._tables) >= MAX_LANES:
                self._tables.clear()
            table = self._tables[rates] = _Table(rates, self._hosts, len(self._log), self._memory)
        stale = set(self._log[table.seen :])
        if table.epoch != self._memory.epoch:
            table.epoch = self._memory.epoch
            stale |= table.guesses
        for place in stale:
            table.renew(place, self._hosts[place])
        table.seen = len(self._log)
        return table


class LaneBook:
    """The lanes in use. survey: over large pools."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._life = memory.life
        self._lanes: dict[tuple[object, ...], LaneRates] = {}
        self.survey = Survey(memory)

    def rates(self, job: Job, key: tuple[object, ...] | None = None) -> LaneRates:
        """The rows of the job's lane. key: of the job, where it is known already."""
        if self._life != self._memory.life:
            self._life = self._memory.life
            self._lanes.clear()
            self.survey = Survey(self._memory)
        if key is None:
            key = lane_key(job)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                self._lanes.clear()
            lane = self._lanes[key] = LaneRates(job, self._memory)
        return lane

    def rows(self, job: Job, hosts: Sequence[HostView]) -> Iterator[tuple[HostView, Row]]:
        """The hosts that may take the job, each with its row."""
        rates = self.rates(job)
        for host in hosts:
            row = rates.row(host)
            if row is not None:
                yield host, row
