"""Faults that a simulated host shows on command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class FaultKind(StrEnum):
    """What goes wrong. All but the first two strike inference requests only."""

    HANG_CONNECT = "hang_connect"
    """New connections are not accepted, those that exist get no answers. Until cleared."""
    SLOW = "slow"
    """The host computes `factor` times slower. Until cleared."""
    STATUS = "status"
    """An error of this `status`, at once."""
    HANG = "hang"
    """No answer, while the status routes stay well: a wedged host."""
    RESET_BEFORE_HEAD = "reset_before_head"
    """The connection is cut before the status line."""
    MISSING_MODEL = "missing_model"
    """404 for a model that the tags list."""
    CUT = "cut"
    """The connection ends after `after_records` records, without the closing chunk."""
    ERROR_RECORD = "error_record"
    """The runner fails after `after_records` records, as the dialect shows it; with 0, a 500."""
    NO_DONE = "no_done"
    """The stream ends cleanly after `after_records` records, without its last record."""
    CRASH = "crash"
    """The whole process dies after `after_records` records. For hosts in a process of their own."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. count: requests it will strike; None = until it is cleared."""

    kind: FaultKind
    count: int | None = None
    after_records: int = 0
    status: int = 503
    factor: float = 4.0
    message: str = "server busy, please try again.  maximum pending requests exceeded"


class Faults:
    """The faults in force, oldest first."""

    def __init__(self) -> None:
        self._in_force: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Put a fault in force behind the others."""
        if fault.count is None or fault.count > 0:
            self._in_force.append(fault)

    def clear(self) -> None:
        """End all faults."""
        self._in_force.clear()

    def has(self, kind: FaultKind) -> bool:
        """Whether a fault of this kind is in force."""
        return any(fault.kind is kind for fault in self._in_force)

    def strike(self) -> Fault | None:
        """The fault that the inference request at hand meets, spent by one."""
        for index, fault in enumerate(self._in_force):
            if fault.kind in (FaultKind.HANG_CONNECT, FaultKind.SLOW):
                continue
            if fault.count is not None:
                left = replace(fault, count=fault.count - 1)
                self._in_force[index : index + 1] = [left] if left.count else []
            return fault
        return None
