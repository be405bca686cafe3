"""All that the scheduler has learnt, in one object: what outlives a restart, and can be forgotten.

Each host has its own part; lengths of answers, demand, caches and the order of evictions belong to
the pool. `export` and `restore` carry what is worth keeping as JSON: not the demand of the last
minute, nor what the hosts' caches held.

Invariants: an estimate lies within its samples, or is a documented default before the first; times
are only compared with each other, so a late one does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any, NamedTuple

from sollol_proxy.core.affinity import Affinity
from sollol_proxy.core.demand import Demand
from sollol_proxy.core.estimate import Rate
from sollol_proxy.core.jsonable import mapping, number, positive, values_of
from sollol_proxy.core.learnt import Learnt
from sollol_proxy.core.lengths import Lengths
from sollol_proxy.core.room import Room, Victims, footprint_bytes
from sollol_proxy.core.speeds import SIZE_EXPONENT, Speeds
from sollol_proxy.core.types import InstalledModel, Job, Observation, ResidentModel
from sollol_proxy.core.variants import Variants

REFERENCE_BYTES = 4_900_000_000
DEFAULT_PREFILL_TOKENS_PER_S = 800.0
DEFAULT_DECODE_TOKENS_PER_S = 30.0
"""Speed of a host of which nothing is known, with 8 billion parameters in 4.9 GB on a GPU."""

CPU_RATIO = 0.1
"""The same without a GPU."""

MIN_ESTIMATE_TOKENS = 16

_TELLING = frozenset(4**power for power in range(16))
"""Once so many hosts have been measured with a model, guesses for the others are made anew."""

MAX_PROMPTS = 1024


class Pace(NamedTuple):
    """Tokens a second of a job alone on a host."""

    prefill: float
    decode: float


@dataclass(slots=True)
class HostMemory:
    """What was learnt of one host. is_cpu: computes without a GPU; None = not known.

    The host keeps it for good; what is restored or forgotten is taken over into it.
    """

    speeds: Speeds = field(default_factory=Speeds)
    variants: Variants = field(default_factory=Variants)
    room: Room = field(default_factory=Room)
    is_cpu: bool | None = None

    def see(self, resident: Iterable[ResidentModel]) -> bool:
        """What a probe found in memory; whether it changed what kind of host this is."""
        was = self.is_cpu
        told = [model for model in resident if model.digest]
        if told:
            self.is_cpu = not any(model.size_vram_bytes for model in told)
        return self.is_cpu is not was

    def take_over(self, other: HostMemory) -> None:
        """Know what the other does, and nothing else."""
        self.speeds, self.variants = other.speeds, other.variants
        self.room, self.is_cpu = other.room, other.is_cpu

    def export(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "speeds": self.speeds.export(),
            "variants": self.variants.export(),
            "room": self.room.export(),
            "is_cpu": self.is_cpu,
        }

    @classmethod
    def restored(cls, given: object) -> HostMemory:
        """From what `export` gave.

        Raises:
            ValueError: it is something else.
        """
        data = mapping(given)
        is_cpu = data.get("is_cpu")
        if is_cpu is not None and not isinstance(is_cpu, bool):
            raise ValueError("is_cpu is a truth value or null")
        return cls(
            Speeds.restored(data.get("speeds", {})),
            Variants.restored(data.get("variants", [])),
            Room.restored(data.get("room", {})),
            is_cpu,
        )


class Memory:
    """Everything learnt. Only the scheduler and its hosts write to it; policies read.

    epoch: another number whenever guesses may have changed that rest on other hosts.
    life: another number after everything was forgotten or restored.
    learnt: another number after each lesson on which models leave first or how large they are.
    dates: of changes of hosts; no two have the same, nor is a later one smaller.
    """

    def __init__(self) -> None:
        self.epoch = self.life = 0
        self.dates = count(1)
        self.lengths = Lengths()
        self.demand = Demand()
        self.affinity = Affinity()
        self.victims = Victims()
        self.stats = Learnt()
        self._hosts: dict[str, HostMemory] = {}
        self._footprints: dict[str, int] = {}
        self._sizes_seen = 0
        self._prompts: dict[str, Rate] = {}
        self._paces: dict[str, dict[str, Pace]] = {}
        self._guessed: set[str] = set()
        self._firsts: dict[str, int] = {}
        self._medians: dict[tuple[str, bool], tuple[float | None, float | None]] = {}

    def of(self, host_id: str) -> HostMemory:
        """A host's part; empty for one that is new."""
        known = self._hosts.get(host_id)
        if known is None:
            known = self._hosts[host_id] = HostMemory()
        return known

    # Reading

    def pace(self, host_id: str, model: str, size_bytes: int) -> Pace:
        """How fast a host reads and writes with a model, both > 0; a guess where never measured.

        Where it was not measured: the host's model that is most like it, scaled by size; else the
        median of the hosts of its kind, GPU or CPU, that have measured it; else a default.
        """
        paces = self._paces.get(host_id)
        if paces is None:
            paces = self._paces[host_id] = {}
        pace = paces.get(model)
        if pace is None:
            pace = paces[model] = self._pace(host_id, model, size_bytes)
        return pace

    def is_guess(self, host_id: str) -> bool:
        """Whether what was last said of a host's pace rests on other hosts' in part."""
        return host_id in self._guessed

    def prompt_ratio(self, model: str) -> float:
        """Tokens that hosts count in a prompt ÷ those that were estimated."""
        rate = self._prompts.get(model)
        return 1.0 if rate is None or rate.value is None else rate.value

    def footprint_bytes(self, model: str, copy: InstalledModel | None) -> int:
        """Memory that a model takes: as last seen anywhere, else by its size; 0 = unknown."""
        seen = self._footprints.get(model)
        return seen or footprint_bytes(copy.size_bytes if copy is not None else 0)

    # Learning

    def paces_changed(self, host_id: str, model: str, *, is_first: bool) -> None:
        """A host's speed was learnt. is_first: it had not been measured with this model before."""
        self._paces.pop(host_id, None)
        if is_first:
            hosts = self._firsts[model] = self._firsts.get(model, 0) + 1
            if hosts not in _TELLING:
                return
            # Guesses for others rest on medians, which one more of many hardly moves.
            self._medians.clear()
            if self._guessed:
                for guessed in self._guessed:
                    self._paces.pop(guessed, None)
                self._guessed.clear()
                self.epoch += 1

    @property
    def learnt(self) -> int:
        """See the class."""
        return self.victims.lessons + self._sizes_seen

    def see_footprints(self, resident: Iterable[ResidentModel]) -> None:
        """A probe found these in memory."""
        for model in resident:
            has_room = model.name in self._footprints or len(self._footprints) < MAX_PROMPTS
            if model.digest and model.size_bytes and has_room:
                if self._footprints.get(model.name) != model.size_bytes:
                    self._sizes_seen += 1
                self._footprints[model.name] = model.size_bytes

    def learn_prompt(self, job: Job, observation: Observation) -> None:
        """A host has counted a prompt."""
        counted, estimated = observation.prompt_tokens, job.prompt_tokens_est
        has_room = job.model in self._prompts or len(self._prompts) < MAX_PROMPTS
        if counted and estimated >= MIN_ESTIMATE_TOKENS and has_room:
            ratio = min(max(counted / estimated, 0.1), 10.0)
            self._prompts.setdefault(job.model, Rate()).add(ratio)

    # Keeping

    def forget(self) -> None:
        """Begin anew, as if nothing had ever been learnt."""
        self._take_over(Memory())

    def export(self) -> dict[str, Any]:
        """What is worth keeping over a restart, as JSON-able values."""
        nothing = HostMemory().export()
        return {
            "hosts": {
                host_id: known
                for host_id, host in self._hosts.items()
                if (known := host.export()) != nothing
            },
            "lengths": self.lengths.export(),
            "victims": self.victims.export(),
            "stats": self.stats.export(),
            "footprints": dict(self._footprints),
            "prompts": {
                model: rate.value for model, rate in self._prompts.items() if rate.value is not None
            },
        }

    def restore(self, given: object) -> None:
        """Take over what `export` gave; all of it or, if it is something else, nothing.

        Raises:
            ValueError: it is something else.
        """
        data, made = mapping(given), Memory()
        made._hosts = values_of(data.get("hosts", {}), HostMemory.restored)
        made.lengths = Lengths.restored(data.get("lengths", {}))
        made.victims = Victims.restored(data.get("victims", {}))
        made.stats = Learnt.restored(data.get("stats", {}))
        footprints = values_of(data.get("footprints", {}), number)
        made._footprints = {model: int(size) for model, size in footprints.items()}
        prompts = values_of(data.get("prompts", {}), positive)
        made._prompts = {model: Rate(ratio) for model, ratio in prompts.items()}
        self._take_over(made)

    # Inside

    def _take_over(self, made: Memory) -> None:
        kept = self.epoch + 1, self.life + 1, self.dates, self._hosts
        for host_id in {*self._hosts, *made._hosts}:
            self.of(host_id).take_over(made.of(host_id))
        for name, value in vars(made).items():
            setattr(self, name, value)
        self.epoch, self.life, self.dates, self._hosts = kept

    def _pace(self, host_id: str, model: str, size_bytes: int) -> Pace:
        host = self.of(host_id)
        prefill = host.speeds.prefill_tokens_per_s(model, size_bytes)
        decode = host.speeds.decode_tokens_per_s(model, size_bytes)
        if prefill is None or decode is None:
            self._guessed.add(host_id)
            likely = self._median_of(model, is_cpu=bool(host.is_cpu))
            ratio, slowness = _ratio(size_bytes), _slowness(host)
            if prefill is None:
                default = DEFAULT_PREFILL_TOKENS_PER_S * ratio * slowness
                prefill = default if likely[0] is None else likely[0]
            if decode is None:
                default = DEFAULT_DECODE_TOKENS_PER_S * ratio**SIZE_EXPONENT * slowness
                decode = default if likely[1] is None else likely[1]
        return Pace(prefill, decode)

    def _median_of(self, model: str, *, is_cpu: bool) -> tuple[float | None, float | None]:
        """Prefill and decode speed of the hosts of a kind that have measured the model."""
        known = self._medians.get((model, is_cpu))
        if known is None:
            alike = [host.speeds for host in self._hosts.values() if bool(host.is_cpu) is is_cpu]
            prefill = [speeds.prefill_of(model) for speeds in alike]
            decode = [speeds.decode_of(model) for speeds in alike]
            known = self._medians[model, is_cpu] = _median(prefill), _median(decode)
        return known


def _median(speeds: Sequence[float | None]) -> float | None:
    known = [speed for speed in speeds if speed is not None]
    return median(known) if known else None


def _ratio(size_bytes: int) -> float:
    return REFERENCE_BYTES / size_bytes if size_bytes else 1.0


def _slowness(host: HostMemory) -> float:
    return CPU_RATIO if host.is_cpu else 1.0
