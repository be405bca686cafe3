"""How soon the proxy notices that a host has become slow.

After a third of the requests have come, a host computes four times slower, while it answers its
probes as before. Noticed is it when the speed that the proxy has learnt for it is nearer to the new
one than to the old one, and its share of the answers says what came of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from sollol_proxy.lab.bench_contenders import Contender
from sollol_proxy.lab.bench_load import Answer, Load
from sollol_proxy.lab.bench_run import Arena, Done, run_once
from sollol_proxy.lab.workload import Request

FACTOR = 4.0
LEARNING_RATIO = 1 / 3
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Noticed:
    """What came out. after: answers of the slow host until it was noticed; None = it never was.

    share_before, share_after: of all answers.
    """

    policy: str
    host_id: str
    after: int | None
    answers: int
    share_before: float
    share_after: float

    def line(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "policy": self.policy,
            "slow_host": self.host_id,
            "noticed_after": self.after,
            "answers_when_slow": self.answers,
            "share_before": round(self.share_before, 4),
            "share_after": round(self.share_after, 4),
            "live": True,
        }

    def text(self) -> str:
        """For people."""
        after = f"after {self.after}" if self.after is not None else "never, in"
        of = "" if self.after is None else " of"
        return (
            f"{self.policy}: {self.host_id} at a quarter of its speed was noticed {after}{of} "
            f"{self.answers} answers; its share went from {self.share_before:.0%} to "
            f"{self.share_after:.0%}\n"
        )


@dataclass(slots=True)
class _Watcher:
    """Slows the host down and looks at what the proxy knows of it."""

    arena: Arena
    host_id: str
    at_s: float
    noticed_after: int | None = None

    async def watch(self, load: Load) -> None:
        """Until it is cancelled."""
        await asyncio.sleep((self.at_s - load.now()) / load.speed)
        known = await self._known(load)
        completed_before = known["completed"]
        limit_tps = known["decode_tokens_per_s"] / sqrt(FACTOR)
        await self.arena.slow_down(self.host_id, FACTOR)
        while self.noticed_after is None:
            await asyncio.sleep(_LOOK_EVERY_S)
            known = await self._known(load)
            if known["decode_tokens_per_s"] < limit_tps:
                self.noticed_after = known["completed"] - completed_before

    async def _known(self, load: Load) -> dict[str, Any]:
        """What the proxy says of the host."""
        async with self.arena.session.get(f"{load.url}/sollol/hosts") as response:
            hosts = (await response.json())["hosts"]
        found: dict[str, Any] = next(host for host in hosts if host["id"] == self.host_id)
        return {**found, "decode_tokens_per_s": found["decode_tokens_per_s"] or 0.0}


async def notice(
    arena: Arena, contender: Contender, requests: Sequence[Request], seed: int, host_id: str
) -> Noticed:
    """Run the requests, with the host slow from a third of them on."""
    at_s = requests[int(len(requests) * LEARNING_RATIO)].arrived_s
    watcher = _Watcher(arena, host_id, at_s)
    done = await run_once(arena, contender, requests, seed, watcher.watch)
    before = [answer for answer in done.answers if answer.request.arrived_s < at_s]
    after = [answer for answer in done.answers if answer.request.arrived_s >= at_s]
    return Noticed(
        contender.name,
        host_id,
        watcher.noticed_after,
        _count(after, done, host_id),
        _count(before, done, host_id) / max(1, len(before)),
        _count(after, done, host_id) / max(1, len(after)),
    )


def _count(answers: Sequence[Answer], done: Done, host_id: str) -> int:
    return sum(done.log.host_ids.get(answer.request.id) == host_id for answer in answers)
