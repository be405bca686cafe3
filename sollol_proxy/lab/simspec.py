"""What a simulated host is made of: its models, its speeds, and the four host classes.

The speeds of a host are those for one stream of an 8-billion-parameter model in 4.9 GB, which is
what `SimModel` describes by default; `SimSpec` derives those of other models. The figures of the
classes are round and meant to be in proportion to each other: they predict no certain machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sollol_proxy.ollama.names import canonical

REFERENCE_SIZE_BYTES = 4_900_000_000
REFERENCE_PARAMS_B = 8.0

# Decoding reads all weights once a token, but small models leave a part of the bandwidth unused.
_DECODE_SIZE_EXPONENT = 0.9
# Buffers and a short context beside the weights.
_MEMORY_FACTOR = 1.12
_MEMORY_FIXED_BYTES = 400_000_000
# Starting the runner process, before the first weight is read.
_LOAD_FIXED_S = 0.8


@dataclass(frozen=True, slots=True)
class SimModel:
    """A model on a simulated host's disk, or in the registry it pulls from.

    params_b: billions of parameters. context_length: the trained one, tokens.
    digest_salt: models of one name and size have different digests where their salts differ.
    modified_at: RFC 3339; empty = by the place in the list of models.
    weights: what names of one file have in common, so that one runner serves them all; empty =
        a file of its own.
    remote_model, remote_host: for a stub, what stands for it elsewhere and where.
    """

    name: str
    size_bytes: int = REFERENCE_SIZE_BYTES
    params_b: float = REFERENCE_PARAMS_B
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int = 8192
    digest_salt: str = ""
    modified_at: str = ""
    weights: str = ""
    remote_model: str = ""
    remote_host: str = ""

    @property
    def key(self) -> str:
        """The canonical name."""
        return canonical(self.name)

    @property
    def digest(self) -> str:
        """64 hex digits; equal for equal models, on whatever host."""
        text = f"{self.key} {self.size_bytes}"
        if self.digest_salt:
            text += f" {self.digest_salt}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def blob(self) -> str:
        """What a runner is known by: the file it has loaded, not the name that asked for it."""
        return self.weights or self.key

    @property
    def is_embedder(self) -> bool:
        """Whether it makes vectors; Ollama runs these with one slot."""
        return "embedding" in self.capabilities

    @property
    def memory_bytes(self) -> int:
        """What a runner of it occupies."""
        return int(self.size_bytes * _MEMORY_FACTOR) + _MEMORY_FIXED_BYTES


@dataclass(frozen=True, slots=True)
class SimSpec:
    """A simulated host.

    decode_tps, prefill_tps: tokens a second of the reference model, one stream.
    slots: jobs one runner serves at once. max_models: runners at once. max_queue: requests that
        may wait for a load.
    alpha: with b streams each runs at 1 ÷ (1 + alpha·(b-1)) of its speed alone.
    resident: names of models that are in memory at the start.
    context_length: what a runner gets without `num_ctx`, capped by the model's own.
    has_gpu: whether `/api/ps` reports the memory as VRAM.
    models: on the disk when the host is made.
    registry: what can be pulled. pull_bytes_per_s: speed of each pull, and of a push.
    account: the name that is signed in; empty = nobody.
    offline: no way to the internet, and the cloud switched off.
    lacks: beginnings of paths that this version does not know.
    time_scale: how much faster than real everything runs. All `_s` and `_tps` here, and
        `keep_alive` of requests, are model seconds; what the host reports is what a clock on
        the wall shows.
    """

    id: str
    decode_tps: float = 100.0
    prefill_tps: float = 5000.0
    slots: int = 1
    max_models: int = 3
    memory_bytes: int = 22_500_000_000
    load_bytes_per_s: float = 2_000_000_000
    alpha: float = 0.12
    models: tuple[SimModel, ...] = (SimModel("llama3"),)
    resident: tuple[str, ...] = ()
    time_scale: float = 1.0
    keep_alive_s: float = 300.0
    max_queue: int = 512
    context_length: int = 4096
    has_gpu: bool = True
    version: str = "0.33.0"
    registry: tuple[SimModel, ...] = ()
    pull_bytes_per_s: float = 100_000_000
    account: str = ""
    offline: bool = False
    lacks: tuple[str, ...] = ()

    def model(self, name: str) -> SimModel | None:
        """The installed model that the name reaches."""
        key = canonical(name)
        return next((model for model in self.models if model.key == key), None)

    def decode_tps_of(self, model: SimModel) -> float:
        """Output tokens a second of one stream alone."""
        size_ratio = REFERENCE_SIZE_BYTES / model.size_bytes
        return self.decode_tps * math.pow(size_ratio, _DECODE_SIZE_EXPONENT)

    def prefill_tps_of(self, model: SimModel) -> float:
        """Prompt tokens a second of one stream alone."""
        return self.prefill_tps * REFERENCE_PARAMS_B / model.params_b

    def load_s_of(self, model: SimModel) -> float:
        """Seconds from the start of a load to a ready runner."""
        return model.size_bytes / self.load_bytes_per_s + _LOAD_FIXED_S

    def context_of(self, model: SimModel, num_ctx: int | None) -> int:
        """Tokens a slot of a runner gets when a request asks for `num_ctx`."""
        return min(num_ctx or self.context_length, model.context_length)

    def to_json(self) -> str:
        """What `spec_from_json` reads."""
        return json.dumps(asdict(self))


def spec_from_json(text: str) -> SimSpec:
    """The host a JSON object describes: `SimSpec`'s fields, models as objects or bare names.

    Raises:
        ValueError: no JSON object, or fields that `SimSpec` does not have.
    """
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError("a host is a JSON object")
    try:
        for name in ("models", "registry"):
            if name in raw:
                raw[name] = tuple(_model_from(item) for item in raw[name])
        for name in ("resident", "lacks"):
            if name in raw:
                raw[name] = tuple(raw[name])
        return SimSpec(**raw)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _model_from(item: str | Mapping[str, Any]) -> SimModel:
    if isinstance(item, str):
        return SimModel(item)
    fields = dict(item)
    if "capabilities" in fields:
        fields["capabilities"] = tuple(fields["capabilities"])
    return SimModel(**fields)


HOST_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "4090": {
        "memory_bytes": 22_500_000_000,
        "decode_tps": 100.0,
        "prefill_tps": 5000.0,
        "alpha": 0.12,
        "load_bytes_per_s": 2.0e9,
    },
    "3060": {
        "memory_bytes": 11_000_000_000,
        "decode_tps": 40.0,
        "prefill_tps": 1500.0,
        "alpha": 0.15,
        "load_bytes_per_s": 1.5e9,
    },
    "mac": {
        "memory_bytes": 24_000_000_000,
        "decode_tps": 35.0,
        "prefill_tps": 400.0,
        "alpha": 0.25,
        "load_bytes_per_s": 2.5e9,
    },
    "cpu": {
        "memory_bytes": 28_000_000_000,
        "decode_tps": 5.0,
        "prefill_tps": 40.0,
        "alpha": 0.60,
        "load_bytes_per_s": 1.0e9,
        "has_gpu": False,
    },
}


def preset(host_class: str, **changes: Any) -> SimSpec:
    """A host of a class of `HOST_CLASSES`, its id the class unless `changes` say otherwise."""
    return SimSpec(**{"id": host_class, **HOST_CLASSES[host_class], **changes})
