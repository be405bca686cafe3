"""The records of a simulated host: jobs, the slots they hold, the runners that own the slots."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum

from sollol_proxy.lab.simspec import SimModel

CHARACTERS_PER_TOKEN = 4

BLOCK_TOKENS = 64
"""Tokens of one block of a runner's prompt cache, for jobs that name blocks."""

# Lets a token count that is due now survive the rounding of the seconds it is computed from.
_TOKEN_EPSILON = 1e-6


class Phase(StrEnum):
    """How far a job has come."""

    WAITING_FOR_LOAD = "waiting_for_load"
    LOADING = "loading"
    """Its own load runs; if it leaves now the load is thrown away."""
    WAITING_FOR_SLOT = "waiting_for_slot"
    PREFILL = "prefill"
    DECODE = "decode"
    OVER = "over"


@dataclass(slots=True, eq=False)
class SimJob:
    """One inference request and its progress.

    output_tokens: 0 for embeddings. answer: what a slot's cache holds beside the prompt once
        the job is over. keep_alive_s: None = the runner's own; < 0 = for ever.
    load_only: over as soon as a runner is ready.
    tokens: prompt tokens where there is no text to count; None = count the prompt.
    blocks, blocks_after: names of the cache blocks that the prompt fills, and the prompt with its
        answer, in order; two prompts share the blocks that they begin with. For jobs without text.
    """

    model: SimModel
    prompt: str = ""
    output_tokens: int = 0
    answer: str = ""
    num_ctx: int | None = None
    keep_alive_s: float | None = None
    load_only: bool = False
    tokens: int | None = None
    blocks: tuple[int, ...] = ()
    blocks_after: tuple[int, ...] = ()
    phase: Phase = Phase.WAITING_FOR_LOAD
    is_cancelled: bool = False
    cached_tokens: int = 0
    arrived_s: float = 0.0
    ready_s: float | None = None
    slot_s: float | None = None
    prefilled_s: float | None = None
    ended_s: float | None = None
    work_tokens: float = 0.0
    """Tokens done in the present phase, prefill or decode."""

    @property
    def prompt_tokens(self) -> int:
        """Cached ones included, as Ollama counts."""
        if self.tokens is not None:
            return self.tokens
        return -(-len(self.prompt) // CHARACTERS_PER_TOKEN)

    @property
    def phase_tokens(self) -> int:
        """Tokens the present phase has to do; a full cache hit still does the last one."""
        if self.phase is Phase.PREFILL:
            return max(1, self.prompt_tokens - self.cached_tokens)
        return self.output_tokens

    @property
    def emitted(self) -> int:
        """Output tokens that exist."""
        if self.phase is Phase.OVER:
            return 0 if self.is_cancelled else self.output_tokens
        if self.phase is not Phase.DECODE:
            return 0
        return min(self.output_tokens, int(self.work_tokens + _TOKEN_EPSILON))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.phase is Phase.OVER


@dataclass(slots=True, eq=False)
class Slot:
    """One unit of a runner's concurrency; `cache` is the text its KV cache stands for."""

    job: SimJob | None = None
    cache: str = ""
    used_s: float = 0.0


class BlockCache:
    """Blocks of prompts that a runner has seen, the least recently used forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def hits(self, blocks: tuple[int, ...]) -> int:
        """How many blocks from the first on are there."""
        for index, block in enumerate(blocks):
            if block not in self._blocks:
                return index
        return len(blocks)

    def add(self, blocks: tuple[int, ...]) -> None:
        """A prompt has been read or an answer written."""
        # The last block goes first: a chain without its beginning is worth nothing.
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


@dataclass(slots=True, eq=False)
class Runner:
    """A model in memory. expires_s: None = never, or not while it is busy."""

    model: SimModel
    context_length: int
    slots: list[Slot]
    keep_alive_s: float
    idle_since_s: float
    waiting: deque[SimJob] = field(default_factory=deque)
    cache: BlockCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = BlockCache(self.context_length * len(self.slots) // BLOCK_TOKENS)

    @property
    def active(self) -> list[SimJob]:
        """Jobs that hold a slot."""
        return [slot.job for slot in self.slots if slot.job is not None]

    @property
    def is_idle(self) -> bool:
        """Whether it neither works nor is waited for."""
        return not self.waiting and not self.active

    @property
    def expires_s(self) -> float | None:
        """When it leaves the memory if nothing comes."""
        if self.keep_alive_s < 0 or not self.is_idle:
            return None
        return self.idle_since_s + self.keep_alive_s


@dataclass(slots=True)
class HostCounts:
    """What has happened so far."""

    loads: int = 0
    aborted_loads: int = 0
    evictions: int = 0
    unloads: int = 0
    reloads: int = 0
    cancelled: int = 0
