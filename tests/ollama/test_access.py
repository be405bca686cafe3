from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.ollama.access import Access, Verdict, is_plainly_welcome, judge
from sollol_proxy.ollama.routes import allowed_methods
from tests.wire.recordings import Exchange, http_exchanges

HTTP = http_exchanges()
LOOPBACK = Access(loopback_bound=True, hostname="gpu-box", local_addresses=frozenset({"9.9.9.9"}))
PUBLIC = Access(loopback_bound=False)
STOPPED = [
    HTTP[id_]
    for id_ in (
        "options-no-origin-name",
        "options-origin",
        "options-origin-unknown-path",
        "options-origin-bad",
        "origin-bad",
        "origin-null",
        "origin-bad-404",
        "host-foreign",
        "host-foreign-ip",
        "no-host",
    )
]
LET_THROUGH = [
    HTTP[id_]
    for id_ in (
        "version-get",
        "options-no-origin",
        "origin-ok",
        "origin-ok-stream",
        "origin-same",
        "host-local-name",
        "http10",
    )
]


def ask(access: Access = LOOPBACK, **fields: Any) -> Verdict:
    asked = {"method": "GET", "host_header": "localhost:11434", "origin": None}
    return judge(access, http_version_11=True, **(asked | fields))


def judge_recorded(exchange: Exchange) -> Verdict:
    # Recorded on 127.0.0.1; the scrubbed name would not pass the check of a loopback server. The
    # one exchange that was sent with a name is OPTIONS, and the recording cannot tell which.
    address = "localhost" if exchange.id == "options-no-origin-name" else "127.0.0.1"
    host = exchange.header("Host").replace("ollama.test", address)
    has_host = any(name == "Host" for name, _ in exchange.headers)
    return judge(
        LOOPBACK,
        method=exchange.method,
        host_header=host if has_host else None,
        origin=exchange.header("Origin").replace("ollama.test", address) or None,
        http_version_11=exchange.http_version == "HTTP/1.1",
        allow_methods=allowed_methods(exchange.raw_path),
    )


def pairs(exchange: Exchange) -> list[tuple[str, str]]:
    left_out = ("Date", "Content-Length", "Content-Type", "Transfer-Encoding")
    return sorted((n, v) for n, v in exchange.answer_headers if n not in left_out)


@pytest.mark.parametrize("exchange", STOPPED, ids=lambda exchange: exchange.id)
def test_judge_answers_as_recorded(exchange: Exchange) -> None:
    reply = judge_recorded(exchange).reply
    assert reply is not None
    assert (reply.status, reply.body) == (exchange.status, exchange.answer)
    assert sorted(reply.headers) == pairs(exchange)
    assert (reply.content_type or "") == exchange.answer_header("Content-Type")


@pytest.mark.parametrize("exchange", LET_THROUGH, ids=lambda exchange: exchange.id)
def test_judge_lets_through_what_the_recording_let_through(exchange: Exchange) -> None:
    verdict = judge_recorded(exchange)
    assert verdict.reply is None
    assert sorted(verdict.headers) == [h for h in pairs(exchange) if h[0] != "Allow"]


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("", True),
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("gpu-box:11434", True),
        ("GPU-Box", True),
        ("a.localhost", True),
        ("foo.local", True),
        ("ollama.internal:1", True),
        ("127.5.5.5", True),
        ("192.168.5.5", True),
        ("172.31.0.1", True),
        ("10.0.0.1:80", True),
        ("[::1]:5", True),
        ("[fd00::1]", True),
        ("0.0.0.0", True),
        ("9.9.9.9", True),
        ("8.8.8.8", False),
        ("192.0.2.1", False),
        ("172.32.0.1", False),
        ("[2001:4860::8888]:5", False),
        ("evil.example.com", False),
        ("localhost.evil.com", False),
        ("local", False),
        ("127.0.0.1.evil.com", False),
    ],
)
def test_judge_refuses_foreign_names_when_bound_to_loopback(host: str, passes: bool) -> None:
    reply = ask(host_header=host).reply
    assert (reply is None) is passes
    assert reply is None or (reply.status, reply.body, reply.content_type) == (403, b"", None)
    assert ask(PUBLIC, host_header=host).reply is None


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        ("http://localhost", True),
        ("https://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("http://0.0.0.0", True),
        ("app://obsidian.md", True),
        ("vscode-webview://abc", True),
        ("https://chat.example.com", True),
        ("https://a.b.example.org", True),
        ("https://example.org", False),
        ("https://chat.example.com.evil.com", False),
        ("http://localhost.evil.com", False),
        ("chrome-extension://abc", False),
        ("null", False),
    ],
)
def test_judge_allows_origins_of_the_list_and_of_this_machine(origin: str, passes: bool) -> None:
    access = Access(
        loopback_bound=True, origins=("https://chat.example.com", "https://*.example.org")
    )
    verdict = ask(access, origin=origin)
    assert (verdict.reply is None) is passes
    if passes:
        allowed = ("Access-Control-Allow-Origin", origin)
        assert verdict.headers == (allowed, ("Vary", "Origin"))


def test_judge_allows_everybody_without_vary_when_the_list_has_a_star() -> None:
    access = Access(loopback_bound=False, origins=("*",))
    star = ("Access-Control-Allow-Origin", "*")
    assert ask(access, origin="https://any.example").headers == (star,)
    preflight = ask(access, origin="https://any.example", method="OPTIONS").reply
    assert preflight is not None
    assert star in preflight.headers
    assert "Vary" not in dict(preflight.headers)


def test_judge_refuses_a_rebound_name_though_its_origin_is_its_own() -> None:
    reply = ask(host_header="evil.example.com", origin="http://evil.example.com").reply
    assert reply is not None
    assert reply.status == 403


def test_judge_takes_http_1_0_without_host() -> None:
    verdict = judge(LOOPBACK, method="GET", host_header=None, origin=None, http_version_11=False)
    assert verdict == Verdict()


@given(st.text(), st.text() | st.none(), st.text() | st.none(), st.booleans(), st.booleans())
def test_judge_never_raises(
    method: str, host: str | None, origin: str | None, is_11: bool, loopback: bool
) -> None:
    access = Access(loopback_bound=loopback, origins=("*.example.org",))
    verdict = judge(access, method=method, host_header=host, origin=origin, http_version_11=is_11)
    assert verdict.reply is None or verdict.reply.status in (204, 400, 403)


NEAR = ("", "localhost", "127.0.0.1", "[::1]", "10.1.2.3", "GPU-box", "a.local", "9.9.9.9")
HOSTS = st.text() | st.sampled_from([*NEAR, "8.8.8.8", "example.org"]).flatmap(
    lambda host: st.sampled_from([host, f"{host}:11434", f" {host}", "x" * 70 + host])
)


@given(st.sampled_from(["GET", "POST", "OPTIONS"]), HOSTS | st.none(), st.text() | st.none())
def test_judge_has_nothing_to_say_to_whom_is_plainly_welcome(
    method: str, host: str | None, origin: str | None
) -> None:
    for access in (LOOPBACK, PUBLIC):
        welcome = is_plainly_welcome(access, method=method, host_header=host, origin=origin)
        if welcome:
            verdict = judge(
                access, method=method, host_header=host, origin=origin, http_version_11=True
            )
            assert verdict == Verdict()


@pytest.mark.parametrize("host", [f"{name}{port}" for name in NEAR for port in ("", ":11434")])
def test_requests_without_an_origin_are_plainly_welcome_under_own_names(host: str) -> None:
    assert is_plainly_welcome(LOOPBACK, method="POST", host_header=host, origin=None)
    assert not is_plainly_welcome(LOOPBACK, method="OPTIONS", host_header=host, origin=None)
    assert not is_plainly_welcome(LOOPBACK, method="GET", host_header=host, origin="http://a.b")
    assert not is_plainly_welcome(LOOPBACK, method="GET", host_header="a.b", origin=None)
