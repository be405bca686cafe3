"""JSON views of our own records, for `/sollol/*`: stable names, units in the keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sollol_proxy.core.snapshots import HostSnapshot, LearntRow, Snapshot
from sollol_proxy.core.types import Cost, Decision, Observation, RequestRecord
from sollol_proxy.server.alerts import Alert, standing
from sollol_proxy.server.calibration import CalibrationRow
from sollol_proxy.server.figures import instant_iso
from sollol_proxy.server.models_view import Copy, HostModels, PoolModel, PoolModels, disk_bytes

Json = dict[str, Any]


def request_json(record: RequestRecord, *, is_running: bool = False) -> Json:
    """One request, with the decision and the alternatives it had."""
    return {
        "id": record.id,
        "started_at": record.started_at,
        "state": "running" if is_running else "finished",
        "outcome": None if is_running else record.outcome.value,
        "status": record.status or None,
        "answered_by": "host" if record.answered_by_host else "proxy",
        "method": record.method,
        "route": record.route,
        "path": record.path,
        "model": record.model or None,
        "kind": record.kind.value,
        "stream": record.stream,
        "task_type": record.task_type.value,
        "complexity": record.complexity.value,
        "priority": record.priority,
        "attempts": record.attempts,
        "hosts": list(record.hosts),
        "failed_attempts": [
            {"host": host_id, "reason": reason} for host_id, reason in record.failures
        ],
        "queue_s": record.queue_s,
        "first_byte_s": record.first_byte_s,
        "total_s": record.total_s,
        "bytes_in": record.body_bytes_in,
        "bytes_out": record.body_bytes_out,
        "observation": _observation_json(record.observation),
        "decision": None if record.decision is None else _decision_json(record.decision),
        "detail": record.detail or None,
    }


def request_row_json(record: RequestRecord) -> Json:
    """One row of the list: without the alternatives."""
    row = request_json(record)
    if row["decision"] is not None:
        row["decision"] = {
            key: row["decision"][key] for key in ("host", "policy", "score", "cost", "reason")
        }
    return row


def host_json(host: HostSnapshot) -> Json:
    """One host with what is known and learnt of it."""
    spec = host.spec
    return {
        "id": spec.id,
        "url": spec.url,
        "state": host.state.value,
        "state_for_s": host.state_for_s,
        "detail": host.detail or None,
        "retry_in_s": host.retry_in_s,
        "version": host.version or None,
        "in_flight": host.in_flight,
        "in_flight_by_model": dict(host.in_flight_by_model),
        "slots": spec.slots,
        "model_slots": dict(spec.model_slots),
        "max_models": spec.max_models,
        "priority": spec.priority,
        "labels": dict(spec.labels),
        "memory_bytes": spec.memory_bytes,
        "tasks": sorted(task.value for task in spec.tasks),
        "installed": [
            {"name": model.name, "digest": model.digest, "size_bytes": model.size_bytes}
            for model in host.installed
        ],
        "resident": [
            {
                "name": model.name,
                "size_bytes": model.size_bytes,
                "size_vram_bytes": model.size_vram_bytes,
                "context_length": model.context_length or None,
                "loading": model.name in host.loading,
            }
            for model in host.resident
        ],
        "round_trip_s": host.round_trip_s,
        "first_token_s": host.first_token_s,
        "decode_tokens_per_s": host.decode_tokens_per_s,
        "success_ratio": host.success_ratio,
        "completed": host.completed,
        "failures": host.failures,
    }


def stats_json(
    snapshot: Snapshot, alerts: Sequence[Alert], calibration: Sequence[CalibrationRow] = ()
) -> Json:
    """The pool at a glance: standing, queue, what was learnt, how near predictions came, alerts."""
    routable = [host for host in snapshot.hosts if host.state.is_routable]
    return {
        "standing": standing(snapshot).value,
        "policy": snapshot.policy,
        "plan_faults": snapshot.plan_faults,
        "hosts": {"total": len(snapshot.hosts), "routable": len(routable)},
        "in_flight": sum(host.in_flight for host in snapshot.hosts),
        "queue": {
            "waiting": snapshot.waiting_total,
            "waiting_by_priority": {
                str(priority): count
                for priority, count in sorted(snapshot.waiting_by_priority.items())
            },
            "oldest_wait_s": snapshot.oldest_wait_s,
            "first": [
                {
                    "id": waiting.job.id,
                    "model": waiting.job.model,
                    "priority": waiting.job.priority,
                    "waited_s": waiting.waited_s,
                    "waits": waiting.reason,
                }
                for waiting in snapshot.waiting
            ],
        },
        "learnt": [_learnt_json(row) for row in snapshot.learnt],
        "calibration": [_calibration_json(row) for row in calibration],
        "alerts": [
            {
                "severity": alert.severity.value,
                "kind": alert.kind.value,
                "subject": alert.subject,
                "message": alert.message,
                "since": alert.since,
            }
            for alert in alerts
        ],
    }


def models_json(pool: PoolModels) -> Json:
    """Every model with its copies, and every host with what it has and lacks."""
    return {
        "models": [_model_json(model) for model in pool.models],
        "hosts": [_host_models_json(host) for host in pool.hosts],
    }


def _model_json(model: PoolModel) -> Json:
    return {
        "name": model.name,
        "copies": len(model.copies),
        "size_bytes": model.size_bytes,
        "disk_bytes": model.disk_bytes,
        "digests": len(model.digests),
        "drift": model.has_drift,
        "hosts": [_copy_json(copy) for copy in model.copies],
        "missing_on": list(model.missing_on),
    }


def _copy_json(copy: Copy) -> Json:
    resident = copy.resident
    return {
        "host": copy.host.spec.id,
        "state": copy.host.state.value,
        "digest": copy.model.digest or None,
        "size_bytes": copy.model.size_bytes,
        "modified_at": instant_iso(copy.model.modified_ns),
        "is_newest": copy.is_newest,
        "is_remote": copy.model.is_remote,
        "resident": None
        if resident is None
        else {
            "size_bytes": resident.size_bytes,
            "size_vram_bytes": resident.size_vram_bytes,
            "context_length": resident.context_length or None,
        },
        "in_flight": copy.in_flight,
    }


def _host_models_json(host: HostModels) -> Json:
    """A host that has not answered yet has null models: nobody knows."""
    return {
        "id": host.host.spec.id,
        "state": host.host.state.value,
        "models": len(host.host.installed) if host.is_known else None,
        "disk_bytes": disk_bytes(host.host) if host.is_known else None,
        "lacks": list(host.lacks),
        "differs": list(host.differs),
    }


def _learnt_json(row: LearntRow) -> Json:
    return {
        "task_type": row.task_type.value,
        "model": row.model,
        "count": row.total.count,
        "mean_s": row.total.mean_s,
        "min_s": row.total.min_s,
        "max_s": row.total.max_s,
        "output_tokens_mean": row.output_tokens_mean,
        "first_byte_s_mean": row.first_byte_s_mean,
    }


def _calibration_json(row: CalibrationRow) -> Json:
    return {
        "host": row.host_id,
        "count": row.count,
        "total_ratio_median": row.ratio_median,
        "total_error_mean_s": row.total_error_s,
        "wait_error_mean_s": row.wait_error_s,
    }


def _decision_json(decision: Decision) -> Json:
    return {
        "host": decision.host_id,
        "policy": decision.policy,
        **_cost_json(decision.cost),
        "waited_s": decision.waited_s,
        "predicted_wait_s": decision.predicted_wait_s,
        "predicted_total_s": decision.predicted_total_s,
        "reason": decision.reason,
        "alternatives": [
            {"host": candidate.host_id, **_cost_json(candidate.cost)}
            for candidate in decision.runners_up
        ],
    }


def _cost_json(cost: Cost) -> Json:
    return {
        "score": cost.score,
        "cost": cost.total,
        "terms": [
            {"name": term.name, "value": term.value, "text": term.text or None}
            for term in cost.terms
        ],
    }


def _observation_json(observation: Observation | None) -> Json | None:
    if observation is None:
        return None
    return {
        "prompt_tokens": observation.prompt_tokens,
        "output_tokens": observation.output_tokens,
        "load_s": observation.load_s,
        "prefill_s": observation.prefill_s,
        "decode_s": observation.decode_s,
    }
