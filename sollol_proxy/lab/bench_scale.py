"""How fast time may run: as fast as this machine can carry hosts, proxy and clients.

Almost all the work is the same for a model second at any speed: so many requests, so many
records. A short trial of the scenario itself shows what a model second costs; the speed then
leaves a good part of what others leave of the machine unused, since a queue for the CPU would be
taken for a queue for the hosts.
"""

from __future__ import annotations

from dataclasses import dataclass

from sollol_proxy.lab.bench_contenders import Contender
from sollol_proxy.lab.bench_machine import cores
from sollol_proxy.lab.bench_run import arena, requests_of, run_once
from sollol_proxy.lab.simulate import Scenario

SPEEDS = (20.0, 15.0, 12.0, 10.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
"""Measured on mixed/tri, mean time live ÷ simulated: 1.01 at speed 10, 1.04 at 20, 1.12 at 40. The
few milliseconds between two jobs of a host weigh the more, the faster time runs."""

USED_RATIO = 0.35
"""Part of the free cores that a run may use."""

UNKNOWN_SPEED = 10.0
TRIAL_SPEED = 10.0
TRIAL_S = 4.0
"""Seconds on the wall for which requests arrive in the trial."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What the trial found. cost: cores that our processes need at speed 1.

    free_cores: that nobody else uses. records: streamed tokens a model second.
    """

    cost: float
    free_cores: float
    records: float

    @property
    def most_speed(self) -> float:
        """At which our processes would take all free cores."""
        return self.free_cores / max(self.cost, 1e-6)

    @property
    def speed(self) -> float:
        """The fastest one that keeps to `USED_RATIO`, but the slowest of all where none does."""
        most = USED_RATIO * self.most_speed
        return next((speed for speed in SPEEDS if speed <= most), SPEEDS[-1])

    @property
    def is_tight(self) -> bool:
        """Whether even the slowest is too fast."""
        return USED_RATIO * self.most_speed < SPEEDS[-1]

    @property
    def most_records(self) -> float:
        """Records a second that all free cores together could carry."""
        return self.records * self.most_speed


async def trial(scenario: Scenario, contender: Contender) -> Trial | None:
    """Try the first seconds of the scenario; None where the machine does not tell its load."""
    until_s = TRIAL_S * TRIAL_SPEED
    requests = [r for r in requests_of(scenario, 0) if r.arrived_s < until_s]
    requests = requests or requests_of(scenario, 0)[:1]
    async with arena(scenario, TRIAL_SPEED) as tried:
        done = await run_once(tried, contender, requests, 0)
    if done.busy_cores is None or done.used_cores is None:
        return None
    spent_s = max(answer.ended_s for answer in done.answers)
    tokens = sum(answer.request.output_tokens for answer in done.answers if answer.ok)
    free = max(0.1, cores() - max(0.0, done.busy_cores - done.used_cores))
    return Trial(done.used_cores / TRIAL_SPEED, free, tokens / spent_s)
