"""How near predictions came, on the page, as JSON and as metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sollol_proxy.core.types import Decision, Observation, Outcome, RequestRecord
from sollol_proxy.metrics import Metrics
from sollol_proxy.server import views
from sollol_proxy.server.calibration import KEPT, Calibration, CalibrationRow
from tests.server.samples import DECISION, RECORD, RECORDS, pool


def record(
    *,
    total_s: float | None = None,
    predicted_total_s: float | None = None,
    waited_s: float = 0.0,
    predicted_wait_s: float | None = None,
    host: str = "a",
    **fields: Any,
) -> RequestRecord:
    decision: Decision | None = replace(
        DECISION,
        host_id=host,
        waited_s=waited_s,
        predicted_wait_s=predicted_wait_s,
        predicted_total_s=predicted_total_s,
    )
    given = {"decision": decision, "attempts": 1, "observation": Observation(total_s=total_s)}
    return replace(RECORD, **{**given, **fields})


def rows_of(*records: RequestRecord) -> tuple[CalibrationRow, ...]:
    calibration = Calibration()
    for each in records:
        calibration.add(each)
    return calibration.rows()


def test_calibration_compares_what_was_predicted_with_what_happened() -> None:
    assert rows_of(
        record(total_s=2.0, predicted_total_s=1.0, waited_s=3.0, predicted_wait_s=5.0),
        record(total_s=1.0, predicted_total_s=4.0, waited_s=3.0, predicted_wait_s=3.0),
        record(total_s=3.0, predicted_total_s=3.0),
        record(total_s=6.0, predicted_total_s=8.0, host="b"),
    ) == (
        CalibrationRow("a", 3, 1.0, 4 / 3, 1.0),
        CalibrationRow("b", 1, 0.75, 2.0, None),
    )


@pytest.mark.parametrize(
    "silent",
    [
        record(total_s=2.0),
        record(predicted_total_s=2.0),
        record(total_s=2.0, predicted_total_s=0.0),
        record(total_s=2.0, predicted_total_s=1.0, outcome=Outcome.CLIENT_GONE),
        record(total_s=2.0, predicted_total_s=1.0, outcome=Outcome.UPSTREAM_BROKE),
        record(total_s=2.0, predicted_total_s=1.0, observation=None),
        record(waited_s=2.0, predicted_wait_s=1.0, attempts=2),
        record(decision=None),
    ],
)
def test_request_without_something_to_compare_counts_for_nothing(silent: RequestRecord) -> None:
    assert rows_of(silent) == ()


def test_calibration_looks_at_the_last_requests_only() -> None:
    before = [record(total_s=9.0, predicted_total_s=1.0)] * KEPT
    after = [record(total_s=1.0, predicted_total_s=1.0)] * KEPT
    assert rows_of(*before, *after) == (CalibrationRow("a", KEPT, 1.0, 0.0, None),)


def test_calibration_can_be_forgotten() -> None:
    calibration = Calibration()
    calibration.add(record(total_s=2.0, predicted_total_s=1.0))
    calibration.forget()
    assert calibration.rows() == ()


@given(st.lists(RECORDS, max_size=5))
def test_calibration_and_metrics_take_any_record(records: list[RequestRecord]) -> None:
    metrics = Metrics()
    for each in records:
        metrics.observe(each)
    rows_of(*records)


def test_stats_tell_how_near_predictions_came() -> None:
    rows = rows_of(record(total_s=2.0, predicted_total_s=1.0))
    assert views.stats_json(pool(), (), rows)["calibration"] == [
        {
            "host": "a",
            "count": 1,
            "total_ratio_median": 2.0,
            "total_error_mean_s": 1.0,
            "wait_error_mean_s": None,
        }
    ]
    assert views.stats_json(pool(), ())["calibration"] == []


def test_request_tells_what_was_predicted_for_it() -> None:
    decision = views.request_json(record(predicted_wait_s=1.0, predicted_total_s=3.0))["decision"]
    assert (decision["predicted_wait_s"], decision["predicted_total_s"]) == (1.0, 3.0)


def test_metrics_count_predictions_by_host() -> None:
    metrics = Metrics()
    metrics.observe(record(total_s=2.0, predicted_total_s=1.0, waited_s=3.0, predicted_wait_s=5.0))
    metrics.observe(record(total_s=2.0))
    text = metrics.render(pool()).decode()
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("host") == "a"
    }
    assert samples["sollol_prediction_ratio_count", None] == 1
    assert samples["sollol_prediction_ratio_bucket", "1.5"] == 0
    assert samples["sollol_prediction_ratio_bucket", "2.0"] == 1
    assert samples["sollol_prediction_wait_error_seconds_count", None] == 1
    assert samples["sollol_prediction_wait_error_seconds_bucket", "-2.0"] == 1
    assert samples["sollol_prediction_wait_error_seconds_bucket", "-5.0"] == 0
