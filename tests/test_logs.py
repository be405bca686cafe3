"""The access line: what it says of a request, and how loudly."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Literal, cast

import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.testing import LogCapture

from sollol_proxy import logs
from sollol_proxy.config.schema import LogSection
from sollol_proxy.core.types import Outcome, RequestRecord
from tests.server.samples import RECORD

CALLS_A_LINE = {"console": 22, "json": 23}
"""Python's and C's together, structlog's included: what was counted and two more."""

CLEAN = replace(RECORD, failures=(), attempts=1)

PARTIAL = replace(
    RECORD,
    outcome=Outcome.PARTIAL,
    decision=None,
    hosts=("gpu-box", "mac"),
    failures=(("attic", "no space left"),),
)


def line_of(record: RequestRecord) -> structlog.typing.EventDict:
    capture = LogCapture()
    logs.access(
        structlog.wrap_logger(
            None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
        ),
        record,
    )
    [line] = capture.entries
    return line


def test_access_line_names_the_hosts_that_did_their_part_and_those_that_did_not() -> None:
    line = line_of(PARTIAL)
    assert line["hosts"] == ["gpu-box", "mac"]
    assert line["failures"] == ["attic: no space left"]
    assert line["host"] is None


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (Outcome.COMPLETED, "info"),
        (Outcome.CLIENT_GONE, "info"),
        (Outcome.UPSTREAM_REFUSED, "info"),
        (Outcome.PARTIAL, "warning"),
        (Outcome.UPSTREAM_FAILED, "warning"),
    ],
)
def test_access_line_warns_of_what_somebody_should_see(outcome: Outcome, level: str) -> None:
    assert line_of(replace(RECORD, outcome=outcome))["log_level"] == level


def test_access_line_names_no_hosts_where_one_was_asked() -> None:
    line = line_of(RECORD)
    assert (line["host"], line["hosts"]) == ("gpu-box", None)


class Writes(io.RawIOBase):
    """What a process's standard error is: each write as it came."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.made.append(bytes(data))
        return len(data)


Format = Literal["console", "json"]
Start = Callable[..., tuple[Any, Writes]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Sets the log up: (format, level="info") → a logger, and what it writes to.

    Standard error is as PYTHONUNBUFFERED makes it, in an encoding that has few characters.
    """

    def started(log_format: Format, level: Literal["info", "error"] = "info") -> tuple[Any, Writes]:
        raw = Writes()
        text = io.TextIOWrapper(
            cast(BinaryIO, raw), "ascii", errors="backslashreplace", write_through=True
        )
        monkeypatch.setattr(sys, "stderr", text)
        logs.configure(LogSection(format=log_format, level=level))
        return structlog.get_logger("sollol"), raw

    yield started
    structlog.reset_defaults()


def console(level: str, event: dict[str, Any], *, has_colors: bool = False) -> str:
    return logs.ConsoleLine(has_colors=has_colors)(None, level, event)


@pytest.mark.parametrize("has_colors", [False, True])
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reason": "Connection refused", "host": "attic"},
        {"zeta": 1, "alpha": 0.25, "empty": "", "is_last": True, "hosts": ["a b", "c"]},
        {"quote": "it's", "pair": "a=b", "model": "qwen3:8b", "name": "größe", "cost": 10**30},
    ],
)
def test_console_line_looks_as_structlogs_own(
    fields: dict[str, Any], level: str, has_colors: bool
) -> None:
    theirs = ConsoleRenderer(colors=has_colors, exception_formatter=plain_traceback)
    ours = console(level, {"event": "host is up", **fields}, has_colors=has_colors)
    stamp = ours.removeprefix("\x1b[2m" if has_colors else "")[: len("2026-03-01T12:00:00.000000Z")]
    event = {"event": "host is up", **fields, "level": level, "timestamp": stamp}
    assert ours == theirs(None, level, event)
    assert datetime.fromisoformat(stamp).utcoffset() == timedelta(0)


def test_console_line_leaves_out_what_has_no_value() -> None:
    line = console("info", {"event": "request", "host": None, "model": "m"})
    assert line.endswith(" model=m")
    assert "host" not in line


def test_console_line_shows_what_a_terminal_would_obey() -> None:
    hostile = "m\x1b[2J\x9b1A\r\nforged\u202e\udc80"
    line = console("info", {"event": f"said {hostile}", "model": hostile, "failures": [hostile]})
    assert line.isprintable()
    assert line.count(r"m\x1b[2J\x9b1A\r\nforged\u202e\udc80") == 3


def test_console_line_of_an_exception_ends_in_its_traceback() -> None:
    try:
        raise ValueError("first\nsecond \x1b[2J")
    except ValueError as error:
        line = console("error", {"event": "task failed", "exc_info": error})
    first, *traceback = line.split("\n")
    assert first.endswith("[error    ] task failed")
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-2:] == ["ValueError: first", r"second \x1b[2J"]


def test_json_line_holds_every_field_that_has_a_value() -> None:
    line = logs.json_line(None, "info", {"event": "request", "n": 1, "host": None, "to": ["a"]})
    fields = json.loads(line)
    stamp = datetime.fromisoformat(fields.pop("timestamp"))
    assert stamp.utcoffset() == timedelta(0)
    assert fields == {"event": "request", "n": 1, "to": ["a"], "level": "info"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [("\udc80", "\udc80"), (2**70, 2**70), ("größe\n", "größe\n"), (OSError(2, "gone"), None)],
)
def test_json_line_takes_any_value(value: Any, shown: Any) -> None:
    fields = json.loads(logs.json_line(None, "info", {"event": "x", "value": value}))
    assert fields["value"] == (repr(value) if shown is None else shown)


def test_json_line_of_an_exception_holds_its_traceback() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        fields = json.loads(logs.json_line(None, "error", {"event": "x", "exc_info": True}))
    assert fields["exception"].startswith("Traceback (most recent call last):\n")
    assert fields["exception"].endswith("\nValueError: no")
    assert "exc_info" not in fields


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_line_is_one_write_that_nothing_holds_back(log_format: Format, start: Start) -> None:
    log, stderr = start(log_format)
    log.info("first", model="größe")
    log.warning("second")
    assert [line.count(b"\n") for line in stderr.made] == [1, 1]
    assert [line.endswith(b"\n") for line in stderr.made] == [True, True]


def test_json_line_is_utf8_whatever_the_locale(start: Start) -> None:
    log, stderr = start("json")
    log.info("x", model="größe")
    [line] = stderr.made
    assert orjson.loads(line)["model"] == "größe"


def test_log_keeps_to_its_level(start: Start) -> None:
    log, stderr = start("console", "error")
    log.warning("too quiet")
    log.error("loud")
    [line] = stderr.made
    assert b" [error    ] loud\n" in line


TEXTS = st.text(max_size=9) | st.sampled_from(
    ["m", "a b", "it's", "a=b", "größe", "\x1b[2J", "\udc80"]
)
SECONDS = st.floats(0, 10**6) | st.just(0.0)
RECORDS = st.builds(
    replace,
    st.sampled_from([CLEAN, RECORD, PARTIAL]),
    id=TEXTS,
    method=TEXTS,
    model=TEXTS,
    priority=st.integers(0, 10),
    body_bytes_out=st.integers(0, 2**70),
    queue_s=SECONDS,
    first_byte_s=SECONDS | st.none(),
    total_s=SECONDS,
    detail=st.sampled_from(["", "HTTP 503"]),
    outcome=st.sampled_from(Outcome),
)


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("has_colors", [False, True])
def test_access_line_is_the_same_however_it_is_made(
    log_format: Format, has_colors: bool, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_is_terminal", lambda: has_colors)
    monkeypatch.setattr(logs, "_now", lambda: "2026-03-01T12:00:00.000000Z")
    log, stderr = start(log_format)
    slow = structlog.wrap_logger(
        structlog.get_config()["logger_factory"](),
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )

    @given(RECORDS)
    def same(record: RequestRecord) -> None:
        logs.access(log, record)
        logs.access(slow, record)
        assert stderr.made[-1] == stderr.made[-2]

    same()
    assert len(stderr.made) > 100
    assert not hasattr(slow, "plain_request")
    assert log.plain_request(CLEAN)


def test_plain_request_is_not_written_where_only_errors_are(start: Start) -> None:
    log, stderr = start("console", "error")
    logs.access(log, CLEAN)
    assert not stderr.made


def test_plain_request_goes_where_whoever_captures_the_log_wants_it(start: Start) -> None:
    log, stderr = start("console")
    with structlog.testing.capture_logs() as lines:
        logs.access(log, CLEAN)
    assert [line["id"] for line in lines] == [CLEAN.id]
    assert not stderr.made


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_access_line_costs_a_bounded_number_of_calls(log_format: Format, start: Start) -> None:
    log, stderr = start(log_format)
    logs.access(log, CLEAN)  # whatever is kept is kept by now
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, what: Any) -> None:
        if event in ("call", "c_call"):
            name = what.__name__ if event == "c_call" else frame.f_code.co_name
            calls[f"{Path(frame.f_code.co_filename).name}:{name}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        logs.access(log, CLEAN)
    finally:
        sys.setprofile(before)
    assert len(stderr.made) == 2
    assert calls["logs.py:access"] == 1
    # The standard error of this test and the end of the counting are calls, too.
    own = calls["test_logs.py:write"] + calls["test_logs.py:append"] + calls["test_logs.py:len"]
    assert calls.total() - own - calls["test_logs.py:setprofile"] <= CALLS_A_LINE[log_format], calls
