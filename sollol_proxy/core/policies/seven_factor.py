"""`seven_factor`: the founding score, corrected, with the proxy's own figures as its inputs.

A host starts at 100 points; seven factors multiply or divide. Where the founding text and its
worked example disagree, the formulas stand, with these corrections:

- memory above 8,000 MB counts double (the founding ladder asked for 4,000 first and never got
  there); unknown memory is neutral, and not the same as none;
- a host that was never measured counts as the median of the measured ones;
- load is what the proxy itself has in flight, counted at once: Ollama reports no CPU load;
- latency is the expected time to the first token of this request, from learnt speeds: a mean
  over whole generations would read long answers as a slow network;
- whether the host has the model is no factor but a condition, and a host that holds it in memory
  comes first (`PerJob`).

The jump of the latency penalty at 200 ms is the founding formula's own and is kept: it separates
hosts that answer at once from those that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from sollol_proxy.core.policies.base import HostView, PerJob
from sollol_proxy.core.types import Complexity, Cost, Job, TaskType, Term

BASELINE = 100.0
MB = 10**6
LONG_JOB_MS = 5000.0
URGENT = 7
"""Request priority from which load weighs more and preferred hosts more still."""

SAME_SPEED = 1.1
"""First tokens within this factor count as equally far. Else the last digit of what was measured
would choose between equal hosts, and always the same one."""

DEFAULT_OUTPUT_TOKENS = 128
"""Output assumed where the request sets no limit, to tell long jobs from short ones."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the formulas want to know of a request. duration_ms: None = no estimate."""

    task_type: TaskType
    complexity: Complexity
    priority: int
    requires_gpu: bool
    duration_ms: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the formulas want to know of a host.

    free_mb: GPU memory this model can use, MB; 0 = no GPU, None = unknown.
    latency_ms: None = neither this host nor any other was measured.
    load: 0 to 1. priority: 0 = preferred.
    """

    free_mb: float | None
    success_ratio: float
    latency_ms: float | None
    load: float
    priority: int
    prefers_task: bool


@dataclass(frozen=True, slots=True)
class Factor:
    """One multiplier of the score and its reason."""

    name: str
    multiplier: float
    text: str


def gpu_factor(request: Request, host: Measured) -> Factor:
    """×0.2 without a GPU, ×0.5 below 2,000 MB free, ×1.5 above 4,000, ×2 above 8,000."""
    free = host.free_mb
    if not request.requires_gpu:
        return Factor("gpu", 1.0, "")
    if free is None:
        return Factor("gpu", 1.0, "GPU memory unknown")
    if free <= 0:
        return Factor("gpu", 0.2, "no GPU")
    ladder = ((8000, 2.0), (4000, 1.5), (2000, 1.0))
    # 4,000 and 8,000 themselves belong to the rung below, 2,000 to its own.
    multiplier = next((m for mb, m in ladder if free > mb or free == mb == 2000), 0.5)
    return Factor("gpu", multiplier, f"{free / 1000:.1f} GB GPU memory free")


def success_factor(host: Measured) -> Factor:
    """× the share of attempts that ended well."""
    return Factor("success", host.success_ratio, f"{host.success_ratio:.0%} success")


def latency_factor(request: Request, host: Measured) -> Factor:
    """÷ (1 + p), p = L/1000·w below 200 ms, else L/100·w, with w = 1 + priority/10."""
    if host.latency_ms is None:
        return Factor("latency", 1.0, "latency unknown")
    weight = 1 + request.priority / 10
    penalty = host.latency_ms / (1000 if host.latency_ms < 200 else 100) * weight
    return Factor("latency", 1 / (1 + penalty), f"first token in {_duration(host.latency_ms)}")


def load_factor(request: Request, host: Measured) -> Factor:
    """Complex tasks ×0.3 above 0.8 and ×1.3 below 0.3; then ÷ (1 + 3·load), 1.5 if not urgent."""
    multiplier = 1.0
    if request.complexity is Complexity.COMPLEX:
        multiplier = 0.3 if host.load > 0.8 else 1.3 if host.load < 0.3 else 1.0
    weight = 3.0 if request.priority >= URGENT else 1.5
    return Factor("load", multiplier / (1 + weight * host.load), f"load {host.load:.0%}")


def preference_factor(request: Request, host: Measured) -> Factor:
    """Hosts of priority 0: ×1.5 for urgent requests, else ×1.2."""
    if host.priority != 0:
        return Factor("preference", 1.0, "")
    return Factor("preference", 1.5 if request.priority >= URGENT else 1.2, "preferred host")


def task_factor(request: Request, host: Measured) -> Factor:
    """×1.3 where the host is configured for the request's task type."""
    if not host.prefers_task:
        return Factor("task", 1.0, "")
    return Factor("task", 1.3, f"preferred for {request.task_type}")


def duration_factor(request: Request, host: Measured) -> Factor:
    """×0.7 for jobs above 5 s on hosts loaded above 0.6."""
    if request.duration_ms is None or request.duration_ms <= LONG_JOB_MS or host.load <= 0.6:
        return Factor("duration", 1.0, "")
    return Factor("duration", 0.7, "long job on a busy host")


def factors(request: Request, host: Measured) -> tuple[Factor, ...]:
    """The seven factors in the founding order."""
    return (
        gpu_factor(request, host),
        success_factor(host),
        latency_factor(request, host),
        load_factor(request, host),
        preference_factor(request, host),
        task_factor(request, host),
        duration_factor(request, host),
    )


def score(request: Request, host: Measured) -> float:
    """The founding score: 100 times all factors; higher is better."""
    value = BASELINE
    for factor in factors(request, host):
        value *= factor.multiplier
    return value


class SevenFactor(PerJob):
    """Cost is 100 ÷ score: 1 for a host on which no factor bites, more for worse ones."""

    name = "seven_factor"

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self._compared: tuple[Job, Sequence[HostView]] | None = None
        self._known_s: list[float] = []

    def cost(self, job: Job, host: HostView, hosts: Sequence[HostView], now: float) -> Cost:
        """The score's inverse, each factor a term with its multiplier."""
        request = _request(job, host)
        own_s = host.first_token_s(job.model, job.prompt_tokens_est)
        latency_ms = _latency_ms(own_s, self._first_tokens_s(job, hosts))
        parts = factors(request, _measured(job, host, latency_ms))
        value = BASELINE
        for factor in parts:
            value *= factor.multiplier
        # A host that has failed every attempt scores 0; keep the cost finite.
        value = max(value, 1e-6)
        terms = tuple(Term(factor.name, factor.multiplier, factor.text) for factor in parts)
        return Cost(total=BASELINE / value, terms=terms, score=value)

    def _first_tokens_s(self, job: Job, hosts: Sequence[HostView]) -> list[float]:
        """Expected first tokens of the hosts that were measured, sorted; read once a job."""
        if self._compared is None or self._compared[0] is not job or self._compared[1] is not hosts:
            self._compared = (job, hosts)
            self._known_s = sorted(
                first_token_s
                for host in hosts
                if (first_token_s := host.first_token_s(job.model, job.prompt_tokens_est))
                is not None
            )
        return self._known_s


def _request(job: Job, host: HostView) -> Request:
    first_token_s = host.first_token_s(job.model, job.prompt_tokens_est)
    decode = host.decode_tokens_per_s(job.model)
    tokens = job.output_limit_tokens or DEFAULT_OUTPUT_TOKENS
    duration_s = None if first_token_s is None or not decode else first_token_s + tokens / decode
    return Request(
        task_type=job.task_type,
        complexity=job.complexity,
        priority=job.priority,
        requires_gpu=job.requires_gpu,
        duration_ms=None if duration_s is None else duration_s * 1000,
    )


def _measured(job: Job, host: HostView, latency_ms: float | None) -> Measured:
    ratio = host.success_ratio
    return Measured(
        free_mb=_free_mb(job, host),
        success_ratio=1.0 if ratio is None else ratio,
        latency_ms=latency_ms,
        load=min(host.in_flight / host.slots(job.model), 1.0),
        priority=host.spec.priority,
        prefers_task=job.task_type in host.spec.tasks,
    )


def _latency_ms(own_s: float | None, known_s: Sequence[float]) -> float | None:
    """What the score takes for a host's first token; the pool's median if it was not measured.

    Sorted times that lie close together form a group and all count as its first: the shortest
    time that is not within `SAME_SPEED` of the group before.
    """
    if not known_s:
        return None
    if own_s is None:
        own_s = median(known_s)
    first_s = 0.0
    for value_s in known_s:
        if value_s > own_s:
            break
        if value_s > first_s * SAME_SPEED:
            first_s = value_s
    return (first_s or own_s) * 1000


def _free_mb(job: Job, host: HostView) -> float | None:
    """Memory this job's model can use: all that other models in memory leave."""
    others = [model for name, model in host.resident.items() if name != job.model]
    if host.spec.memory_bytes is not None:
        used = sum(model.size_vram_bytes for model in others)
        return max(0.0, (host.spec.memory_bytes - used) / MB)
    loaded = [model for model in host.resident.values() if model.digest]
    if loaded and not any(model.size_vram_bytes for model in loaded):
        return 0.0  # Ollama reports its models, and none has a byte on a GPU
    return None


def _duration(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"
