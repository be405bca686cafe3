"""Hosts with learnt speeds, and what they run, for tests of the planner. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from sollol_proxy.core.health import HealthRules
from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.completion_time import CompletionTime
from sollol_proxy.core.policies.scene import Options
from sollol_proxy.core.types import (
    AttemptResult,
    Cost,
    Decision,
    Job,
    JobKind,
    Observation,
    TaskType,
)
from tests.core.builders import job, report, spec

MODELS = ("a:1", "b:1", "c:1")
GB = 10**9
NOW = 100.0
RULES = HealthRules(eject_after=1, backoff_s=1.0)

speeds = st.tuples(st.floats(20.0, 5000.0), st.floats(2.0, 200.0))
"""Tokens a second: prompt, output."""


@dataclass(frozen=True)
class Row:
    """One host. running: model, kind and begin of each job in flight, seconds before `NOW`."""

    speed: tuple[float, float] = (800.0, 30.0)
    models: tuple[str, ...] = ("a:1",)
    resident: tuple[str, ...] = ("a:1",)
    slots: int = 1
    max_models: int = 3
    load_s: float = 5.0
    running: tuple[tuple[str, JobKind, float], ...] = ()
    on_trial: bool = False
    is_measured: bool = True


def teach(memory: Memory, host_id: str, model: str, speed: tuple[float, float]) -> None:
    """The host has measured exactly this speed with the model."""
    prefill, decode = speed
    told = Observation(1000, 1000, prefill_s=1000 / prefill, decode_s=1000 / decode)
    memory.of(host_id).speeds.learn(model, told, size_bytes=GB)
    memory.paces_changed(host_id, model, is_first=True)


def host_of(host_id: str, row: Row, memory: Memory) -> HostEntry:
    """The host at `NOW`."""
    made = spec(host_id, slots=row.slots, max_models=row.max_models)
    host = HostEntry(made, RULES, 0.0, memory=memory)
    resident = tuple(name for name in row.resident if name in row.models)
    host.report(report(host_id, *row.models, resident=resident), 0.0)
    for model in row.models if row.is_measured else ():
        teach(memory, host_id, model, row.speed)
        memory.of(host_id).speeds.learn_load(model, row.load_s, GB)
    if row.on_trial:
        host.begin(job("failure", model=row.models[0]), 0.0)
        host.end("failure", AttemptResult.FAILED, None, "boom", 0.0)
        host.report(report(host_id, *row.models, resident=resident), 50.0)
    for number, (model, kind, ago_s) in enumerate(row.running):
        if model in row.models and host.free_slots(model) > 0:
            host.begin(job(f"{host_id} runs {number}", model=model, kind=kind), NOW - ago_s)
    return host


def pool_of(rows: list[Row], memory: Memory) -> list[HostEntry]:
    """Hosts h0, h1, … at `NOW`."""
    return [host_of(f"h{number}", row, memory) for number, row in enumerate(rows)]


def planner(memory: Memory, options: Options | None = None) -> CompletionTime:
    policy = CompletionTime(options=options)
    policy.memory = memory
    return policy


def teach_lengths(memory: Memory, lengths: Sequence[int]) -> None:
    for tokens in lengths:
        for model in ("a:1", "b:1", "c:1"):
            memory.lengths.add(TaskType.GENERATION, model, 100, tokens)


def only(decisions: Sequence[Decision]) -> Decision:
    """The one decision there is."""
    [decision] = decisions
    return decision


def terms(cost: Cost) -> dict[str, float]:
    return {term.name: term.value for term in cost.terms}


slot_kinds = st.sampled_from([kind for kind in JobKind if kind.takes_slot])
prefixes = st.sampled_from([(), (1,), (1, 2), (1, 2, 3), (9,)])


def _job(
    kind: JobKind, model: str, priority: int, ago_s: float, prompt: int, prefix: tuple[int, ...]
) -> Job:
    if kind is not JobKind.GENERATE:
        prefix = ()  # nothing else has one: see `ollama.describe`
    return job(
        "template",
        kind=kind,
        model=model,
        priority=priority,
        arrived_s=NOW - ago_s,
        prompt_tokens_est=prompt,
        prefix=prefix,
        prefix_tokens=tuple(prompt * (n + 1) // len(prefix) for n in range(len(prefix))),
    )


templates = st.builds(
    _job,
    slot_kinds,
    st.sampled_from(MODELS),
    st.integers(1, 10),
    st.floats(0.0, 90.0),
    st.integers(0, 8000),
    prefixes,
)
"""Jobs that arrived before `NOW` and want a slot; all with the same id."""

rows = st.builds(
    Row,
    speed=speeds,
    models=st.sampled_from([("a:1",), ("b:1",), ("a:1", "b:1"), MODELS]),
    resident=st.sampled_from([(), ("a:1",), ("b:1", "a:1"), MODELS]),
    slots=st.integers(1, 3),
    max_models=st.integers(1, 3),
    load_s=st.floats(0.6, 60.0),
    running=st.lists(
        st.tuples(st.sampled_from(MODELS), slot_kinds, st.floats(0.0, 90.0)), max_size=3
    ).map(tuple),
    on_trial=st.sampled_from([False, False, False, True]),
)
