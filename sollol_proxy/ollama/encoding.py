"""Compressed request bodies, as far as Ollama takes them: zstd on five routes of `/v1`.

Ollama bounds what such a body may cost it, and so does this: a frame whose window needs more
memory, or a body that becomes larger, is refused there and not read here.
"""

from __future__ import annotations

import sys

from sollol_proxy.ollama.routes import Route

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
    }
)

MAX_WINDOW_LOG = 23
"""8 MiB: the memory that Ollama 0.33 lets its decoder have."""
MAX_DECODED_BYTES = 20 * 2**20
"""Ollama 0.33's bound on a decoded body."""
MAX_FRAMES = 256
"""No client writes more than a few; frames of nothing cost time and never reach a bound on size."""

# Stored blocks make a body a little larger than what it holds; beyond that it is made to waste
# time, as one of empty blocks would be.
_MAX_ENCODED_BYTES = MAX_DECODED_BYTES + 2**20
_PIECE_BYTES = 2**16


def decoded(route: Route, body: bytes, content_encoding: str) -> bytes | None:
    """The body as a host's JSON decoder sees it; None where a host cannot decode it either.

    Args:
        route: on which it came.
        body: as sent.
        content_encoding: the header's value; "" when there is none.
    """
    if content_encoding.strip().lower() in ("", "identity"):
        return body
    # Compared as Ollama does it: other codings, and lists of them, are not undone.
    if content_encoding.strip() == "zstd" and route.path in ZSTD_ROUTES:
        return from_zstd(body)
    return None


def from_zstd(body: bytes) -> bytes | None:
    """The contents of all frames, one after the other; None when they are broken or too large.

    Broken is also what ends within a frame, and what is followed by anything but a frame.
    Memory: the decoder's window, what was decoded so far (both bounded as above), and a copy.
    """
    if len(body) > _MAX_ENCODED_BYTES:
        return None
    try:
        return _decode(body)
    except zstd.ZstdError:
        return None


def _decode(body: bytes) -> bytes | None:
    """As `from_zstd`.

    Raises:
        ZstdError: the frames are broken.
    """
    parts: list[bytes] = []
    room = MAX_DECODED_BYTES
    frames = 0
    decoder: zstd.ZstdDecompressor | None = None
    position = 0
    while position < len(body):
        # In pieces, because a decoder copies what it is given and has not used.
        piece = body[position : position + _PIECE_BYTES]
        position += len(piece)
        while piece or (decoder is not None and not decoder.needs_input):
            if decoder is None:
                frames += 1
                if frames > MAX_FRAMES:
                    return None
                decoder = _new_decoder()
            part = decoder.decompress(piece, _PIECE_BYTES)
            piece = b""
            room -= len(part)
            if room < 0:
                return None
            parts.append(part)
            if decoder.eof:
                piece, decoder = decoder.unused_data, None
    return b"".join(parts) if decoder is None else None


def _new_decoder() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    )
