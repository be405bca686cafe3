"""Seconds that a job would take on a host, in its phases, and what is left of those that run."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.running import Running
from sollol_proxy.core.types import Job, JobKind

if TYPE_CHECKING:  # the policies import this module
    from sollol_proxy.core.policies.base import HostView

DEFAULT_TRANSCRIPTION_S = 5.0
"""Seconds to transcribe a recording, as long as none was."""

KEPT_S = 0.25
"""How long an expected end is kept unless the job is heard of; streams are asked as often."""

MIN_REST_S = 0.02
"""What is overdue is expected to end any moment."""


class Phases(NamedTuple):
    """Seconds on a host that runs nothing else; load_s is 0 where the model is in memory."""

    load_s: float
    prefill_s: float
    decode_s: float


def size_bytes(host: HostView, model: str) -> int:
    """Size of a model on a host's disk; 0 when unknown."""
    copy = host.installed.get(model)
    return copy.size_bytes if copy is not None else 0


def output_tokens(memory: Memory, job: Job, beyond: float = 0.0) -> float:
    """Expected output of a job that has written `beyond` tokens and goes on; > beyond, or 0."""
    if job.kind is not JobKind.GENERATE:
        return 0.0
    limit = job.output_limit_tokens
    return memory.lengths.expected(
        job.task_type,
        job.model,
        job.prompt_tokens_est,
        beyond=beyond,
        limit=limit if limit is not None and limit > 0 else None,
    )


def work_of(memory: Memory, job: Job, ratio: float | None = None) -> tuple[float, float]:
    """Tokens that a host has to read, nothing cached, and is expected to write.

    ratio: `Memory.prompt_ratio` of the job's model, where it is known already.
    """
    kind, prompt_tokens = job.kind, job.prompt_tokens_est
    if kind is JobKind.LOAD or kind is JobKind.TRANSCRIBE:
        return 0.0, 0.0
    if ratio is None:
        ratio = memory.prompt_ratio(job.model)
    tokens = output_tokens(memory, job) if kind is JobKind.GENERATE else 0.0
    return (prompt_tokens if prompt_tokens > 1 else 1) * ratio, tokens


def load_s(host: HostView, model: str) -> float:
    """Seconds to load a model on a host."""
    return host.known.speeds.load_s(model, size_bytes(host, model))


def phases(
    memory: Memory, job: Job, host: HostView, *, needs_load: bool, matched_tokens: int = 0
) -> Phases:
    """What the job would take. matched_tokens: of its prompt, by estimate, found in the cache."""
    model = job.model
    loading_s = load_s(host, model) if needs_load else 0.0
    if job.kind is JobKind.LOAD:
        return Phases(loading_s, 0.0, 0.0)
    if job.kind is JobKind.TRANSCRIBE:
        whole_s = host.known.speeds.whole_s(job.kind, model)
        return Phases(loading_s, 0.0, DEFAULT_TRANSCRIPTION_S if whole_s is None else whole_s)
    pace = memory.pace(host.spec.id, model, size_bytes(host, model))
    prompt = max(job.prompt_tokens_est - matched_tokens, 1) * memory.prompt_ratio(model)
    tokens = output_tokens(memory, job)
    return Phases(loading_s, prompt / pace.prefill, tokens / pace.decode)


def rest_s(memory: Memory, running: Running, host: HostView, now: float) -> float:
    """Seconds until a running job ends; at least `MIN_REST_S`.

    What was worked out a moment ago still holds: plans come in bursts.
    """
    expected = running.expected
    if expected is not None and now - expected[0] <= KEPT_S:
        return max(expected[1] - now, MIN_REST_S)
    end_s = now + _rest_s(memory, running, host, now)
    running.expected = now, end_s
    return max(end_s - now, MIN_REST_S)  # to the last bit what is said when it is asked again


def soonest_s(memory: Memory, host: HostView, now: float) -> float:
    """About when a host's first job in flight ends, seconds from now; 0 when none runs.

    Takes what was worked out before, however long ago, unless it is overdue: for choosing among
    many hosts which to look at closely.
    """
    ends = [
        running.expected[1] - now
        if running.expected is not None and running.expected[1] > now
        else rest_s(memory, running, host, now)
        for running in host.running
        if running.job.kind.takes_slot
    ]
    return min(ends, default=0.0)


def _rest_s(memory: Memory, running: Running, host: HostView, now: float) -> float:
    """The same, worked out.

    From what it has streamed, where it streams and the shell tells; else from the time it has
    had. What has outlasted the usual length is expected to go on as others did from there.
    """
    job = running.job
    slowed = slow_down(host, job.model)
    elapsed_s = now - running.begun_s
    if job.kind is not JobKind.GENERATE:
        took = phases(memory, job, host, needs_load=running.was_cold)
        return max(took.load_s + (took.prefill_s + took.decode_s) * slowed - elapsed_s, MIN_REST_S)
    if running.usual is None:
        took = phases(
            memory,
            job,
            host,
            needs_load=running.was_cold,
            matched_tokens=running.matched_tokens,
        )
        running.usual = took.load_s, took.prefill_s
    loading_s, prefill_s = running.usual
    begins_s = loading_s + prefill_s * slowed
    rate = running.tokens_per_s
    if rate is None:
        rate = memory.pace(host.spec.id, job.model, size_bytes(host, job.model)).decode / slowed
    if running.first_byte_s is None and (job.stream or elapsed_s <= begins_s):
        return max(begins_s - elapsed_s, MIN_REST_S) + output_tokens(memory, job) / rate
    if running.first_byte_s is None:
        since_s = running.begun_s + begins_s
    else:
        since_s = running.first_byte_s if running.told_s is None else running.told_s
    written = running.tokens + max(now - since_s, 0.0) * rate
    return max((output_tokens(memory, job, written) - written) / rate, MIN_REST_S)


def slow_down_after(host: HostView, model: str) -> float:
    """The same for a job that gets the next slot of a full host: the oldest there has ended."""
    oldest, begun_s = "", inf
    for running in host.running:
        if running.begun_s < begun_s and running.job.kind.takes_slot:
            oldest, begun_s = running.job.model, running.begun_s
    by_model = host.in_flight_by_model
    streams, runners = by_model.get(model, 0) + 1, len(by_model)
    if model not in by_model:
        runners += 1
    if oldest == model:
        streams -= 1
    elif by_model.get(oldest) == 1:
        runners -= 1
    return host.known.speeds.share(streams) * runners


def slow_down(host: HostView, model: str, *, joins: bool = False) -> float:
    """How many times slower than alone a job of the model runs beside what runs there; ≥ 1.

    joins: it is not there yet.
    """
    running = host.in_flight_by_model
    streams = running.get(model, 0) + (1 if joins else 0)
    runners = len(running) + (1 if joins and model not in running else 0)
    return host.known.speeds.share(streams) * max(runners, 1)
