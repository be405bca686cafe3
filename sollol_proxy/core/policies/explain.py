"""The seconds of a job on a host by name, and the sentences made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.lanes import Row
from sollol_proxy.core.policies.outlook import HostOutlook
from sollol_proxy.core.predict import output_tokens, phases
from sollol_proxy.core.types import Candidate, Cost, Job, JobKind, Term
from sollol_proxy.core.unread import MadeWhenRead

_NAMED = 2

_SHOWN_S = 0.05


class Price(NamedTuple):
    """Seconds of a job on a host.

    blocking_s, eviction_s: prices that the job does not wait for: what the host's time while it
    loads is worth to others, and what is pushed out and has to be loaded again.
    """

    wait_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    blocking_s: float = 0.0
    eviction_s: float = 0.0

    @property
    def own_s(self) -> float:
        """From the job's turn to its end."""
        return self.load_s + self.prefill_s + self.decode_s

    @property
    def total_s(self) -> float:
        """Everything."""
        own_s = self.load_s + self.prefill_s + self.decode_s
        return self.wait_s + own_s + self.blocking_s + self.eviction_s

    def cost(self) -> Cost:
        """The same as named terms; their sum is the total."""
        return Cost(self.total_s, _Terms(self))

    def terms(self) -> tuple[Term, ...]:
        """Each part with its name and a text."""
        texts = (
            f"slot free in {self.wait_s:.1f} s" if self.wait_s else "slot free",
            f"load {self.load_s:.1f} s" if self.load_s else "in memory",
            f"prompt {self.prefill_s:.1f} s",
            f"output {self.decode_s:.1f} s",
            f"blocks others {self.blocking_s:.1f} s" if self.blocking_s else "blocks nobody",
            f"pushes out models worth {self.eviction_s:.1f} s"
            if self.eviction_s
            else "pushes out nothing",
        )
        return tuple(Term(*term) for term in zip(_TERMS, self, texts, strict=True))


Priced: TypeAlias = tuple[float, str, Price]
"""A host with what the job would cost there: total seconds, id, price. The cheapest is less."""


class _Terms(MadeWhenRead[Term]):
    """The terms of a price."""

    __slots__ = ("_price",)

    def __init__(self, price: Price) -> None:
        self._price = price

    def made(self) -> tuple[Term, ...]:
        return self._price.terms()


class RunnersUp(MadeWhenRead[Candidate]):
    """Prices on other hosts as candidates."""

    __slots__ = ("_priced",)

    def __init__(self, priced: Sequence[Priced]) -> None:
        self._priced = priced

    def made(self) -> tuple[Candidate, ...]:
        """One for each, in their order."""
        return tuple(Candidate(host_id, price.cost()) for _, host_id, price in self._priced)


_TERMS = ("wait", "load", "prefill", "decode", "blocking", "eviction")


def price_on(
    host: HostOutlook,
    job: Job,
    row: Row,
    wait_s: float,
    memory: Memory,
    tokens: float | None = None,
) -> Price:
    """What the job would cost on a host where it is first in line. tokens: it is to write."""
    view = host.view
    matched, load_s, blocking_s, eviction_s = 0, 0.0, 0.0, 0.0
    if row.token in host.held:
        # Beside a full host's wait a load that is under way is over before the job's turn.
        load_s = host.loading_s(job.model) if view.loading and host.free() > 0 else 0.0
        if job.prefix:
            matched = memory.affinity.matched_tokens(view.spec.id, job)
    else:
        step = host.step(host.held, row.token)
        wait_s, load_s, eviction_s = max(wait_s, step.drain_s), step.load_s, step.eviction_s
        blocking_s = step.price_s - eviction_s
    if job.kind is JobKind.LOAD:
        return Price(wait_s, load_s, 0.0, 0.0, blocking_s, eviction_s)
    if job.kind is JobKind.TRANSCRIBE:
        decode_s = phases(memory, job, view, needs_load=False).decode_s * row.slowed
        return Price(wait_s, load_s, 0.0, decode_s, blocking_s, eviction_s)
    prompt = max(job.prompt_tokens_est - matched, 1) * memory.prompt_ratio(job.model)
    prefill_s = prompt * row.prefill_s * row.slowed
    if tokens is None:
        tokens = output_tokens(memory, job)
    decode_s = tokens * row.decode_s * row.slowed
    return Price(wait_s, load_s, prefill_s, decode_s, blocking_s, eviction_s)


def reason_for(
    host_id: str, price: Price, others: Sequence[Priced], *, only_free: bool = False
) -> str:
    """One line that says why this host. only_free: no others were asked than those with a slot."""
    _, load_s, prefill_s, decode_s, blocking_s, eviction_s = price
    text = (
        f"host {host_id}: {load_s + prefill_s + decode_s:.1f} s = load {load_s:.1f} + "
        f"prefill {prefill_s:.1f} + decode {decode_s:.1f}"
    )
    if blocking_s >= _SHOWN_S:
        text += f", blocking others for {blocking_s:.1f} s"
    if eviction_s >= _SHOWN_S:
        text += f", pushing out models worth {eviction_s:.1f} s"
    if not others:
        return f"{text}; no other host {'is free' if only_free else 'may take it'}"
    named = ", ".join([f"{other} {total_s:.1f} s" for total_s, other, _ in others[:_NAMED]])
    return f"{text}; next best {named}"
