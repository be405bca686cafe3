"""What one host of several answered."""

from __future__ import annotations

from dataclasses import dataclass

HTTP_ERROR = 400
NOT_FOUND = 404

_SHOWN = 200


@dataclass(frozen=True, slots=True)
class PartReply:
    """What one host answered.

    status: 0 when it gave no answer; `failure` says why.
    """

    host_id: str
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    failure: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the host did its part."""
        return 0 < self.status < HTTP_ERROR

    @property
    def reason(self) -> str:
        """Why it did not, in one line."""
        if self.failure or self.is_good:
            return self.failure
        return f"HTTP {self.status}: {self.body[:_SHOWN].decode('utf-8', 'replace').strip()}"
