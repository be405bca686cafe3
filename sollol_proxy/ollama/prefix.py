"""Where two prompts begin alike: the chain of a prompt's blocks, as hashes.

A host that has processed a prompt keeps what it worked out of it, and skips that part of the next
one as far as both begin alike. Each hash covers everything from the prompt's start to the end of a
block, so equal hashes mean equal beginnings. The hashes are the same in every process, and no text
can be read from them.

A prompt has as many blocks as it likes, but few ends of blocks are noted: the first ones, where
prompts that share instructions part; the last ones, where the next turn of a conversation goes on;
between them fixed places at growing distances. So of the ends noted for a longer prompt, those
within a shorter one that it begins with are all noted for that one too.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b
from typing import TypeAlias

from sollol_proxy.ollama.prompts import Block, Prompt, tokens_est

CUT_CHARACTERS = 256
"""Length of the blocks that a text without messages is cut into; about 64 tokens."""

_FIRST = 16
_LAST = 32
# 1, 2, … 16, 24, 32, 48, 64, 96, …: two an octave, up to a million characters.
_FIXED = (
    *range(1, _FIRST + 1),
    *(end << octave for octave in range(8) for end in (24, 32)),
)

MAX_BLOCKS = len(_FIXED) + _LAST

Prefix: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def prefix_of(prompt: Prompt) -> Prefix:
    """The chain of a prompt: hashes of 64 bits, and the estimated tokens up to each.

    At most `MAX_BLOCKS` of them. The last one covers the whole prompt, but for a suffix.
    """
    blocks, text = prompt.blocks, prompt.bare
    whole = len(blocks)
    running = blake2b(digest_size=8)
    hashes: list[int] = []
    tokens: list[int] = []
    start = 0
    for end in noted(whole + -(-len(text) // CUT_CHARACTERS)):
        for block in blocks[start:end]:
            running.update(_encoded("".join(block.pieces)))
        if end > whole:
            if start <= whole:
                running.update(_encoded("".join(prompt.opening)))
            running.update(_encoded(text[_cut(start - whole) : _cut(end - whole)]))
        hashes.append(int.from_bytes(running.digest(), "big"))
        tokens.append(_tokens(prompt, end))
        start = end
    return tuple(hashes), tuple(tokens)


def noted(count: int) -> list[int]:
    """The ends of blocks, counted from 1, that are noted of a prompt with so many."""
    tail = max(count - _LAST, 0)
    return [*_FIXED[: bisect_left(_FIXED, tail + 1)], *range(tail + 1, count + 1)]


def _cut(blocks: int) -> int:
    return max(blocks, 0) * CUT_CHARACTERS


def _tokens(prompt: Prompt, end: int) -> int:
    """Estimated tokens from the prompt's start to the end of a block."""
    if end <= len(prompt.blocks):
        block = prompt.blocks[end - 1]
        return tokens_est(block.characters, block.images)
    before = prompt.blocks[-1] if prompt.blocks else Block((), 0, 0)
    characters = min(_cut(end - len(prompt.blocks)), len(prompt.bare))
    return tokens_est(before.characters + characters, prompt.images)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
