"""The environment's variables → the keys they set.

A key's variable is its path in capitals, two underscores for each dot: SOLLOL_LISTEN,
SOLLOL_QUEUE__MAX_WAITING. Text is taken as it stands, a list of text or hosts with commas between
(SOLLOL_HOSTS=gpu-a,gpu-b), everything else as YAML (`null`, `30s`, `{/api/embed: 3}`). An empty
variable counts as not set, because compose files cannot leave one out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sollol_proxy.config.document import Path, read_document
from sollol_proxy.config.hints import hint
from sollol_proxy.config.schema import Config, HostSection
from sollol_proxy.config.wording import is_section

CONFIG_FILE = "SOLLOL_CONFIG"
"""Names the file; read by the command, no key."""

_PREFIX = "SOLLOL_"
# Kubernetes puts these into every container of a namespace with a service called `sollol` or
# `sollol-…`; see "Discovering services" in its documentation.
_KUBERNETES = re.compile(
    r"SOLLOL(_[A-Z0-9_]+)?"
    r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)?)"
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key that is set outside the file. name: of the variable or flag, for messages."""

    name: str
    path: Path
    value: Any


def variables() -> dict[str, Path]:
    """Every variable with the path of its key, in the order of the schema."""
    return {_PREFIX + "__".join(path).upper(): path for path in _paths()}


def read_environment(
    environment: Mapping[str, str],
) -> tuple[list[Setting], list[tuple[str, str]]]:
    """What the environment sets, and its mistakes as pairs of a variable and a message."""
    known = variables()
    settings: list[Setting] = []
    mistakes: list[tuple[str, str]] = []
    for name, text in environment.items():
        if not name.startswith(_PREFIX) or name == CONFIG_FILE or not text:
            continue
        if name in known:
            value, message = _value(known[name], text)
            if message is None:
                settings.append(Setting(name, known[name], value))
            else:
                mistakes.append((name, message))
        elif not _KUBERNETES.fullmatch(name):
            mistakes.append((name, f"unknown variable{hint(name, known)}"))
    return settings, mistakes


def _paths() -> Iterator[tuple[str, ...]]:
    for name, info in Config.model_fields.items():
        kind = info.annotation
        if kind is not None and is_section(kind):
            yield from ((name, key) for key in kind.model_fields)
        else:
            yield (name,)


def _value(path: Path, text: str) -> tuple[Any, str | None]:
    """The value, or why there is none."""
    kind = _annotation(path)
    listed = kind == tuple[HostSection, ...] or (
        kind == tuple[str, ...] and not text.startswith("[")
    )
    if listed:
        return [item.strip() for item in text.split(",") if item.strip()], None
    if kind is str or (kind == (str | None) and text != "null"):
        return text, None
    document = read_document(text)
    if document.mistakes:
        return None, document.mistakes[0].message
    return document.data, None


def _annotation(path: Path) -> Any:
    section: Any = Config
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    return section.model_fields[path[-1]].annotation
