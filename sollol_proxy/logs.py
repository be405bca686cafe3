"""The log: structlog to standard error, one line a request, state changes of hosts.

Never bodies, never prompt text, never header values that clients send.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import orjson
import structlog

from sollol_proxy.config.schema import LogSection
from sollol_proxy.core.types import Outcome, RequestRecord

_QUIET = (Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.UPSTREAM_REFUSED)


_QUOTED = re.compile("[ \t=\r\n\"']")
_NEEDS_LINES = frozenset({"exception", "exc_info", "stack", "logger", "logger_name"})
_EVENT_WIDTH, _LEVEL_WIDTH = 30, 9


def configure(section: LogSection) -> None:
    """Set structlog up once for the process."""
    renderer: structlog.typing.Processor
    if section.format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if not sys.stderr.isatty():
            renderer = PlainRenderer(renderer)
    structlog.configure(
        processors=[
            _without_blanks,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info
            if section.format == "json"
            else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[section.level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    libraries = logging.getLogger("aiohttp")
    libraries.handlers = [_Forward(logging.WARNING)]
    libraries.propagate = False


class PlainRenderer:
    """Lines as structlog's console renderer writes them without colours, with far fewer calls.

    Every request has one, and nobody waits for it at a terminal. console: for what has more than
    one line.
    """

    def __init__(self, console: structlog.typing.Processor) -> None:
        self._console = console

    def __call__(
        self,
        logger: structlog.typing.WrappedLogger,
        method: str,
        event: structlog.typing.EventDict,
    ) -> Any:
        """The line of an event that has a time and a level."""
        if not _NEEDS_LINES.isdisjoint(event):
            return self._console(logger, method, event)
        head = f"{event.pop('timestamp')} [{event.pop('level'):<{_LEVEL_WIDTH}}] "
        head += f"{event.pop('event'):<{_EVENT_WIDTH}} "
        fields = [
            f"{key}={value}"
            if isinstance(value, str) and _QUOTED.search(value) is None
            else f"{key}={value!r}"
            for key, value in sorted(event.items())
        ]
        return (head + " ".join(fields)).rstrip(" ")


def _json(event: structlog.typing.EventDict, **options: Any) -> str:
    """One line; a client's lone surrogate, which is no UTF-8, is no reason to lose it."""
    try:
        return orjson.dumps(event, **options).decode()
    except orjson.JSONEncodeError:
        return json.dumps(event, **options)


class _Forward(logging.Handler):
    """Takes what libraries log, as one line each: a malformed request is no traceback's worth."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on to structlog."""
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger(record.name).log(
            record.levelno,
            record.getMessage(),
            reason=None if error is None else f"{type(error).__name__}: {error}",
        )


def _without_blanks(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A field without a value says nothing: leave it out of the line."""
    return {key: value for key, value in event.items() if value is not None}


def access(log: structlog.typing.FilteringBoundLogger, record: RequestRecord) -> None:
    """The one line of a request."""
    write = log.info if record.outcome in _QUIET else log.warning
    decision = record.decision
    write(
        "request",
        id=record.id,
        method=record.method,
        route=record.route,
        model=record.model or None,
        outcome=record.outcome.value,
        status=record.status,
        host=None if decision is None else decision.host_id,
        hosts=list(record.hosts) or None,
        task=record.task_type.value,
        priority=record.priority,
        attempts=record.attempts,
        queue_s=round(record.queue_s, 4),
        first_byte_s=None if record.first_byte_s is None else round(record.first_byte_s, 4),
        total_s=round(record.total_s, 4),
        bytes_out=record.body_bytes_out,
        **(
            {"failures": [f"{host}: {reason}" for host, reason in record.failures]}
            if record.failures
            else {}
        ),
        **({"detail": record.detail} if record.detail else {}),
    )
