"""Who used how much of a core while something was measured, and whether that spoils the figure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sollol_proxy.lab.bench_machine import Busy, family_used, machine, processes

MOST_BUSY_RATIO = 0.8
"""Of its core; a client or a host above it holds up whoever is between them."""


LEAST_FULL_RATIO = 0.9
"""Of its core, that a relay uses which is asked without a pause; else it waited for others."""

ONE_BY_ONE = ("first", "busy")


@dataclass(frozen=True, slots=True)
class Usage:
    """Cores used on average over a window of `wall_s`; None = nobody knows.

    others: by whatever else runs on this machine.
    """

    wall_s: float
    relay: float | None
    clients: float | None
    hosts: float | None
    others: float | None

    def cpu_us_per(self, units: int) -> float | None:
        """CPU microseconds of the relay for each of so many units."""
        if self.relay is None or not units:
            return None
        return self.relay * self.wall_s / units * 1e6

    def shares(self) -> dict[str, float | None]:
        """For the JSON file."""
        return {
            "relay_cores": _rounded(self.relay),
            "clients_cores": _rounded(self.clients),
            "hosts_cores": _rounded(self.hosts),
            "others_cores": _rounded(self.others),
        }


class Meter:
    """Counts from its making on. pid: of the relay; None = it is not counted."""

    def __init__(self, pid: int | None, hosts_pid: int) -> None:
        self._pid = pid
        self._hosts_pid = hosts_pid
        self._before, self._began_s = self._read(), monotonic()

    def usage(self) -> Usage:
        """Since the beginning."""
        wall_s = monotonic() - self._began_s
        relay, clients, hosts, all_of_us, everybody = map(_cores, self._before, self._read())
        # A relay that is not counted is among the others.
        others = None if all_of_us is None or everybody is None else everybody - all_of_us
        return Usage(wall_s, relay, clients, hosts, None if others is None else max(0.0, others))

    def _read(self) -> tuple[Busy | None, ...]:
        relay = family_used(self._pid) if self._pid is not None else None
        clients, hosts = processes([os.getpid()]), processes([self._hosts_pid])
        parts = [part for part in (relay, clients, hosts) if part is not None]
        all_of_us = Busy(sum(part.cpu_s for part in parts), monotonic())
        return relay, clients, hosts, all_of_us, machine()


def is_floor(line: Mapping[str, Any], load_cores: int) -> bool:
    """Whether something else held up the relay: then it can do more than the figures say.

    load_cores: that clients and hosts share; 0 = they share one with the relay. Who asks one by one
    waits for the answer with all its time, so there nobody is held up.
    """
    relay, clients, hosts = (line.get(f"{who}_cores") for who in ("relay", "clients", "hosts"))
    if clients is None or hosts is None or line["measure"] in ONE_BY_ONE:
        return False
    both = (clients + hosts) / max(1, load_cores)
    is_held_up = max(clients, hosts, both) > MOST_BUSY_RATIO
    is_at_full_speed = line.get("rps") is not None
    return is_held_up or (is_at_full_speed and relay is not None and relay < LEAST_FULL_RATIO)


def _cores(before: Busy | None, after: Busy | None) -> float | None:
    return None if before is None or after is None else after.cores_since(before)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
