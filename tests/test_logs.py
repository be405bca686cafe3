"""The access line: what it says of a request, and how loudly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog
from structlog.testing import LogCapture

from sollol_proxy import logs
from sollol_proxy.core.types import Outcome, RequestRecord
from tests.server.samples import RECORD

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
