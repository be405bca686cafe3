"""The recordings as objects. See README.md for the format."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

Headers = tuple[tuple[str, str], ...]

_CONNECTION_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "date"})


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer.

    body: of the request; None where the recording left it out (see `replayable`).
    body_length, body_sha256: of a body that was left out.
    body_sizes: of the chunks in which the body went out; () where it was not chunked.
    status: None where the connection ended without an answer.
    framing: `content-length`, `chunked`, `close` or `none`.
    ended: `complete` or how else.
    """

    id: str
    method: str
    path: str
    http_version: str
    headers: Headers
    body: bytes | None
    body_length: int
    body_sha256: str
    body_sizes: tuple[int, ...]
    status: int | None
    reason: str
    answer_headers: Headers
    framing: str
    chunks: tuple[bytes, ...]
    ended: str

    @property
    def body_chunks(self) -> tuple[bytes, ...]:
        """The pieces of a body that went out chunked; () when it did not."""
        body = self.body or b""
        ends = list(accumulate(self.body_sizes))
        starts = [0, *ends]
        return tuple(body[start:end] for start, end in zip(starts, ends, strict=False))

    @property
    def raw_path(self) -> str:
        return self.path.partition("?")[0]

    @property
    def answer(self) -> bytes:
        """The whole body of the answer."""
        return b"".join(self.chunks)

    def header(self, name: str) -> str:
        """A header of the request, "" when there is none."""
        return first(self.headers, name)

    def answer_header(self, name: str) -> str:
        return first(self.answer_headers, name)


def first(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key.lower() == name.lower()), "")


def end_to_end(headers: Headers, *, with_length: bool = True) -> list[tuple[str, str]]:
    """Headers that a proxy has to pass on, sorted, names in lower case.

    with_length: False where the two sides frame the body differently.
    """
    dropped = _CONNECTION_HEADERS if with_length else _CONNECTION_HEADERS | {"content-length"}
    return sorted((name.lower(), value) for name, value in headers if name.lower() not in dropped)


@cache
def http_exchanges() -> dict[str, Exchange]:
    """`http.jsonl` by id."""
    return {raw["id"]: _exchange(raw["id"], raw) for raw in _lines("http.jsonl")}


@cache
def client_entries(name: str) -> tuple[dict[str, Any], ...]:
    """`cli.jsonl` or `clients.jsonl`: raw lines."""
    return tuple(_lines(name))


@cache
def all_exchanges() -> tuple[Exchange, ...]:
    """Every exchange of the three files."""
    found = list(http_exchanges().values())
    for name in ("cli.jsonl", "clients.jsonl"):
        for entry in client_entries(name):
            found += entry_exchanges(entry)
    return tuple(found)


def entry_exchanges(entry: dict[str, Any]) -> list[Exchange]:
    """The exchanges of one command or call, in order."""
    return [
        _exchange(f"{entry['id']}#{number}", raw) for number, raw in enumerate(entry["exchanges"])
    ]


def replayable(exchange: Exchange) -> Exchange:
    """The exchange with another body of the same length in place of one that was left out.

    The digests of such bodies become those of their stand-ins wherever they are named, so that
    an upload, and what is created from it, still belong together.
    """

    def renamed(text: bytes) -> bytes:
        for sha256, body in _stand_ins().items():
            text = text.replace(sha256.encode(), hashlib.sha256(body).hexdigest().encode())
        return text

    body = exchange.body
    return replace(
        exchange,
        path=renamed(exchange.path.encode()).decode(),
        body=_stand_ins()[exchange.body_sha256] if body is None else renamed(body),
        chunks=tuple(renamed(chunk) for chunk in exchange.chunks),
    )


@cache
def _stand_ins() -> Mapping[str, bytes]:
    """A body for each that was left out, by the digest of what it stands for."""
    return {
        exchange.body_sha256: _filler(exchange.body_sha256, exchange.body_length)
        for exchange in all_exchanges()
        if exchange.body is None
    }


def _filler(seed: str, length: int) -> bytes:
    """Bytes without a pattern that a lost or doubled piece could hide in."""
    return hashlib.shake_256(seed.encode()).digest(length)


def _lines(name: str) -> Iterator[dict[str, Any]]:
    with (DATA / name).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _exchange(id_: str, raw: dict[str, Any]) -> Exchange:
    request, response = raw["request"], raw["response"]
    omitted = request.get("body_omitted", {})
    pieces = request.get("body_chunks", ())
    sizes = request.get("body_chunk_sizes", [len(piece.encode()) for piece in pieces])
    return Exchange(
        id=id_,
        method=request["method"],
        path=request["path"],
        http_version=request["http_version"],
        headers=_headers(request["headers"]),
        body=None if omitted else _body(request),
        body_length=omitted.get("length", 0),
        body_sha256=omitted.get("sha256", ""),
        body_sizes=tuple(sizes),
        status=response["status"],
        reason=response.get("reason", ""),
        answer_headers=_headers(response.get("headers", [])),
        framing=response.get("framing", "none"),
        chunks=tuple(text.encode() for _, text in response["chunks"])
        if "chunks" in response
        else tuple(filter(None, [_body(response)])),
        ended=response.get("ended", "complete"),
    )


def _headers(pairs: list[list[str]]) -> Headers:
    return tuple((name, value) for name, value in pairs)


def _body(raw: dict[str, Any]) -> bytes:
    if "body_b64" in raw:
        return base64.b64decode(raw["body_b64"])
    return str(raw.get("body", "")).encode()
