from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.ollama import gojson
from sollol_proxy.ollama.commands import Command, read_command, streaming_body
from sollol_proxy.ollama.routes import ROUTES, Route, find
from tests.wire.recordings import Exchange, all_exchanges

PULL = find("POST", "/api/pull")
PUSH = find("POST", "/api/push")
CREATE = find("POST", "/api/create")
COPY = find("POST", "/api/copy")
DELETE = find("DELETE", "/api/delete")
MANAGING = (PULL, PUSH, CREATE, COPY, DELETE)

HEX = "a127c672c6b77ca65f7c02ce5e3da5dcddd34e18ea201e6df55e6b49a8811673"
OTHER_HEX = "466d4297b59a3b2aa7272c9621a1b464e6cfa7494bfa5adf781254ae434b0e8a"


def read(route: Route, **members: Any) -> Command:
    return read_command(route, json.dumps(members).encode())


# --- recorded requests ------------------------------------------------------------------------

REFUSED = (400, 405)
RECORDED = [
    exchange
    for exchange in all_exchanges()
    if exchange.body is not None
    and find(exchange.method, exchange.raw_path) in MANAGING
    and exchange.status not in REFUSED
]


@pytest.mark.parametrize("exchange", RECORDED, ids=lambda exchange: exchange.id)
def test_command_is_valid_when_ollama_did_not_refuse_it(exchange: Exchange) -> None:
    assert exchange.body is not None
    command = read_command(find(exchange.method, exchange.raw_path), exchange.body)
    assert command.is_valid
    assert command.model
    assert command.written in exchange.body.decode()


NOT_BY_NAME = {"create-neither"}


@pytest.mark.parametrize(
    "exchange",
    [
        exchange
        for exchange in all_exchanges()
        if find(exchange.method, exchange.raw_path) in MANAGING
        and exchange.status == 400
        and exchange.id not in NOT_BY_NAME
    ],
    ids=lambda exchange: exchange.id,
)
def test_command_is_not_valid_when_ollama_refused_its_names(exchange: Exchange) -> None:
    route = find(exchange.method, exchange.raw_path)
    assert not read_command(route, exchange.body or b"").is_valid


# --- what is read -----------------------------------------------------------------------------


def test_command_of_a_pull_by_the_cli() -> None:
    body = b'{"model":"","insecure":true,"username":"","password":"","name":"Tiny"}'
    assert read_command(PULL, body) == Command(
        model="tiny:latest", written="Tiny", stream=True, insecure=True, is_valid=True
    )


def test_command_of_a_creation_from_files() -> None:
    command = read(
        CREATE,
        model="Mine:V1",
        files={"a.gguf": f"sha256:{HEX}", "b.gguf": f"sha256-{OTHER_HEX}", "c.gguf": "nonsense"},
        adapters={"d.gguf": f"sha256:{OTHER_HEX}", "e.gguf": None},
        draft_files={"f.gguf": f"sha256:{HEX.upper()}"},
        stream=False,
    )
    assert command == Command(
        model="mine:v1",
        written="Mine:V1",
        digests=(f"sha256:{HEX}", f"sha256:{OTHER_HEX}", f"sha256:{HEX.upper()}"),
        is_valid=True,
    )


def test_command_of_a_creation_from_a_model() -> None:
    command = read(CREATE, name="mine", **{"from": " library/Base:local"})
    assert (command.model, command.source) == ("mine:latest", "base:latest")
    assert command.is_valid
    assert not command.is_cloud


def test_command_of_a_copy_has_the_destination_as_its_model() -> None:
    command = read(COPY, source="registry.ollama.ai/library/A", destination="Ns/B:1", model="c")
    assert command == Command(model="ns/b:1", written="Ns/B:1", source="a:latest", is_valid=True)


@pytest.mark.parametrize(
    ("body", "written"),
    [
        (b'{"model":"a","name":"b"}', "a"),
        (b'{"model":"","name":"b"}', "b"),
        (b'{"model":null,"name":"b"}', "b"),
        (b'{"name":"b"}', "b"),
        (b'{"MODEL":"a"}', "a"),
        (b'{"model":"a","Model":"b"}', "b"),
        (b'{"Model":"a","model":"b","MODEL":"c"}', "c"),
        (b'{"model":"a"} and more', "a"),
        (b' \n{"model":"a"}{"model":"b"}', "a"),
        (b'{"model":"\\u0061"}', "a"),
        (b'{"model":"a","x":"\xff"}', "a"),
    ],
)
@pytest.mark.parametrize("route", [PULL, PUSH, DELETE], ids=lambda route: route.path)
def test_command_takes_the_name_that_a_host_takes(route: Route, body: bytes, written: str) -> None:
    command = read_command(route, body)
    assert command.is_valid
    assert (command.written, command.model) == (written, f"{written}:latest")


@pytest.mark.parametrize(
    ("route", "stream", "expected"),
    [
        (PULL, None, True),
        (PULL, True, True),
        (PULL, False, False),
        (PUSH, None, True),
        (CREATE, None, True),
        (CREATE, False, False),
        (COPY, None, False),
        (DELETE, None, False),
    ],
)
def test_command_streams_by_default_where_its_route_does(
    route: Route, stream: bool | None, expected: bool
) -> None:
    assert read(route, model="x", stream=stream).stream is expected


@pytest.mark.parametrize("route", MANAGING, ids=lambda route: route.path)
@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"x"', b"{", b'{"model":"x"', b"\xef\xbb\xbf{}"]
)
def test_command_is_not_valid_when_the_body_is_unreadable(route: Route, body: bytes) -> None:
    assert read_command(route, body) == Command(stream=route.streams_by_default)


@pytest.mark.parametrize(
    ("route", "members"),
    [
        (PULL, {"model": 5}),
        (PULL, {"model": "x", "insecure": "yes"}),
        (PULL, {"model": "x", "stream": "false"}),
        (PULL, {"model": "x", "password": 1}),
        (PUSH, {"name": ["x"]}),
        (CREATE, {"model": "x", "from": {}}),
        (CREATE, {"model": "x", "files": ["a"]}),
        (CREATE, {"model": "x", "files": {"a": 5}}),
        (CREATE, {"model": "x", "adapters": {"a": {}}}),
        (CREATE, {"model": "x", "from": "y", "parameters": []}),
        (CREATE, {"model": "x", "from": "y", "messages": {}}),
        (CREATE, {"model": "x", "from": "y", "system": 5}),
        (COPY, {"source": 1, "destination": "y"}),
        (COPY, {"source": "x", "destination": None}),
        (DELETE, {"model": True}),
    ],
)
def test_command_is_not_valid_when_a_type_is_wrong(route: Route, members: Any) -> None:
    assert not read(route, **members).is_valid


@pytest.mark.parametrize(
    ("written", "asked", "named"),
    [
        # Pull and delete forgive blanks and read sources; create, copy and push do neither.
        (" x\n", True, False),
        ("x:20b:cloud", True, False),
        ("x:cloud:local", False, False),
        ("x:local:local", False, False),
        ("x:20b-cloud:local", False, False),
        ("x:local", True, True),
        ("x:cloud", True, True),
        ("x:latest@sha256:ab", False, False),
        ("bad//x", False, False),
        ("", False, False),
        (" ", False, False),
    ],
)
def test_command_takes_the_names_that_a_host_takes_there(
    written: str, asked: bool, named: bool
) -> None:
    for route in (PULL, DELETE):
        assert read(route, model=written).is_valid is asked
    for route in (PUSH, CREATE):
        assert read(route, model=written).is_valid is named
    assert read(COPY, source="x", destination=written).is_valid is named
    assert read(COPY, source=written, destination="x").is_valid is named
    if written:
        assert read(CREATE, model="y", **{"from": written}).is_valid is asked


def test_command_keeps_the_local_suffix_where_it_is_a_tag() -> None:
    assert read(DELETE, model="x:local").model == "x:latest"
    assert read(COPY, source="x:local", destination="y:local") == Command(
        model="y:local", written="y:local", source="x:local", is_valid=True
    )


@pytest.mark.parametrize(
    ("route", "members", "expected"),
    [
        (PULL, {"model": "x:cloud"}, True),
        (PULL, {"model": "x:20b:cloud"}, True),
        (PULL, {"model": "x-cloud"}, False),
        (DELETE, {"model": "x:20b-cloud"}, True),
        (CREATE, {"model": "y", "from": "x:cloud"}, True),
        (CREATE, {"model": "y:cloud", "from": "x"}, True),
        (CREATE, {"model": "y", "from": "x", "remote_host": "https://ollama.com"}, True),
        (CREATE, {"model": "y", "from": "x", "remote_host": ""}, False),
        (PULL, {"model": "y", "remote_host": "https://ollama.com"}, False),
        (COPY, {"source": "x:cloud", "destination": "y"}, True),
    ],
)
def test_command_is_for_the_cloud(route: Route, members: Any, expected: bool) -> None:
    command = read(route, **members)
    assert command.is_cloud is expected
    assert command.is_valid


@pytest.mark.parametrize("members", [{"insecure": True}, {"from": "y"}, {"digests": [HEX]}])
def test_command_reads_only_what_its_route_has(members: Any) -> None:
    assert read(DELETE, model="x", **members) == read(DELETE, model="x")


KEYS = st.sampled_from(
    [
        *("model", "Model", "name", "from", "source", "destination", "stream", "STREAM"),
        *("insecure", "files", "adapters", "parameters", "messages", "remote_host", "x"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["x", "X:Cloud", f"sha256:{HEX}", "bad//x", ""])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Objects with keys that repeat, written with blanks and escapes, and with a tail."""
    pairs = draw(st.lists(st.tuples(KEYS, VALUES), max_size=6))
    ascii_only = draw(st.booleans())
    gap = draw(st.sampled_from(["", " ", "\n\t"]))
    members = [
        f"{json.dumps(key)}{gap}:{gap}{json.dumps(value, ensure_ascii=ascii_only)}"
        for key, value in pairs
    ]
    text = f"{gap}{{{gap}{f'{gap},{gap}'.join(members)}{gap}}}{gap}"
    return text.encode("utf-8", "surrogatepass") + draw(
        st.sampled_from([b"", b"x", b"{}", b"\xff"])
    )


@given(st.sampled_from(ROUTES), st.binary() | bodies())
def test_command_is_read_from_any_body(route: Route, body: bytes) -> None:
    command = read_command(route, body)
    assert not command.is_valid or (route in MANAGING and command.model)
    assert isinstance(command.stream, bool)


# --- streaming_body ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"x","stream":false}', b'{"model":"x"}'),
        (b'{"stream":false}', b"{}"),
        (b'{ "Stream" : false , "model" : "x" } tail', b'{"model" : "x"}'),
        (b'{"STREAM":true,"a":[1,{"stream":2}],"stream":null}', b'{"a":[1,{"stream":2}]}'),
        (b'{"\\u0073tream":false,"n":1e400,"s":"\xff\\ud800"}', b'{"n":1e400,"s":"\xff\\ud800"}'),
        (b'{"n":' + b"9" * 300 + b',"stream":1}', b'{"n":' + b"9" * 300 + b"}"),
        (b'{"a":1,"a":2,"stream":false}', b'{"a":1,"a":2}'),
        (b'{"model":"stream"}', b'{"model":"stream"}'),
        (b'{"model":"x"} ', b'{"model":"x"} '),
        (b"[]", b"[]"),
        (b"", b""),
        (b'{"stream":false', b'{"stream":false'),
    ],
)
def test_streaming_body_leaves_stream_out_and_the_rest_as_it_is(
    body: bytes, expected: bytes
) -> None:
    assert streaming_body(body) == expected


@pytest.mark.parametrize("depth", [1_020, 100_000])
def test_streaming_body_survives_a_body_that_is_nested_too_deeply(depth: int) -> None:
    nested = b'"a":' + b"[" * depth + b"]" * depth + b"}"
    body = b'{"stream":false,' + nested
    # How deep the decoders go depends on the Python: more than one of them refuses, or none.
    assert streaming_body(body) in (body, b"{" + nested)


@given(bodies())
def test_streaming_body_is_the_same_request_but_for_stream(body: bytes) -> None:
    before = gojson.first_object(body)
    after = gojson.first_object(streaming_body(body))
    assert before is not None
    assert after is not None
    assert after == {key: value for key, value in before.items() if key != "stream"}
    assert streaming_body(streaming_body(body)) == streaming_body(body)
    if isinstance(before.get("stream"), bool | None):  # else a host would refuse it
        asked, told = read_command(PULL, body), read_command(PULL, streaming_body(body))
        assert told.stream
        assert (told.model, told.is_valid) == (asked.model, asked.is_valid)


@given(st.binary())
def test_streaming_body_takes_any_bytes(body: bytes) -> None:
    assert isinstance(streaming_body(body), bytes)


@pytest.mark.parametrize("exchange", RECORDED, ids=lambda exchange: exchange.id)
def test_streaming_body_of_a_recorded_request(exchange: Exchange) -> None:
    assert exchange.body is not None
    expected = {k: v for k, v in orjson.loads(exchange.body).items() if k != "stream"}
    assert orjson.loads(streaming_body(exchange.body)) == expected
