"""How busy the machine is, from Linux's /proc; elsewhere nothing is known."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Busy:
    """Counters at one instant: CPU seconds of all cores, and seconds on the wall."""

    cpu_s: float
    at_s: float

    def cores_since(self, before: Busy) -> float:
        """Cores that were busy on average since an earlier instant."""
        passed_s = self.at_s - before.at_s
        return (self.cpu_s - before.cpu_s) / passed_s if passed_s > 0 else 0.0


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> Busy | None:
    """What everybody on this machine has used; None where there is no way to know."""
    try:
        words = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = map(int, words[:8])
        return Busy((user + nice + system + irq + softirq + steal) / _ticks(), monotonic())
    except (OSError, ValueError):
        return None


def processes(pids: list[int]) -> Busy | None:
    """What these processes have used; None where there is no way to know, or one has ended."""
    try:
        return Busy(sum(_used_s(pid) for pid in pids), monotonic())
    except (OSError, ValueError, IndexError):
        return None


def _used_s(pid: int) -> float:
    # The name in the second field may contain anything, blanks and brackets included.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _ticks()


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")
