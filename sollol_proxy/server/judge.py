"""What an answer's head, or its absence, says about the host. Nothing is sent here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sollol_proxy.core.types import AttemptResult, Job
from sollol_proxy.errors import AttemptFailed, Phase, UpstreamBroke
from sollol_proxy.ollama.routes import Route
from sollol_proxy.server.upstream import Upstream

ERROR_BODY_BYTES = 2**14
"""Bytes of an error answer that are looked at."""

_CLIENT_ERRORS_AS_500 = re.compile(
    rb'option \\*"[^"]*" must be of type'
    rb"|invalid format:"
)
"""Ollama 0.33 answers 500 to a wrong option type and to an unknown `format`: mistakes of the
client, which every host would answer alike."""

_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attempt came to.

    may_retry: another host may do better. was_cut: the connection ended, so the same host may
    do better too, once it is back.
    """

    result: AttemptResult
    may_retry: bool = False
    was_cut: bool = False
    detail: str = ""


GOOD = Verdict(AttemptResult.COMPLETED)


def of_failure(failure: AttemptFailed) -> Verdict:
    """An attempt without an answer."""
    if failure.phase is Phase.CONNECT:
        return Verdict(
            AttemptResult.UNREACHABLE, may_retry=True, was_cut=True, detail=failure.detail
        )
    return Verdict(AttemptResult.FAILED, may_retry=True, was_cut=True, detail=failure.detail)


async def judge(upstream: Upstream, route: Route, job: Job) -> Verdict:
    """An attempt with an answer.

    A 404 where our inventory lists the model means that the inventory is stale; one in plain text
    comes from Ollama's router, whose version lacks the route. Both are another host's turn. Jobs
    that need no model are there to pass on what a host says (Ollama's cloud may be down, a name
    unknown): no status of theirs is the host's fault.

    Raises:
        AttemptFailed: the connection ended within an error answer.
    """
    status = upstream.status
    if status < 400:
        return GOOD
    if status == 404 and upstream.content_type.startswith("text/plain"):
        detail = f"HTTP 404: this version of Ollama has no {route.path}"
        return Verdict(AttemptResult.ROUTE_MISSING, may_retry=True, detail=detail)
    if not job.kind.needs_model or (status < 500 and status != 404):
        return Verdict(AttemptResult.REFUSED, detail=f"HTTP {status}")
    try:
        body = await upstream.read_small(ERROR_BODY_BYTES)
    except UpstreamBroke as error:
        raise AttemptFailed(error.host_id, Phase.BODY, error.detail) from error
    detail = f"HTTP {status}: {body[:_SHOWN].decode('utf-8', 'replace').strip()}"
    if status == 404:
        return Verdict(AttemptResult.MODEL_MISSING, may_retry=True, detail=detail)
    if _CLIENT_ERRORS_AS_500.search(body):
        return Verdict(AttemptResult.REFUSED, detail=detail)
    return Verdict(AttemptResult.FAILED, may_retry=True, detail=detail)
