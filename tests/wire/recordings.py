"""The recordings as objects. See README.md for the format."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

Headers = tuple[tuple[str, str], ...]

_CONNECTION_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "date"})


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer.

    body: of the request; None where the recording left it out.
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
    body_chunks: tuple[bytes, ...] | None
    status: int | None
    reason: str
    answer_headers: Headers
    framing: str
    chunks: tuple[bytes, ...]
    ended: str

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


def _lines(name: str) -> Iterator[dict[str, Any]]:
    with (DATA / name).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _exchange(id_: str, raw: dict[str, Any]) -> Exchange:
    request, response = raw["request"], raw["response"]
    pieces = request.get("body_chunks")
    return Exchange(
        id=id_,
        method=request["method"],
        path=request["path"],
        http_version=request["http_version"],
        headers=_headers(request["headers"]),
        body=None if "body_omitted" in request else _body(request),
        body_chunks=tuple(piece.encode() for piece in pieces) if pieces else None,
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
