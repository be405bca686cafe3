"""`POST /sollol/hosts/<id>/sync`: pull on one host what it lacks, one model after the other.

The answer is a stream of the pulls' own records, each with the model's name, and a last one that
sums up. A client that asks for the same pull on the same host meanwhile watches the same one.
Leaving stops it; what has been pulled stays, and the next call goes on from there.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson
import structlog
from aiohttp import web

from sollol_proxy.core.types import HostState, Job, JobKind
from sollol_proxy.errors import BadRequest, ClientGone
from sollol_proxy.ollama.merge import encode
from sollol_proxy.server.answers import to_json
from sollol_proxy.server.models_view import is_known, pool_models
from sollol_proxy.server.operations import Operation, pull_key
from sollol_proxy.server.services import SERVICES, Services
from sollol_proxy.server.spread import Broadcast
from sollol_proxy.server.sync_plan import Pull, SyncPlan, sync_plan
from sollol_proxy.server.upstream import Outbound

NDJSON = "application/x-ndjson"

_YES = frozenset({"1", "true", "yes"})
_NO = frozenset({"", "0", "false", "no"})
_NAMED_FAILURES = 3

_log = structlog.get_logger("sollol")


async def sync(request: web.Request) -> web.StreamResponse:
    """Bring a host up to date with `?from=` another one, or with the pool."""
    services = request.app[SERVICES]
    host_id = request.match_info["id"]
    source_id = request.query.get("from", "")
    try:
        is_dry = _is_dry(request)
    except BadRequest as error:
        return to_json({"error": str(error)}, status=400)
    refusal = _misnamed(services, host_id, source_id)
    if refusal is None:
        # A plan is as good as the lists it is made from.
        await services.probes.refresh_inventory()
        refusal = _not_ready(services, host_id, source_id)
    if refusal is not None:
        return refusal
    pool = pool_models(services.dispatcher.snapshot(), services.config)
    plan = sync_plan(pool, services.config, services.hosts[host_id], source_id)
    if is_dry:
        return to_json(_plan_json(host_id, source_id, plan))
    return await _carry_out(request, services, host_id, source_id, plan)


def _is_dry(request: web.Request) -> bool:
    """Whether only the plan is asked for.

    Raises:
        BadRequest: a parameter that there is not; a misspelt one must not start anything.
    """
    strange = [name for name in request.query if name not in ("from", "dry_run")]
    if strange:
        raise BadRequest(f"no parameter {strange[0][:40]!r}; there are from and dry_run")
    asked = request.query.get("dry_run", "").lower()
    if asked not in _YES | _NO:
        raise BadRequest(f"dry_run={asked[:20]!r} is neither 1 nor 0")
    return asked in _YES


def _misnamed(services: Services, host_id: str, source_id: str) -> web.Response | None:
    for named in filter(None, (host_id, source_id)):
        if named not in services.hosts:
            return to_json({"error": f"no host {named[:128]!r} in the pool"}, status=404)
    if source_id == host_id:
        return to_json({"error": f"{host_id} cannot be compared with itself"}, status=400)
    return None


def _not_ready(services: Services, host_id: str, source_id: str) -> web.Response | None:
    hosts = {host.spec.id: host for host in services.dispatcher.snapshot().hosts}
    host = hosts[host_id]
    if not host.state.is_routable:
        state = "has not answered yet" if host.state is HostState.UNKNOWN else f"is {host.state}"
        return to_json({"error": f"host {host_id} is not up: it {state}"}, status=409)
    # The other one may be down: what it had is known, and nobody asks it for anything.
    if source_id and not is_known(hosts[source_id]):
        error = f"host {source_id} has not answered yet: nobody knows what it has"
        return to_json({"error": error}, status=409)
    return None


def _plan_json(host_id: str, source_id: str, plan: SyncPlan) -> dict[str, Any]:
    return {
        "host": host_id,
        "from": source_id or None,
        "pull": [
            {"model": pull.model, "reason": pull.reason.value, "size_bytes": pull.size_bytes}
            for pull in plan.pulls
        ],
        "left": [{"model": model, "reason": reason} for model, reason in plan.left],
    }


async def _carry_out(
    request: web.Request, services: Services, host_id: str, source_id: str, plan: SyncPlan
) -> web.StreamResponse:
    """Pull one after the other, telling how it goes, and sum up.

    Raises:
        ClientGone: nobody listens any more.
    """
    response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"})
    pulled: list[str] = []
    failed: dict[str, str] = {}
    _log.info("sync begins", host=host_id, source=source_id or None, models=len(plan.pulls))
    started_s = services.clock()
    try:
        await response.prepare(request)
        for pull in plan.pulls:
            failure = await _pull(services, host_id, pull, response)
            if failure is None:
                pulled.append(pull.model)
            else:
                failed[pull.model] = failure
        await response.write(_last_record(host_id, pulled, failed))
        await response.write_eof()
    except ConnectionResetError as error:
        raise ClientGone from error
    finally:
        _log.info(
            "sync ends",
            host=host_id,
            pulled=len(pulled),
            failed=len(failed),
            undone=len(plan.pulls) - len(pulled) - len(failed),
            total_s=round(services.clock() - started_s, 4),
        )
    return response


async def _pull(
    services: Services, host_id: str, pull: Pull, response: web.StreamResponse
) -> str | None:
    """Pull one model on the host; why it failed, or None."""
    if host_id not in services.dispatcher.routable():
        # It went down on the way: each pull would wait for it to come back.
        return f"host {host_id} is not up"

    def make() -> Operation:
        job = Job(
            id=f"sync-{secrets.token_hex(4)}@{host_id}",
            kind=JobKind.MANAGE,
            model="",
            priority=services.config.queue.default_priority,
            arrived_s=services.clock(),
            only=host_id,
        )
        return Broadcast(services, [job], _outbound(pull))

    async with services.operations.joined(pull_key(pull.model, [host_id]), make) as (
        operation,
        watcher,
    ):
        while lines := await watcher.next_lines():
            await response.write(_labelled(lines, pull.model))
        return operation.progress.failures.get(host_id)


def _outbound(pull: Pull) -> Outbound:
    body = encode({"model": pull.spelling, "stream": True})
    return Outbound("POST", "/api/pull", [("Content-Type", "application/json")], body)


def _labelled(lines: bytes, model: str) -> bytes:
    """The records with the model's name in each; what is no record is left out."""
    labelled = []
    for line in lines.splitlines():
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(record, dict):
            labelled.append(encode({**record, "model": model}, newline=True))
    return b"".join(labelled)


def _last_record(host_id: str, pulled: list[str], failed: dict[str, str]) -> bytes:
    """What it came to: an error where something failed and nothing was pulled."""
    ending = {"status": "success"} if pulled or not failed else {"error": _in_words(failed)}
    return encode({**ending, "host": host_id, "pulled": pulled, "failed": failed}, newline=True)


def _in_words(failed: dict[str, str]) -> str:
    named = [f"{model}: {reason}" for model, reason in list(failed.items())[:_NAMED_FAILURES]]
    more = len(failed) - len(named)
    return "nothing was pulled: " + "; ".join(named) + (f"; and {more} more" if more else "")
