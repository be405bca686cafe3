"""Model names: `[scheme://][host/][namespace/]model[:tag]`, and the ways to compare them.

Ollama reads a name from its end: a colon after the last slash starts the tag, the last slash
starts the model, the one before it the namespace. `:local` and `:cloud` may follow a name and say
where the model has to come from; a tag that ends in `-cloud` says the same as `:cloud`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# All parts at their longest come to less; longer texts are not worth taking apart.
_MAX_LENGTH = 1_024
_WILDCARDS = frozenset("*?[")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class _Parts(NamedTuple):
    host: str
    namespace: str
    model: str
    tag: str


def canonical(name: str) -> str:
    """The key for "which host has it": equal for all spellings that reach the same model.

    Lower-case; scheme, default host, default namespace and `:local` dropped; the tag always
    shown; cloud models as Ollama stores their stubs, `x:cloud` and `x:tag-cloud`. What is no
    model name comes back trimmed and lower-cased. Idempotent.
    """
    return _shortest(name.strip().lower())


def display(name: str) -> str:
    """The spelling Ollama uses in lists and in the errors of `/api/show`: `canonical` with case."""
    return _shortest(name.strip())


def canonical_pattern(pattern: str) -> str:
    """A shell pattern to be matched against canonical names.

    Without `*`, `?` or `[` it is a name: `llama3` is `llama3:latest` and nothing else. With one
    of them, a missing tag means every tag: `qwen?` becomes `qwen?:*`. A `*` at the end reaches
    over the tag by itself, so `llama3*` stays as it is and takes `llama3.1:8b` too. A tag that is
    given counts as written: `qwen*:7b`.
    """
    if _WILDCARDS.isdisjoint(pattern):
        return canonical(pattern)
    text = _without_source(pattern.strip().lower())
    text = text.partition("://")[2] or text
    text = text.removeprefix(f"{DEFAULT_HOST}/").removeprefix(f"{DEFAULT_NAMESPACE}/")
    if ":" in text.rpartition("/")[2] or text.endswith("*"):
        return text
    return f"{text}:*"


def is_cloud(name: str) -> bool:
    """Whether the name asks for a model that ollama.com runs: `x:cloud`, `x:20b-cloud`."""
    tag = _tag(name.strip().lower())
    return tag == "cloud" or tag.endswith("-cloud")


def is_valid(name: str) -> bool:
    """Whether Ollama takes it as a model name.

    False also for a name that asks for both sources, `x:cloud:local`: Ollama refuses it.
    """
    text = name.strip()
    suffixes = set(text.lower().split(":")[1:])
    if {"cloud", "local"} <= suffixes:
        return False
    return _parts(text) is not None


def namespace(name: str) -> str:
    """The namespace part, with the default where none is written."""
    parts = _parts(name.strip())
    return parts.namespace if parts else DEFAULT_NAMESPACE


def _shortest(text: str) -> str:
    parts = _parts(text)
    if parts is None:
        return text
    short = f"{parts.model}:{parts.tag}"
    if parts.host.lower() != DEFAULT_HOST:
        return f"{parts.host}/{parts.namespace}/{short}"
    if parts.namespace.lower() != DEFAULT_NAMESPACE:
        return f"{parts.namespace}/{short}"
    return short


def _parts(text: str) -> _Parts | None:
    """The parts behind a trimmed spelling, its source suffixes resolved; None for no name."""
    if len(text) > _MAX_LENGTH:
        return None
    return _parse(_with_stub_tag(_without_source(text)))


def _without_source(text: str) -> str:
    """The name without its `:local`."""
    while text.lower().endswith(":local"):
        text = text[: -len(":local")]
    return text


def _with_stub_tag(text: str) -> str:
    """`x:tag:cloud` as Ollama stores its stub, `x:tag-cloud`; other names as they are."""
    while text.lower().endswith(":cloud"):
        rest = text[: -len(":cloud")]
        tag = _tag(rest).lower()
        if not tag:
            break
        text = rest if tag == "cloud" or tag.endswith("-cloud") else f"{rest}-cloud"
    return text


def _tag(text: str) -> str:
    last = text.rpartition("/")[2]
    return last.rpartition(":")[2] if ":" in last else ""


def _parse(text: str) -> _Parts | None:
    """The four parts with the defaults filled in; None when the grammar is broken."""
    rest, slash, last = text.rpartition("/")
    model, colon, tag = last.rpartition(":")
    if not colon:
        model, tag = last, DEFAULT_TAG
    host, namespace_ = DEFAULT_HOST, DEFAULT_NAMESPACE
    if slash:
        host_part, second_slash, namespace_ = rest.rpartition("/")
        if second_slash:
            host = host_part.partition("://")[2] if "://" in host_part else host_part
    parts = _Parts(host, namespace_, model, tag)
    grammar = (_HOST, _NAMESPACE, _MODEL_OR_TAG, _MODEL_OR_TAG)
    if all(rule.fullmatch(part) for rule, part in zip(grammar, parts, strict=True)):
        return parts
    return None
