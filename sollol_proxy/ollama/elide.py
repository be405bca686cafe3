"""Bodies without the middle of their images: megabytes that say nothing of what is asked.

Parsing 20 MB of base64 takes tens of milliseconds, in which no stream moves; stepping over it
takes two. What is left out is told by the length that stands in its place, so equal images stay
equal and others other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONG_BYTES = 2**16
"""Of an image from which on its middle is left out. Decided by the image alone, not by the body
around it: the same image must look the same in every body."""

_ENDS = 1024
_OPENINGS = re.compile(rb'"(?:images"\s*:\s*\[|data"\s*:|url"\s*:)\s*"\Z', re.IGNORECASE)
_NEXT = re.compile(rb"\s*,\s*")
_LOOK_BACK = 64


def without_images(body: bytes) -> bytes:
    """The body, with only the ends of each long image in it and its length between them.

    Whatever is not plainly an image stays, and so does the body's structure: it parses as before.
    """
    if len(body) <= LONG_BYTES:
        return body
    parts: list[bytes] = []
    done = 0
    for begin, end in _images(body):
        parts += (body[done : begin + _ENDS], b"%d" % (end - begin), body[end - _ENDS : end])
        done = end
    return b"".join((*parts, body[done:])) if parts else body


def _images(body: bytes) -> Iterator[tuple[int, int]]:
    """Where long images begin and end, their quotes not included.

    Something longer than `LONG_BYTES` covers a multiple of it; so that many places are looked at.
    """
    last_end = -1
    at = LONG_BYTES
    while at < len(body):
        before, after = body.rfind(b'"', 0, at), body.find(b'"', at)
        if after < 0:
            return
        begin = before + 1
        if after - begin > LONG_BYTES and _is_image(body, begin, after, last_end):
            yield begin, after
            last_end = after
        at = max(at + LONG_BYTES, (after // LONG_BYTES + 1) * LONG_BYTES)


def _is_image(body: bytes, begin: int, end: int, last_end: int) -> bool:
    # Within a text a quote has a backslash before it, so what opens here is no part of one.
    opening = body[max(begin - _LOOK_BACK, 0) : begin]
    follows = last_end >= 0 and _NEXT.fullmatch(body, last_end + 1, begin - 1) is not None
    if not follows and _OPENINGS.search(opening) is None:
        return False
    return body.find(b"\\", begin, end) < 0
