"""The bytes of `bench overhead`: requests and answers, made once, for who must not be slow.

A streamed answer is told by a mark in the prompt how many records it has, and how many a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from sollol_proxy.lab.ask import CHAT, V1_CHAT, read_ask
from sollol_proxy.lab.shapes import Result, encode
from sollol_proxy.lab.shapes_v1 import shape_for

EMBED, V1_EMBED = "/api/embed", "/v1/embeddings"
STREAM_MODELS = ("bench-a:latest", "bench-b:latest", "bench-c:latest")
"""Several, since our proxy takes no host for more than 1,024 slots of one model."""

EMBED_MODEL = "bench-embed:latest"
MODELS = (*STREAM_MODELS, EMBED_MODEL)

WORD = b" tok"
"""In every streamed record once, in any dialect, and nowhere else in an answer."""

LAST_CHUNK = b"0\r\n\r\n"
"""How a chunked body ends. No record ends so: a brace or a blank line stands before its end."""

ENDLESS = 10**9
"""Records of a stream that lasts until its client leaves."""

_EMBED_IN_BYTES, _EMBED_OUT_BYTES = 1024, 8192
_CHAT_IN_BYTES = 1024
_MARK = re.compile(rb"\[(\d+) records at (\d+)\]")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask. addresses: taken in turn; direct requests have several, a proxy has one.

    path: in front of Ollama's; or the whole chat route of OpenAI, for who speaks only that.
    """

    addresses: tuple[tuple[str, int], ...]
    path: str = ""

    def chat(self, number: int, records: int, rate: int) -> bytes:
        """A request for a stream; each number has a prompt of its own.

        rate: records a second; 0 = all at once.
        """
        text = f"Request {number}: [{records} records at {rate}] ".ljust(_CHAT_IN_BYTES, "x")
        document = {
            "model": STREAM_MODELS[number % len(STREAM_MODELS)],
            "messages": [{"role": "user", "content": text}],
            "stream": True,
        }
        return self._post(V1_CHAT if self._is_openai else CHAT, document)

    def embed(self, number: int) -> bytes:
        """A request for an embedding; each number has a text of its own."""
        text = f"Text {number} ".ljust(_EMBED_IN_BYTES, "x")
        path = V1_EMBED if self._is_openai else EMBED
        return self._post(path, {"model": EMBED_MODEL, "input": text})

    @property
    def _is_openai(self) -> bool:
        return self.path.endswith(V1_CHAT)

    def _post(self, path: str, document: dict[str, Any]) -> bytes:
        before = self.path.removesuffix(V1_CHAT) if self._is_openai else self.path
        host, port = self.addresses[0]
        body = encode(document)
        head = (
            f"POST {before}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True, slots=True)
class Flow:
    """The bytes of streamed answers, each piece as it goes out.

    first: the head and the first record. record: each one after it. end: behind the last one.
    """

    first: bytes
    record: bytes
    end: bytes


def flow_of(path: str, body: bytes) -> tuple[Flow, int, int]:
    """What a chat request is to get: the bytes, how many records, how many a second.

    Raises:
        AskError: it is no request for a chat.
    """
    ask = read_ask(path, body)
    mark = _MARK.search(body)
    records, rate = (int(mark[1]), int(mark[2])) if mark else (1, 0)
    return _flow(path, ask.model), max(1, records), rate


@lru_cache(maxsize=64)
def _flow(path: str, model: str) -> Flow:
    shape = shape_for(read_ask(path, encode({"model": model, "messages": [_ANY], "stream": True})))
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {shape.content_type}\r\n"
        f"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    record = _chunk(shape.token(WORD.decode()))
    result = Result("stop", prompt_tokens=256, output_tokens=100, total_s=1.0, decode_s=0.9)
    return Flow(
        head + b"".join(_chunk(piece) for piece in shape.head()) + record,
        record,
        b"".join(_chunk(piece) for piece in shape.end(result)) + LAST_CHUNK,
    )


def embedding(path: str) -> bytes:
    """The answer to a request for an embedding, with a body of about 8 KB."""
    rng = Random(0)
    vector: list[float] = []
    while len(encode({"embedding": vector})) < _EMBED_OUT_BYTES - 250:
        vector += [round(rng.uniform(-1, 1), 15) for _ in range(8)]
    if path == V1_EMBED:
        data = [{"object": "embedding", "embedding": vector, "index": 0}]
        usage = {"prompt_tokens": 256, "total_tokens": 256}
        return answer({"object": "list", "data": data, "model": EMBED_MODEL, "usage": usage})
    times = {"total_duration": 1_000_000, "load_duration": 1000, "prompt_eval_count": 256}
    return answer({"model": EMBED_MODEL, "embeddings": [vector], **times})


def fixed_answers() -> dict[bytes, bytes]:
    """What is asked of every host besides: by method and path."""
    models = [_entry(name) for name in MODELS]
    resident = [
        {**entry, "expires_at": "2318-01-01T00:00:00Z", "size_vram": entry["size"]}
        for entry in models
    ]
    show = {"capabilities": ["completion", "embedding"], "details": {}, "model_info": {}}
    root = b"Ollama is running"
    found = {
        b"GET /api/version": answer({"version": "0.13.5"}),
        b"GET /api/tags": answer({"models": models}),
        b"GET /api/ps": answer({"models": resident}),
        b"POST /api/show": answer(show),
        b"GET /": _head(200, "text/plain", len(root)) + root,
        b"HEAD /": _head(200, "text/plain", len(root)),
    }
    return found | {f"POST {path}".encode(): embedding(path) for path in (EMBED, V1_EMBED)}


def answer(document: dict[str, Any], status: int = 200) -> bytes:
    """A whole answer of JSON."""
    body = encode(document)
    return _head(status, "application/json; charset=utf-8", len(body)) + body


_ANY = {"role": "user", "content": "x"}
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 411: "Length Required"}


def _head(status: int, content_type: str, length: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _entry(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": "2026-01-01T00:00:00Z",
        "size": 2_000_000_000,
        "digest": f"{Random(name).getrandbits(256):064x}",
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "3.2B",
            "quantization_level": "Q4_K_M",
        },
    }
