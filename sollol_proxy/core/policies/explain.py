"""The seconds of a job on a host by name, and the sentences made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.outlook import HostOutlook
from sollol_proxy.core.predict import phases, slow_down
from sollol_proxy.core.types import Cost, Job, Term

_NAMED = 2


class Price(NamedTuple):
    """Seconds of a job on a host. eviction_s is a price: nobody waits for it."""

    wait_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    eviction_s: float

    @property
    def own_s(self) -> float:
        """From the job's turn to its end."""
        return self.load_s + self.prefill_s + self.decode_s

    @property
    def total_s(self) -> float:
        """Everything."""
        return self.wait_s + self.own_s + self.eviction_s

    def cost(self) -> Cost:
        """The same as named terms."""
        return Cost(
            self.total_s,
            (
                Term(
                    "wait",
                    self.wait_s,
                    f"slot free in {self.wait_s:.1f} s" if self.wait_s else "slot free",
                ),
                Term(
                    "load", self.load_s, f"load {self.load_s:.1f} s" if self.load_s else "in memory"
                ),
                Term("prefill", self.prefill_s, f"prompt {self.prefill_s:.1f} s"),
                Term("decode", self.decode_s, f"output {self.decode_s:.1f} s"),
                Term(
                    "eviction",
                    self.eviction_s,
                    f"pushes out models worth {self.eviction_s:.1f} s"
                    if self.eviction_s
                    else "pushes out nothing",
                ),
            ),
        )


def price_on(host: HostOutlook, job: Job, wait_s: float, memory: Memory) -> Price:
    """What the job would cost on a host where it is first in line."""
    view = host.view
    token = host.token(job)
    is_held = token in host.held
    matched = memory.affinity.matched_tokens(view.spec.id, job) if is_held else 0
    took = phases(memory, job, view, needs_load=not is_held, matched_tokens=matched)
    eviction_s = 0.0
    if not is_held:
        step = host.step(host.held, token)
        eviction_s, wait_s = step.price_s, max(wait_s, step.drain_s)
    slowed = slow_down(view, job.model, joins=host.free() > 0)
    return Price(wait_s, took.load_s, took.prefill_s * slowed, took.decode_s * slowed, eviction_s)


def reason_for(host_id: str, price: Price, others: Sequence[tuple[str, Price]]) -> str:
    """One line that says why this host."""
    parts = [
        f"{name} {seconds:.1f}"
        for name, seconds in (
            ("load", price.load_s),
            ("prefill", price.prefill_s),
            ("decode", price.decode_s),
        )
    ]
    text = f"host {host_id}: {price.own_s:.1f} s = {' + '.join(parts)}"
    if price.eviction_s >= 0.05:
        text += f", pushing out models worth {price.eviction_s:.1f} s"
    if not others:
        return f"{text}; no other host may take it"
    named = ", ".join(f"{other} {its.total_s:.1f} s" for other, its in others[:_NAMED])
    return f"{text}; next best {named}"
