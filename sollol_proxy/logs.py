"""The log: structlog to standard error, one line a request, state changes of hosts.

Never bodies, never prompt text, never header values that clients send. A line is one write that
nothing holds back: what was logged before a crash is there after it, and lines do not mix.

Both ways of showing an event are one processor each, because a line is written for every request:
structlog's own console takes about 300 calls for one. The line of a request that went as it should
is not even put together field by field: see `_Requests`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from structlog import dev
from structlog.typing import EventDict

from sollol_proxy.config.schema import LogSection
from sollol_proxy.core.types import Decision, Outcome, RequestRecord

_QUIET = (Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.UPSTREAM_REFUSED)

_LEVELS = {
    "debug": dev.GREEN,
    "info": dev.GREEN,
    "warning": dev.YELLOW,
    "error": dev.RED,
    "critical": dev.RED,
}
"""The colour of each level: structlog's own."""

_OF_A_REQUEST = (
    "attempts",
    "bytes_out",
    "first_byte_s",
    "host",
    "id",
    "method",
    "model",
    "outcome",
    "priority",
    "queue_s",
    "route",
    "status",
    "task",
    "total_s",
)
"""What the line of a plain request has, in the order in which the console shows it."""

_is_ambiguous = re.compile("[ =\"']").search
"""Whether a value has to stand in quotes for its end, and what follows, to be seen."""


def configure(section: LogSection) -> None:
    """Set structlog up once for the process."""
    is_json = section.format == "json"
    level = logging.getLevelNamesMapping()[section.level.upper()]
    structlog.configure(
        processors=[json_line if is_json else ConsoleLine(has_colors=_is_terminal())],
        wrapper_class=type(
            "Logger",
            (_Requests, structlog.make_filtering_bound_logger(level)),
            {"has_requests": level <= logging.INFO},
        ),
        # JSON is UTF-8, whatever the locale says of the rest: it goes out as bytes.
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer)
        if is_json
        else structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    libraries = logging.getLogger("aiohttp")
    libraries.handlers = [_Forward(logging.WARNING)]
    libraries.propagate = False


def _is_terminal() -> bool:
    # Windows' console shows escape sequences unless it was told before that they are colours.
    return sys.stderr.isatty() and sys.platform != "win32"


class ConsoleLine:
    """The last processor of structlog: an event as a line for people.

    It looks as structlog's `ConsoleRenderer` makes it, less the fields without a value, and with
    everything escaped that a terminal would obey instead of showing it. Line ends are, too; only
    a traceback takes more than one line.
    """

    def __init__(self, *, has_colors: bool) -> None:
        def paint(*codes: str) -> str:
            return "".join(codes) if has_colors else ""

        end = paint(dev.RESET_ALL)
        self._start, self._end = paint(dev.DIM), end
        self._key, self._value = paint(dev.CYAN), f"{end}={paint(dev.MAGENTA)}"
        self._levels = {
            level: f"{end} [{paint(color, dev.BRIGHT)}{level:<9}{end}] {paint(dev.BRIGHT)}"
            for level, color in _LEVELS.items()
        }
        fields = "".join([f" {self._key}{name}{self._value}%s{end}" for name in _OF_A_REQUEST])
        self._request = f"{self._start}%s{self._levels['info']}{'request':<30}{end}{fields}"

    def __call__(self, _logger: object, level: str, event: EventDict) -> str:
        """The line, without its end."""
        traceback = _traceback(level, event) if "exc_info" in event else ""
        text = event.pop("event")
        if not text.isprintable():
            text = _escaped(text)
        # Nearly always all values are plain, which one look at all of them tells.
        together = "".join([value for value in event.values() if value.__class__ is str])
        is_plain = together.isprintable() and not _is_ambiguous(together)
        key_, value_, end = self._key, self._value, self._end
        fields = [
            f" {key_}{key}{value_}{value if is_plain else _shown(value)}{end}"
            if value.__class__ is str
            else f" {key_}{key}{value_}{value!r}{end}"
            for key, value in sorted(event.items())
            if value is not None
        ]
        line = f"{self._start}{_now()}{self._levels[level]}{text:<30}{end}{''.join(fields)}"
        if not (fields or end):
            line = line.rstrip(" ")
        return line + traceback

    def of_request(self, record: RequestRecord, decision: Decision) -> str | None:
        """The line of a plain request, as `access` has it made; None where a value needs quotes."""
        outcome, task, host = record.outcome._value_, record.task_type._value_, decision.host_id
        texts = (host, record.id, record.method, record.model, outcome, record.route, task)
        together = "".join(texts)
        if not together.isprintable() or _is_ambiguous(together):
            return None
        return self._request % (
            _now(),
            record.attempts,
            record.body_bytes_out,
            round(record.first_byte_s or 0.0, 4),
            *texts[:5],
            record.priority,
            round(record.queue_s, 4),
            record.route,
            record.status,
            task,
            round(record.total_s, 4),
        )


def json_line(_logger: object, level: str, event: EventDict) -> bytes:
    """The last processor of structlog: an event as a JSON object in UTF-8, without the line's end.

    What JSON has no word for stands there as Python writes it.
    """
    if "exc_info" in event and (traceback := _traceback(level, event)):
        event["exception"] = traceback[1:]
    fields = {key: value for key, value in event.items() if value is not None}
    fields["level"] = level
    fields["timestamp"] = _now()
    try:
        return orjson.dumps(fields, default=repr)
    except TypeError:  # text with half a surrogate pair, or an integer beyond 64 bits
        return json.dumps(fields, default=repr).encode("ascii")


class _Requests:
    """What `configure` adds to structlog's loggers: a short way for the line of a plain request.

    Plain is what one host answered well at once. Its fields are always the same, so structlog need
    not collect, and a processor not look at, what is known beforehand: the same bytes for half of
    the time. What begins with an underscore is structlog's, for classes that extend its loggers.
    """

    has_requests: bool
    _context: Any
    _logger: Any
    _processors: Any

    def plain_request(self, record: RequestRecord) -> bool:
        """Write the line; False where it has to be made field by field."""
        decision = record.decision
        if (
            record.outcome is not Outcome.COMPLETED
            or decision is None
            or record.first_byte_s is None
            or not record.model
            or record.failures
            or record.hosts
            or record.detail
            or self._context
        ):
            return False
        processor = self._processors[0]
        if not self.has_requests:
            return True
        line: str | bytes | None = None
        if processor.__class__ is ConsoleLine:
            line = processor.of_request(record, decision)
        elif processor is json_line:
            line = json_line(None, "info", {**_fields(record), "event": "request"})
        if line is None:
            return False
        self._logger.msg(line)
        return True


def _now() -> str:
    """Microseconds always, so that lines are as wide as each other and sort as text."""
    return f"{datetime.now(UTC).isoformat(timespec='microseconds')[:-6]}Z"


def _traceback(level: str, event: EventDict) -> str:
    """The traceback that `exc_info` stands for, each line behind a line end; often none."""
    formatted = structlog.processors.format_exc_info(None, level, event)
    lines = str(formatted.pop("exception", "")).splitlines()
    return "".join([f"\n{_escaped(line)}" for line in lines])


def _shown(value: str) -> str:
    return repr(value) if _is_ambiguous(value) or not value.isprintable() else value


def _escaped(text: str) -> str:
    """Text in which characters that print nothing are written out as in Python's literals."""
    return "".join([char if char.isprintable() else repr(char)[1:-1] for char in text])


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


def access(log: structlog.typing.FilteringBoundLogger, record: RequestRecord) -> None:
    """The one line of a request."""
    plain_request = getattr(log, "plain_request", None)  # there if `configure` was called
    if plain_request is not None and plain_request(record):
        return
    write = log.info if record.outcome in _QUIET else log.warning
    write("request", **_fields(record))


def _fields(record: RequestRecord) -> dict[str, Any]:
    decision = record.decision
    # `_value_` is what `value` would find in two calls.
    fields: dict[str, Any] = {
        "id": record.id,
        "method": record.method,
        "route": record.route,
        "model": record.model or None,
        "outcome": record.outcome._value_,
        "status": record.status,
        "host": None if decision is None else decision.host_id,
        "hosts": list(record.hosts) or None,
        "task": record.task_type._value_,
        "priority": record.priority,
        "attempts": record.attempts,
        "queue_s": round(record.queue_s, 4),
        "first_byte_s": None if record.first_byte_s is None else round(record.first_byte_s, 4),
        "total_s": round(record.total_s, 4),
        "bytes_out": record.body_bytes_out,
    }
    if record.failures:
        fields["failures"] = [f"{host}: {reason}" for host, reason in record.failures]
    if record.detail:
        fields["detail"] = record.detail
    return fields
