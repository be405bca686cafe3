"""Whether keys fit each other: what `identity` and `models` say, against the hosts there are.

Each mistake is a path below the value that was checked, and a text. The texts do not repeat the
value: it may come from `${NAME}`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from sollol_proxy.config.hints import hint
from sollol_proxy.core.types import HostSpec
from sollol_proxy.ollama.names import canonical, canonical_pattern

Misplaced: TypeAlias = list[tuple[tuple[str | int, ...], str]]

_WILDCARDS = frozenset("*?[")


def no_such_host(host_id: str, ids: Collection[str]) -> str:
    """What is wrong with an id that no host has."""
    return f"no host has this id{hint(host_id, ids) if ids else '; the pool has no hosts'}"


def unreached(models: Iterable[str]) -> Misplaced:
    """Names that hold for no model: empty ones, and those that an earlier one covers."""
    mistakes: Misplaced = []
    earlier: dict[str, str] = {}
    for name in models:
        if not name.strip():
            text = "is empty; write a model's name, or a pattern such as llama3*"
            mistakes.append(((name,), text))
            continue
        pattern = canonical_pattern(name)
        covers = (
            written
            for before, written in earlier.items()
            if before == pattern or (_is_exact(name) and fnmatchcase(pattern, before))
        )
        first = next(covers, None)
        if first is not None:
            text = f"holds for no model: `{first}` stands before it and covers it"
            mistakes.append(((name,), text))
        earlier.setdefault(pattern, name)
    return mistakes


def misplaced_hosts(
    placed: Mapping[str, Sequence[str]], specs: Mapping[str, HostSpec]
) -> Misplaced:
    """Hosts that are to hold a model and are not there, or may not serve it.

    placed: ids of hosts by model name or pattern; whether a pattern and a host's own patterns
        have a model in common cannot be told.
    """
    mistakes: Misplaced = []
    for name, host_ids in placed.items():
        for index, host_id in enumerate(host_ids):
            path = (name, "hosts", index)
            spec = specs.get(host_id)
            if spec is None:
                mistakes.append((path, no_such_host(host_id, specs)))
            elif _is_exact(name) and not spec.may_serve(canonical(name)):
                text = "this host may not serve the model (its own models: allow, deny)"
                mistakes.append((path, text))
    return mistakes


def _is_exact(name: str) -> bool:
    return _WILDCARDS.isdisjoint(name)
