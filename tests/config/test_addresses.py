from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.config.addresses import normalised_url, split_listen


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:11434", ("127.0.0.1", 11434)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_listen_is_split(text: str, address: tuple[str, int]) -> None:
    assert split_listen(text) == address


@pytest.mark.parametrize("text", ["", "11434", "a:", "a:x", "a:65536", "a:²", "a b:1", "a:b:1"])
@pytest.mark.parametrize("before", ["", ":", "::1:", "[::1", "[a]:", "[127.0.0.1]:"])
def test_listen_is_refused_when_it_is_no_address_and_port(before: str, text: str) -> None:
    with pytest.raises(ValueError, match="is not ADDRESS:PORT"):
        split_listen(before + text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("gpu-box", "http://gpu-box:11434"),
        ("gpu_box:8080", "http://gpu_box:8080"),
        (" http://GPU-box ", "http://gpu-box:80"),
        ("https://gpu-box", "https://gpu-box:443"),
        ("http://gpu-box:11434/ollama/", "http://gpu-box:11434/ollama"),
        ("[::1]", "http://[::1]:11434"),
        ("http://[fe80::1]:1", "http://[fe80::1]:1"),
    ],
)
def test_url_is_completed(text: str, url: str) -> None:
    assert normalised_url(text) == url


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("", "names no host"),
        ("http://", "names no host"),
        ("ftp://a", "scheme"),
        ("a b", "blank"),
        ("http://a\n.b", "blank or a control"),
        ("a:0", "port"),
        ("a:99999", "port"),
        ("a:x", "port"),
        ("http://http:/a", "port"),
        ("http://[::1", "not a URL"),
        ("a,b", "hostname"),
        ("http://me:secret@a", "more than"),
        ("@a", "more than"),
        ("a?b", "more than"),
        ("http://a#b", "more than"),
    ],
)
def test_url_is_refused_when_it_is_no_host(text: str, claim: str) -> None:
    with pytest.raises(ValueError, match=claim):
        normalised_url(text)


@given(st.text() | st.from_regex(r"(https?://)?[a-z:@\[\].]{1,12}(:[0-9]{1,6})?(/\S*)?"))
def test_url_stays_as_it_is_when_completed_already(text: str) -> None:
    try:
        url = normalised_url(text)
    except ValueError:
        return
    assert normalised_url(url) == url


@pytest.mark.parametrize("read", [normalised_url, split_listen])
@given(text=st.text())
def test_address_error_is_a_claim_without_the_text(
    read: Callable[[str], object], text: str
) -> None:
    # The text may be a password, so the loader decides how it is shown.
    error = error_of(read, text)
    assert error is None or re.match(r"(is|has|holds|names) ", error)


def error_of(read: Callable[[str], object], text: str) -> str | None:
    try:
        read(text)
    except ValueError as error:
        return str(error)
    return None
