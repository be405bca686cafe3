"""How busy the machine is and what processes use, on Linux; elsewhere nothing is known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import clock_gettime, monotonic

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_PROC = Path("/proc")
_MOST_DESCRIPTORS = 65_536
_DESCRIPTORS_ON_WINDOWS = 2_000


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
    except (OSError, OverflowError):
        return None


def family(pid: int) -> list[int]:
    """A process and all that descend from it; without any that has ended meanwhile."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        if fields := _fields(int(entry.name)):
            children.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def family_used(pid: int) -> Busy | None:
    """What a process and its descendants have used, those that have ended included.

    None where there is no way to know, or the process has ended.
    """
    try:
        used_s = _used_s(pid)
    except (OSError, OverflowError):
        return None
    used_s += _used_by_the_dead_s(pid)
    for child in family(pid)[1:]:
        try:
            used_s += _used_s(child)
        except OSError:
            continue  # it has just ended; its parent's account has it
        used_s += _used_by_the_dead_s(child)
    return Busy(used_s, monotonic())


def family_memory_bytes(pid: int) -> int | None:
    """Resident memory of a process and its descendants.

    Pages of files, such as libraries, count once: as in the member that has most of them. None
    where there is no way to know.
    """
    own, shared = 0, [0]
    for member in family(pid):
        try:
            status = (_PROC / str(member) / "status").read_text()
        except OSError:
            continue
        kib = {
            name: int(words.split()[0])
            for name, _, words in (line.partition(":") for line in status.splitlines())
            if name in ("RssAnon", "RssFile", "RssShmem")
        }
        own += kib.pop("RssAnon", 0)
        shared.append(sum(kib.values()))
    return (own + max(shared)) * 1024 if own else None


@contextmanager
def pinned(to: frozenset[int]) -> Iterator[None]:
    """Only these cores for this thread, and for what it starts within the block; empty = all."""
    if not to or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def most_descriptors() -> int:
    """How many files and sockets a process may have, after raising that to what is allowed."""
    if resource is None:
        return _DESCRIPTORS_ON_WINDOWS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(soft, most)


def affinity(pid: int) -> frozenset[int]:
    """The cores that a process may use; empty where there is no way to know."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    try:
        return frozenset(os.sched_getaffinity(pid))
    except OSError:
        return frozenset()


_PARENT, _DEAD_USER, _DEAD_SYSTEM = 1, 13, 14
"""Where proc(5) has them in `stat`, counted behind the name."""


def _used_s(pid: int) -> float:
    """CPU seconds of all threads of a process, by its own clock.

    Raises:
        OSError: it has ended, or this system has no such clock.
    """
    # The number of another process's CPU clock, as clock_getcpuclockid(3) makes it on Linux. The
    # counters in /proc go in steps of 10 ms, too coarse for runs of a second.
    return clock_gettime((~pid << 3) | 2)


def _used_by_the_dead_s(pid: int) -> float:
    """CPU seconds of children that have ended and were waited for."""
    fields = _fields(pid)
    return (int(fields[_DEAD_USER]) + int(fields[_DEAD_SYSTEM])) / _ticks() if fields else 0.0


def _fields(pid: int) -> list[str]:
    """The fields of `stat` behind the name; empty where the process has ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    # The name in the second field may contain anything, blanks and brackets included.
    return text.rpartition(")")[2].split()


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")
