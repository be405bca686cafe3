"""The scheduler's bounds as a configuration sets them."""

from __future__ import annotations

from sollol_proxy.config.schema import Config
from sollol_proxy.core.health import HealthRules
from sollol_proxy.core.scheduler import SchedulerRules


def scheduler_rules(config: Config) -> SchedulerRules:
    """What the queue, the retries and the choice among different copies go by."""
    retries, queue = config.retries, config.queue
    return SchedulerRules(
        max_waiting=queue.max_waiting,
        ageing_s=queue.ageing,
        boost_s=queue.boost,
        overtaking_s=queue.overtaking,
        no_host_wait_s=queue.no_host_wait,
        keeps_newest=config.drift == "newest",
        health=HealthRules(retries.eject_after, retries.backoff, retries.backoff_max),
    )
