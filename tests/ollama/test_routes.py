from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import JobKind
from sollol_proxy.ollama.routes import ROUTES, Dialect, Plan, allowed_methods, find
from tests.wire.recordings import all_exchanges, http_exchanges

DIGEST = "sha256:" + "9f" * 32


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_find_gives_the_row_of_every_request_in_the_table(route: object) -> None:
    assert isinstance(route, type(ROUTES[0]))
    path = route.path.replace(":digest", DIGEST).replace(":key", "eA").replace(":model", "x:7b")
    assert find(route.method, path) is route


@pytest.mark.parametrize(
    ("method", "path", "label", "dialect"),
    [
        ("GET", "/api/tags/", "other", Dialect.NATIVE),
        ("GET", "//api/tags", "other", Dialect.NATIVE),
        ("POST", "/API/chat", "other", Dialect.NATIVE),
        ("OPTIONS", "*", "other", Dialect.NATIVE),
        ("GET", "", "other", Dialect.NATIVE),
        ("POST", "/v1/images/generations", "other", Dialect.OPENAI),
        ("POST", "/v1/messages/count_tokens", "other", Dialect.ANTHROPIC),
        ("GET", "/v1/models/ns/x", "other", Dialect.OPENAI),
        ("GET", "/v1/models/ns%2Fx", "other", Dialect.OPENAI),
        ("GET", "/v1/models/ns%2fx", "other", Dialect.OPENAI),
        ("GET", "/v1/models/", "other", Dialect.OPENAI),
        ("GET", "/api/generate", "/api/generate", Dialect.NATIVE),
        ("HEAD", "/api/ps", "/api/ps", Dialect.NATIVE),
        ("DELETE", "/v1/messages", "/v1/messages", Dialect.ANTHROPIC),
        ("GET", f"/api/blobs/{DIGEST}", "/api/blobs/:digest", Dialect.NATIVE),
    ],
)
def test_find_passes_what_is_not_in_the_table(
    method: str, path: str, label: str, dialect: Dialect
) -> None:
    route = find(method, path)
    assert (route.method, route.path) == (method, label)
    assert (route.plan, route.dialect, route.kind) == (Plan.PASS, dialect, JobKind.OTHER)


@given(st.text(), st.text() | st.text().map("/v1/models/".__add__))
def test_find_labels_only_with_paths_of_the_table(method: str, path: str) -> None:
    assert find(method, path).path in {route.path for route in ROUTES} | {"other"}


@pytest.mark.parametrize(
    ("path", "streams"),
    [("/api/generate", True), ("/api/chat", True), ("/api/embed", False), ("/v1/responses", False)],
)
def test_route_streams_by_default_on_native_generation_only(path: str, streams: bool) -> None:
    assert find("POST", path).streams_by_default is streams


def test_allowed_methods_are_those_of_recorded_allow_headers() -> None:
    recorded = {
        e.raw_path: e.answer_header("Allow") for e in all_exchanges() if e.answer_header("Allow")
    }
    assert len(recorded) >= 6
    assert {path: ", ".join(allowed_methods(path)) for path in recorded} == recorded


def test_allowed_methods_are_none_when_the_path_is_unknown() -> None:
    assert allowed_methods("/nope") == []


def test_table_knows_every_recorded_path_that_ollama_knows() -> None:
    unknown = {
        e.raw_path for e in http_exchanges().values() if find(e.method, e.raw_path).path == "other"
    }
    answered = {e.raw_path: e.status for e in http_exchanges().values() if e.raw_path in unknown}
    assert set(answered.values()) <= {404, 301, 307, 204, 403}
