"""What is learnt from finished attempts: decayed averages, speeds, spreads.

Invariants: an estimate lies between the smallest and the largest sample it was given; an
estimator without samples says None; nothing here reads a clock (forgetting is by sample, not by
time), so the order of calls alone decides the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sollol_proxy.core.snapshots import Spread
from sollol_proxy.core.types import Observation

SAMPLE_WEIGHT = 0.15
"""Weight of one sample in a geometric average: a host that changed is believed after about ten."""

FORGETTING = 0.97
"""Factor on older samples of a share: the last 33 attempts or so count."""

LOAD_THRESHOLD_S = 0.5
"""A `load_duration` above this was a load; below it the runner was there already."""

MIN_PREFILL_TOKENS = 16
MIN_DECODE_TOKENS = 8
"""Fewer tokens than these measure latency, not speed."""

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
    """Geometric moving average of a speed, units per second.

    Geometric, because speeds differ by factors: half and double weigh the same.
    """

    value: float | None = None
    _too_fast_in_a_row: int = 0

    def add(self, sample: float) -> None:
        """Take one positive sample in."""
        if self.value is None:
            self.value = sample
        else:
            self.value = self.value ** (1 - SAMPLE_WEIGHT) * sample**SAMPLE_WEIGHT

    def add_unless_cache_hit(self, sample: float) -> None:
        """Take a prefill speed in, unless it is so fast that the prompt cache explains it."""
        if self.value is not None and sample > CACHE_HIT_FACTOR * self.value:
            self._too_fast_in_a_row += 1
            if self._too_fast_in_a_row < CACHE_HITS_BELIEVED:
                return
        self._too_fast_in_a_row = 0
        self.add(sample)


@dataclass(slots=True)
class Speeds:
    """One host's prefill and decode speed, tokens per second, by model and over all models."""

    _prefill: dict[str, Rate] = field(default_factory=dict)
    _decode: dict[str, Rate] = field(default_factory=dict)
    _any_prefill: Rate = field(default_factory=Rate)
    _any_decode: Rate = field(default_factory=Rate)

    def learn(self, model: str, observation: Observation) -> None:
        """Take the phases of a completed attempt in; phases that it does not tell teach nothing."""
        tokens, seconds = observation.prompt_tokens, observation.prefill_s
        if tokens is not None and seconds and tokens >= MIN_PREFILL_TOKENS:
            for rate in (self._prefill.setdefault(model, Rate()), self._any_prefill):
                rate.add_unless_cache_hit(tokens / seconds)
        tokens, seconds = observation.output_tokens, observation.decode_s
        if tokens is not None and seconds and tokens >= MIN_DECODE_TOKENS:
            for rate in (self._decode.setdefault(model, Rate()), self._any_decode):
                rate.add(tokens / seconds)

    def prefill_tokens_per_s(self, model: str) -> float | None:
        """This model's prefill speed, else that of the host's other models, else None."""
        return self._of(self._prefill, self._any_prefill, model)

    def decode_tokens_per_s(self, model: str) -> float | None:
        """This model's decode speed, else that of the host's other models, else None."""
        return self._of(self._decode, self._any_decode, model)

    def first_token_s(self, model: str, prompt_tokens: int) -> float | None:
        """Seconds to read a prompt and write one token with the model in memory.

        None as long as no prompt of the host has been measured. An unknown decode speed adds
        nothing: embeddings have none.
        """
        prefill = self.prefill_tokens_per_s(model)
        if prefill is None:
            return None
        decode = self.decode_tokens_per_s(model)
        return max(prompt_tokens, 1) / prefill + (1 / decode if decode else 0.0)

    @staticmethod
    def _of(rates: dict[str, Rate], over_all: Rate, model: str) -> float | None:
        rate = rates.get(model)
        return over_all.value if rate is None or rate.value is None else rate.value


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
    observation: Observation, *, prompt_tokens_est: int, is_stream: bool, was_resident: bool
) -> Observation:
    """The observation with prefill and decode filled in from what the proxy timed.

    Only streams of the `/v1` dialects need it: they report tokens, or nothing, and no durations.
    The time to the first byte is then prefill, the rest decode. A load would hide in the first
    byte, so an attempt that found the model cold is left as it is.
    """
    timed = observation.first_byte_s
    if observation.prefill_s is not None or timed is None or not is_stream or not was_resident:
        return observation
    decode_s = None if observation.total_s is None else max(observation.total_s - timed, 0.0)
    return Observation(
        prompt_tokens=observation.prompt_tokens or prompt_tokens_est,
        output_tokens=observation.output_tokens,
        load_s=observation.load_s,
        prefill_s=timed,
        decode_s=observation.decode_s if observation.decode_s is not None else decode_s,
        first_byte_s=timed,
        total_s=observation.total_s,
    )
