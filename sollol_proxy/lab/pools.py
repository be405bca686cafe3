"""Pools of hosts to simulate: built in by name, or described in a file.

A name may end in `/SLOTS`: `mix8/4` is `mix8` with four slots a loaded model. A file is YAML or
JSON: a list of hosts, or an object with the list under `hosts`. Each host has a `class` of
`simspec.HOST_CLASSES` or figures of its own, by the names of `SimSpec`'s fields, and optionally
`count` (alike hosts), `models` (names or objects; default: those of the workload that fit into
its memory) and `id`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sollol_proxy.lab.simspec import HOST_CLASSES, SimModel, SimSpec, spec_from_json

CONTEXT_LENGTH = 32_768
"""Tokens that one slot of a runner holds, its prompt cache included: some ten conversations."""

_MAKE_UP: Mapping[str, tuple[tuple[str, int], ...]] = {
    "tri": (("4090", 1), ("3060", 1), ("cpu", 1)),
    "hom4": (("3060", 4),),
    "mix8": (("4090", 2), ("3060", 3), ("mac", 2), ("cpu", 1)),
    "founding": (("3090", 1), ("3060", 1), ("cpu", 1)),
}

POOLS = tuple(_MAKE_UP)
"""Names of the built-in pools."""

# Between the 4090 and the 3060 by memory bandwidth (936 GB/s against 1008 and 360) and compute.
_RTX_3090: Mapping[str, Any] = {
    "memory_bytes": 22_500_000_000,
    "decode_tps": 85.0,
    "prefill_tps": 3000.0,
    "alpha": 0.13,
    "load_bytes_per_s": 1.8e9,
}


class PoolError(ValueError):
    """A pool that is not known, or a file that describes none."""


def pool(name: str) -> list[SimSpec]:
    """The hosts of a built-in pool, or of a file; those without models get the workload's.

    Raises:
        PoolError: there is no such pool, or the file is wrong.
    """
    base, _, slots = name.partition("/")
    if base in _MAKE_UP and (not slots or slots.isdecimal()):
        return [
            _host(host_class, f"{host_class}-{number}", int(slots or 1))
            for host_class, count in _MAKE_UP[base]
            for number in range(1, count + 1)
        ]
    path = Path(name)
    if not path.is_file():
        raise PoolError(f"no pool or file {name!r}; built in are {', '.join(POOLS)}")
    try:
        return _from_document(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PoolError(f"{name}: {error}") from error
    except (ValueError, TypeError) as error:
        raise PoolError(f"{name}: {error}") from error


def furnish(
    hosts: Sequence[SimSpec], models: Sequence[SimModel], *, resident: bool
) -> list[SimSpec]:
    """The hosts with a workload's models on their disks, where none were named.

    A host gets the models that fit into its memory. resident: they are loaded at the start.

    Raises:
        PoolError: no host has, or can have, one of the models.
    """
    furnished = []
    for host in hosts:
        installed = host.models or tuple(m for m in models if m.memory_bytes <= host.memory_bytes)
        names = tuple(m.name for m in installed[: host.max_models]) if resident else ()
        furnished.append(replace(host, models=installed, resident=host.resident or names))
    for model in models:
        if not any(host.model(model.name) for host in furnished):
            raise PoolError(f"no host has room for the model {model.name}")
    return furnished


def _host(host_class: str, host_id: str, slots: int) -> SimSpec:
    return SimSpec(
        id=host_id,
        slots=slots,
        models=(),
        context_length=CONTEXT_LENGTH,
        **_figures(host_class),
    )


def _from_document(document: object) -> list[SimSpec]:
    entries = document.get("hosts") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not entries:
        raise ValueError("a pool is a list of hosts")
    numbers: Counter[str] = Counter()
    hosts: list[SimSpec] = []
    for place, entry in enumerate(entries, 1):
        try:
            hosts += _alike(entry, numbers)
        except (TypeError, ValueError) as error:
            raise ValueError(f"host {place}: {error}") from error
    if twins := sorted(name for name, count in Counter(h.id for h in hosts).items() if count > 1):
        raise ValueError(f"several hosts are called {', '.join(twins)}")
    return hosts


def _alike(entry: object, numbers: Counter[str]) -> list[SimSpec]:
    """The hosts of one entry. numbers: how many hosts have got a name of each kind so far."""
    if not isinstance(entry, dict):
        raise ValueError("is no object")
    given = {str(key): value for key, value in entry.items()}
    host_class = str(given.pop("class", ""))
    count = int(given.pop("count", 1))
    named = given.pop("id", None)
    figures = {"models": (), "context_length": CONTEXT_LENGTH, **_figures(host_class), **given}
    base = str(named or host_class or "host")
    hosts = []
    for _ in range(count):
        numbers[base] += 1
        host_id = base if named and count == 1 else f"{base}-{numbers[base]}"
        hosts.append(spec_from_json(json.dumps({**figures, "id": host_id})))
    return hosts


def _figures(host_class: str) -> Mapping[str, Any]:
    if not host_class:
        return {}
    known = {**HOST_CLASSES, "3090": _RTX_3090}
    if host_class not in known:
        raise ValueError(f"no class {host_class!r}; say one of {', '.join(sorted(known))}")
    return known[host_class]
