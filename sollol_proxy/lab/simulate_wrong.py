"""Estimates made wrong on purpose: how much a policy loses by what it believes.

The world stays as it is; only what the scheduler takes for true is bent, after it was learnt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from random import Random

from sollol_proxy.core.lengths import Lengths
from sollol_proxy.core.memory import Memory, Pace
from sollol_proxy.core.types import Job, TaskType
from sollol_proxy.lab.workload import Request


@dataclass(frozen=True, slots=True)
class Wrong:
    """How wrong estimates are.

    lengths: factor on what is expected of an answer, or still to come of it; > 0.
    speeds: each host and model is thought to be so many times faster or slower, by chance; ≥ 1.
    prompts: each prompt is thought to be longer or shorter by up to this part; 0 to below 1.
    """

    lengths: float = 1.0
    speeds: float = 1.0
    prompts: float = 0.0

    def as_told(self) -> dict[str, float]:
        """What differs from the truth, by name."""
        right = asdict(Wrong())
        return {name: value for name, value in asdict(self).items() if value != right[name]}

    def memory(self, seed: int) -> Memory:
        """A memory that tells of what it has learnt only so."""
        return _WrongMemory(self, seed)

    def jobs(self, job_of: Callable[[Request], Job], seed: int) -> Callable[[Request], Job]:
        """The same jobs, with prompts taken for longer or shorter than they are."""

        def wrong_job_of(request: Request) -> Job:
            job = job_of(request)
            chance = Random(f"prompt {seed} {job.id}").uniform(-1.0, 1.0)
            factor = 1.0 + self.prompts * chance
            return replace(
                job,
                prompt_tokens_est=max(round(job.prompt_tokens_est * factor), 1),
                prefix_tokens=tuple(round(tokens * factor) for tokens in job.prefix_tokens),
            )

        return wrong_job_of if self.prompts else job_of


def parse(value: str) -> Wrong:
    """From `lengths=4,speeds=2,prompts=0.5`, any of them.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, _, number = part.partition("=")
        try:
            given[name] = float(number)
        except ValueError:
            given[name] = -1.0
        if name not in _FINE or not _FINE[name](given[name]):
            raise argparse.ArgumentTypeError(
                f"{part!r}: say lengths=FACTOR, speeds=FACTOR (1 or more), prompts=PART (below 1)"
            )
    return Wrong(**given)


_FINE: dict[str, Callable[[float], bool]] = {
    "lengths": lambda factor: 0.01 <= factor <= 100,
    "speeds": lambda factor: 1 <= factor <= 100,
    "prompts": lambda part: 0 <= part < 1,
}


class _WrongMemory(Memory):
    def __init__(self, wrong: Wrong, seed: int) -> None:
        super().__init__()
        self.lengths = _WrongLengths(wrong.lengths)
        self._factor = wrong.speeds
        self._seed = seed
        self._factors: dict[tuple[str, str], float] = {}

    def pace(self, host_id: str, model: str, size_bytes: int) -> Pace:
        factor = self._factors.get((host_id, model))
        if factor is None:
            chance = Random(f"speed {self._seed} {host_id} {model}")
            factor = chance.choice((self._factor, 1 / self._factor))
            self._factors[host_id, model] = factor
        prefill, decode = super().pace(host_id, model, size_bytes)
        return Pace(prefill * factor, decode * factor)


class _WrongLengths(Lengths):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def expected(
        self,
        task: TaskType,
        model: str,
        prompt_tokens: int,
        *,
        beyond: float = 0.0,
        limit: int | None = None,
    ) -> float:
        tokens = super().expected(task, model, prompt_tokens, beyond=beyond)
        tokens = beyond + (tokens - beyond) * self._factor
        if limit is not None:
            tokens = min(tokens, float(limit))
        return max(tokens, beyond + 1.0)
