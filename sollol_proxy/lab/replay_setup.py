"""The setups that a replay compares: the pool as it was, and as a configuration would have it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from sollol_proxy.config.load import load
from sollol_proxy.config.schema import Config, HostSection
from sollol_proxy.core.policies import POLICIES, make_policy
from sollol_proxy.core.types import HostSpec
from sollol_proxy.lab.replay_hosts import LoggedSpec
from sollol_proxy.lab.replay_log import Entry, LogError
from sollol_proxy.lab.replay_run import Setup


def asked_for(path: str | None, policy: str | None) -> Config | None:
    """The configuration to compare with; None = neither a file nor a policy is named.

    Raises:
        ConfigError: the file is wrong, or there is no such policy.
        LogError: it cannot be read.
    """
    if path is None and policy is None:
        return None
    config = load(path, environment={}, flags={"policy": policy}, policies=POLICIES)
    make_policy(config.policy, Random(0))  # rather now than after the first run
    return config


def policy_of(entries: Sequence[Entry], asked: Config | None) -> str:
    """The policy that made most of the log's decisions.

    Raises:
        LogError: it is not known here.
    """
    name = Counter(entry.policy for entry in entries).most_common(1)[0][0]
    if name in POLICIES:
        return name
    # A policy of the operator's own is logged by its name, which says not where it lives.
    if asked is not None and make_policy(asked.policy, Random(0)).name == name:
        return asked.policy
    known = ", ".join(POLICIES)
    raise LogError(
        f"the log's policy {name[:80]!r} is not one of {known}; --policy package.module:Class"
    )


def as_logged(config: Config, hosts: Sequence[LoggedSpec]) -> Setup:
    """The pool as the log shows it."""
    specs = [
        HostSpec(host.id, f"http://{host.id}", slots=host.slots, max_models=max(3, host.max_models))
        for host in hosts
    ]
    return Setup(config, hosts, specs)


def configured(base: Setup, config: Config) -> Setup:
    """The pool under another configuration, whose hosts are those of the log by their ids.

    Raises:
        LogError: none of its hosts is in the log.
    """
    if not config.hosts:
        return replace(base, config=config)
    by_id = {host.id: host for host in base.hosts}
    known = [section for section in config.hosts if section.id in by_id]
    if not known:
        ids = ", ".join(by_id)
        raise LogError(f"no host of the configuration is in the log, which has {ids}")
    if strange := [section.id for section in config.hosts if section.id not in by_id]:
        sys.stderr.write(f"not in the log, so left out: {', '.join(strange)}\n")
    specs = [_spec(section, by_id[section.id]) for section in known]
    hosts = [
        replace(
            by_id[spec.id],
            slots=max(spec.slots, *spec.model_slots.values(), 1),
            has_gpu=spec.memory_bytes != 0,
        )
        for spec in specs
    ]
    return Setup(config, hosts, specs)


def _spec(section: HostSection, host: LoggedSpec) -> HostSpec:
    """What is configured of a host; as the log shows it where the configuration is silent."""
    spec = section.spec()
    return spec if "slots" in section.model_fields_set else replace(spec, slots=host.slots)
