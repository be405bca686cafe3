"""`sollol-proxy bench decisions`: what a decision of the scheduler costs.

The scheduler by itself, without sockets and on its thread's own clock: as many hosts, jobs that
wait and models as asked for, and at each step a job that ends and one that comes.

Three cases. Jobs wait: more than the hosts, of one slot each, can take. `free`: hosts of four slots
and of speeds that differ by up to three, half of the slots busy, all models in memory, and only the
calls count that find nobody waiting. `held`: hosts of one slot, half
of them busy and very unequal, so that many a job waits for a better one beside an idle one, and
takes a plan.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from time import thread_time
from typing import Any

from sollol_proxy.core.policies import POLICIES, make_policy
from sollol_proxy.core.scheduler import Scheduler, SchedulerRules
from sollol_proxy.core.types import (
    AttemptResult,
    Dispatch,
    Effect,
    HostReport,
    HostSpec,
    InstalledModel,
    Job,
    JobKind,
    Observation,
    ResidentModel,
)
from sollol_proxy.errors import ConfigError
from sollol_proxy.lab.bench_command import json_file, write_line
from sollol_proxy.lab.simulate_report import aligned, quantile

FREE, HELD = "free", "held"

DEFAULT_SIZES = "8xfree,8xheld,8x32,200x1000"

FREE_SLOTS = 4

SPEEDS = (5.0, 120.0)
FREE_SPEEDS = (40.0, 120.0)
"""Output tokens a second of the slowest and the fastest host."""
WARM_STEPS_A_HOST = 12
"""Steps before the measured ones, so that every host has been measured with most models."""

SERVICE_S = 5.0
"""Seconds that a job takes in the mean, which sets how much time passes between two steps."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured. waiting: jobs beside those in flight, or `FREE`, or `HELD`."""

    policy: str
    hosts: int
    waiting: int | str
    models: int

    @property
    def slots(self) -> int:
        """Of each host."""
        return FREE_SLOTS if self.waiting == FREE else 1

    @property
    def speeds(self) -> tuple[float, float]:
        """Of the slowest and the fastest host."""
        return FREE_SPEEDS if self.waiting == FREE else SPEEDS

    @property
    def max_models(self) -> int:
        """In memory of each host at once."""
        return self.models if self.waiting == FREE else 3

    @property
    def jobs(self) -> int:
        """In flight or waiting at once."""
        if isinstance(self.waiting, int):
            return self.hosts + self.waiting
        return max(self.hosts * self.slots // 2, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "--sizes",
        metavar="HOSTSxWAITING|free|held,...",
        type=_sizes,
        default=_sizes(DEFAULT_SIZES),
        help="hosts and waiting jobs, or free: slots are free and nobody waits, or held: jobs wait "
        f"beside free slots; default {DEFAULT_SIZES}",
    )
    parser.add_argument(
        "--models", metavar="N,...", type=_numbers, default=(1, 6), help="asked for; default 1,6"
    )
    parser.add_argument(
        "--policies",
        metavar="NAME,...",
        type=lambda value: [part.strip() for part in value.split(",")],
        default=["completion_time", "seven_factor"],
        help=f"{', '.join(POLICIES)} or package.module:Class",
    )
    parser.add_argument(
        "--steps", metavar="N", type=int, default=1000, help="measured; default 1000"
    )
    parser.add_argument("--json", metavar="FILE", help="write one JSON line a case; - = stdout")


def run(options: argparse.Namespace) -> int:
    """Measure what the arguments ask for; the exit code.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [["policy", "hosts", "waiting", "models", "p50 µs", "p99 µs", "mean µs"]]
    try:
        for policy in options.policies:
            make_policy(policy, Random(0))
    except ConfigError as error:
        sys.stderr.write(f"sollol-proxy bench decisions: {error}\n")
        return 2
    with ExitStack() as stack:
        out = json_file(options.json, stack)
        for policy in options.policies:
            for hosts, waiting in options.sizes:
                for models in options.models:
                    case = Case(policy, hosts, waiting, models)
                    line = measure(case, max(options.steps, 1))
                    write_line(out, line)
                    names = ("policy", "hosts", "waiting", "models")
                    figures = ("p50_us", "p99_us", "mean_us")
                    rows.append(
                        [str(line[name]) for name in names]
                        + [f"{line[name]:.0f}" for name in figures]
                    )
    if options.json != "-":
        sys.stdout.write(f"{aligned(rows)}\n")
    return 0


def measure(case: Case, steps: int) -> dict[str, Any]:
    """CPU time of the calls that an end or an arrival makes, once the hosts are known."""
    pool = _Pool(case)
    for _ in range(case.hosts * WARM_STEPS_A_HOST):
        pool.step()
    pool.taken_s.clear()
    gc.collect()
    for _ in range(steps):
        pool.step()
    taken_s = sorted(pool.taken_s) or [0.0]
    return {
        "policy": case.policy,
        "hosts": case.hosts,
        "waiting": case.waiting,
        "models": case.models,
        "decisions": len(pool.taken_s),
        "p50_us": round(quantile(taken_s, 0.5) * 1e6, 1),
        "p99_us": round(quantile(taken_s, 0.99) * 1e6, 1),
        "mean_us": round(sum(taken_s) / len(taken_s) * 1e6, 1),
    }


class _Pool:
    """A scheduler with hosts that are kept as busy as the case says."""

    def __init__(self, case: Case) -> None:
        self.taken_s: list[float] = []
        self._rng = rng = Random(f"{case.hosts} {case.waiting} {case.models}")
        self._now = 0.0
        self._case = case
        self._models = [f"model-{number}:latest" for number in range(case.models)]
        self._speeds = {f"host-{number}": rng.uniform(*case.speeds) for number in range(case.hosts)}
        self._jobs: dict[str, Job] = {}
        self._running: dict[str, str] = {}
        specs = [
            HostSpec(
                id=host,
                url=f"http://{host}:11434",
                slots=case.slots,
                max_models=case.max_models,
            )
            for host in self._speeds
        ]
        installed = {
            name: InstalledModel(
                name=name, digest=name, size_bytes=1_300_000_000 + number * 4_000_000_000
            )
            for number, name in enumerate(self._models)
        }
        self._scheduler = Scheduler(
            specs,
            make_policy(case.policy, rng),
            SchedulerRules(max_waiting=case.jobs + 1),
            rng=rng,
            now=0.0,
        )
        for host in self._speeds:
            resident = {
                name: ResidentModel(name, digest=name, size_bytes=model.size_bytes)
                for name, model in installed.items()
                if case.waiting == FREE
            }
            report = HostReport(
                host, ok=True, version="0.12.0", installed=installed, resident=resident
            )
            self._scheduler.report(report, 0.0)
        for _ in range(case.jobs):
            self._arrive()

    def step(self) -> None:
        """A job ends, and another one comes."""
        self._now += self._rng.expovariate(max(len(self._running), 1) / SERVICE_S)
        job_id = self._rng.choice(list(self._running))
        speed = self._speeds[self._running.pop(job_id)]
        job, output = self._jobs.pop(job_id), self._rng.randrange(20, 600)
        seen = Observation(
            prompt_tokens=job.prompt_tokens_est,
            prefill_s=job.prompt_tokens_est / speed / 40,
            output_tokens=output,
            decode_s=output / speed,
        )
        self._time(
            lambda: self._scheduler.finish(
                job_id, AttemptResult.COMPLETED, self._now, observation=seen
            )
        )
        self._arrive()

    def _arrive(self) -> None:
        number = self._rng.getrandbits(60)
        job = Job(
            id=f"job-{number}",
            kind=JobKind.GENERATE,
            model=self._rng.choice(self._models),
            priority=5,
            arrived_s=self._now,
            prompt_tokens_est=self._rng.randrange(20, 3000),
            stream=True,
        )
        self._time(lambda: self._scheduler.submit(job, self._now))
        self._jobs[job.id] = job

    def _time(self, call: Callable[[], list[Effect]]) -> None:
        counts = self._case.waiting != FREE or len(self._jobs) == len(self._running)
        before_s = thread_time()
        effects = call()
        taken_s = thread_time() - before_s
        if counts:
            self.taken_s.append(taken_s)
        for effect in effects:
            if isinstance(effect, Dispatch):
                self._running[effect.decision.job_id] = effect.decision.host_id


def _sizes(value: str) -> list[tuple[int, int | str]]:
    sizes: list[tuple[int, int | str]] = []
    for part in value.split(","):
        hosts, _, waiting = part.strip().partition("x")
        is_known = waiting in (FREE, HELD) or (waiting.isdecimal() and int(waiting) > 0)
        if not (hosts.isdecimal() and int(hosts) > 0 and is_known):
            raise argparse.ArgumentTypeError(f"{part!r} is not HOSTSxWAITING, such as 8x32")
        sizes.append((int(hosts), int(waiting) if waiting.isdecimal() else waiting))
    return sizes


def _numbers(value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{value!r} is no list of numbers above 0")
    return tuple(map(int, parts))
