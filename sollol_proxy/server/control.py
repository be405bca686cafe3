"""Everything of ours on the wire, under `/sollol/` and `/metrics`: JSON, pages, drain.

Pages are made in threads, so that no stream waits for one, and what makes them is imported there
when the first is asked for, so that no start does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from aiohttp import web

from sollol_proxy import __version__
from sollol_proxy.config.schema import Config
from sollol_proxy.core.snapshots import Snapshot
from sollol_proxy.core.types import RequestRecord
from sollol_proxy.metrics import CONTENT_TYPE
from sollol_proxy.server import views
from sollol_proxy.server.aggregate import SETTLE_S
from sollol_proxy.server.alerts import Standing, alerts, standing
from sollol_proxy.server.answers import to_json
from sollol_proxy.server.calibration import CalibrationRow
from sollol_proxy.server.models_view import pool_models
from sollol_proxy.server.reset import reset_learnt
from sollol_proxy.server.services import SERVICES
from sollol_proxy.server.sync import sync
from sollol_proxy.server.templates import PAGES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SHOWN_REQUESTS = 100
PAGE_REQUESTS = 200
"""Finished requests that the status page counts over."""


async def live(request: web.Request) -> web.Response:
    """200 as long as the process serves."""
    return to_json({"status": "live", "version": __version__})


async def ready(request: web.Request) -> web.Response:
    """200 when a request sent now would find a host that is up, else 503 with the reason."""
    snapshot = _snapshot(request)
    word = standing(snapshot)
    is_ready = word in (Standing.SERVING, Standing.DEGRADED)
    return to_json(
        {"status": "ready" if is_ready else "not ready", "standing": word.value},
        status=200 if is_ready else 503,
    )


async def hosts(request: web.Request) -> web.Response:
    """Every host with its state, load, models and learnt speeds."""
    return to_json({"hosts": [views.host_json(host) for host in _snapshot(request).hosts]})


async def models(request: web.Request) -> web.StreamResponse:
    """Every model on every host: a page for browsers, JSON for everybody else."""
    services = request.app[SERVICES]
    # Whoever has just pulled something wants to see it.
    await services.probes.settle(SETTLE_S)
    # Hosts times models may be many cells, and no stream should wait for them.
    return await asyncio.to_thread(_models, request, services.config, _snapshot(request))


async def stats(request: web.Request) -> web.Response:
    """Queue, alerts, what was learnt by task type and model, and how well predictions hold."""
    services = request.app[SERVICES]
    snapshot = _snapshot(request)
    found = alerts(snapshot, services.config.alerts, _now_iso())
    return to_json(views.stats_json(snapshot, found, services.journal.calibration.rows()))


async def reset_stats(request: web.Request) -> web.Response:
    """Forget what was learnt: speeds, lengths, loads and their calibration."""
    await reset_learnt(request.app[SERVICES])
    return await stats(request)


async def requests(request: web.Request) -> web.Response:
    """The last finished requests, newest first; `?n=` for another number than 100."""
    text = request.query.get("n", str(SHOWN_REQUESTS))
    if not text.isascii() or not text.isdigit():
        return to_json({"error": f"n={text[:20]!r} is not a whole number"}, status=400)
    records = request.app[SERVICES].journal.latest(int(text[:9]))
    return to_json({"requests": [views.request_row_json(record) for record in records]})


async def one_request(request: web.Request) -> web.StreamResponse:
    """One request, finished or running: a page for browsers, JSON for everybody else."""
    journal = request.app[SERVICES].journal
    request_id = request.match_info["id"]
    record = journal.finished(request_id)
    is_running = False
    if record is None:
        record = journal.running(request_id)
        is_running = record is not None
    if record is None:
        kept = request.app[SERVICES].config.limits.records
        message = f"no request {request_id[:40]!r} among the last {kept} (limits.records)"
        return to_json({"error": message}, status=404)
    if _wants_html(request):
        return await asyncio.to_thread(_request_page, request, record, is_running)
    return to_json(views.request_json(record, is_running=is_running))


async def drain_host(request: web.Request) -> web.Response:
    """The host finishes what it has and takes nothing new."""
    return _set_draining(request, True)


async def resume_host(request: web.Request) -> web.Response:
    """The host takes jobs again."""
    return _set_draining(request, False)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    body = request.app[SERVICES].metrics.render(_snapshot(request))
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


async def page(request: web.Request) -> web.Response:
    """The status page."""
    services = request.app[SERVICES]
    return await asyncio.to_thread(
        _status_page,
        request,
        _snapshot(request),
        services.journal.latest(PAGE_REQUESTS),
        services.journal.calibration.rows(),
    )


async def to_page(request: web.Request) -> web.Response:
    """`/sollol` is the page too."""
    raise web.HTTPPermanentRedirect("/sollol/")


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/sollol", to_page),
    ("GET", "/sollol/", page),
    ("GET", "/sollol/live", live),
    ("GET", "/sollol/ready", ready),
    ("GET", "/sollol/hosts", hosts),
    ("POST", "/sollol/hosts/{id}/drain", drain_host),
    ("POST", "/sollol/hosts/{id}/resume", resume_host),
    ("POST", "/sollol/hosts/{id}/sync", sync),
    ("GET", "/sollol/models", models),
    ("GET", "/sollol/stats", stats),
    ("POST", "/sollol/stats/reset", reset_stats),
    ("GET", "/sollol/requests", requests),
    ("GET", "/sollol/requests/{id}", one_request),
    ("GET", "/metrics", metrics),
)


async def unknown(request: web.Request) -> web.Response:
    """Anything else under `/sollol/`: never a host's business."""
    paths = [path for method, path, _ in ROUTES if method == "GET"]
    return to_json({"error": f"no {request.method} {request.path[:100]}", "try": paths}, status=404)


def _models(request: web.Request, config: Config, snapshot: Snapshot) -> web.Response:
    pool = pool_models(snapshot, config)
    if not _wants_html(request):
        return to_json(views.models_json(pool))
    from sollol_proxy.server.models_page import models_page

    view = models_page(pool, _now_iso(), __version__, _base_url(request))
    return _render(request, "models.html", view)


def _status_page(
    request: web.Request,
    snapshot: Snapshot,
    records: Sequence[RequestRecord],
    calibration: Sequence[CalibrationRow],
) -> web.Response:
    from sollol_proxy.server import status

    limits = request.app[SERVICES].config.alerts
    base = _base_url(request)
    view = status.view(snapshot, records, limits, _now_iso(), __version__, base, calibration)
    return _render(request, "status.html", view)


def _request_page(
    request: web.Request, record: RequestRecord, is_running: bool
) -> web.StreamResponse:
    from sollol_proxy.server.request_page import request_view

    view = request_view(record, __version__, is_running=is_running)
    return _render(request, "request.html", view)


def _set_draining(request: web.Request, is_draining: bool) -> web.Response:
    host_id = request.match_info["id"]
    dispatcher = request.app[SERVICES].dispatcher
    try:
        dispatcher.set_host_draining(host_id, is_draining)
    except KeyError:
        return to_json({"error": f"no host {host_id[:128]!r} in the pool"}, status=404)
    host = next(host for host in dispatcher.snapshot().hosts if host.spec.id == host_id)
    return to_json(views.host_json(host))


def _render(request: web.Request, template: str, view: object) -> web.Response:
    return web.Response(
        text=request.app[PAGES].render(template, view),
        content_type="text/html",
        headers={"Cache-Control": "no-store"},
    )


def _wants_html(request: web.Request) -> bool:
    return "text/html" in request.headers.get("Accept", "")


def _base_url(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


def _snapshot(request: web.Request) -> Snapshot:
    return request.app[SERVICES].dispatcher.snapshot()


def _now_iso() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
