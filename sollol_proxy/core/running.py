"""A job in flight on a host: what is known of how far it has come, and what ran beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sollol_proxy.core.speeds import ALONE, Sharing
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
    areas: those of its model and host when it began, see `Beside`. sharing: what ran beside it;
        said at its end.
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
    areas: tuple[float, float] = (0.0, 0.0)
    sharing: Sharing = ALONE

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


_MIN_SHARED_S = 1e-6
"""Less time tells nothing: areas of a long history are not more exact."""


class Beside:
    """What has run on a host so far, as areas under the counts over time.

    What ran beside one job is the difference between the areas at its end and at its beginning, so
    neither costs more the more there are. Instants never go back.
    """

    __slots__ = ("_at_s", "_runner_seconds", "_stream_seconds")

    def __init__(self) -> None:
        self._at_s = 0.0
        self._stream_seconds: dict[str, float] = {}
        self._runner_seconds = 0.0

    def passes(self, now: float, streams: Mapping[str, int]) -> None:
        """Until now, from the last call on, so many jobs of each model have run; none with 0."""
        passed_s = now - self._at_s
        if passed_s > 0:
            self._at_s = now
            self._runner_seconds += passed_s * len(streams)
            for model, count in streams.items():
                before = self._stream_seconds.get(model, 0.0)
                self._stream_seconds[model] = before + passed_s * count

    def areas(self, model: str) -> tuple[float, float]:
        """Job seconds of a model and runner seconds until the last call of `passes`."""
        return self._stream_seconds.get(model, 0.0), self._runner_seconds

    def sharing(self, running: Running) -> Sharing:
        """What ran beside a job on average until now, itself included."""
        passed_s = self._at_s - running.begun_s
        if passed_s < _MIN_SHARED_S:
            return ALONE
        streams, runners = self.areas(running.job.model)
        return Sharing(
            max((streams - running.areas[0]) / passed_s, 1.0),
            max((runners - running.areas[1]) / passed_s, 1.0),
        )

    def stops(self, model: str) -> None:
        """Nothing of the model runs any more: its area is nobody's."""
        self._stream_seconds.pop(model, None)


OWN_RATE_TOKENS = 8
OWN_RATE_S = 0.5
"""From so many tokens and seconds on, a stream's own speed is better than the host's usual one."""
