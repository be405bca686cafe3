"""What is learnt from finished attempts: decayed averages, speeds, spreads.

Invariants: an estimate lies between the smallest and the largest sample it was given; an
estimator without samples says None; nothing here reads a clock (forgetting is by sample, not by
time), so the order of calls alone decides the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sollol_proxy.core.snapshots import Spread
from sollol_proxy.core.types import JobKind, Observation

SAMPLE_WEIGHT = 0.15
"""Weight of one sample in a geometric average: a host that changed is believed after about ten."""

FORGETTING = 0.97
"""Factor on older samples of a share: the last 33 attempts or so count."""

LOAD_THRESHOLD_S = 0.5
"""A `load_duration` above this was a load; below it the runner was there already."""

CACHE_HIT_FACTOR = 3.0
"""A prompt read this many times faster than usual came from the prompt cache."""

CACHE_HITS_BELIEVED = 5
"""After so many in a row the old rate was wrong, not the samples."""

REFERENCE_PROMPT_TOKENS = 256
"""Prompt size for which the page shows a host's expected first token."""


@dataclass(slots=True)
class DecayedMean:
    """Mean with exponential forgetting by sample."""

    forgetting: float = FORGETTING
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, sample: float) -> None:
        """Take one sample in."""
        self._sum = self._sum * self.forgetting + sample
        self._weight = self._weight * self.forgetting + 1.0

    @property
    def value(self) -> float | None:
        """The mean; None before the first sample."""
        return self._sum / self._weight if self._weight else None


@dataclass(slots=True)
class Rate:
    """Geometric moving average of a positive quantity: a speed, or a duration.

    Geometric, because these differ by factors: half and double weigh the same.
    """

    value: float | None = None
    _too_fast_in_a_row: int = 0

    def add(self, sample: float, weight: float = SAMPLE_WEIGHT) -> None:
        """Take one positive sample in. weight: 0 to 1, how far it moves the average."""
        if self.value is None:
            self.value = sample
        else:
            self.value = self.value ** (1 - weight) * sample**weight

    def add_unless_cache_hit(self, sample: float, weight: float = SAMPLE_WEIGHT) -> None:
        """Take a prefill speed in, unless it is so fast that the prompt cache explains it."""
        if self.value is not None and sample > CACHE_HIT_FACTOR * self.value:
            self._too_fast_in_a_row += 1
            if self._too_fast_in_a_row < CACHE_HITS_BELIEVED:
                return
        self._too_fast_in_a_row = 0
        self.add(sample, weight)


@dataclass(slots=True)
class RunningSpread:
    """Count, mean, minimum and maximum of everything seen; nothing is forgotten."""

    count: int = 0
    mean_s: float = 0.0
    min_s: float = 0.0
    max_s: float = 0.0

    def add(self, sample_s: float) -> None:
        """Take one duration in, seconds ≥ 0."""
        if self.count == 0:
            self.count, self.mean_s, self.min_s, self.max_s = 1, sample_s, sample_s, sample_s
            return
        self.count += 1
        self.min_s = min(self.min_s, sample_s)
        self.max_s = max(self.max_s, sample_s)
        # Rounding may carry the running mean past its samples by a last bit.
        mean_s = self.mean_s + (sample_s - self.mean_s) / self.count
        self.mean_s = min(max(mean_s, self.min_s), self.max_s)

    def freeze(self) -> Spread:
        """The same as a record."""
        return Spread(self.count, self.mean_s, self.min_s, self.max_s)


def phases(
    observation: Observation,
    *,
    kind: JobKind,
    prompt_tokens_est: int,
    is_stream: bool,
    was_resident: bool,
) -> Observation:
    """The observation with prefill and decode filled in from what the proxy timed.

    Needed for embeddings, which tell only their total, and for streams of the `/v1` dialects,
    which report tokens, or nothing, and no durations: there the time to the first byte is prefill
    and the rest decode. A load would hide in the first byte, so an attempt that found the model
    cold is left as it is.
    """
    if observation.prefill_s is not None or not was_resident:
        return observation
    total_s, first_byte_s = observation.total_s, observation.first_byte_s
    prompt_tokens = observation.prompt_tokens or prompt_tokens_est
    if kind is JobKind.EMBED:
        if total_s is None:
            return observation
        prefill_s = max(total_s - (observation.load_s or 0.0), 0.0)
        return replace(observation, prompt_tokens=prompt_tokens, prefill_s=prefill_s, is_timed=True)
    if first_byte_s is None or not is_stream:
        return observation
    decode_s = observation.decode_s
    if decode_s is None and total_s is not None:
        decode_s = max(total_s - first_byte_s, 0.0)
    return replace(
        observation,
        prompt_tokens=prompt_tokens,
        prefill_s=first_byte_s,
        decode_s=decode_s,
        is_timed=True,
    )
