"""`sollol-proxy bench decisions`: what a decision of the scheduler costs.

The scheduler by itself, without sockets and on its thread's own clock: as many hosts, jobs that
wait and models as asked for, and at each step a job that ends and one that comes.
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
)
from sollol_proxy.errors import ConfigError
from sollol_proxy.lab.bench_command import json_file, write_line
from sollol_proxy.lab.simulate_report import aligned, quantile

DEFAULT_SIZES = "8x0,8x32,200x1000"
WARM_STEPS_A_HOST = 12
"""Steps before the measured ones, so that every host has been measured with most models."""

SERVICE_S = 5.0
"""Seconds that a job takes in the mean, which sets how much time passes between two steps."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured. waiting: jobs beside those in flight; 0 = slots are free."""

    policy: str
    hosts: int
    waiting: int
    models: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "--sizes",
        metavar="HOSTSxWAITING,...",
        type=_sizes,
        default=_sizes(DEFAULT_SIZES),
        help=f"hosts and waiting jobs; default {DEFAULT_SIZES}",
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
    taken_s = sorted(pool.taken_s)
    return {
        "policy": case.policy,
        "hosts": case.hosts,
        "waiting": case.waiting,
        "models": case.models,
        "decisions": len(taken_s),
        "p50_us": round(quantile(taken_s, 0.5) * 1e6, 1),
        "p99_us": round(quantile(taken_s, 0.99) * 1e6, 1),
        "mean_us": round(sum(taken_s) / len(taken_s) * 1e6, 1),
    }


class _Pool:
    """A scheduler with hosts of one slot, kept as busy as the case says."""

    def __init__(self, case: Case) -> None:
        self.taken_s: list[float] = []
        self._rng = rng = Random(f"{case.hosts} {case.waiting} {case.models}")
        self._now = 0.0
        self._case = case
        self._models = [f"model-{number}:latest" for number in range(case.models)]
        self._speeds = {f"host-{number}": rng.uniform(5, 120) for number in range(case.hosts)}
        self._jobs: dict[str, Job] = {}
        self._running: dict[str, str] = {}
        specs = [
            HostSpec(id=host, url=f"http://{host}:11434", slots=1, max_models=3)
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
            SchedulerRules(max_waiting=case.hosts + case.waiting + 1),
            rng=rng,
            now=0.0,
        )
        for host in self._speeds:
            report = HostReport(host, ok=True, version="0.12.0", installed=installed, resident={})
            self._scheduler.report(report, 0.0)
        busy = case.hosts // 2 if not case.waiting else case.hosts + case.waiting
        for _ in range(busy):
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
        number = len(self.taken_s) + self._rng.getrandbits(60)
        job = Job(
            id=f"job-{number}",
            kind=JobKind.GENERATE,
            model=self._rng.choice(self._models),
            priority=5,
            arrived_s=self._now,
            prompt_tokens_est=self._rng.randrange(20, 3000),
            stream=True,
        )
        self._jobs[job.id] = job
        self._time(lambda: self._scheduler.submit(job, self._now))

    def _time(self, call: Callable[[], list[Effect]]) -> None:
        before_s = thread_time()
        effects = call()
        self.taken_s.append(thread_time() - before_s)
        for effect in effects:
            if isinstance(effect, Dispatch):
                self._running[effect.decision.job_id] = effect.decision.host_id


def _sizes(value: str) -> list[tuple[int, int]]:
    sizes = []
    for part in value.split(","):
        hosts, _, waiting = part.strip().partition("x")
        if not (hosts.isdecimal() and waiting.isdecimal() and int(hosts) > 0):
            raise argparse.ArgumentTypeError(f"{part!r} is not HOSTSxWAITING, such as 8x32")
        sizes.append((int(hosts), int(waiting)))
    return sizes


def _numbers(value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{value!r} is no list of numbers above 0")
    return tuple(map(int, parts))
