"""What passes, what stays, what is added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import Complexity, Cost, Decision, TaskType
from sollol_proxy.server import headers
from sollol_proxy.server.exchange import Ids

token = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
pairs = st.lists(st.tuples(token.map(lambda name: f"X-{name}"), token), max_size=8)


@given(pairs=pairs)
def test_end_to_end_headers_pass_both_ways_in_order(pairs: list[tuple[str, str]]) -> None:
    wanted = [pair for pair in pairs if not pair[0].lower().startswith("x-sollol-")]
    assert headers.for_host(pairs) == wanted
    assert list(headers.for_client(pairs).items()) == pairs


@pytest.mark.parametrize(
    "name",
    ["Connection", "keep-alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade",
     "Proxy-Authorization", "Proxy-Connection"],
)  # fmt: skip
def test_hop_by_hop_headers_stay_on_their_hop(name: str) -> None:
    given = [(name, "x"), ("X-Kept", "y")]
    assert headers.for_host(given) == [("X-Kept", "y")]
    assert list(headers.for_client(given).items()) == [("X-Kept", "y")]


@pytest.mark.parametrize(
    "name", ["Host", "Content-Length", "Expect", "Origin", "X-SOLLOL-Priority", "x-sollol-any"]
)
def test_headers_meant_for_the_proxy_do_not_reach_a_host(name: str) -> None:
    assert not headers.for_host([(name, "x")])


def test_headers_that_connection_names_stay_on_their_hop() -> None:
    given = [("Connection", "close, X-Secret"), ("X-Secret", "1"), ("X-Open", "2")]
    assert headers.for_host(given) == [("X-Open", "2")]


def test_authorization_and_repeated_headers_reach_the_host() -> None:
    given = [("Authorization", "Bearer k"), ("X-A", "1"), ("X-A", "2")]
    assert headers.for_host(given) == given


@pytest.mark.parametrize(
    ("query", "kept", "priority"),
    [
        ("", "", None),
        ("a=b", "a=b", None),
        ("priority=7", "", "7"),
        ("a=b&priority=7&c=%20d", "a=b&c=%20d", "7"),
        ("priority=1&priority=9", "", "9"),
        ("apriority=1&x", "apriority=1&x", None),
        ("priority", "priority", None),
        ("priority=", "", ""),
        ("a=b&&c", "a=b&&c", None),
    ],
)
def test_priority_is_taken_out_of_the_query_and_nothing_else(
    query: str, kept: str, priority: str | None
) -> None:
    assert headers.split_query(query) == (kept, priority)


@given(text=st.text(max_size=500))
def test_any_text_becomes_a_header_value(text: str) -> None:
    value = headers.printable(text)
    assert len(value) <= headers.MAX_REASON
    assert value.isascii()
    assert value.isprintable() or value == ""


names = st.sampled_from(
    ["Connection", "Date", "Vary", "X-SOLLOL-Host", "x-sollol-score", "TE", "X-A", "X-B", "Via"]
).flatmap(lambda name: st.sampled_from([name, name.lower(), name.upper()]))
values = st.sampled_from(["close", "x-a, X-SOLLOL-Host", "keep-alive", "date", "1", "2"])
fields = st.lists(st.tuples(names, values), max_size=6)


@given(theirs=fields, ours=fields)
def test_client_gets_the_hosts_fields_that_stay_in_force_and_then_ours(
    theirs: list[tuple[str, str]], ours: list[tuple[str, str]]
) -> None:
    lowered = [name.lower() for name, _ in theirs]
    hidden = {token.strip().lower() for n, v in theirs if n.lower() == "connection"
              for token in v.split(",")}  # fmt: skip
    hidden = hidden - {"close"} | {"connection", "te"}
    is_ours = any(n.startswith("x-sollol-") or n == "vary" for n in lowered)
    if is_ours:
        hidden |= {name.lower() for name, _ in ours}
    kept = [field for field in theirs if field[0].lower() not in hidden]
    block, has_date = headers.client_block([(n.encode(), v.encode()) for n, v in theirs], ours)
    assert block == "".join(f"{name}: {value}\r\n" for name, value in kept + ours).encode()
    assert has_date == any(name.lower() == "date" for name, _ in kept)


@given(given=fields)
def test_host_gets_what_is_end_to_end(given: list[tuple[str, str]]) -> None:
    hidden = {token.strip().lower() for n, v in given if n.lower() == "connection"
              for token in v.split(",")}  # fmt: skip
    hidden |= {"connection", "te", "keep-alive"}
    assert headers.for_host(given) == [
        (name, value)
        for name, value in given
        if name.lower() not in hidden and not name.lower().startswith("x-sollol-")
    ]


def routing(decision: Decision | None) -> dict[str, str]:
    return dict(
        headers.routing(
            "id",
            decision,
            task_type=TaskType.ANALYSIS,
            complexity=Complexity.MEDIUM,
            priority=7,
            attempts=2,
            queue_s=0.1234,
        )
    )


def test_routing_headers_tell_what_was_decided() -> None:
    cost = Cost(0.5, (), score=200.04)
    fields = routing(Decision("id", "gpu", "seven_factor", cost, "because"))
    assert fields == {
        "X-SOLLOL-Request-Id": "id",
        "X-SOLLOL-Host": "gpu",
        "X-SOLLOL-Policy": "seven_factor",
        "X-SOLLOL-Score": "200.0",
        "X-SOLLOL-Task-Type": "analysis",
        "X-SOLLOL-Complexity": "medium",
        "X-SOLLOL-Priority": "7",
        "X-SOLLOL-Attempts": "2",
        "X-SOLLOL-Queue-Time": "0.123",
        "X-SOLLOL-Reason": "because",
    }


def test_routing_headers_have_a_cost_where_the_policy_has_no_score() -> None:
    fields = routing(Decision("id", "gpu", "least_in_flight", Cost(0.5), "because"))
    assert fields["X-SOLLOL-Cost"] == "0.500"
    assert "X-SOLLOL-Score" not in fields


def test_routing_headers_of_a_refused_request_name_no_host() -> None:
    assert "X-SOLLOL-Host" not in routing(None)


def test_ids_are_all_different_and_of_one_length() -> None:
    ids = Ids()
    made = [ids.new() for _ in range(500)]
    assert len(set(made)) == 500
    assert {len(id_) for id_ in made} == {16}
    assert all(int(id_, 16) >= 0 for id_ in made)
