"""What libraries do while they are imported, and a proxy that serves has no use for.

Half of a start is importing. Nothing here changes what a library does once it is asked to.
"""

from __future__ import annotations

import gc
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def thrifty_imports() -> Iterator[None]:
    """Within the block, importing costs less; to be used before other threads run.

    - Certificates: aiohttp reads the system's twice, once for connections that verify none. Here
      each context reads them with its first connection, which a pool without `https` never has.
    - rich, where it is installed: structlog would draw tracebacks with it; ours are plain.
    - Garbage: nearly all that imports make stays, so the collector neither looks for it meanwhile
      nor looks at what is there ever again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with _certificates_later(), _missing("rich"):
            yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _missing(package: str) -> Iterator[None]:
    """Within the block, a package that nobody has imported yet is as if not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextmanager
def _certificates_later() -> Iterator[None]:
    """Within the block, a TLS context that is to read the system's certificates is made to wait."""
    context: Any = ssl.SSLContext
    load_default_certs = context.load_default_certs

    def wait(self: ssl.SSLContext, *_: object) -> None:
        self.__class__ = _Waiting

    context.load_default_certs = wait
    context.set_default_verify_paths = wait
    try:
        yield
    finally:
        context.load_default_certs = load_default_certs
        del context.set_default_verify_paths  # the base class has it


class _Waiting(ssl.SSLContext):
    """A context that reads the system's certificates when its first connection begins.

    Until then it trusts nobody, so whatever goes wrong is a connection refused.
    """

    def wrap_bio(self, *args: Any, **names: Any) -> ssl.SSLObject:
        """As a context does it."""
        return self._read().wrap_bio(*args, **names)

    def wrap_socket(self, *args: Any, **names: Any) -> ssl.SSLSocket:
        """As a context does it."""
        return self._read().wrap_socket(*args, **names)

    def _read(self) -> ssl.SSLContext:
        self.__class__ = ssl.SSLContext  # type: ignore[assignment]
        self.load_default_certs()
        return self
