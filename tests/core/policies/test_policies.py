"""What is particular to the simple policies, and the table itself."""

from __future__ import annotations

from random import Random

import pytest

from sollol_proxy.core.policies import POLICIES, make_policy
from sollol_proxy.core.policies.least_in_flight import LeastInFlight
from sollol_proxy.core.policies.round_robin import RoundRobin
from sollol_proxy.errors import ConfigError
from tests.core.builders import entry, job, spec


def test_names_of_the_table_are_the_policies_own() -> None:
    assert all(name == getattr(made, "name", None) for name, made in POLICIES.items())


def test_least_in_flight_weighs_jobs_by_slots() -> None:
    small, large = entry(spec("small", slots=2)), entry(spec("large", slots=8))
    small.begin(job("1"), 0.0)
    for number in range(3):
        large.begin(job(f"l{number}"), 0.0)
    [decision] = LeastInFlight(Random(0)).plan([job("x")], [small, large], 0.0)
    assert decision.host_id == "large"


def test_round_robin_takes_turns() -> None:
    hosts = [entry(spec(name, slots=9)) for name in "abc"]
    policy = RoundRobin(Random(0))
    turns = []
    for number in range(9):
        [decision] = policy.plan([job(f"{number}")], hosts, 0.0)
        for host in hosts:
            host.resident.clear()
        turns.append(decision.host_id)
    assert sorted(turns[:3]) == ["a", "b", "c"]
    assert turns[:3] == turns[3:6] == turns[6:]


def test_policy_of_a_stranger_is_loaded_by_its_path() -> None:
    made = make_policy("sollol_proxy.core.policies.round_robin:RoundRobin", Random(0))
    assert made.name == "round_robin"


@pytest.mark.parametrize("name", ["fastest", "no.such.module:Policy", "random:Nothing", ":"])
def test_policy_that_does_not_exist_is_a_config_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match="policy"):
        make_policy(name, Random(0))
