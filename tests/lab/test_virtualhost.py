"""The simulated host's machine, by an injected clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.lab.simhost import SimModel, SimSpec
from sollol_proxy.lab.simjobs import Phase, SimJob
from sollol_proxy.lab.virtualhost import LoadQueueFull, VirtualHost

# 100 output tokens a second, 1000 prompt tokens a second, loads of 2.8 s.
MODEL = SimModel("m", size_bytes=4_900_000_000, params_b=8.0)
OTHERS = tuple(SimModel(name) for name in ("a", "b", "c", "d"))
LOAD_S = 2.8
PROMPT = "x" * 400  # 100 tokens, 0.1 s


def make_host(**changes: object) -> VirtualHost:
    spec: dict[str, object] = {
        "id": "h",
        "decode_tps": 100.0,
        "prefill_tps": 1000.0,
        "load_bytes_per_s": 2_450_000_000,
        "memory_bytes": 100_000_000_000,
        "alpha": 0.5,
        "models": (MODEL, *OTHERS),
        "resident": ("m",),
    }
    return VirtualHost(SimSpec(**(spec | changes)))  # type: ignore[arg-type]


def job(model: SimModel = MODEL, output_tokens: int = 100, **changes: object) -> SimJob:
    fields: dict[str, object] = {"prompt": PROMPT, "output_tokens": output_tokens}
    return SimJob(model=model, **(fields | changes))  # type: ignore[arg-type]


def test_job_takes_prefill_and_decode_when_alone_on_a_warm_model() -> None:
    host = make_host()
    one = host.submit(job(), 1.0)
    host.advance(10.0)
    assert one.slot_s == 1.0
    assert one.prefilled_s == pytest.approx(1.1)
    assert one.ended_s == pytest.approx(2.1)
    assert one.emitted == 100


def test_tokens_appear_at_the_decode_rate() -> None:
    host = make_host()
    one = host.submit(job(), 0.0)
    for now, tokens in ((0.05, 0), (0.1, 0), (0.11, 1), (0.6, 50), (1.09, 99), (1.1, 100)):
        host.advance(now)
        assert one.emitted == tokens, now
    assert one.is_over


@pytest.mark.parametrize(
    ("streams", "alpha", "factor"), [(1, 0.5, 1.0), (2, 0.5, 1.5), (4, 0.1, 1.3)]
)
def test_streams_slow_each_other_by_alpha(streams: int, alpha: float, factor: float) -> None:
    host = make_host(slots=streams, alpha=alpha)
    jobs = [host.submit(job(), 0.0) for _ in range(streams)]
    host.advance(100.0)
    assert [each.ended_s for each in jobs] == pytest.approx([1.1 * factor] * streams)


def test_busy_runners_share_the_host() -> None:
    host = make_host(resident=("m", "a"))
    first, second = host.submit(job(), 0.0), host.submit(job(OTHERS[0]), 0.0)
    host.advance(100.0)
    assert [first.ended_s, second.ended_s] == pytest.approx([2.2, 2.2])


def test_jobs_wait_in_order_when_the_slot_is_taken() -> None:
    host = make_host()
    jobs = [host.submit(job(prompt=str(number) * 400), 0.0) for number in range(4)]
    host.advance(100.0)
    assert [each.ended_s for each in jobs] == pytest.approx([1.1, 2.2, 3.3, 4.4])


def test_bigger_models_decode_slower_and_load_longer() -> None:
    spec = SimSpec(id="h", decode_tps=100, prefill_tps=1000, load_bytes_per_s=1e9)
    big = SimModel("big", size_bytes=9_800_000_000, params_b=16)
    assert spec.decode_tps_of(MODEL) == 100
    assert spec.decode_tps_of(big) == pytest.approx(100 / 2**0.9)
    assert spec.prefill_tps_of(big) == 500
    assert spec.load_s_of(big) == pytest.approx(10.6)


def test_loads_run_one_after_the_other() -> None:
    host = make_host(resident=())
    jobs = [host.submit(job(model), 0.0) for model in OTHERS[:3]]
    host.advance(100.0)
    assert [each.ready_s for each in jobs] == pytest.approx([LOAD_S, 2 * LOAD_S, 3 * LOAD_S])
    assert host.counts.loads == 3


def test_warm_requests_overtake_a_load() -> None:
    host = make_host()
    cold, warm = host.submit(job(OTHERS[0]), 0.0), host.submit(job(), 0.0)
    host.advance(2.0)
    assert warm.is_over
    assert cold.phase is Phase.LOADING


def test_request_behind_a_load_waits_for_it_when_its_model_became_resident() -> None:
    host = make_host(resident=())
    first, other, again = (host.submit(job(m), 0.0) for m in (OTHERS[0], OTHERS[1], OTHERS[0]))
    host.advance(100.0)
    assert again.ready_s == other.ready_s == pytest.approx(2 * LOAD_S)
    assert first.ready_s == pytest.approx(LOAD_S)
    assert host.counts.loads == 2


def test_load_is_thrown_away_when_its_client_leaves() -> None:
    host = make_host(resident=())
    first, second = host.submit(job(OTHERS[0]), 0.0), host.submit(job(OTHERS[0]), 0.0)
    host.cancel(first, 1.5)
    host.advance(100.0)
    assert second.ready_s == pytest.approx(1.5 + LOAD_S)
    assert (host.counts.aborted_loads, host.counts.loads) == (1, 1)


def test_slot_is_free_at_once_when_a_client_leaves() -> None:
    host = make_host()
    first, second = host.submit(job(), 0.0), host.submit(job(prompt="y" * 400), 0.0)
    host.cancel(first, 0.5)
    assert second.slot_s == 0.5
    assert first.is_cancelled
    assert host.counts.cancelled == 1


def test_waiting_job_leaves_no_gap_when_its_client_leaves() -> None:
    host = make_host()
    first, second, third = (host.submit(job(prompt=c * 400), 0.0) for c in "xyz")
    host.cancel(second, 0.2)
    host.advance(100.0)
    assert third.slot_s == first.ended_s


def test_cancel_changes_nothing_when_the_job_is_over() -> None:
    host = make_host()
    one = host.submit(job(), 0.0)
    host.advance(5.0)
    host.cancel(one, 6.0)
    assert not one.is_cancelled
    assert one.emitted == 100
    assert host.counts.cancelled == 0


def test_load_queue_refuses_when_it_is_full_and_warm_requests_go_on() -> None:
    host = make_host(max_queue=2)
    for _ in range(3):  # one loads, two wait
        host.submit(job(OTHERS[0]), 0.0)
    with pytest.raises(LoadQueueFull):
        host.submit(job(OTHERS[1]), 0.0)
    assert host.submit(job(), 0.0).phase is Phase.PREFILL


def test_eviction_takes_the_idle_runner_with_the_shortest_keep_alive() -> None:
    host = make_host(max_models=3, resident=("m", "a", "b"))
    host.submit(job(OTHERS[0], load_only=True, keep_alive_s=10.0), 0.0)
    host.submit(job(OTHERS[1], load_only=True, keep_alive_s=-1.0), 0.0)
    host.submit(job(OTHERS[2]), 1.0)
    host.advance(1.0 + LOAD_S)
    assert set(host.runners) == {"m:latest", "b:latest", "c:latest"}
    assert host.counts.evictions == 1


def test_eviction_waits_when_every_runner_is_busy() -> None:
    host = make_host(max_models=1)
    busy = host.submit(job(), 0.0)
    cold = host.submit(job(OTHERS[0]), 0.0)
    host.advance(100.0)
    assert busy.ended_s == pytest.approx(1.1)
    assert cold.ready_s == pytest.approx(1.1 + LOAD_S)


def test_memory_bounds_the_runners_but_an_empty_host_takes_any_model() -> None:
    host = make_host(memory_bytes=OTHERS[0].memory_bytes, resident=())
    for model in OTHERS[:2]:
        host.submit(job(model, load_only=True), 0.0)
    host.advance(100.0)
    assert set(host.runners) == {"b:latest"}
    small = make_host(memory_bytes=1, resident=())
    small.submit(job(OTHERS[0], load_only=True), 0.0)
    small.advance(100.0)
    assert set(small.runners) == {"a:latest"}


def test_reload_waits_for_the_running_job_when_num_ctx_differs() -> None:
    host = make_host()
    first, second = host.submit(job(), 0.0), host.submit(job(num_ctx=1024), 0.0)
    host.advance(100.0)
    assert second.ready_s == pytest.approx(1.1 + LOAD_S)
    assert first.is_over
    assert host.runners["m:latest"].context_length == 1024
    assert (host.counts.reloads, host.counts.loads) == (1, 1)


@pytest.mark.parametrize("num_ctx", [4096, None])
def test_no_reload_when_num_ctx_is_what_the_runner_has(num_ctx: int | None) -> None:
    host = make_host()
    assert host.submit(job(num_ctx=num_ctx), 0.0).ready_s == 0.0


def test_no_reload_when_num_ctx_is_above_the_trained_length() -> None:
    host = make_host(models=(SimModel("m", context_length=2048),))
    assert host.submit(job(SimModel("m", context_length=2048), num_ctx=9999), 0.0).ready_s == 0.0


def test_runner_leaves_when_it_has_been_idle_for_its_keep_alive() -> None:
    host = make_host(resident=())
    one = host.submit(job(keep_alive_s=5.0), 0.0)
    host.advance(LOAD_S + 1.1 + 4.9)
    assert one.is_over
    assert "m:latest" in host.runners
    host.advance(LOAD_S + 1.1 + 5.1)
    assert host.runners == {}


def test_keep_alive_sticks_to_the_runner_when_later_requests_say_nothing() -> None:
    host = make_host()
    host.submit(job(keep_alive_s=-1.0), 0.0)
    host.submit(job(), 0.0)
    host.advance(1e6)
    assert "m:latest" in host.runners


def test_unload_waits_for_the_running_job() -> None:
    host = make_host()
    one = host.submit(job(), 0.0)
    host.unload(MODEL, 0.5)
    assert "m:latest" in host.runners
    host.advance(2.0)
    assert one.is_over
    assert host.runners == {}


def test_prompt_cache_skips_the_shared_prefix_when_a_turn_follows() -> None:
    host = make_host()
    first = host.submit(job(answer="y" * 400), 0.0)
    host.advance(5.0)
    assert first.is_over
    second = host.submit(job(prompt=PROMPT + "y" * 400 + "z" * 40), 5.0)
    host.advance(10.0)
    assert (second.cached_tokens, second.prompt_tokens) == (200, 210)
    assert second.prefilled_s == pytest.approx(5.01)


def test_prompt_cache_prefers_the_slot_with_the_longer_prefix() -> None:
    host = make_host(slots=2)
    left, right = host.submit(job(prompt="l" * 400), 0.0), host.submit(job(prompt="r" * 400), 0.0)
    host.advance(5.0)
    assert left.is_over
    assert right.is_over
    assert host.submit(job(prompt="r" * 400 + "more"), 5.0).cached_tokens == 100


def test_last_prompt_token_is_computed_when_all_of_it_is_cached() -> None:
    host = make_host()
    host.submit(job(), 0.0)
    host.advance(5.0)
    again = host.submit(job(), 5.0)
    host.advance(10.0)
    assert again.prefilled_s == pytest.approx(5.001)


def test_embedding_model_has_one_slot_whatever_the_host_has() -> None:
    embedder = SimModel("e", capabilities=("embedding",))
    host = make_host(slots=4, models=(embedder,), resident=("e",))
    jobs = [host.submit(job(embedder, 0, prompt=c * 400), 0.0) for c in "ab"]
    host.advance(5.0)
    assert [each.ended_s for each in jobs] == pytest.approx([0.1, 0.2])


def test_slow_host_takes_its_factor_longer_from_then_on() -> None:
    host = make_host()
    one = host.submit(job(), 0.0)
    host.slow_down(3.0, 0.6)
    host.advance(10.0)
    assert one.ended_s == pytest.approx(0.6 + 0.5 * 3)


ARRIVALS = st.lists(
    st.tuples(
        st.floats(0, 5),  # seconds after the one before
        st.sampled_from((MODEL, *OTHERS)),
        st.integers(0, 60),
        st.sampled_from((None, 1024)),
        st.none() | st.floats(0, 8),  # when its client leaves, after its arrival
    ),
    max_size=12,
)


@given(ARRIVALS, st.integers(1, 3), st.integers(1, 3))
def test_every_job_ends_and_no_slot_is_overrun(
    arrivals: list[tuple[float, SimModel, int, int | None, float | None]],
    slots: int,
    max_models: int,
) -> None:
    host = make_host(slots=slots, max_models=max_models)
    events: list[tuple[float, int, SimJob]] = []
    now = 0.0
    for gap_s, model, tokens, num_ctx, leaves_s in arrivals:
        now += gap_s
        one = job(model, tokens, num_ctx=num_ctx)
        events.append((now, 0, one))
        if leaves_s is not None:
            events.append((now + leaves_s, 1, one))
    for instant, kind, one in sorted(events, key=lambda event: event[:2]):
        if kind == 0:
            host.submit(one, instant)
        else:
            host.cancel(one, instant)
        assert len(host.runners) <= max_models
        assert all(len(runner.active) <= slots for runner in host.runners.values())
    host.advance(now + 10_000)
    for _, _, one in events:
        assert one.is_over
        assert one.is_cancelled or one.emitted == one.output_tokens


@given(ARRIVALS, st.lists(st.floats(0, 80), max_size=30))
def test_ends_do_not_depend_on_how_often_the_time_is_told(
    arrivals: list[tuple[float, SimModel, int, int | None, float | None]], glances: list[float]
) -> None:
    ends = []
    for extra in ([], glances):
        host = make_host(slots=2)
        jobs: list[SimJob] = []
        now = 0.0
        moments: list[tuple[float, SimJob | None]] = [(glance, None) for glance in extra]
        for gap_s, model, tokens, num_ctx, _ in arrivals:
            now += gap_s
            jobs.append(job(model, tokens, num_ctx=num_ctx))
            moments.append((now, jobs[-1]))
        for instant, one in sorted(moments, key=lambda moment: moment[0]):
            if one is None:
                host.advance(instant)
            else:
                host.submit(one, instant)
        host.advance(10_000)
        ends.append([one.ended_s for one in jobs])
    assert ends[0] == pytest.approx(ends[1])
