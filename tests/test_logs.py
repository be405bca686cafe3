"""The access line: what it says of a request, and how loudly."""

from __future__ import annotations

import io
import json
import string
import sys
from dataclasses import replace
from types import FrameType
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import LogCapture

from sollol_proxy import logs
from sollol_proxy.config.schema import LogSection
from sollol_proxy.core.types import Outcome, RequestRecord
from tests.server.samples import RECORD

CALLS_A_LINE = 75
"""Counted: 69 on the console, 44 as JSON. structlog's own console renderer took 290."""

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


# --- how a line looks ---------------------------------------------------------------------------

texts = st.text(max_size=20) | st.sampled_from(["a=b", "two words", "it's", '"', "", "ü"])
values = texts | st.integers() | st.floats() | st.booleans() | st.lists(texts, max_size=3)
names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12).filter(
    lambda name: name not in ("event", "level", "timestamp", *logs._NEEDS_LINES)
)
levels = st.sampled_from(["debug", "info", "warning", "error", "critical"])


@given(event=texts, level=levels, fields=st.dictionaries(names, values, max_size=6))
def test_plain_line_is_what_structlog_writes_without_colours(
    event: str, level: str, fields: dict[str, Any]
) -> None:
    console = structlog.dev.ConsoleRenderer(colors=False)
    line = {"timestamp": "2026-01-01T00:00:00Z", "level": level, "event": event, **fields}
    assert logs.PlainRenderer(console)(None, level, dict(line)) == console(None, level, dict(line))


def test_plain_line_leaves_what_has_more_lines_to_structlog() -> None:
    console = structlog.dev.ConsoleRenderer(colors=False)
    line = {"timestamp": "t", "level": "error", "event": "boom", "exception": "Traceback\n…"}
    assert logs.PlainRenderer(console)(None, "error", dict(line)) == console(
        None, "error", dict(line)
    )


@pytest.mark.parametrize("model", ["llama3.2:latest", "ünïcode", "\ud800"])
def test_json_line_can_be_read_back(model: str) -> None:
    renderer = structlog.processors.JSONRenderer(serializer=logs._json)
    line = renderer(None, "info", {"event": "request", "model": model, "odd": {1}})
    assert json.loads(line) == {"event": "request", "model": model, "odd": "{1}"}


@pytest.mark.parametrize("form", ["console", "json"])
def test_access_line_costs_a_bounded_number_of_calls(
    form: Literal["console", "json"], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    before = structlog.get_config()
    try:
        logs.configure(LogSection(format=form))
        log = structlog.get_logger("sollol")
        logs.access(log, RECORD)
        calls = 0

        def note(_frame: FrameType, kind: str, _what: object) -> None:
            nonlocal calls
            calls += kind in ("call", "c_call")

        profile = sys.getprofile()
        sys.setprofile(note)
        try:
            logs.access(log, RECORD)
        finally:
            sys.setprofile(profile)
    finally:
        structlog.configure(**before)
    lines = written.getvalue().splitlines()
    assert len(lines) == 2
    assert all("gpu-box" in line and "queue_s" in line for line in lines)
    assert calls <= CALLS_A_LINE
