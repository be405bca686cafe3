"""Which host probably still has which beginning of a prompt in its cache.

For each host and model the last prompt blocks that it has read, the least recently used forgotten
first, as many tokens as its context and slots hold. A guess: hosts say nothing of their caches but
by how long they take to read a prompt, and that confirms it or takes it back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from sollol_proxy.core.types import Job

ASSUMED_CONTEXT_TOKENS = 4096
"""Context of a runner that does not tell its own: Ollama's smallest default."""


class _Blocks:
    """One host's blocks of one model: hash → tokens, tokens answered after it, the block before."""

    __slots__ = ("_blocks", "_tokens", "has")

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, tuple[int, int, int | None]] = OrderedDict()
        self._tokens = 0
        self.has = self._blocks.__contains__
        """Whether a block is there."""

    def matched(self, job: Job) -> int:
        """Estimated tokens of the prompt that are there."""
        blocks, prefix = self._blocks, job.prefix
        low, high = 0, len(prefix)
        # A block is never forgotten after the one behind it, so what is there is a beginning.
        while low < high:
            middle = (low + high) // 2
            if prefix[middle] in blocks:
                low = middle + 1
            else:
                high = middle
        if not low:
            return 0
        tokens = job.prefix_tokens[low - 1]
        if low < len(prefix):
            # The answer that followed is in the cache too, and in the prompt the next block.
            _, answer, _ = blocks[prefix[low - 1]]
            tokens += min(answer, job.prefix_tokens[low] - tokens)
        return tokens

    def add(self, job: Job, answer_tokens: int, capacity_tokens: int) -> None:
        """The prompt has been read, and answered with so many tokens."""
        last = len(job.prefix) - 1
        # The last block goes in first: a chain without its beginning is worth nothing.
        for index in range(last, -1, -1):
            block = job.prefix[index]
            before = job.prefix_tokens[index - 1] if index else 0
            own = max(job.prefix_tokens[index] - before, 0)
            old_own, old_answer, _ = self._blocks.pop(block, (0, 0, None))
            answer = answer_tokens if index == last else old_answer
            self._blocks[block] = (own, answer, job.prefix[index - 1] if index else None)
            self._tokens += own + answer - old_own - old_answer
        while self._tokens > capacity_tokens and len(self._blocks) > 1:
            _, (own, answer, _) = self._blocks.popitem(last=False)
            self._tokens -= own + answer

    def forget(self, job: Job) -> None:
        """The prompt's blocks turned out not to be there, nor what other prompts had after them."""
        gone = set(job.prefix)
        # A block is always used after those behind it, so backwards the beginnings come first.
        for block in reversed(list(self._blocks)):
            own, answer, before = self._blocks[block]
            if block in gone or before in gone:
                gone.add(block)
                del self._blocks[block]
                self._tokens -= own + answer


_NONE: Mapping[str, _Blocks] = MappingProxyType({})


class Affinity:
    """The caches of all hosts, as guessed: by model and host."""

    def __init__(self) -> None:
        self._caches: dict[str, dict[str, _Blocks]] = {}

    def matched_tokens(self, host_id: str, job: Job) -> int:
        """Estimated tokens of the job's prompt that the host need not read again."""
        if not job.prefix or len(job.prefix) != len(job.prefix_tokens):
            return 0
        blocks = self._caches.get(job.model, _NONE).get(host_id)
        return 0 if blocks is None else blocks.matched(job)

    def matching(self, job: Job) -> dict[str, int]:
        """The same by host, of those that have something of the prompt."""
        matching: dict[str, int] = {}
        if not job.prefix or len(job.prefix) != len(job.prefix_tokens):
            return matching
        first = job.prefix[0]
        for host_id, blocks in self._caches.get(job.model, _NONE).items():
            if blocks.has(first):
                matching[host_id] = blocks.matched(job)
        return matching

    def add(self, host_id: str, job: Job, *, answer_tokens: int, context_tokens: int) -> None:
        """The host has done the job. context_tokens: of all slots of the runner; 0 = unknown."""
        if not job.prefix or len(job.prefix) != len(job.prefix_tokens):
            return
        caches = self._caches.setdefault(job.model, {})
        blocks = caches.get(host_id)
        if blocks is None:
            blocks = caches[host_id] = _Blocks()
        blocks.add(job, answer_tokens, context_tokens or ASSUMED_CONTEXT_TOKENS)

    def deny(self, host_id: str, job: Job) -> None:
        """The host took as long as if it had nothing of the prompt."""
        blocks = self._caches.get(job.model, _NONE).get(host_id)
        if blocks is not None:
            blocks.forget(job)

    def drop(self, host_id: str, model: str) -> None:
        """The model has left the host's memory, and its cache with it."""
        caches = self._caches.get(model)
        if caches is not None and caches.pop(host_id, None) is not None and not caches:
            del self._caches[model]

    def models(self, host_id: str) -> list[str]:
        """Models of which the host has blocks."""
        return [model for model, caches in self._caches.items() if host_id in caches]
