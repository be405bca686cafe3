"""Addresses of the proxy's own pages.

They name no scheme and no host: whoever reaches the proxy through another one stays there.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Links:
    """What the pages link to."""

    status: str = "/sollol/"
    hosts: str = "/sollol/hosts"
    stats: str = "/sollol/stats"
    models: str = "/sollol/models"
    requests: str = "/sollol/requests"
    metrics: str = "/metrics"


LINKS = Links()


def request_href(request_id: str) -> str:
    """The page of one request."""
    return f"{LINKS.requests}/{quote(request_id, safe='')}"


def sync_href(host_id: str) -> str:
    """Where a POST brings a host up to date."""
    return f"{LINKS.hosts}/{quote(host_id, safe='')}/sync"
