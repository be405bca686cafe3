"""How much is done to decide on a request while nobody waits: calls are counted, not timed.

A bound is what was counted when it was written, and a little more. Whoever has a reason to do
more raises it, and says so in `docs/performance.md`.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import FrameType

import pytest

import sollol_proxy
from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.core.types import (
    AttemptResult,
    Dispatch,
    HostReport,
    InstalledModel,
    JobKind,
    Observation,
    ResidentModel,
)
from tests.core.builders import job, scheduler, spec

CORE = f"{Path(sollol_proxy.__file__).parent}/core/"
REQUESTS = 20
SLOTS = 600
MODELS = {JobKind.GENERATE: "m:latest", JobKind.EMBED: "e:latest"}
SEEN = {
    JobKind.GENERATE: Observation(100, 50, prefill_s=0.05, decode_s=0.5, total_s=0.6),
    JobKind.EMBED: Observation(100, total_s=0.05),
}


class Requests:
    """One after the other, of one kind, through hosts that hold both models and have slots."""

    def __init__(self, policy: str, kind: JobKind, hosts: int) -> None:
        ids = [f"h{number}" for number in range(hosts)]
        pool = [spec(host_id, slots=SLOTS) for host_id in ids]
        self.scheduler: Scheduler = scheduler(*pool, policy=policy, up=False)
        self.kind = kind
        self.now = 0.0
        self.arrived = 0
        names = MODELS.values()
        installed = {name: InstalledModel(name, size_bytes=10**9) for name in names}
        resident = {name: ResidentModel(name, digest="d", size_bytes=10**9) for name in names}
        for host_id in ids:
            report = HostReport(host_id, True, installed=installed, resident=resident)
            self.scheduler.report(report, self.now)

    def begin(self) -> str:
        """The next one comes, and goes at once."""
        self.now += 1.0
        self.arrived += 1
        prefix = (1, self.arrived) if self.kind is JobKind.GENERATE else ()
        asked = job(
            f"j{self.arrived}",
            kind=self.kind,
            model=MODELS[self.kind],
            arrived_s=self.now,
            prompt_tokens_est=100,
            stream=True,
            route="/api/x",
            prefix=prefix,
            prefix_tokens=(64, 100)[: len(prefix)],
        )
        [effect] = self.scheduler.submit(asked, self.now)
        assert isinstance(effect, Dispatch)
        self.scheduler.next_timer_s()
        return asked.id

    def whole(self) -> None:
        """The next one from its arrival to its end, with what the shell asks in between."""
        job_id = self.begin()
        self.scheduler.first_byte(job_id, self.now + 0.1)
        self.scheduler.next_timer_s()
        self.now += 0.6
        seen = SEEN[self.kind]
        assert not self.scheduler.finish(
            job_id, AttemptResult.COMPLETED, self.now, observation=seen
        )
        self.scheduler.next_timer_s()

    def calls(self) -> float:
        """Python functions of the core that a request calls, once whatever is kept is kept."""
        count = 0

        def note(frame: FrameType, event: str, _: object) -> None:
            nonlocal count
            count += event == "call" and frame.f_code.co_filename.startswith(CORE)

        for _ in range(REQUESTS):
            self.whole()
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            for _ in range(REQUESTS):
                self.whole()
        finally:
            sys.setprofile(before)
        return count / REQUESTS


@pytest.mark.parametrize(
    ("policy", "kind", "hosts", "most"),
    [
        ("completion_time", JobKind.EMBED, 4, 120),
        ("completion_time", JobKind.EMBED, 8, 120),
        ("completion_time", JobKind.GENERATE, 8, 160),
        ("seven_factor", JobKind.EMBED, 4, 255),
        ("seven_factor", JobKind.GENERATE, 4, 285),
    ],
)
def test_request_costs_a_bounded_number_of_calls(
    policy: str, kind: JobKind, hosts: int, most: float
) -> None:
    calls = Requests(policy, kind, hosts).calls()
    assert calls <= most
    assert calls > most / 2, "far fewer than the bound, which then guards nothing"


@pytest.mark.parametrize("policy", ["completion_time", "seven_factor"])
@pytest.mark.parametrize("kind", [JobKind.GENERATE, JobKind.EMBED])
def test_request_costs_as_much_beside_many_others(policy: str, kind: JobKind) -> None:
    """On hosts that have a slot left, what runs there already is not looked at."""
    alone, beside = Requests(policy, kind, 4), Requests(policy, kind, 4)
    beside.kind = JobKind.GENERATE
    for _ in range(500):
        beside.begin()
    beside.kind = kind
    assert beside.calls() <= alone.calls() + 6


def test_plan_leaves_nothing_for_the_garbage_collector() -> None:
    """Whose looks would be the slowest thing that happens in a plan."""
    ids = [f"h{number}" for number in range(4)]
    made = scheduler(*[spec(host_id) for host_id in ids], policy="completion_time", up=False)
    installed = {name: InstalledModel(name, size_bytes=10**9) for name in MODELS.values()}
    for host_id in ids:
        made.report(HostReport(host_id, True, installed=installed, resident={}), 0.0)
    started = []
    for number in range(20):
        model = [*MODELS.values()][number % 2]
        for effect in made.submit(job(f"j{number}", model=model), 0.0):
            assert isinstance(effect, Dispatch)
            started.append(effect.decision.job_id)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        for number, job_id in enumerate(started):
            assert made.finish(job_id, AttemptResult.COMPLETED, number + 1.0)
        assert gc.collect() == 0
    finally:
        if was_enabled:
            gc.enable()
