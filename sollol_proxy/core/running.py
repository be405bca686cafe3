"""A job in flight on a host: what is known of how far it has come, and what ran beside it."""

from __future__ import annotations

from dataclasses import dataclass

from sollol_proxy.core.speeds import Sharing
from sollol_proxy.core.types import Job


@dataclass(slots=True, eq=False)
class Running:
    """One job in flight.

    begun_s: dispatched. was_cold: its model had to be loaded. beside_load: the
        host was loading something when it came. matched_tokens: of its prompt, by
        estimate, those that were expected in the cache.
    first_byte_s, tokens, told_s: when the answer began; output tokens so far, and when that was
        told. None = not yet.
    usual: seconds of its load and of its prompt on this host alone, as expected at first.
    expected: when its end was last worked out, and when it is; both instants.
    """

    job: Job
    begun_s: float
    was_cold: bool = False
    beside_load: bool = False
    matched_tokens: int = 0
    first_byte_s: float | None = None
    tokens: int = 0
    told_s: float | None = None
    usual: tuple[float, float] | None = None
    expected: tuple[float, float] | None = None
    _weighed_s: float | None = None
    _stream_seconds: float = 0.0
    _runner_seconds: float = 0.0

    def progress(self, tokens: int, now: float) -> None:
        """So many output tokens exist; what is told late or again changes nothing."""
        if tokens > self.tokens and (self.told_s is None or now >= self.told_s):
            self.tokens, self.told_s, self.expected = tokens, now, None

    @property
    def tokens_per_s(self) -> float | None:
        """Its own speed, once there is enough of the answer to tell."""
        if self.first_byte_s is None or self.told_s is None:
            return None
        elapsed_s = self.told_s - self.first_byte_s
        if self.tokens < OWN_RATE_TOKENS or elapsed_s < OWN_RATE_S:
            return None
        return self.tokens / elapsed_s

    def weigh(self, streams: int, runners: int, now: float) -> None:
        """Until now, from the last call on, so many ran beside it, itself included."""
        passed_s = now - (self.begun_s if self._weighed_s is None else self._weighed_s)
        if passed_s > 0:
            self._stream_seconds += passed_s * streams
            self._runner_seconds += passed_s * runners
            self._weighed_s = now

    def sharing(self) -> Sharing:
        """What ran beside it on average."""
        passed_s = 0.0 if self._weighed_s is None else self._weighed_s - self.begun_s
        if passed_s <= 0:
            return Sharing()
        return Sharing(
            max(self._stream_seconds / passed_s, 1.0), max(self._runner_seconds / passed_s, 1.0)
        )


OWN_RATE_TOKENS = 8
OWN_RATE_S = 0.5
"""From so many tokens and seconds on, a stream's own speed is better than the host's usual one."""
