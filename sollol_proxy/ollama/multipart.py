"""One short field out of a multipart form, without parsing (or copying) the file beside it."""

from __future__ import annotations

import re

MAX_PARTS = 64
MAX_HEAD_BYTES = 4096
MAX_VALUE_BYTES = 1024

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^\s";]{1,200}))', re.IGNORECASE)
_NAME = re.compile(rb'content-disposition:[^\r\n]*?;\s*name="?([^";\r\n]*)"?', re.IGNORECASE)


def field(body: bytes, content_type: str, name: str) -> str:
    """The first value of a form field, "" when there is none within the bounds above."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return ""
    delimiter = b"--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
    position = 0
    for _ in range(MAX_PARTS):
        start = body.find(delimiter, position)
        if start < 0:
            return ""
        head_start = start + len(delimiter)
        head_end = body.find(b"\r\n\r\n", head_start, head_start + MAX_HEAD_BYTES)
        if head_end < 0:
            return ""
        named = _NAME.search(body, head_start, head_end)
        position = head_end + 4
        if named is not None and named[1] == name.encode():
            end = body.find(b"\r\n" + delimiter, position, position + MAX_VALUE_BYTES)
            return body[position:end].decode("utf-8", "replace") if end >= 0 else ""
    return ""
