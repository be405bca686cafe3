"""Whether the pool takes jobs, and what is out of bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sollol_proxy.core.snapshots import HostSnapshot, Snapshot
from sollol_proxy.core.types import HostState, InstalledModel
from sollol_proxy.server.alerts import AlertKind, Severity, Standing, alerts, standing
from sollol_proxy.server.links import LINKS
from tests.server.samples import EJECTED, HEALTHY, NOW, SECTION, numbered, pool


def _having(*names: str, digest: str = "a") -> HostSnapshot:
    return replace(HEALTHY, installed=tuple(InstalledModel(name, digest) for name in names))


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (pool(HEALTHY), []),
        (pool(replace(HEALTHY, first_token_s=9.9)), []),
        (pool(replace(HEALTHY, first_token_s=10.0)), [AlertKind.FIRST_TOKEN]),
        (pool(replace(HEALTHY, success_ratio=0.9)), []),
        (pool(replace(HEALTHY, success_ratio=0.89)), [AlertKind.SUCCESS_RATIO]),
        (replace(pool(HEALTHY), waiting_total=49), []),
        (replace(pool(HEALTHY), waiting_total=50), [AlertKind.QUEUE_DEPTH]),
        (replace(pool(HEALTHY), oldest_wait_s=59.9), []),
        (replace(pool(HEALTHY), oldest_wait_s=60.0), [AlertKind.QUEUE_WAIT]),
        (pool(HEALTHY, EJECTED), [AlertKind.HOST_EJECTED]),
        (pool(HEALTHY, replace(EJECTED, success_ratio=0.1)), [AlertKind.HOST_EJECTED]),
        (pool(HEALTHY, replace(HEALTHY, state=HostState.UNKNOWN)), [AlertKind.HOST_UNKNOWN]),
        (pool(HEALTHY, replace(HEALTHY, state=HostState.DRAINING)), []),
        (pool(replace(HEALTHY, state=HostState.PROBATION)), []),
        (pool(EJECTED), [AlertKind.NO_HOST, AlertKind.HOST_EJECTED]),
        (pool(), [AlertKind.NO_HOST]),
        (
            pool(replace(HEALTHY, success_ratio=0.5), EJECTED),
            [AlertKind.HOST_EJECTED, AlertKind.SUCCESS_RATIO],
        ),
        (replace(pool(HEALTHY), plan_faults=1), [AlertKind.PLAN_FAULTS]),
        (pool(_having("m:1"), _having("m:1")), []),
        (pool(_having("m:1"), _having("m:1", digest="b")), [AlertKind.DRIFT]),
        (pool(_having("m:1"), _having("m:1", digest="")), []),
        (
            pool(_having("m:1"), replace(EJECTED, installed=(InstalledModel("m:1", "b"),))),
            [AlertKind.HOST_EJECTED],
        ),
        (
            replace(pool(_having("m:1"), _having("m:1", digest="b"), EJECTED), plan_faults=1),
            [AlertKind.HOST_EJECTED, AlertKind.PLAN_FAULTS, AlertKind.DRIFT],
        ),
    ],
)
def test_alerts_follow_the_thresholds(snapshot: Snapshot, expected: list[AlertKind]) -> None:
    found = alerts(snapshot, SECTION, NOW)
    assert [alert.kind for alert in found] == expected
    critical = {AlertKind.NO_HOST, AlertKind.HOST_EJECTED}
    for alert in found:
        assert (alert.severity is Severity.CRITICAL) == (alert.kind in critical)
        assert (alert.severity is Severity.INFO) == (alert.kind is AlertKind.DRIFT)
        assert alert.href == (LINKS.models if alert.kind is AlertKind.DRIFT else "")


@pytest.mark.parametrize(
    ("snapshot", "message", "since"),
    [
        (
            pool(HEALTHY, EJECTED),
            "attic is ejected: connection refused; tried again in 4.2 s",
            "2026-03-01T11:58:30Z",
        ),
        (
            pool(replace(HEALTHY, first_token_s=12.0)),
            "gpu-box is expected to need 12 s to its first token, threshold 10 s",
            NOW,
        ),
        (
            pool(replace(HEALTHY, success_ratio=0.823)),
            "82.3 % of the attempts at gpu-box end well, threshold 90.0 %",
            NOW,
        ),
        (
            replace(pool(HEALTHY), oldest_wait_s=75.0),
            "the oldest job has waited 1 min 15 s, threshold 1 min",
            "2026-03-01T11:59:45Z",
        ),
        (replace(pool(HEALTHY), waiting_total=64), "64 jobs waiting, threshold 50", NOW),
        (pool(), "no host takes jobs: none is configured", "2026-03-01T12:00:00Z"),
        (
            replace(pool(HEALTHY), plan_faults=2),
            "2 plans of seven_factor refused since the start: "
            "it raised, or named a host that may not take the job",
            NOW,
        ),
        (
            pool(_having(*"edcba"), _having(*"abcde", digest="b")),
            "different models under one name: a, b, c and 2 more",
            NOW,
        ),
    ],
)
def test_alert_tells_number_threshold_and_beginning(
    snapshot: Snapshot, message: str, since: str
) -> None:
    (alert,) = alerts(snapshot, SECTION, NOW)
    assert (alert.message, alert.since) == (message, since)


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (pool(), Standing.NO_HOST),
        (pool(EJECTED), Standing.NO_HOST),
        (pool(HEALTHY), Standing.SERVING),
        (pool(*numbered(3)), Standing.SERVING),
        (pool(HEALTHY, EJECTED), Standing.DEGRADED),
        (pool(HEALTHY, replace(HEALTHY, state=HostState.DRAINING)), Standing.SERVING),
        (replace(pool(HEALTHY, EJECTED), is_draining=True), Standing.DRAINING),
    ],
)
def test_standing_says_whether_the_pool_takes_jobs(snapshot: Snapshot, expected: Standing) -> None:
    assert standing(snapshot) is expected


def test_standing_is_serving_while_alerts_are_out() -> None:
    slow = pool(replace(HEALTHY, first_token_s=99.0, success_ratio=0.2))
    assert len(alerts(slow, SECTION, NOW)) == 2
    assert standing(slow) is Standing.SERVING
