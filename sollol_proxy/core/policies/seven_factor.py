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
from random import Random
from statistics import median
from typing import NamedTuple

from sollol_proxy.core.policies.base import HostView, PerJob
from sollol_proxy.core.types import Complexity, Cost, Job, TaskType, Term
from sollol_proxy.core.unread import MadeWhenRead

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


class Request(NamedTuple):
    """What the formulas want to know of a request. duration_ms: None = no estimate."""

    task_type: TaskType
    complexity: Complexity
    priority: int
    requires_gpu: bool
    duration_ms: float | None


class Measured(NamedTuple):
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


class Factor(NamedTuple):
    """One multiplier of the score and its reason."""

    name: str
    multiplier: float
    text: str


def _gpu(request: Request, host: Measured) -> float:
    free = host.free_mb
    if not request.requires_gpu or free is None:
        return 1.0
    if free <= 0:
        return 0.2
    # 4,000 and 8,000 themselves belong to the rung below, 2,000 to its own.
    if free > 8000:
        return 2.0
    if free > 4000:
        return 1.5
    return 1.0 if free >= 2000 else 0.5


def gpu_factor(request: Request, host: Measured) -> Factor:
    """×0.2 without a GPU, ×0.5 below 2,000 MB free, ×1.5 above 4,000, ×2 above 8,000."""
    free, text = host.free_mb, ""
    if request.requires_gpu:
        if free is None:
            text = "GPU memory unknown"
        else:
            text = f"{free / 1000:.1f} GB GPU memory free" if free > 0 else "no GPU"
    return Factor("gpu", _gpu(request, host), text)


def success_factor(host: Measured) -> Factor:
    """× the share of attempts that ended well."""
    return Factor("success", host.success_ratio, f"{host.success_ratio:.0%} success")


def _latency(request: Request, host: Measured) -> float:
    if host.latency_ms is None:
        return 1.0
    weight = 1 + request.priority / 10
    penalty = host.latency_ms / (1000 if host.latency_ms < 200 else 100) * weight
    return 1 / (1 + penalty)


def latency_factor(request: Request, host: Measured) -> Factor:
    """÷ (1 + p), p = L/1000·w below 200 ms, else L/100·w, with w = 1 + priority/10."""
    ms = host.latency_ms
    text = "latency unknown" if ms is None else f"first token in {_duration(ms)}"
    return Factor("latency", _latency(request, host), text)


def _load(request: Request, host: Measured) -> float:
    multiplier = 1.0
    if request.complexity is Complexity.COMPLEX:
        multiplier = 0.3 if host.load > 0.8 else 1.3 if host.load < 0.3 else 1.0
    weight = 3.0 if request.priority >= URGENT else 1.5
    return multiplier / (1 + weight * host.load)


def load_factor(request: Request, host: Measured) -> Factor:
    """Complex tasks ×0.3 above 0.8 and ×1.3 below 0.3; then ÷ (1 + 3·load), 1.5 if not urgent."""
    return Factor("load", _load(request, host), f"load {host.load:.0%}")


def _preference(request: Request, host: Measured) -> float:
    if host.priority != 0:
        return 1.0
    return 1.5 if request.priority >= URGENT else 1.2


def preference_factor(request: Request, host: Measured) -> Factor:
    """Hosts of priority 0: ×1.5 for urgent requests, else ×1.2."""
    text = "" if host.priority else "preferred host"
    return Factor("preference", _preference(request, host), text)


def _task(host: Measured) -> float:
    return 1.3 if host.prefers_task else 1.0


def task_factor(request: Request, host: Measured) -> Factor:
    """×1.3 where the host is configured for the request's task type."""
    text = f"preferred for {request.task_type}" if host.prefers_task else ""
    return Factor("task", _task(host), text)


def _length(request: Request, host: Measured) -> float:
    if request.duration_ms is None or request.duration_ms <= LONG_JOB_MS or host.load <= 0.6:
        return 1.0
    return 0.7


def duration_factor(request: Request, host: Measured) -> Factor:
    """×0.7 for jobs above 5 s on hosts loaded above 0.6."""
    multiplier = _length(request, host)
    return Factor("duration", multiplier, "long job on a busy host" if multiplier < 1 else "")


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
    # The texts of the factors are for those who read them, and of most hosts nobody does.
    value = BASELINE * _gpu(request, host) * host.success_ratio * _latency(request, host)
    value *= _load(request, host)
    value *= _preference(request, host)
    return value * _task(host) * _length(request, host)


class _Terms(MadeWhenRead[Term]):
    """The factors as terms of a cost."""

    __slots__ = ("_host", "_request")

    def __init__(self, request: Request, host: Measured) -> None:
        self._request = request
        self._host = host

    def made(self) -> tuple[Term, ...]:
        return tuple([Term(*factor) for factor in factors(self._request, self._host)])


class SevenFactor(PerJob):
    """Cost is 100 ÷ score: 1 for a host on which no factor bites, more for worse ones."""

    name = "seven_factor"

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self._compared: tuple[Job, Sequence[HostView]] | None = None
        self._first_s: dict[str, float | None] = {}
        self._known_s: list[float] = []

    def cost(self, job: Job, host: HostView, hosts: Sequence[HostView], now: float) -> Cost:
        """The score's inverse, each factor a term with its multiplier."""
        if self._compared is None or self._compared[0] is not job or self._compared[1] is not hosts:
            self._compare(job, hosts)
        own_s = self._first_s[host.spec.id]
        request = _request(job, host, own_s)
        measured = _measured(job, host, _latency_ms(own_s, self._known_s))
        # A host that has failed every attempt scores 0; keep the cost finite.
        value = max(score(request, measured), 1e-6)
        return Cost(BASELINE / value, _Terms(request, measured), value)

    def _compare(self, job: Job, hosts: Sequence[HostView]) -> None:
        """Expected first tokens of the hosts; of those that were measured also sorted."""
        self._compared = (job, hosts)
        model, tokens = job.model, job.prompt_tokens_est
        self._first_s = {host.spec.id: host.first_token_s(model, tokens) for host in hosts}
        self._known_s = sorted([each for each in self._first_s.values() if each is not None])


def _request(job: Job, host: HostView, first_token_s: float | None) -> Request:
    duration_s = None
    if first_token_s is not None and (decode := host.decode_tokens_per_s(job.model)):
        tokens = job.output_limit_tokens or DEFAULT_OUTPUT_TOKENS
        duration_s = first_token_s + tokens / decode
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
        free_mb=_free_mb(job, host) if job.requires_gpu else None,
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
