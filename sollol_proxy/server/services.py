"""What handlers share: built once by `app.build_app`, never changed afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from sollol_proxy.config.schema import Config
from sollol_proxy.core.types import HostSpec
from sollol_proxy.metrics import Metrics
from sollol_proxy.ollama.access import Access
from sollol_proxy.server.dispatcher import Dispatcher
from sollol_proxy.server.journal import Journal
from sollol_proxy.server.memory_file import Keeper
from sollol_proxy.server.operations import Operations
from sollol_proxy.server.probes import Probes
from sollol_proxy.server.upstreams import Upstreams


@dataclass(frozen=True, slots=True)
class Services:
    """The application's parts. clock: monotonic seconds. keeper: None = nothing is kept on disk."""

    config: Config
    hosts: dict[str, HostSpec]
    access: Access
    upstreams: Upstreams
    dispatcher: Dispatcher
    probes: Probes
    journal: Journal
    metrics: Metrics
    operations: Operations
    keeper: Keeper | None
    clock: Callable[[], float]


SERVICES = web.AppKey("services", Services)
