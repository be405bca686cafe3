"""The picture of `bench overhead`. Needs matplotlib, which the `plots` extra brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sollol_proxy.lab.bench_overhead_report import Figure, figures_of, names_of
from sollol_proxy.lab.simulate_plots import pyplot
from sollol_proxy.lab.simulate_report import Line

_COLUMNS = 3
_LOG_FROM = 20.0
"""Between the largest and the smallest; a linear axis would hide the small ones."""


def draw(folder: Path, lines: Sequence[Line]) -> Path:
    """Write the picture, a panel a figure: medians as bars, from where to where as whiskers.

    Raises:
        MatplotlibMissing: it is not installed.
        OSError: the folder cannot be written.
    """
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    figures = [figure for figure in figures_of(lines) if figure.key not in ("kept",)]
    rows = -(-len(figures) // _COLUMNS)
    picture, axes = plt.subplots(
        rows, _COLUMNS, figsize=(4.2 * _COLUMNS, 2.3 * rows), squeeze=False
    )
    for axis, figure in zip(axes.flat, figures, strict=False):
        _panel(axis, figure, lines)
    for axis in list(axes.flat)[len(figures) :]:
        axis.set_visible(False)
    picture.tight_layout()
    path = folder / "overhead.png"
    picture.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(picture)
    return path


def _panel(axis: Any, figure: Figure, lines: Sequence[Line]) -> None:
    found = {name: figure.values(lines, name) for name in names_of(lines)}
    found = {name: values for name, values in found.items() if values}
    middles = {name: median(values) for name, values in found.items()}
    spread = [
        [middles[name] - min(values) for name, values in found.items()],
        [max(values) - middles[name] for name, values in found.items()],
    ]
    axis.barh(list(middles), list(middles.values()), xerr=spread, color="tab:blue", ecolor="black")
    smallest, largest = min(middles.values()), max(middles.values())
    if smallest > 0 and largest / smallest > _LOG_FROM:
        axis.set_xscale("log")
    axis.set_title(figure.title.removeprefix("- "), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.invert_yaxis()
