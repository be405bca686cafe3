"""Model names: `[scheme://][host/][namespace/]model[:tag]`, and the ways to compare them.

Ollama reads a name from its end: a colon after the last slash starts the tag, the last slash
starts the model, the one before it the namespace. Where a model is asked for, `:local` and
`:cloud` may follow the name and say where it has to come from; a tag that ends in `-cloud` says
the same as `:cloud`. Where a model gets its name (create, copy) or is pushed there are no such
suffixes, and blanks around the name are not forgiven either.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# All parts at their longest come to less; longer texts are not worth taking apart.
_MAX_LENGTH = 1_024
_NAME_KEPT = 128
"""Characters of a name whose parts are kept, so that odd names cannot fill memory."""
_WILDCARDS = frozenset("*?[")
# What Go's strings.TrimSpace takes away; str.strip() would take U+001C to U+001F as well.
_BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_CLOUD_ENDING = "-cloud"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class Asked(NamedTuple):
    """What a name comes to where a model is asked for; see `canonical` and `is_cloud`."""

    canonical: str
    is_cloud: bool


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
    return _lowered(display(name))


def stored(name: str) -> str:
    """The key of a model that a host lists, or that create or copy name: `canonical` as it lies.

    The two differ for a model that was copied to `x:local`: asked for, that is `x:latest`.
    """
    return _lowered(_shortest(_parse(name), name))


def display(name: str) -> str:
    """The spelling Ollama uses in lists and in the errors of `/api/show`: `canonical` with case."""
    text = _trimmed(name)
    return _shortest(_asked(text), text)


def canonical_pattern(pattern: str) -> str:
    """A shell pattern to be matched against canonical names.

    Without `*`, `?` or `[` it is a name: `llama3` is `llama3:latest` and nothing else. With one
    of them, a missing tag means every tag: `qwen?` becomes `qwen?:*`. A `*` at the end reaches
    over the tag by itself, so `llama3*` stays as it is and takes `llama3.1:8b` too. A tag that is
    given counts as written: `qwen*:7b`.
    """
    if _WILDCARDS.isdisjoint(pattern):
        return canonical(pattern)
    text = _under_stub_name(_trimmed(pattern).lower())
    text = text.partition("://")[2] or text
    text = text.removeprefix(f"{DEFAULT_HOST}/").removeprefix(f"{DEFAULT_NAMESPACE}/")
    if _has_tag(text) or text.endswith("*"):
        return text
    return f"{text}:*"


def is_cloud(name: str) -> bool:
    """Whether the name asks for a model that ollama.com runs: `x:cloud`, `x:20b-cloud`."""
    return _cut_source(_trimmed(name))[1] == "cloud"


def is_valid(name: str) -> bool:
    """Whether Ollama takes it where a model is asked for.

    False also for a name with two sources, `x:cloud:local`: Ollama refuses it.
    """
    return _asked(_trimmed(name)) is not None


def asked(name: str) -> Asked | None:
    """What a name asks for; None where it is not valid."""
    return _read_kept(name) if len(name) <= _NAME_KEPT else _read(name)


def is_storable(name: str) -> bool:
    """Whether Ollama takes it where a model gets its name: create, copy, and push."""
    return _parse(name) is not None


def namespace(name: str) -> str:
    """The namespace part, with the default where none is written."""
    parts = _asked(_trimmed(name))
    return parts.namespace if parts else DEFAULT_NAMESPACE


def _read(name: str) -> Asked | None:
    return Asked(canonical(name), is_cloud(name)) if is_valid(name) else None


def _trimmed(text: str) -> str:
    return text.strip(_BLANKS)


def _lowered(text: str) -> str:
    """In lower case; what no name can hold stays, lest a Kelvin sign become the letter k."""
    return text.lower() if text.isascii() else text


def _shortest(parts: _Parts | None, text: str) -> str:
    """The parts without what is default, or the text where there are none."""
    if parts is None:
        return text
    short = f"{parts.model}:{parts.tag}"
    if parts.host.lower() != DEFAULT_HOST:
        return f"{parts.host}/{parts.namespace}/{short}"
    if parts.namespace.lower() != DEFAULT_NAMESPACE:
        return f"{parts.namespace}/{short}"
    return short


def _asked(text: str) -> _Parts | None:
    """The parts of the stored name that a trimmed spelling asks for; None for no name."""
    # A name is taken apart several times, and the next one is mostly the same.
    return _take_apart_kept(text) if len(text) <= _NAME_KEPT else _take_apart(text)


def _take_apart(text: str) -> _Parts | None:
    base, source = _cut_source(text)
    if source and _cut_source(base)[1]:
        return None
    return _parse(_under_stub_name(text))


def _cut_source(text: str) -> tuple[str, str]:
    """A name without the suffix that says where it comes from, and that: cloud, local or ""."""
    base, colon, suffix = text.rpartition(":")
    suffix = _trimmed(suffix)
    source = suffix.lower()
    if colon and source in ("cloud", "local"):
        return base, source
    if colon and source.endswith(_CLOUD_ENDING) and "/" not in source:
        return f"{base}:{suffix[: -len(_CLOUD_ENDING)]}", "cloud"
    return text, ""


def _under_stub_name(text: str) -> str:
    """A name without its `:local`; `x:tag:cloud` as Ollama stores its stub, `x:tag-cloud`."""
    base, source = _cut_source(text)
    if source != "cloud":
        return base
    return f"{base}{_CLOUD_ENDING if _has_tag(base) else ':cloud'}"


def _has_tag(text: str) -> bool:
    return ":" in text.rpartition("/")[2]


def _parse(text: str) -> _Parts | None:
    """The four parts with the defaults filled in; None when the grammar is broken."""
    if len(text) > _MAX_LENGTH:
        return None
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


_take_apart_kept = lru_cache(maxsize=512)(_take_apart)
_read_kept = lru_cache(maxsize=512)(_read)
