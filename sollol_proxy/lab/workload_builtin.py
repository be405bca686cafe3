"""The built-in workloads. Figures are round: they describe kinds of traffic, no certain users."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import files

from sollol_proxy.lab.simspec import SimModel
from sollol_proxy.lab.workload import (
    LONG_CONTEXT,
    REFERENCE_MODEL,
    Arrivals,
    Lengths,
    RequestClass,
    Row,
    Sessions,
    Workload,
)


def _model(name: str, size_gb: float, params_b: float) -> SimModel:
    return SimModel(name, round(size_gb * 1e9), params_b, context_length=LONG_CONTEXT)


SIX_MODELS: tuple[tuple[SimModel, float], ...] = (
    (_model("llama3.1:8b", 4.9, 8.0), 0.34),
    (_model("qwen2.5:14b", 9.0, 14.0), 0.16),
    (_model("llama3.2:3b", 2.0, 3.0), 0.22),
    (_model("qwen2.5:32b", 19.0, 32.0), 0.06),
    (_model("llama3.2-vision:11b", 7.8, 11.0), 0.10),
    (_model("llama3.2:1b", 1.3, 1.2), 0.12),
)
"""Models of `six` and their shares of the requests; a host holds only some of them at a time."""


def _mixed_classes(model: SimModel, share: float) -> tuple[RequestClass, ...]:
    return (
        RequestClass(
            "short", Lengths(120, 0.7), Lengths(60, 0.7, high=600), share=0.7 * share, model=model
        ),
        RequestClass(
            "long", Lengths(1800, 0.5), Lengths(450, 0.6, high=4000), share=0.3 * share, model=model
        ),
    )


def _uniform() -> Workload:
    return Workload("uniform", (RequestClass("all", Lengths(256), Lengths(160)),))


def _mixed() -> Workload:
    return Workload("mixed", _mixed_classes(REFERENCE_MODEL, 1.0))


def _burst() -> Workload:
    return replace(_mixed(), name="burst", arrivals=Arrivals.BURST)


def _prio() -> Workload:
    return replace(_mixed(), name="prio", priorities=((8, 0.2), (5, 0.5), (2, 0.3)))


def _fault() -> Workload:
    return replace(_mixed(), name="fault", stream_share=0.5, has_faults=True)


def _six() -> Workload:
    classes = [kind for model, share in SIX_MODELS for kind in _mixed_classes(model, share)]
    return Workload("six", tuple(classes), is_resident=False)


def _chat() -> Workload:
    turn = RequestClass("turn", Lengths(90, 0.7), Lengths(140, 0.7, high=2000))
    return Workload("chat", (turn,), sessions=Sessions())


def _azure(name: str) -> Workload:
    return Workload(name, rows=tuple(_azure_rows(name)), arrivals=Arrivals.TRACE)


def _azure_rows(name: str) -> Iterator[Row]:
    data = files("sollol_proxy.lab").joinpath("traces", f"azure_{name}.csv.gz").read_bytes()
    for row in csv.DictReader(gzip.decompress(data).decode("ascii").splitlines()):
        yield Row(
            gap_s=int(row["gap_ms"]) / 1000,
            prompt_tokens=int(row["prompt_tokens"]),
            output_tokens=int(row["output_tokens"]),
        )


WORKLOADS: Mapping[str, Callable[[], Workload]] = {
    "uniform": _uniform,
    "mixed": _mixed,
    "burst": _burst,
    "conv": lambda: _azure("conv"),
    "code": lambda: _azure("code"),
    "six": _six,
    "chat": _chat,
    "prio": _prio,
    "fault": _fault,
}
"""Built-in workloads by name; `conv` and `code` are Azure's recordings, see traces/NOTICE."""
