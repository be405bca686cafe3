"""The fluid capacity against cases that can be worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.lab.capacity import capacity_rps, mean_service_s, service_s
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.workload import Demand

M, OTHER = SimModel("m"), SimModel("other")


def host(host_id: str, decode_tps: float, *models: SimModel, **changes: object) -> SimSpec:
    fields: dict[str, object] = {"prefill_tps": 1000.0, "alpha": 0.0}
    return SimSpec(id=host_id, decode_tps=decode_tps, models=models, **(fields | changes))  # type: ignore[arg-type]


def test_capacity_of_one_host_is_the_inverse_of_the_service_time() -> None:
    # 1 s prefill and 2 s decode.
    assert capacity_rps([host("a", 50.0, M)], [Demand(1.0, M, 1000, 100)]) == pytest.approx(1 / 3)


def test_capacity_adds_up_over_hosts_for_one_kind() -> None:
    hosts = [host("a", 100.0, M), host("b", 50.0, M)]
    assert capacity_rps(hosts, [Demand(1.0, M, 0, 100)]) == pytest.approx(1.5)


def test_capacity_is_bound_by_the_model_that_only_one_host_has() -> None:
    hosts = [host("a", 100.0, M, OTHER), host("b", 100.0, M)]
    demands = [Demand(0.2, M, 0, 100), Demand(0.8, OTHER, 0, 100)]
    # Host a does nothing but the other model: one a second, which is four fifths of the whole.
    assert capacity_rps(hosts, demands) == pytest.approx(1.25)


def test_capacity_gives_each_host_what_it_does_best() -> None:
    # Host a decodes ten times faster, both read prompts alike: splitting evenly would give 20/11.
    hosts = [host("a", 1000.0, M), host("b", 100.0, M)]
    demands = [Demand(0.5, M, 1000, 0), Demand(0.5, M, 0, 100)]
    # a: 0.1 s a decode, b: 1 s; both 1 s a prompt. b reads prompts only; a decodes and reads too.
    # r/2 · 0.1 + (r/2 - 1) · 1 = 1 → r = 2 / 0.55
    assert capacity_rps(hosts, demands) == pytest.approx(2 / 0.55)


def test_capacity_grows_with_slots_as_far_as_the_host_shares_its_time() -> None:
    demand = Demand(1.0, M, 0, 100)
    four = host("a", 100.0, M, slots=4, alpha=0.5)
    assert service_s(four, demand) == pytest.approx(2.5 / 4)
    assert capacity_rps([four], [demand]) == pytest.approx(4 / 2.5)


def test_capacity_is_nothing_when_a_kind_has_no_host() -> None:
    demands = [Demand(0.5, M, 0, 1), Demand(0.5, OTHER, 0, 1)]
    assert capacity_rps([host("a", 100.0, M)], demands) == 0.0
    assert mean_service_s(host("a", 100.0), demands) is None


@settings(max_examples=30, deadline=None)
@given(
    speeds=st.lists(st.floats(1, 200), min_size=1, max_size=4),
    lengths=st.lists(st.tuples(st.floats(1, 3000), st.floats(1, 600)), min_size=1, max_size=3),
)
def test_capacity_is_at_least_that_of_an_even_split(
    speeds: list[float], lengths: list[tuple[float, float]]
) -> None:
    hosts = [host(f"h{i}", speed, M) for i, speed in enumerate(speeds)]
    demands = [Demand(1 / len(lengths), M, prompt, output) for prompt, output in lengths]
    times = [mean_service_s(one, demands) for one in hosts]
    even = sum(1 / seconds for seconds in times if seconds)
    best = sum(1 / min(service_s(one, d) or 1e9 for d in demands) for one in hosts)
    assert even * (1 - 1e-6) <= capacity_rps(hosts, demands) <= best * (1 + 1e-6)
