"""How fast one host is: reading prompts, writing answers, loading models, sharing itself.

Phases are kept apart: a load is no slow prompt, and a prompt that came from the cache is no fast
host. What was measured while others ran beside is brought to what a job alone would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any

from sollol_proxy.core.estimate import (
    LOAD_THRESHOLD_S,
    SAMPLE_WEIGHT,
    DecayedMean,
    Rate,
)
from sollol_proxy.core.jsonable import mapping, number, positive, values_of
from sollol_proxy.core.types import JobKind, Observation

MIN_PREFILL_TOKENS = 16
MIN_DECODE_TOKENS = 8
"""Fewer tokens than these measure latency, not speed."""

MIN_SECONDS = 1e-9
"""Ollama counts in nanoseconds; less is no measurement."""

TIMED_WEIGHT = 0.5
"""What a sample counts whose tokens or seconds the proxy counted itself."""

DEFAULT_ALPHA = 0.15
"""Slow-down per further stream of a runner until measured; simulated GPUs have 0.12 to 0.25."""

MAX_ALPHA = 2.0
ALPHA_FORGETTING = 0.9

SIZE_EXPONENT = 0.9
"""Decoding slows down with size, not quite in proportion: each token reads all the weights."""

DEFAULT_LOAD_BYTES_PER_S = 1.5e9
DEFAULT_LOAD_FIXED_S = 1.0
UNKNOWN_LOAD_S = 4.0
"""Seconds to load a model of unknown size."""

_SHARED = 1.3
"""From so many streams on, a sample tells how the host shares itself."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What ran beside a job, averaged over its time there, itself included.

    streams: jobs of the same model. runners: models that were busy.
    """

    streams: float = 1.0
    runners: float = 1.0


ALONE = Sharing()


@dataclass(slots=True)
class Speeds:
    """One host's speeds by canonical model name, as of a job alone on the host."""

    _prefill: dict[str, Rate] = field(default_factory=dict)
    _decode: dict[str, Rate] = field(default_factory=dict)
    _load_s: dict[str, Rate] = field(default_factory=dict)
    _whole_s: dict[str, Rate] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _load_rate: Rate = field(default_factory=Rate)
    _alpha: DecayedMean = field(default_factory=lambda: DecayedMean(ALPHA_FORGETTING))
    _shares: float = DEFAULT_ALPHA
    """The value of `_alpha`."""

    def learn(
        self,
        model: str,
        observation: Observation,
        *,
        size_bytes: int = 0,
        new_tokens: int | None = None,
        sharing: Sharing = ALONE,
    ) -> bool:
        """Take the phases of a completed attempt in; phases that it does not tell teach nothing.

        new_tokens: prompt tokens that were not in the cache; None = probably all of them.
        Returns whether it was the first to tell a speed of this model.
        """
        if size_bytes:
            self._sizes[model] = size_bytes
        weight = SAMPLE_WEIGHT * (TIMED_WEIGHT if observation.is_timed else 1.0)
        is_first = False
        tokens, seconds = observation.prompt_tokens, observation.prefill_s
        read = tokens if new_tokens is None else new_tokens
        if (
            read is not None
            and read >= MIN_PREFILL_TOKENS
            and seconds is not None
            and seconds >= MIN_SECONDS
        ):
            rate = self._prefill.get(model)
            if rate is None:
                rate, is_first = self._prefill.setdefault(model, Rate()), True
            slowed = sharing.runners * self.share(sharing.streams)
            rate.add_unless_cache_hit(read / seconds * slowed, weight)
        tokens, seconds = observation.output_tokens, observation.decode_s
        if (
            tokens is not None
            and tokens >= MIN_DECODE_TOKENS
            and seconds is not None
            and seconds >= MIN_SECONDS
        ):
            is_first = is_first or model not in self._decode
            self._learn_decode(model, tokens / seconds, sharing, weight)
        return is_first

    def learn_load(self, model: str, load_s: float, size_bytes: int) -> None:
        """A load took so long."""
        if load_s < LOAD_THRESHOLD_S:
            return
        self._load_s.setdefault(model, Rate()).add(load_s)
        if size_bytes:
            self._sizes[model] = size_bytes
            self._load_rate.add(size_bytes / load_s)

    def learn_whole(self, kind: JobKind, model: str, seconds: float) -> None:
        """A job whose tokens say nothing of its length, such as a transcription, took so long."""
        if seconds > 0:
            self._whole_s.setdefault(f"{kind} {model}", Rate()).add(seconds)

    def whole_s(self, kind: JobKind, model: str) -> float | None:
        """What such a job takes; None = not known."""
        rate = self._whole_s.get(f"{kind} {model}")
        return None if rate is None else rate.value

    def load_s(self, model: str, size_bytes: int) -> float:
        """Seconds to load a model: as observed, else by its size and the host's other loads."""
        rate = self._load_s.get(model)
        if rate is not None and rate.value is not None:
            return rate.value
        if not size_bytes:
            return UNKNOWN_LOAD_S
        if self._load_rate.value is not None:
            return size_bytes / self._load_rate.value
        return size_bytes / DEFAULT_LOAD_BYTES_PER_S + DEFAULT_LOAD_FIXED_S

    @property
    def alpha(self) -> float:
        """With b streams of a model each runs at 1 ÷ (1 + alpha · (b − 1)) of its speed alone."""
        return self._shares

    def share(self, streams: float) -> float:
        """How many times slower one of so many streams runs; ≥ 1."""
        return 1.0 + self._shares * (streams - 1.0) if streams > 1.0 else 1.0

    def prefill_of(self, model: str) -> float | None:
        """Prompt tokens a second measured with this model; None = none were."""
        rate = self._prefill.get(model)
        return None if rate is None else rate.value

    def decode_of(self, model: str) -> float | None:
        """Output tokens a second measured with this model; None = none were."""
        rate = self._decode.get(model)
        return None if rate is None else rate.value

    def prefill_tokens_per_s(self, model: str, size_bytes: int = 0) -> float | None:
        """This model's prefill speed, else that of the model most like it in size, scaled."""
        return self._of(self._prefill, model, size_bytes, 1.0)

    def decode_tokens_per_s(self, model: str, size_bytes: int = 0) -> float | None:
        """This model's decode speed, else that of the model most like it in size, scaled."""
        return self._of(self._decode, model, size_bytes, SIZE_EXPONENT)

    def first_token_s(self, model: str, prompt_tokens: int) -> float | None:
        """Seconds to read a prompt and write one token with the model in memory.

        None as long as no prompt of the host has been measured. An unknown decode speed adds
        nothing: embeddings have none.
        """
        # Asked for each host of each request, so what was measured is read without a call.
        rate = self._prefill.get(model)
        prefill = rate.value if rate is not None else None
        if prefill is None and (prefill := self._of(self._prefill, model, 0, 1.0)) is None:
            return None
        rate = self._decode.get(model)
        decode = rate.value if rate is not None else None
        if decode is None and self._decode:
            decode = self._of(self._decode, model, 0, SIZE_EXPONENT)
        return max(prompt_tokens, 1) / prefill + (1 / decode if decode else 0.0)

    def export(self) -> dict[str, Any]:
        """Everything, for JSON."""
        tables = {
            "prefill": self._prefill,
            "decode": self._decode,
            "load_s": self._load_s,
            "whole_s": self._whole_s,
        }
        exported: dict[str, Any] = {
            name: {key: rate.value for key, rate in table.items() if rate.value is not None}
            for name, table in tables.items()
        }
        exported["sizes"] = dict(self._sizes)
        exported["load_rate"] = self._load_rate.value
        exported["alpha"] = self._alpha.value
        return exported

    @classmethod
    def restored(cls, given: object) -> Speeds:
        """From what `export` gave.

        Raises:
            ValueError: it is something else.
        """
        data = mapping(given)
        tables = [
            {key: Rate(value) for key, value in values_of(data.get(name, {}), positive).items()}
            for name in ("prefill", "decode", "load_s", "whole_s")
        ]
        sizes = {
            key: max(int(size), 1)
            for key, size in values_of(data.get("sizes", {}), positive).items()
        }
        speeds = cls(tables[0], tables[1], tables[2], tables[3], sizes)
        if data.get("load_rate") is not None:
            speeds._load_rate.add(positive(data["load_rate"]))
        if data.get("alpha") is not None:
            speeds._learn_alpha(min(number(data["alpha"]), MAX_ALPHA))
        return speeds

    def _learn_alpha(self, sample: float) -> None:
        self._alpha.add(sample)
        value = self._alpha.value
        self._shares = DEFAULT_ALPHA if value is None else value

    def _learn_decode(self, model: str, sample: float, sharing: Sharing, weight: float) -> None:
        rate = self._decode.setdefault(model, Rate())
        alone = sample * sharing.runners
        if sharing.streams >= _SHARED and rate.value is not None:
            alpha = (rate.value / alone - 1.0) / (sharing.streams - 1.0)
            self._learn_alpha(min(max(alpha, 0.0), MAX_ALPHA))
            weight /= sharing.streams
        rate.add(alone * self.share(sharing.streams), weight)

    def _of(
        self, rates: Mapping[str, Rate], model: str, size_bytes: int, exponent: float
    ) -> float | None:
        rate = rates.get(model)
        if rate is not None and rate.value is not None:
            return rate.value
        known = [(name, other.value) for name, other in rates.items() if other.value is not None]
        if not known:
            return None
        size_bytes = size_bytes or self._sizes.get(model, 0)
        if not size_bytes:
            return known[-1][1]
        ratios = [(self._sizes.get(name, size_bytes) / size_bytes, rate) for name, rate in known]
        ratio, value = min(ratios, key=lambda entry: (abs(log(entry[0])), entry))
        return float(value * ratio**exponent)
