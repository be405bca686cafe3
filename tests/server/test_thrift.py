"""What is put off while libraries are imported, and that all of it comes in time."""

from __future__ import annotations

import gc
import socket
import ssl
import sys
from pathlib import Path

import pytest

from sollol_proxy.server.thrift import thrifty_imports

# Self-signed; nobody has its key.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUQ3D9K9CbIwnGCQWTVxjZ+zyxBVAwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyODA0MTczMFoYDzIxMjYxMTA0
MDQxNzMwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASyo3F2QQ3OI4oXuHgf/TVFP0xjojBOzx491Kwj9sI9uqn7uDMtlpZK
qwBOIAO91lDTXMAYaNcBUb1cUTzaq70No2kwZzAdBgNVHQ4EFgQUbWfZ2m0/VCxM
3D56y9bEKzgOr58wHwYDVR0jBBgwFoAUbWfZ2m0/VCxM3D56y9bEKzgOr58wDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
RwAwRAIgEwbXtQfWR2Y2uakHdXFb9HIXqqdWKbiKi5C61AdeF2QCIHHVlEW/geLA
Fe5Hc3+9Zk6oNWvQ/GwPHzBLtgEv2WCp
-----END CERTIFICATE-----
"""


@pytest.fixture
def one_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system trusts one certificate."""
    file = tmp_path / "system.pem"
    file.write_text(CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))


def _certificates(context: ssl.SSLContext) -> int:
    return context.cert_store_stats()["x509"]


def _made_within() -> ssl.SSLContext:
    with thrifty_imports():
        return ssl.create_default_context()


@pytest.mark.usefixtures("one_certificate")
def test_certificates_are_read_when_the_first_connection_begins() -> None:
    context = _made_within()
    assert _certificates(context) == 0
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    assert _certificates(context) == 1
    assert type(context) is ssl.SSLContext


@pytest.mark.usefixtures("one_certificate")
def test_certificates_are_read_for_a_socket_too() -> None:
    context = _made_within()
    ours, theirs = socket.socketpair()
    with (
        theirs,
        context.wrap_socket(
            ours, server_hostname="localhost", do_handshake_on_connect=False
        ) as wrapped,
    ):
        assert wrapped.context is context
    assert _certificates(context) == 1


@pytest.mark.usefixtures("one_certificate")
def test_context_verifies_before_and_after_it_has_read() -> None:
    context = _made_within()
    for _ in range(2):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")


@pytest.mark.usefixtures("one_certificate")
def test_context_made_by_set_default_verify_paths_waits_too() -> None:
    with thrifty_imports():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_default_verify_paths()
    assert _certificates(context) == 0
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    assert _certificates(context) == 1


@pytest.mark.usefixtures("one_certificate")
def test_contexts_of_others_read_at_once() -> None:
    _made_within()
    assert _certificates(ssl.create_default_context()) == 1
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_default_verify_paths()
    assert _certificates(context) == 1


def test_block_leaves_nothing_behind_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rich", raising=False)
    before = dict(vars(ssl.SSLContext))
    with pytest.raises(ModuleNotFoundError, match="rich"), thrifty_imports():
        __import__("rich")
    assert dict(vars(ssl.SSLContext)) == before
    assert "rich" not in sys.modules
    assert gc.isenabled()


def test_block_keeps_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", sys)
    with thrifty_imports():
        assert __import__("rich") is sys
        assert not gc.isenabled()
    assert sys.modules["rich"] is sys


def test_block_leaves_a_collector_that_was_off_alone() -> None:
    gc.disable()
    try:
        with thrifty_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
