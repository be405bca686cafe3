"""What the end of an attempt and the report of a probe teach, and what they must not.

Only an attempt that ended well says anything of speed. One that was broken off says that the
answer would have been longer than what had come. A host that failed teaches nothing but that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import log
from typing import Protocol

from sollol_proxy.core.estimate import LOAD_THRESHOLD_S, phases
from sollol_proxy.core.eviction import Holder
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.running import Running
from sollol_proxy.core.speeds import MIN_PREFILL_TOKENS
from sollol_proxy.core.types import AttemptResult, Job, JobKind, Observation, ResidentModel

_CUT_SHORT = (AttemptResult.CLIENT_GONE, AttemptResult.BROKE)


class Taught(Holder, Protocol):
    """What lessons need of a host."""

    memory: Memory

    @property
    def in_flight_by_model(self) -> Mapping[str, int]:
        """Jobs that hold a slot, by canonical model name."""

    @property
    def loading(self) -> Collection[str]:
        """Models that are being loaded for a job."""


def learn_attempt(
    host: Taught, running: Running, result: AttemptResult, observation: Observation | None
) -> None:
    """An attempt is over."""
    job = running.job
    if not job.kind.takes_slot:
        return
    if result in _CUT_SHORT:
        host.memory.lengths.add_longer_than(
            job.task_type, job.model, job.prompt_tokens_est, running.tokens
        )
    elif result is AttemptResult.COMPLETED and observation is not None:
        _learn_completed(host, running, observation)


def learn_residents(
    host: Taught,
    before: Mapping[str, ResidentModel],
    after: Mapping[str, ResidentModel],
    loads_begun: Collection[str],
) -> None:
    """A probe found `after` in memory where the one before it had found `before`."""
    memory, known = host.memory, host.known
    if known.see(after.values()):
        memory.paces_changed(host.spec.id, "", is_first=True)
    memory.see_footprints(after.values())
    for model in {*before, *after}:
        if model not in host.loading:
            # What a probe shows within a load may be the runner that is about to go.
            known.variants.reported(model, after.get(model))
        if model not in after and model not in host.in_flight_by_model:
            memory.affinity.drop(host.spec.id, model)
    known.room.seen_together(_total(after))
    loaded = [model for model in after if model not in before and model in loads_begun]
    gone = [model for model in before if model not in after]
    if len(loaded) != 1 or not gone:
        return  # nothing left, or not for a load; or too much happened to tell why
    busy = host.in_flight_by_model
    memory.victims.learn(gone, [m for m in before if m in after and m not in busy])
    together = {**before, **after}
    if len(together) <= host.spec.max_models and all(m.size_bytes for m in together.values()):
        known.room.burst(_total(together))


def _total(models: Mapping[str, ResidentModel]) -> int:
    return sum(model.size_bytes for model in models.values())


def _learn_completed(host: Taught, running: Running, told: Observation) -> None:
    job, memory, speeds = running.job, host.memory, host.known.speeds
    copy = host.installed.get(job.model)
    size_bytes = copy.size_bytes if copy is not None else 0
    load_s = told.load_s or 0.0
    loaded = load_s >= LOAD_THRESHOLD_S
    if loaded and not running.beside_load:
        speeds.learn_load(job.model, load_s, size_bytes)
        if not running.was_cold:
            host.known.variants.loaded(job)
    if job.kind is JobKind.LOAD:
        return
    seen = phases(
        told,
        kind=job.kind,
        prompt_tokens_est=job.prompt_tokens_est,
        is_stream=job.stream,
        was_resident=not running.was_cold and not loaded,
    )
    if job.kind is JobKind.TRANSCRIBE and seen.total_s is not None:
        speeds.learn_whole(job.kind, job.model, seen.total_s - load_s)
    memory.learn_prompt(job, seen)
    is_first = speeds.learn(
        job.model,
        seen,
        size_bytes=size_bytes,
        new_tokens=_new_tokens(host, running, seen),
        sharing=running.sharing,
    )
    memory.paces_changed(host.spec.id, job.model, is_first=is_first)
    if seen.output_tokens is not None and job.kind is JobKind.GENERATE:
        _learn_length(memory, job, seen.output_tokens)
    if job.prefix:
        _learn_cache(host, job, seen)


def _learn_length(memory: Memory, job: Job, tokens: int) -> None:
    limit = job.output_limit_tokens
    if limit is not None and limit > 0 and tokens >= limit:
        memory.lengths.add_longer_than(job.task_type, job.model, job.prompt_tokens_est, tokens)
    else:
        memory.lengths.add(job.task_type, job.model, job.prompt_tokens_est, tokens)


def _new_tokens(host: Taught, running: Running, seen: Observation) -> int | None:
    """Prompt tokens that the host had to read; None = it cannot be told, so all of them.

    Where a part was expected in the cache, the time it took says whether it was: the expectation
    that comes nearer, with the cache or without, is taken for true.
    """
    tokens, prefill_s = seen.prompt_tokens, seen.prefill_s
    if not tokens:
        return None
    if seen.cached_tokens is not None:
        return max(tokens - seen.cached_tokens, 0)
    job = running.job
    ratio = tokens / job.prompt_tokens_est if job.prompt_tokens_est else 1.0
    new_tokens = max(tokens - round(running.matched_tokens * ratio), 1)
    if not running.matched_tokens or not prefill_s:
        return None
    rate = host.known.speeds.prefill_of(job.model)
    if rate is None:
        return 0  # nothing to compare with: this sample teaches no speed
    took = prefill_s * rate
    if abs(log(took / new_tokens)) <= abs(log(took / tokens)):
        return new_tokens if new_tokens >= MIN_PREFILL_TOKENS else 0
    host.memory.affinity.deny(host.spec.id, job)
    return None


def _learn_cache(host: Taught, job: Job, seen: Observation) -> None:
    resident = host.resident.get(job.model)
    context = resident.context_length if resident is not None else 0
    copy = host.installed.get(job.model)
    slots = host.spec.model_slots.get(job.model, host.spec.slots)
    if copy is not None and copy.is_embedder:
        slots = 1
    host.memory.affinity.add(
        host.spec.id,
        job,
        answer_tokens=seen.output_tokens or 0,
        context_tokens=context * slots,
    )
