"""Decision logs of simulated pools, written in virtual time as a proxy would write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sollol_proxy.core.types import (
    AttemptResult,
    Complexity,
    Cost,
    Decision,
    Facts,
    JobKind,
    Outcome,
    RequestRecord,
    TaskType,
)
from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.lab.simulate_host import Attempt
from sollol_proxy.lab.simulate_proxy import ProxyFront
from sollol_proxy.lab.simulate_world import World
from sollol_proxy.lab.workload import Request
from sollol_proxy.server.decision_log import line_of

Line = dict[str, Any]
BEGUN = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Recorded(ProxyFront):
    """Remembers the attempts that ended well, in order of their ends."""

    def __init__(self, policy: str, hosts: Sequence[SimSpec]) -> None:
        super().__init__(policy, hosts, 0)
        self.policy = policy
        self.done: list[Attempt] = []

    def ended(self, attempt: Attempt, result: AttemptResult) -> None:
        if result is AttemptResult.COMPLETED:
            self.done.append(attempt)
        super().ended(attempt, result)


def decision_lines(
    hosts: Sequence[SimSpec], requests: Sequence[Request], policy: str = "seven_factor"
) -> list[Line]:
    """What the proxy would log of these requests, in order of their ends."""
    front = Recorded(policy, hosts)
    World(hosts, requests, front).run()
    return [_line(attempt, policy) for attempt in front.done]


def write_log(path: Path, lines: Sequence[Line | str]) -> Path:
    """A file of them; a text is a line as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def _line(attempt: Attempt, policy: str) -> Line:
    request = attempt.request
    prefix, prefix_tokens = request.prefix()
    assert attempt.ended_s is not None
    record = RequestRecord(
        id=request.id,
        started_at=(BEGUN + timedelta(seconds=request.arrived_s)).isoformat(
            timespec="milliseconds"
        ),
        method="POST",
        route="/api/chat",
        path="/api/chat",
        model=request.model.key,
        kind=JobKind.GENERATE,
        task_type=TaskType.GENERATION,
        complexity=Complexity.SIMPLE,
        priority=request.priority,
        outcome=Outcome.COMPLETED,
        status=200,
        answered_by_host=True,
        stream=request.stream,
        decision=Decision(request.id, attempt.host_id, policy, Cost(1.0), "it is free"),
        attempts=1,
        queue_s=attempt.sent_s - request.arrived_s,
        total_s=attempt.ended_s - request.arrived_s,
        observation=attempt.observation(),
    )
    facts = Facts(
        JobKind.GENERATE,
        prompt_tokens_est=request.prompt_tokens_est,
        # In the log they are numbers of 64 bits.
        prefix=tuple(block % 2**64 for block in prefix),
        prefix_tokens=prefix_tokens,
    )
    return line_of(record, facts, request.arrived_s)
