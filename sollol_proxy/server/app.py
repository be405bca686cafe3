"""Puts the application together: read it downwards, it is the way of a request.

entrance    who may call: Host and Origin; exceptions become answers; the record is closed
/sollol/*   ours: control
the rest    the API table: merged reads, several hosts' work, or forward to a host
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from random import Random

from aiohttp import web

from sollol_proxy.config.rules import scheduler_rules
from sollol_proxy.config.schema import Config, split_listen
from sollol_proxy.core.policies import make_policy
from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.metrics import Metrics
from sollol_proxy.ollama.access import Access
from sollol_proxy.ollama.routes import Plan, find, plain_paths
from sollol_proxy.server import aggregate, bodies, control, forward, manage, templates
from sollol_proxy.server.answers import tidy_headers
from sollol_proxy.server.decision_log import DecisionLog
from sollol_proxy.server.dispatcher import Dispatcher
from sollol_proxy.server.journal import Journal
from sollol_proxy.server.memory_file import Keeper, MemoryFile
from sollol_proxy.server.operations import Operations
from sollol_proxy.server.probes import Probes
from sollol_proxy.server.rescue import entrance
from sollol_proxy.server.services import SERVICES, Services
from sollol_proxy.server.session_attempt import make_session
from sollol_proxy.server.upstreams import Upstreams


def build_app(
    config: Config,
    *,
    clock: Callable[[], float] = time.monotonic,
    rng: Random | None = None,
) -> web.Application:
    """The application for a configuration; start and stop go by its `cleanup_ctx`.

    clock: monotonic seconds. rng: breaks ties between hosts.

    Raises:
        ConfigError: the policy cannot be loaded, or the templates are missing.
    """
    rng = rng if rng is not None else Random()
    policy = make_policy(config.policy, rng)

    async def run_services(app: web.Application) -> AsyncIterator[None]:
        specs = [host.spec() for host in config.hosts]
        scheduler = Scheduler(specs, policy, scheduler_rules(config), rng=rng, now=clock())
        session = make_session(config.limits.connect)
        upstreams = Upstreams(session, specs, config.limits.connect, clock)
        dispatcher = Dispatcher(scheduler, clock, lambda host_id: probes.ask_now(host_id))
        probes = Probes(session, specs, config.probes, clock, dispatcher.report)
        metrics = Metrics()
        operations = Operations()
        decision_log = _decision_log(config, clock())
        keeper = _keeper(config, dispatcher)
        app[SERVICES] = Services(
            config=config,
            hosts={spec.id: spec for spec in specs},
            access=_access(config),
            upstreams=upstreams,
            dispatcher=dispatcher,
            probes=probes,
            journal=Journal(config.limits.records, metrics, clock, decision_log),
            metrics=metrics,
            operations=operations,
            keeper=keeper,
            clock=clock,
        )
        for started in (keeper, decision_log, probes):
            if started is not None:
                started.start()
        yield
        for stopped in (operations, probes, keeper, decision_log):
            if stopped is not None:
                await stopped.stop()
        dispatcher.close()
        await upstreams.close()

    app = web.Application(client_max_size=0)
    app.cleanup_ctx.append(run_services)
    app.on_response_prepare.append(tidy_headers)
    templates.install(app, config.templates)
    _add_routes(app.router)
    return app


def _add_routes(router: web.UrlDispatcher) -> None:
    for method, path, handler in control.ROUTES:
        router.add_route(method, path, entrance(handler))
    router.add_route("*", "/sollol/{rest:.*}", entrance(control.unknown))
    # The last one would do for all of them, but aiohttp finds a plain path sooner than a pattern.
    for path in (*plain_paths(), "/{path:.*}"):
        router.add_route("*", path, entrance(by_table), expect_handler=bodies.expect)


def by_table(request: web.Request) -> Awaitable[web.StreamResponse]:
    """Answer by the API table; what it does not know goes to a host."""
    route = find(request.method, request.rel_url.raw_path)
    if route.plan is Plan.MERGE and not aggregate.is_clouds(request, route):
        return aggregate.handle(request, route)
    if route.plan is Plan.BROADCAST:
        return manage.handle(request, route)
    return forward.handle(request.app[SERVICES], request, route)


def _decision_log(config: Config, now: float) -> DecisionLog | None:
    if config.decision_log is None:
        return None
    return DecisionLog(config.decision_log, config.decision_log_size, now)


def _keeper(config: Config, dispatcher: Dispatcher) -> Keeper | None:
    if config.state is None:
        return None
    return Keeper(MemoryFile(config.state), dispatcher, config.state_interval)


def _access(config: Config) -> Access:
    address, _ = split_listen(config.listen)
    return Access(
        loopback_bound=_is_loopback(address),
        origins=config.origins,
        hostname=socket.gethostname(),
        local_addresses=frozenset(_local_addresses()),
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _local_addresses() -> set[str]:
    """The machine's own addresses, as far as its name resolves to them."""
    try:
        infos = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return set()
    return {str(info[4][0]) for info in infos}
