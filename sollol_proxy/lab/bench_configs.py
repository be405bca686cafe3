"""Configurations of the programs that the proxy is compared with, each as good as it gets.

`deploy/bench/` holds them as they come out for a pool at fixed ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_NGINX = """\
# One worker: each counts connections for itself. A host that lacks a model says 404, and the
# request goes on to another, for which its body has to be kept.
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections {connections}; }}
http {{
  access_log {access_log};
  client_max_body_size 0;
  client_body_buffer_size 1m;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream ollama {{
    least_conn;
{servers}
    keepalive 256;
    keepalive_requests 100000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://ollama;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host localhost;
      proxy_buffering off;
      proxy_connect_timeout 2s;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
      proxy_next_upstream error timeout http_404 http_502 http_503 non_idempotent;
      proxy_next_upstream_tries {tries};
    }}
  }}
}}
"""

_HAPROXY = """\
# A central queue: a host gets no more jobs than it has slots. Where hosts lack models, the body
# says which of them can take a request, and each such group of hosts has a queue of its own.
global
  maxconn {connections}
  nbthread 1
{globals}defaults
  mode http
{log}  option http-keep-alive
  option http-no-delay
  option redispatch 1
  retries 2
  retry-on conn-failure empty-response 502 503
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  timeout queue 1h
  timeout http-request 30s
frontend ollama_in
  bind 127.0.0.1:{port} backlog 4096
{rules}{backends}"""

_BACKEND = """\
backend {name}
  balance leastconn
  http-reuse always
{servers}
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A host as a load balancer knows it."""

    id: str
    url: str
    slots: int
    models: frozenset[str] = frozenset()

    @property
    def address(self) -> str:
        """Name and port."""
        return urlsplit(self.url).netloc


def nginx_conf(
    hosts: Sequence[Upstream], port: int, *, access_log: str = "off", connections: int = 8192
) -> str:
    """For nginx with `least_conn`; it queues nothing, so requests queue in the hosts.

    access_log: a file in its folder. connections: to clients and hosts together.
    """
    servers = "\n".join(f"    server {h.address} max_fails=1 fail_timeout=5s;" for h in hosts)
    return _NGINX.format(
        servers=servers,
        port=port,
        tries=len(hosts),
        access_log=access_log,
        connections=connections,
    )


def haproxy_cfg(
    hosts: Sequence[Upstream],
    port: int,
    *,
    has_log: bool = False,
    connections: int = 8000,
    buffer_bytes: int | None = 262_144,
) -> str:
    """For haproxy with `leastconn` and a queue in front of the hosts' slots.

    has_log: a line a request on standard output. connections: of clients. buffer_bytes: of a
    connection, which bounds the bodies that can be looked at; None = its default.
    """
    groups = _groups(hosts)
    rules = "  default_backend ollama_1\n"
    if len(groups) > 1:
        rules = "  http-request wait-for-body time 30s\n"
        for number, models in enumerate(groups.values(), 1):
            asked = f"{{ req.body,json_query('$.model') -m str {' '.join(models)} }}"
            rules += f"  use_backend ollama_{number} if {asked}\n"
    backends = "".join(
        _BACKEND.format(
            name=f"ollama_{number}",
            servers="\n".join(f"  server {h.id} {h.address} maxconn {h.slots}" for h in holders),
        )
        for number, holders in enumerate(groups, 1)
    )
    return _HAPROXY.format(
        port=port,
        rules=rules,
        backends=backends,
        connections=connections,
        globals="" if buffer_bytes is None else f"  tune.bufsize {buffer_bytes}\n",
        log="  log stdout format raw local0\n  option httplog\n" if has_log else "",
    )


def _groups(hosts: Sequence[Upstream]) -> dict[tuple[Upstream, ...], list[str]]:
    """The models that the same hosts have, by those hosts."""
    groups: dict[tuple[Upstream, ...], list[str]] = {}
    for model in sorted(frozenset().union(*(host.models for host in hosts))):
        holders = tuple(host for host in hosts if model in host.models)
        groups.setdefault(holders, []).append(model)
    return groups or {tuple(hosts): []}
