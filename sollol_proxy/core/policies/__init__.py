"""The policies by name. A new one is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from random import Random

from sollol_proxy.core.policies.base import Policy
from sollol_proxy.core.policies.completion_time import CompletionTime
from sollol_proxy.core.policies.least_in_flight import LeastInFlight
from sollol_proxy.core.policies.round_robin import RoundRobin
from sollol_proxy.core.policies.seven_factor import SevenFactor
from sollol_proxy.errors import ConfigError, ConfigProblem

POLICIES: dict[str, Callable[[Random], Policy]] = {
    CompletionTime.name: CompletionTime,
    SevenFactor.name: SevenFactor,
    LeastInFlight.name: LeastInFlight,
    RoundRobin.name: RoundRobin,
}


def make_policy(name: str, rng: Random) -> Policy:
    """The policy of that name, or of a dotted path `package.module:Class`.

    Raises:
        ConfigError: no such policy, module or class.
    """
    known = POLICIES.get(name)
    if known is not None:
        return known(rng)
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise _problem(f"{name!r} is not one of {', '.join(POLICIES)}")
    try:
        factory = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _problem(f"{name!r} cannot be loaded: {error}") from error
    policy: Policy = factory(rng)
    return policy


def _problem(message: str) -> ConfigError:
    return ConfigError([ConfigProblem("configuration", None, "policy", message)])
