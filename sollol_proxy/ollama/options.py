"""The options of a request that its runner has to be loaded for.

Ollama (0.33) loads a model anew when a request differs in one of these from the runner that is
there: see `needsReload` in its scheduler. The other options hold for one request only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sollol_proxy.ollama import gojson
from sollol_proxy.ollama.gojson import Object
from sollol_proxy.ollama.routes import Dialect, Route

NUM_CTX = "num_ctx"
MIN_NUM_CTX = 4
"""Ollama takes less for this."""

_NUMBERS = (NUM_CTX, "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")
_FLAGS = ("use_mmap",)
_SHIFTING = frozenset({"/api/generate", "/api/chat"})


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a request asks of its runner; see `core.types.Job` for both."""

    key: str = ""
    num_ctx: int | None = None


_NONE = LoadOptions()


def load_options(route: Route, value: Object) -> LoadOptions:
    """The load-time options of a request; only the native routes have any.

    What Ollama takes for not given is left out, and so is what it refuses.

    Raises:
        WrongType: a member has a type that a host would refuse.
    """
    if route.dialect is not Dialect.NATIVE:
        return _NONE
    given = gojson.members(value, "options")
    # No option, but the runner is started with it. The model decides where it is not given.
    is_shifting = route.path not in _SHIFTING or gojson.flag(value, "shift", True)
    if is_shifting and not given:
        return _NONE
    numbers = {name: n for name in _NUMBERS if (n := _number(name, given)) is not None}
    flags = [(name, given.get(name)) for name in _FLAGS]
    parts = [f"{name}={number}" for name, number in numbers.items()]
    if not is_shifting:
        flags.append(("shift", False))
    parts += [f"{name}={str(flag).lower()}" for name, flag in flags if isinstance(flag, bool)]
    return LoadOptions(",".join(sorted(parts)), numbers.get(NUM_CTX))


def with_num_ctx(key: str, num_ctx: int) -> str:
    """A request's key once its context length is set to another one."""
    others = [part for part in key.split(",") if part and not part.startswith(f"{NUM_CTX}=")]
    return ",".join(sorted([*others, f"{NUM_CTX}={num_ctx}"]))


def whole(value: Any) -> int | None:
    """A number as Go makes an integer of it; None for whatever it refuses."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Beyond 64 bits Go's result depends on the machine; no host can mean it.
    return int(value) if -(2.0**63) < value < 2.0**63 else None


def _number(name: str, given: Mapping[str, Any]) -> int | None:
    number = whole(given.get(name))
    if number is None:
        return None
    if name == NUM_CTX:
        return max(number, MIN_NUM_CTX)
    # Negative layers and no threads stand for Ollama's own choice, as if not given.
    is_automatic = (name == "num_gpu" and number < 0) or (name == "num_thread" and number == 0)
    return None if is_automatic else number
