"""Workloads from files.

A `.jsonl` file is a recording, one JSON object a request:

    {"arrived_s": 12.5, "model": "llama3", "prompt_tokens": 310, "output_tokens": 84}

`arrived_s` counts from any instant; `priority` (1 to 10) and `stream` may be given. Lines are
sorted by time; other keys are ignored. The proxy's own decision log is such a file: of it, what was
answered is played. Any other file is YAML or JSON:

    models:                   # optional: sizes; default 4.9 GB, 8 billion parameters
      llama3: {size_bytes: 4900000000, params_b: 8}
    classes:
      - {share: 0.7, model: llama3, prompt: {median: 120, sigma: 0.7}, output: 60}
    arrivals: poisson         # or burst (with burst_factor, burst_s, period_s)
    stream_share: 1.0         # part of the answers that is streamed
    priorities: {8: 0.2, 5: 0.8}
    sessions: {turns_mean: 6, pause_mean_s: 20, system_tokens: 400, shared: 0.33}
    resident: true            # whether the models are loaded at the start
    faults: false

A length is a number, or median, sigma (of the logarithm), low and high. A class may have a
`priority` of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sollol_proxy.lab.replay_log import is_decision_line, parse
from sollol_proxy.lab.simspec import SimModel
from sollol_proxy.lab.workload import (
    LONG_CONTEXT,
    Arrivals,
    Lengths,
    RequestClass,
    Row,
    Sessions,
    Workload,
)
from sollol_proxy.lab.workload_builtin import WORKLOADS

_SCALARS = ("stream_share", "burst_factor", "burst_s", "period_s")
_KEYS = frozenset(
    {"models", "classes", "arrivals", "priorities", "sessions", "resident", "faults", *_SCALARS}
)


class WorkloadError(ValueError):
    """A workload that is not known, or a file that describes none."""


def workload(name: str) -> Workload:
    """A built-in workload by name, or one from a file.

    Raises:
        WorkloadError: there is no such workload, or the file is wrong.
    """
    built_in = WORKLOADS.get(name)
    if built_in is not None:
        return built_in()
    path = Path(name)
    if not path.is_file():
        raise WorkloadError(f"no workload or file {name!r}; built in are {', '.join(WORKLOADS)}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return _recording(path.stem, text)
        return _description(path.stem, yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        missing = "lacks " if isinstance(error, KeyError) else ""
        raise WorkloadError(f"{name}: {missing}{error}") from error


def _recording(name: str, text: str) -> Workload:
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError(f"line {number} is no object")
        entries.append(entry)
    if any(map(is_decision_line, entries)):
        return _decisions(name, text)
    if not entries:
        raise ValueError("has no requests")
    entries.sort(key=lambda entry: float(entry["arrived_s"]))
    models = {str(entry["model"]): _model(str(entry["model"])) for entry in entries}
    rows = []
    before_s = float(entries[0]["arrived_s"])
    for entry in entries:
        arrived_s = float(entry["arrived_s"])
        rows.append(
            Row(
                gap_s=arrived_s - before_s,
                prompt_tokens=max(1, int(entry["prompt_tokens"])),
                output_tokens=max(0, int(entry["output_tokens"])),
                model=models[str(entry["model"])],
                priority=int(entry["priority"]) if "priority" in entry else None,
                stream=bool(entry["stream"]) if "stream" in entry else None,
            )
        )
        before_s = arrived_s
    is_resident = len(models) == 1
    return Workload(name, rows=tuple(rows), arrivals=Arrivals.TRACE, is_resident=is_resident)


def _decisions(name: str, text: str) -> Workload:
    """What was answered of a decision log, with prompts as the proxy estimated them if need be."""
    log = parse(text.splitlines())
    if log.broken:
        raise ValueError(f"line {log.broken[0]} is no line of a decision log")
    if not log.entries:
        raise ValueError("has no requests that were answered")
    models = {entry.model: _model(entry.model) for entry in log.entries}
    rows = tuple(
        Row(
            gap_s=entry.at_s - before_s,
            prompt_tokens=entry.prompt_tokens,
            output_tokens=entry.output_tokens,
            model=models[entry.model],
            priority=entry.priority,
            stream=entry.stream,
        )
        for entry, before_s in zip(
            log.entries, [0.0, *(entry.at_s for entry in log.entries)], strict=False
        )
    )
    return Workload(name, rows=rows, arrivals=Arrivals.TRACE, is_resident=len(models) == 1)


def _description(name: str, document: object) -> Workload:
    if not isinstance(document, dict):
        raise ValueError("is no object")
    if strange := sorted(str(key) for key in set(document) - _KEYS):
        raise ValueError(f"unknown {', '.join(strange)}; known are {', '.join(sorted(_KEYS))}")
    models = {
        str(model): _model(str(model), **figures)
        for model, figures in (document.get("models") or {}).items()
    }
    classes = tuple(
        _class(f"class {number}", entry, models)
        for number, entry in enumerate(document["classes"], 1)
    )
    scalars: dict[str, Any] = {key: float(document[key]) for key in _SCALARS if key in document}
    arrivals = Arrivals(document.get("arrivals", "poisson"))
    if arrivals is Arrivals.TRACE:
        raise ValueError("a trace is a .jsonl file")
    sessions = document.get("sessions")
    priorities = document.get("priorities") or {5: 1.0}
    return Workload(
        name,
        classes,
        arrivals=arrivals,
        sessions=None if sessions is None else Sessions(**sessions),
        is_resident=bool(document.get("resident", True)),
        priorities=tuple((int(level), float(share)) for level, share in priorities.items()),
        has_faults=bool(document.get("faults", False)),
        **scalars,
    )


def _class(name: str, entry: Mapping[str, Any], models: Mapping[str, SimModel]) -> RequestClass:
    model = str(entry.get("model", "llama3"))
    return RequestClass(
        name=str(entry.get("name", name)),
        prompt=_lengths(entry["prompt"]),
        output=_lengths(entry["output"]),
        share=float(entry.get("share", 1.0)),
        model=models.get(model) or _model(model),
        priority=int(entry["priority"]) if "priority" in entry else None,
    )


def _model(name: str, **figures: Any) -> SimModel:
    return SimModel(name, **{"context_length": LONG_CONTEXT, **figures})


def _lengths(value: Any) -> Lengths:
    return Lengths(**value) if isinstance(value, Mapping) else Lengths(float(value))
