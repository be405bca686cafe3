"""All that was learnt, as one object."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.memory import (
    CPU_RATIO,
    DEFAULT_DECODE_TOKENS_PER_S,
    DEFAULT_PREFILL_TOKENS_PER_S,
    MAX_PROMPTS,
    MIN_ESTIMATE_TOKENS,
    REFERENCE_BYTES,
    HostMemory,
    Memory,
    Pace,
)
from sollol_proxy.core.room import footprint_bytes
from sollol_proxy.core.types import InstalledModel, Observation, ResidentModel, TaskType
from tests.core.builders import MODEL, job

GB = 10**9
CLOSE = 1 + 1e-9

hosts = st.sampled_from(["a", "b", "c"])
models = st.sampled_from(["m", "n"])
rates = st.floats(1.0, 10_000.0)
sizes = st.integers(0, 20).map(lambda size: size * GB)
measured = st.lists(st.tuples(hosts, models, rates, rates), max_size=8)
few = settings(max_examples=30)

rubbish = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def learn(memory: Memory, host_id: str, model: str, prefill: float, decode: float) -> None:
    """A job alone on the host was as fast as this."""
    speeds = memory.of(host_id).speeds
    is_first = speeds.decode_of(model) is None or speeds.prefill_of(model) is None
    told = Observation(1000, 100, prefill_s=1000 / prefill, decode_s=100 / decode)
    speeds.learn(model, told, size_bytes=GB)
    memory.paces_changed(host_id, model, is_first=is_first)


def see(memory: Memory, host_id: str, resident: Iterable[ResidentModel]) -> None:
    """A probe found these on the host."""
    found = list(resident)
    memory.of(host_id).see(found)
    memory.see_footprints(found)


def on_gpu(name: str = MODEL, size_bytes: int = GB) -> ResidentModel:
    return ResidentModel(name, digest="d", size_bytes=size_bytes, size_vram_bytes=size_bytes)


def on_cpu(name: str = MODEL, size_bytes: int = GB) -> ResidentModel:
    return ResidentModel(name, digest="d", size_bytes=size_bytes)


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    """Something learnt of everything."""
    memory = Memory()
    for host_id, model, prefill, decode in draw(measured):
        learn(memory, host_id, model, prefill, decode)
    for host_id, model, has_gpu in draw(
        st.lists(st.tuples(hosts, models, st.booleans()), max_size=4)
    ):
        see(memory, host_id, [on_gpu(model) if has_gpu else on_cpu(model)])
        memory.of(host_id).room.seen_together(draw(st.integers(1, 9)) * GB)
    for model, counted, length in draw(
        st.lists(st.tuples(models, st.integers(1, 9000), st.integers(1, 9000)), max_size=4)
    ):
        asked = job("j", model=model, prompt_tokens_est=100)
        memory.learn_prompt(asked, Observation(prompt_tokens=counted))
        memory.lengths.add(asked.task_type, model, 100, length)
        memory.demand.add(model, 1.0)
        memory.victims.learn([model], ["other"])
        memory.stats.add(asked, Observation(total_s=1.0, output_tokens=length))
    return memory


def predictions(memory: Memory) -> list[object]:
    """What policies read of it."""
    told: list[object] = []
    for model in ("m", "n", "new"):
        told.append(memory.prompt_ratio(model))
        told.append(memory.footprint_bytes(model, None))
        told.append(memory.victims.rank(model))
        told.append(memory.lengths.expected(TaskType.GENERATION, model, 100, beyond=50))
        for host_id in ("a", "b", "c", "new"):
            known = memory.of(host_id)
            told.append(memory.pace(host_id, model, 3 * GB))
            told.append(known.speeds.load_s(model, 3 * GB))
            told.append((known.is_cpu, known.room.holds(4 * GB, None)))
    return told


@few
@given(history=st.lists(st.tuples(rates, rates), min_size=1, max_size=10))
def test_pace_lies_within_its_samples(history: list[tuple[float, float]]) -> None:
    memory = Memory()
    for prefill, decode in history:
        memory.pace("a", MODEL, GB)
        learn(memory, "a", MODEL, prefill, decode)
    pace = memory.pace("a", MODEL, GB)
    for index, told in enumerate((pace.prefill, pace.decode)):
        samples = [sample[index] for sample in history]
        assert min(samples) / CLOSE <= told <= max(samples) * CLOSE


@few
@given(memory=memories(), host_id=hosts, model=st.sampled_from(["m", "n", "new"]), size=sizes)
def test_pace_is_positive_and_finite_whatever_was_learnt(
    memory: Memory, host_id: str, model: str, size: int
) -> None:
    pace = memory.pace(host_id, model, size)
    assert 0 < pace.prefill < float("inf")
    assert 0 < pace.decode < float("inf")


@pytest.mark.parametrize(("is_cpu", "ratio"), [(None, 1.0), (False, 1.0), (True, CPU_RATIO)])
def test_pace_is_a_default_of_its_kind_when_nothing_was_learnt(
    is_cpu: bool | None, ratio: float
) -> None:
    memory = Memory()
    memory.of("a").is_cpu = is_cpu
    assert memory.pace("a", MODEL, REFERENCE_BYTES) == pytest.approx(
        (DEFAULT_PREFILL_TOKENS_PER_S * ratio, DEFAULT_DECODE_TOKENS_PER_S * ratio)
    )


def test_pace_of_an_unknown_host_is_the_median_of_its_kind() -> None:
    memory = Memory()
    for host_id, rate in (("a", 100.0), ("b", 200.0), ("c", 900.0)):
        memory.of(host_id).is_cpu = False
        learn(memory, host_id, MODEL, rate, rate / 10)
    memory.of("slow").is_cpu = True
    learn(memory, "slow", MODEL, 5.0, 1.0)
    memory.of("slow, too").is_cpu = True
    assert memory.pace("new", MODEL, GB) == pytest.approx((200.0, 20.0))
    assert memory.pace("slow, too", MODEL, GB) == pytest.approx((5.0, 1.0))


def test_pace_that_was_guessed_follows_the_first_measurement_elsewhere() -> None:
    memory = Memory()
    memory.pace("new", MODEL, GB)
    learn(memory, "a", MODEL, 123.0, 12.0)
    assert memory.pace("new", MODEL, GB) == pytest.approx((123.0, 12.0))


@few
@given(history=measured, host_id=hosts, model=models)
def test_pace_once_measured_does_not_depend_on_when_it_was_asked_for(
    history: list[tuple[str, str, float, float]], host_id: str, model: str
) -> None:
    asked_often, asked_once = Memory(), Memory()
    for other, other_model, prefill, decode in history:
        asked_often.pace(host_id, model, GB)
        learn(asked_often, other, other_model, prefill, decode)
        learn(asked_once, other, other_model, prefill, decode)
    if asked_once.of(host_id).speeds.decode_of(model) is not None:
        assert asked_often.pace(host_id, model, GB) == asked_once.pace(host_id, model, GB)


@few
@given(counts=st.lists(st.integers(1, 10_000), max_size=10), estimated=st.integers(16, 5000))
def test_prompt_ratio_lies_within_its_samples_or_is_1(counts: list[int], estimated: int) -> None:
    memory = Memory()
    asked = job("j", prompt_tokens_est=estimated)
    for counted in counts:
        memory.learn_prompt(asked, Observation(prompt_tokens=counted))
    samples = [min(max(counted / estimated, 0.1), 10.0) for counted in counts] or [1.0]
    assert min(samples) / CLOSE <= memory.prompt_ratio(MODEL) <= max(samples) * CLOSE
    assert memory.prompt_ratio("other") == 1.0


@pytest.mark.parametrize(
    ("estimated", "counted"), [(MIN_ESTIMATE_TOKENS - 1, 500), (500, 0), (500, None)]
)
def test_prompt_ratio_learns_nothing_from_too_little(estimated: int, counted: int | None) -> None:
    memory = Memory()
    asked = job("j", prompt_tokens_est=estimated)
    memory.learn_prompt(asked, Observation(prompt_tokens=counted))
    assert memory.prompt_ratio(MODEL) == 1.0


@few
@given(seen=st.lists(st.integers(1, 20), min_size=1, max_size=5), size=sizes)
def test_footprint_is_as_last_seen_anywhere(seen: list[int], size: int) -> None:
    memory = Memory()
    copy = InstalledModel(MODEL, size_bytes=size)
    assert memory.footprint_bytes(MODEL, None) == 0
    assert memory.footprint_bytes(MODEL, copy) == footprint_bytes(size)
    for gigabytes in seen:
        memory.see_footprints([on_gpu(size_bytes=gigabytes * GB)])
    memory.see_footprints([ResidentModel(MODEL, digest="d"), ResidentModel(MODEL, "", 99)])
    assert memory.footprint_bytes(MODEL, copy) == seen[-1] * GB
    assert memory.footprint_bytes(MODEL, None) == seen[-1] * GB


def test_tables_by_model_are_bounded() -> None:
    memory = Memory()
    for index in range(MAX_PROMPTS + 10):
        memory.see_footprints([on_gpu(f"m{index}")])
        asked = job("j", model=f"m{index}", prompt_tokens_est=100)
        memory.learn_prompt(asked, Observation(prompt_tokens=200))
    exported = memory.export()
    assert (len(exported["footprints"]), len(exported["prompts"])) == (MAX_PROMPTS, MAX_PROMPTS)
    assert memory.prompt_ratio("m0") == pytest.approx(2.0)
    assert memory.prompt_ratio(f"m{MAX_PROMPTS + 5}") == 1.0


@pytest.mark.parametrize(
    ("resident", "is_cpu"),
    [([], None), ([on_cpu()], True), ([on_gpu()], False), ([on_cpu("a"), on_gpu("b")], False)],
)
def test_kind_of_a_host_is_told_by_what_it_holds(
    resident: list[ResidentModel], is_cpu: bool | None
) -> None:
    known = HostMemory()
    known.see(resident)
    assert known.is_cpu is is_cpu
    known.see([])
    known.see([ResidentModel(MODEL, size_vram_bytes=0)])  # a load under way: not told by the host
    assert known.is_cpu is is_cpu


@few
@given(memory=memories())
def test_predictions_are_the_same_after_json(memory: Memory) -> None:
    restored = Memory()
    learn(restored, "a", "m", 3.0, 2.0)  # what was known before does not mix in
    restored.pace("b", "m", GB)
    restored.restore(json.loads(json.dumps(memory.export(), allow_nan=False)))
    assert restored.export() == memory.export()
    assert predictions(restored) == predictions(memory)


def test_demand_and_caches_do_not_outlive_a_restart() -> None:
    memory, restored = Memory(), Memory()
    asked = job("j", prefix=(1,), prefix_tokens=(64,))
    memory.demand.add(MODEL, 1.0)
    memory.affinity.add("a", asked, answer_tokens=0, context_tokens=4096)
    restored.restore(memory.export())
    assert restored.demand.next_minute(MODEL, 1.0) == 0.0
    assert restored.affinity.matched_tokens("a", asked) == 0


@few
@given(memory=memories())
def test_forgetting_is_beginning_anew(memory: Memory) -> None:
    predictions(memory)
    memory.affinity.add(
        "a", job("j", prefix=(1,), prefix_tokens=(64,)), answer_tokens=0, context_tokens=4096
    )
    memory.forget()
    assert memory.export() == Memory().export()
    assert predictions(memory) == predictions(Memory())
    assert memory.demand.next_minute("m", 1.0) == 0.0
    assert memory.affinity.models("a") == []


def test_what_is_learnt_after_forgetting_does_not_reach_another_memory() -> None:
    memory = Memory()
    memory.forget()
    learn(memory, "a", MODEL, 5.0, 5.0)
    memory.forget()
    assert memory.pace("a", MODEL, REFERENCE_BYTES) == Pace(
        DEFAULT_PREFILL_TOKENS_PER_S, DEFAULT_DECODE_TOKENS_PER_S
    )


PARTS = ("hosts", "lengths", "victims", "stats", "footprints", "prompts")
HOST_PARTS = ("speeds", "variants", "room", "is_cpu")
host = st.fixed_dictionaries({}, optional=dict.fromkeys(HOST_PARTS, rubbish))
part = rubbish | st.dictionaries(models, host, max_size=2)


@few
@given(given_=rubbish | st.fixed_dictionaries({}, optional=dict.fromkeys(PARTS, part)))
def test_rubbish_raises_value_error_and_changes_nothing_or_is_taken_over(given_: object) -> None:
    memory = Memory()
    learn(memory, "a", "m", 300.0, 20.0)
    before = memory.export()
    try:
        memory.restore(given_)
    except ValueError:
        assert memory.export() == before
        assert memory.pace("a", "m", GB) == pytest.approx((300.0, 20.0))
    else:
        again = Memory()
        again.restore(memory.export())
        assert again.export() == memory.export()


@few
@given(memory=memories(), data=st.data())
def test_spoilt_part_raises_value_error_and_changes_nothing(
    memory: Memory, data: st.DataObject
) -> None:
    exported = json.loads(json.dumps(memory.export()))
    name = data.draw(st.sampled_from(PARTS))
    exported[name] = data.draw(st.sampled_from([None, 5, "text", [1], [[1]], {"m": None}]))
    if name in ("lengths", "stats") and isinstance(exported[name], dict):
        exported[name] = {"by_task": [[1]], "rows": [[1]]}
    kept = Memory()
    learn(kept, "a", "m", 300.0, 20.0)
    before = kept.export()
    with pytest.raises(ValueError, match="expected"):
        kept.restore(exported)
    assert kept.export() == before


@pytest.mark.parametrize("is_cpu", [0, 1, "true", []])
def test_kind_of_a_host_is_refused_when_it_is_no_truth_value(is_cpu: object) -> None:
    with pytest.raises(ValueError, match="is_cpu"):
        HostMemory.restored({"is_cpu": is_cpu})


@pytest.mark.parametrize(
    "given_facts",
    [
        {"footprints": {"a": 10**400}},
        {"hosts": {"h": {"speeds": {"prefill": {"a": 1.0}, "sizes": {"a": 0}}}}},
        {"lengths": {"by_model": [["m", 1, [[43, 1e308, 1e308], [42, 1e308, 1e308]]]]}},
    ],
)
def test_memory_refuses_numbers_that_it_could_not_reckon_with(given_facts: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        Memory().restore(given_facts)


def test_pace_follows_when_a_host_turns_out_to_have_no_gpu() -> None:
    memory = Memory()
    assert memory.pace("a", MODEL, REFERENCE_BYTES).decode == DEFAULT_DECODE_TOKENS_PER_S
    assert memory.of("a").see([ResidentModel(MODEL, digest="d", size_bytes=1)])
    memory.paces_changed("a", MODEL, is_first=True)
    slow = DEFAULT_DECODE_TOKENS_PER_S * CPU_RATIO
    assert memory.pace("a", MODEL, REFERENCE_BYTES).decode == pytest.approx(slow)


def test_full_tables_go_on_learning_of_the_models_they_have() -> None:
    memory = Memory()
    for number in range(MAX_PROMPTS + 1):
        memory.see_footprints([ResidentModel(f"m{number}", digest="d", size_bytes=5)])
    memory.see_footprints([ResidentModel("m0", digest="d", size_bytes=9)])
    assert memory.footprint_bytes("m0", None) == 9
    assert memory.footprint_bytes(f"m{MAX_PROMPTS}", None) == 0
