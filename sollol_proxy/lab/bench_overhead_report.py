"""The figures of `bench overhead` as a table, as ratios, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sollol_proxy.lab.bench_overhead_contenders import DIRECT, SOLLOL
from sollol_proxy.lab.bench_overhead_meter import LEAST_FULL_RATIO, MOST_BUSY_RATIO
from sollol_proxy.lab.bench_report import quotients, shown
from sollol_proxy.lab.simulate_report import Line, aligned

MOST_LATE_S = 0.05
"""Of the hosts' clock; later than that, streams come in lumps."""

MOST_OTHERS = 0.2
"""Cores that others may use before the report speaks of them."""

MOST_LUMPED = 1.2
"""Records a piece; above it a record did not cost what it costs when it comes alone."""

LEAST_KEPT_RATIO = 0.97
"""Of the records that were due; a relay below it was saturated."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table. measure: empty = any. is_ratio: whether a quotient of it has a meaning.

    is_floored: whether it is a rate that clients and hosts can hold up.
    """

    title: str
    measure: str
    key: str
    form: str
    is_ratio: bool = True
    is_floored: bool = False

    def runs(self, lines: Iterable[Line], contender: str) -> dict[int, Line]:
        """The runs of a contender that have this figure, by round; the median of several."""
        found: dict[int, list[Line]] = {}
        for line in self._of(lines, contender):
            found.setdefault(line["round"], []).append(line)
        return {
            number: {**runs[-1], self.key: median(run[self.key] for run in runs)}
            for number, runs in found.items()
        }

    def values(self, lines: Iterable[Line], contender: str) -> list[float]:
        """Of every run that has this figure."""
        return [float(line[self.key]) for line in self._of(lines, contender)]

    def _of(self, lines: Iterable[Line], contender: str) -> list[Line]:
        return [
            line
            for line in lines
            if line["contender"] == contender
            and self.measure in ("", line["measure"])
            and line.get(self.key) is not None
        ]


def figures_of(lines: Sequence[Line]) -> list[Figure]:
    """The rows that these runs have something for."""
    rows = [
        Figure("start to listening, s", "", "start_s", ".2f"),
        Figure("idle memory, MB", "", "idle_mb", ".1f"),
        Figure("first record, P50 ms", "first", "first_p50_ms", ".2f", is_ratio=False),
        Figure("first record, P99 ms", "first", "first_p99_ms", ".2f", is_ratio=False),
        Figure("- added, P50 ms", "first", "added_p50_ms", ".2f", is_ratio=False),
        Figure("- added, P99 ms", "first", "added_p99_ms", ".2f", is_ratio=False),
    ]
    if busy := _first(lines, "busy"):
        of = f"beside {busy} streams"
        rows += [
            Figure(f"- added {of}, P50 ms", "busy", "busy_added_p50_ms", ".2f", is_ratio=False),
            Figure(f"- added {of}, P99 ms", "busy", "busy_added_p99_ms", ".2f", is_ratio=False),
        ]
    for measure in dict.fromkeys(str(line["measure"]) for line in lines):
        if measure.startswith("streams "):
            of = measure.removeprefix("streams ")
            rows.append(Figure(f"CPU a record, {of}, µs", measure, "cpu_us_per_record", ".1f"))
            rows.append(Figure("- of the records due, %", measure, "kept", ".0f", is_ratio=False))
    rows += [
        Figure("CPU a small request, µs", "small", "cpu_us_per_request", ".1f"),
        Figure("small requests a second", "small", "rps", ".0f", is_floored=True),
        Figure("small requests a CPU second", "small", "rps_a_core", ".0f"),
    ]
    if many := _first(lines, "many"):
        rows += [
            Figure(f"finished of {many}", "many", "many_finished", ".0f", is_ratio=False),
            Figure("- that opened", "many", "many_open", ".0f", is_ratio=False),
            Figure("- seconds to open them", "many", "many_opening_s", ".1f", is_ratio=False),
            Figure("- CPU a record, µs", "many", "many_cpu_us_per_record", ".1f"),
            Figure("- memory a stream, KB", "many", "kb_per_stream", ".1f"),
            Figure("- time ÷ nominal", "many", "many_slowdown", ".2f", is_ratio=False),
        ]
    return [row for row in rows if any(row.runs(lines, name) for name in names_of(lines))]


def names_of(lines: Sequence[Line]) -> list[str]:
    """The contenders, in the order in which they were named."""
    places = {line["contender"]: line["place"] for line in lines}
    return sorted(places, key=lambda name: places[name])


def table(lines: Sequence[Line]) -> str:
    """Figures below each other, contenders side by side; medians, and from where to where."""
    names = names_of(lines)
    rows = [
        [figure.title, *(_cell(figure, lines, name) for name in names)]
        for figure in figures_of(lines)
    ]
    return aligned([["", *names], *rows]) + "\n"


def ratios(lines: Sequence[Line]) -> str:
    """Ours ÷ everybody else, or the first one's where ours is not there, round by round; a text."""
    names = [name for name in names_of(lines) if name != DIRECT]
    if len(names) < 2:
        return ""
    base = SOLLOL if SOLLOL in names else names[0]
    rows = [["÷", *(f"{base} ÷ {name}" for name in names if name != base)]]
    for figure in figures_of(lines):
        if not figure.is_ratio:
            continue
        own = figure.runs(lines, base)
        cells = [_ratio(figure, own, figure.runs(lines, name)) for name in names if name != base]
        if any(cell != "-" for cell in cells):
            rows.append([figure.title, *cells])
    return aligned(rows) + "\n" if len(rows) > 1 else ""


def trust(lines: Sequence[Line]) -> str:
    """What spoils which figures; a text."""
    notes: list[str] = []
    floored = [line for line in lines if line.get("is_floor")]
    if floored:
        notes.append(
            f"clients or hosts were above {MOST_BUSY_RATIO:.0%} of their core, or a contender that "
            f"was asked without a pause below {LEAST_FULL_RATIO:.0%} of its own: figures with ≥ "
            f"are floors that the load sets, and the contender can do better ({_named(floored)})"
        )
    saturated = [line for line in lines if (line.get("kept") or 100) < 100 * LEAST_KEPT_RATIO]
    if saturated:
        notes.append(f"not all records that were due came: {_named(saturated)}")
    broken = [line for line in lines if line.get("broken")]
    if broken:
        notes.append(f"streams broke off while records were counted: {_named(broken)}")
    lumped = [line for line in lines if (line.get("records_per_piece") or 0) > MOST_LUMPED]
    if lumped:
        most = max(line["records_per_piece"] for line in lumped)
        notes.append(
            f"records came in lumps of up to {most:.1f}, which cost less each: {_named(lumped)}"
        )
    late = [line for line in lines if (line.get("hosts_lateness_s") or 0) > MOST_LATE_S]
    if late:
        worst_s = max(line["hosts_lateness_s"] for line in late)
        notes.append(f"the hosts' clock was up to {worst_s:.2f} s late: {_named(late)}")
    crowded = [line for line in lines if (line.get("others_cores") or 0) > MOST_OTHERS]
    counted = [line for line in crowded if line.get("relay_cores") is not None]
    if counted:
        most = max(line["others_cores"] for line in counted)
        notes.append(f"others used up to {most:.1f} cores meanwhile: {_named(counted)}")
    loose = sorted({line["contender"] for line in lines if line.get("is_pinned") is False})
    if loose:
        notes.append(f"not on the one core that it should have: {', '.join(loose)}")
    failed = [line for line in lines if line.get("error")]
    notes += sorted({f"{line['contender']}, {line['measure']}: {line['error']}" for line in failed})
    return "".join(f"{note}\n" for note in notes)


def _cell(figure: Figure, lines: Sequence[Line], name: str) -> str:
    values = figure.values(lines, name)
    if not values:
        return "-"
    middle = format(median(values), figure.form)
    runs = figure.runs(lines, name).values()
    if figure.is_floored and any(line.get("is_floor") for line in runs):
        middle = f"≥ {middle}"
    low, high = format(min(values), figure.form), format(max(values), figure.form)
    return middle if low == high else f"{middle} ({low}–{high})"


def _ratio(figure: Figure, one: Mapping[int, Line], other: Mapping[int, Line]) -> str:
    both = [n for n in one if n in other and other[n][figure.key] > 0]
    found = quotients({n: one[n] for n in both}, other, figure.key)
    if not found:
        return "-"
    if not figure.is_floored:
        return shown(found)
    own, others = (any(runs[n].get("is_floor") for n in both) for runs in (one, other))
    return f"{_SIGNS[own, others]}{shown(found)}"


_SIGNS = {(False, False): "", (True, False): "≥ ", (False, True): "≤ ", (True, True): "? "}
"""Of a quotient, by whether what is divided is a floor, and what it is divided by."""


def _first(lines: Sequence[Line], key: str) -> Any:
    return next((line[key] for line in lines if line.get(key) is not None), None)


def _named(lines: Sequence[Line]) -> str:
    names: dict[str, list[str]] = {}
    for line in lines:
        names.setdefault(line["measure"], [])
        if line["contender"] not in names[line["measure"]]:
            names[line["measure"]].append(line["contender"])
    return "; ".join(f"{measure}: {', '.join(who)}" for measure, who in names.items())
