"""How much a host can hold in memory at once, and which models have to go first.

Ollama tells what is in memory and how large it is, not how much there is room for. So both ends
are learnt: what has been there at once fits, and what made something leave did not. Which idle
model leaves first is Ollama's own order, by the name of a file that no route shows; it is the same
on every host that has the same files, so it is learnt once for all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sollol_proxy.core.jsonable import mapping, number, values_of

FOOTPRINT_FACTOR = 1.12
FOOTPRINT_FIXED_BYTES = 400_000_000
"""What a runner needs beside the file it has loaded: buffers and a short context."""

VICTIM_WEIGHT = 0.3
"""Weight of one eviction in the order of victims."""

MAX_MODELS = 1024


@dataclass(slots=True)
class Room:
    """One host's memory for models, bytes. None = not known."""

    fits_bytes: int = 0
    bursts_bytes: int | None = None

    def holds(self, total_bytes: int, configured_bytes: int | None) -> bool:
        """Whether models of this size together would fit.

        Between what is known to fit and what is known not to, the configured size decides; without
        one it is thought to fit, because one attempt will tell.
        """
        if total_bytes <= self.fits_bytes:
            return True
        if self.bursts_bytes is not None and total_bytes >= self.bursts_bytes:
            return False
        return not configured_bytes or total_bytes <= configured_bytes

    def surely_holds(self, total_bytes: int, configured_bytes: int | None) -> bool:
        """Whether models of this size together are known to fit, by experience or configuration."""
        if total_bytes <= self.fits_bytes:
            return True
        return bool(configured_bytes) and self.holds(total_bytes, configured_bytes)

    def seen_together(self, total_bytes: int) -> None:
        """Models of this size are in memory."""
        self.fits_bytes = max(self.fits_bytes, total_bytes)
        if self.bursts_bytes is not None and self.bursts_bytes <= self.fits_bytes:
            self.bursts_bytes = None  # memory has been freed since, or was never the reason

    def burst(self, total_bytes: int) -> None:
        """Models of this size would have been in memory, and one of them had to go."""
        if total_bytes > self.fits_bytes:
            smallest = total_bytes if self.bursts_bytes is None else self.bursts_bytes
            self.bursts_bytes = min(smallest, total_bytes)
        else:
            self.fits_bytes, self.bursts_bytes = 0, total_bytes

    def export(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"fits_bytes": self.fits_bytes, "bursts_bytes": self.bursts_bytes}

    @classmethod
    def restored(cls, given: object) -> Room:
        """From what `export` gave.

        Raises:
            ValueError: it is something else.
        """
        data = mapping(given)
        bursts = data.get("bursts_bytes")
        return cls(
            int(number(data.get("fits_bytes", 0))), None if bursts is None else int(number(bursts))
        )


class Victims:
    """Which models leave first: 1 = always before others, 0 = others always before it.

    lessons: how many there were.
    """

    def __init__(self) -> None:
        self.lessons = 0
        self._rank: dict[str, float] = {}

    def learn(self, gone: Collection[str], stayed: Collection[str]) -> None:
        """These left and those, idle too, did not."""
        if not gone or not stayed:
            return
        self.lessons += 1
        for models, sample in ((gone, 1.0), (stayed, 0.0)):
            for model in models:
                rank = self._rank.get(model, 0.5)
                if model in self._rank or len(self._rank) < MAX_MODELS:
                    self._rank[model] = rank + VICTIM_WEIGHT * (sample - rank)

    def rank(self, model: str) -> float:
        """0 to 1; the highest goes first."""
        return self._rank.get(model, 0.5)

    def export(self) -> dict[str, float]:
        """Everything, for JSON."""
        return dict(self._rank)

    @classmethod
    def restored(cls, given: object) -> Victims:
        """From what `export` gave.

        Raises:
            ValueError: it is something else.
        """
        victims = cls()
        ranks = values_of(given, number)
        victims._rank = {model: min(rank, 1.0) for model, rank in ranks.items()}
        return victims


def footprint_bytes(size_bytes: int) -> int:
    """What a model of this size on disk is likely to take in memory."""
    return int(size_bytes * FOOTPRINT_FACTOR) + FOOTPRINT_FIXED_BYTES if size_bytes else 0
