"""The answers of the embedding routes."""

from __future__ import annotations

import base64
import math
import struct

from sollol_proxy.lab.ask import EMBED, EMBEDDINGS, Ask
from sollol_proxy.lab.shapes import Result, encode, encode_line

_FIGURES = ("total_duration", "load_duration", "prompt_eval_count")


def normalised(numbers: list[float]) -> list[float]:
    """The vector with length 1."""
    norm = math.hypot(*numbers) or 1.0
    return [round(number / norm, 8) for number in numbers]


def embedding_body(ask: Ask, vectors: list[list[float]], result: Result) -> bytes:
    """The answer of an embedding route; `dimensions` cuts the vectors."""
    dimensions = ask.body.get("dimensions")
    if isinstance(dimensions, int) and dimensions > 0:
        vectors = [normalised(vector[:dimensions]) for vector in vectors]
    if ask.path == EMBEDDINGS:
        return encode({"embedding": vectors[0] if vectors else []})
    if ask.path == EMBED:
        metrics = result.metrics() if vectors else {}
        figures = {name: metrics[name] for name in _FIGURES if name in metrics}
        return encode({"model": ask.model, "embeddings": vectors} | figures)
    as_base64 = ask.body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "embedding": _base64(vector) if as_base64 else vector,
            "index": index,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return encode_line({"object": "list", "data": data, "model": ask.model, "usage": usage})


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
