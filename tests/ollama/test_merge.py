from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import InstalledModel, ResidentModel
from sollol_proxy.ollama.merge import (
    encode,
    merge_ps,
    merge_tags,
    merge_versions,
    parse_ps,
    parse_tags,
    v1_model,
    v1_models,
)
from sollol_proxy.ollama.timestamps import unix_s
from tests.wire.recordings import Exchange, all_exchanges, http_exchanges

HTTP = http_exchanges()
TAGS: dict[str, Any] = orjson.loads(HTTP["tags-many"].answer)


def recorded(path: str) -> list[Exchange]:
    return [e for e in all_exchanges() if (e.method, e.raw_path, e.status) == ("GET", path, 200)]


def tag(name: str, modified_at: str = "2026-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    return {"name": name, "model": name, "modified_at": modified_at, **more}


def names_of(doc: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in doc["models"]]


# --- one host's document ----------------------------------------------------------------------


@pytest.mark.parametrize("exchange", recorded("/api/tags"), ids=lambda exchange: exchange.id)
def test_merge_tags_leaves_one_hosts_document_as_it_is(exchange: Exchange) -> None:
    assert encode(merge_tags([orjson.loads(exchange.answer)])) == exchange.answer


@pytest.mark.parametrize("exchange", recorded("/api/ps"), ids=lambda exchange: exchange.id)
def test_merge_ps_leaves_one_hosts_document_as_it_is(exchange: Exchange) -> None:
    assert encode(merge_ps([orjson.loads(exchange.answer)])) == exchange.answer


# --- tags -------------------------------------------------------------------------------------


def test_merge_tags_lists_a_model_once_when_spelt_differently() -> None:
    doc = merge_tags([{"models": [tag("Tiny:latest")]}, {"models": [tag("tiny:latest")]}])
    assert names_of(doc) == ["Tiny:latest"]


def test_merge_tags_keeps_the_newest_when_digests_differ() -> None:
    old = tag("x:latest", "2026-01-01T10:00:00.000000001+02:00", digest="a")
    new = tag("x:latest", "2026-01-01T08:00:00.000000002Z", digest="b")
    for docs in ([old], [new]), ([new], [old]):
        assert merge_tags([{"models": models} for models in docs])["models"] == [new]


def test_merge_tags_sorts_newest_first_across_zones() -> None:
    first = tag("a:latest", "2026-01-01T01:00:00Z")
    second = tag("b:latest", "2026-01-01T02:30:00+02:00")
    doc = merge_tags([{"models": [second]}, {"models": [first]}])
    assert names_of(doc) == ["a:latest", "b:latest"]


def test_merge_tags_keeps_the_order_of_the_hosts_within_one_second() -> None:
    first = tag("a:latest", "2026-01-01T00:00:00.1Z")
    second = tag("b:latest", "2026-01-01T00:00:00.9Z")
    doc = merge_tags([{"models": [first, second]}, {"models": [second, first]}])
    assert names_of(doc) == ["a:latest", "b:latest"]


ODD = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["models", "name", "model", "digest", "size"]), inner)
    ),
    max_leaves=8,
)
ENTRIES = st.builds(
    tag,
    st.sampled_from(["a", "b:1", "B:1", "ns/c", "library/a"]),
    st.builds("2026-01-0{}T00:00:00.{}Z".format, st.integers(1, 4), st.integers(1, 10**9 - 1)),
    digest=st.sampled_from(["d1", "d2"]),
    size=st.integers(0, 9),
)
DOCS = st.lists(st.fixed_dictionaries({"models": st.lists(ENTRIES | ODD, max_size=5)}) | ODD)


@given(DOCS)
def test_merge_tags_is_idempotent_and_invents_nothing(docs: list[Any]) -> None:
    merged = merge_tags(docs)
    assert merge_tags([merged]) == merged
    assert merge_tags([merged, merged]) == merged
    lists = [doc["models"] for doc in docs if isinstance(doc, dict) and "models" in doc]
    known = [entry for models in lists if isinstance(models, list) for entry in models]
    assert all(entry in known for entry in merged["models"])
    assert len(parse_tags(merged)) == len(merged["models"])
    ages = [unix_s(entry.get("modified_at")) for entry in merged["models"]]
    assert ages == sorted(ages, reverse=True)


@given(DOCS, st.randoms(use_true_random=False))
def test_merge_tags_lists_the_same_models_in_whatever_order_hosts_come(
    docs: list[Any], rng: Any
) -> None:
    shuffled = list(docs)
    rng.shuffle(shuffled)
    assert set(parse_tags(merge_tags(docs))) == set(parse_tags(merge_tags(shuffled)))


@given(st.lists(ENTRIES, max_size=6), st.lists(ENTRIES, max_size=6))
def test_merge_tags_keeps_what_one_host_has_whatever_another_says(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> None:
    alone = set(parse_tags({"models": ours}))
    for other in ({"models": theirs}, {"error": "no"}, None, {"models": None}):
        assert alone <= set(parse_tags(merge_tags([{"models": ours}, other])))


# --- ps ---------------------------------------------------------------------------------------


def resident(digest: str, expires_at: str, **more: Any) -> dict[str, Any]:
    return {"name": "x:latest", "digest": digest, "expires_at": expires_at, **more}


def test_merge_ps_joins_rows_of_one_name_and_digest() -> None:
    docs = [
        {"models": [resident("d", "2026-01-01T00:00:00Z", size=10, size_vram=4,
                             context_length=8192, details={"family": "llama"})]},
        {"models": [resident("d", "2026-01-01T00:00:00.5Z", size=12, size_vram=12,
                             context_length=4096)]},
        {"models": [resident("d", "2025-01-01T00:00:00Z", size=1)]},
    ]  # fmt: skip
    assert merge_ps(docs)["models"] == [
        resident("d", "2026-01-01T00:00:00.5Z", size=23, size_vram=16, context_length=4096,
                 details={"family": "llama"})
    ]  # fmt: skip


def test_merge_ps_keeps_rows_apart_when_digests_differ() -> None:
    short = resident("a", "2026-01-01T00:00:00Z", size=1)
    forever = resident("b", "2319-03-06T01:44:26.83719659Z", size=1)
    doc = merge_ps([{"models": [short]}, {"models": [forever]}])
    assert doc["models"] == [forever, short]


def test_merge_ps_changes_none_of_the_documents_it_is_given() -> None:
    docs = [{"models": [resident("d", "2026-01-01T00:00:00Z", size=1)]} for _ in range(2)]
    before = json.dumps(docs)
    merge_ps(docs)
    assert json.dumps(docs) == before


@given(st.lists(ODD))
def test_merge_ps_never_raises(docs: list[Any]) -> None:
    assert isinstance(merge_ps(docs)["models"], list)


# --- versions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "lowest"),
    [
        ([], "0.0.0"),
        (["0.33.0"], "0.33.0"),
        (["0.33.0", "0.9.6"], "0.9.6"),
        (["0.33.0", "0.33.0-rc2"], "0.33.0-rc2"),
        (["0.33.0-rc10", "0.33.0-rc2"], "0.33.0-rc2"),
        (["0.33.0-rc2", "0.32.9"], "0.32.9"),
        (["0.33", "0.33.1"], "0.33"),
        (["0.0.0", "0.33.0"], "0.33.0"),
        (["0.0.0", "0.0.0"], "0.0.0"),
        (["", "0.33.0", "nightly"], "0.33.0"),
        (["nightly"], "nightly"),
        (["0.33.0+build5", "0.34.0"], "0.33.0+build5"),
    ],
)
def test_merge_versions_gives_the_lowest(versions: list[str], lowest: str) -> None:
    assert merge_versions(versions) == lowest
    assert merge_versions(versions[::-1]) == lowest


@given(st.lists(st.text() | st.from_regex(r"v?\d{1,12}(\.\d{1,3}){0,3}(-[a-z0-9.]+)?")))
def test_merge_versions_says_what_a_host_said(versions: list[str]) -> None:
    assert merge_versions(versions) in [*versions, "0.0.0"]


# --- /v1/models -------------------------------------------------------------------------------


def test_v1_models_is_the_recorded_one() -> None:
    recorded_doc = orjson.loads(HTTP["v1-models-many"].answer)
    ours = v1_models(TAGS)
    # Models of one second come in no fixed order, and the two recordings differ there.
    assert [entry["id"] for entry in ours["data"]] == names_of(TAGS)
    by_id = {entry["id"]: entry for entry in ours["data"]}
    assert by_id == {entry["id"]: entry for entry in recorded_doc["data"]}
    assert encode(ours | {"data": recorded_doc["data"]}, newline=True) == (
        HTTP["v1-models-many"].answer
    )


def test_v1_models_has_null_data_when_there_are_no_models() -> None:
    tags = orjson.loads(HTTP["tags-empty"].answer)
    assert encode(v1_models(tags), newline=True) == HTTP["v1-models-empty"].answer


def test_v1_model_is_the_recorded_one_with_the_id_as_asked() -> None:
    assert encode(v1_model(TAGS, "det"), newline=True) == HTTP["v1-models-one"].answer
    found = v1_model(TAGS, "NS/Det:v2")
    assert found is not None
    assert (found["id"], found["owned_by"]) == ("NS/Det:v2", "ns")
    assert v1_model(TAGS, "nosuch") is None


# --- encode -----------------------------------------------------------------------------------


@given(
    ODD
    | st.text()
    | st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False))
)
def test_encode_is_the_same_json_in_other_letters(doc: Any) -> None:
    text = encode(doc)
    assert json.loads(text) == json.loads(json.dumps(doc))
    assert not set(text) & set(b"<>&\n")
    assert "\u2028".encode() not in text
    assert encode(doc, newline=True) == text + b"\n"


def test_encode_escapes_what_go_escapes() -> None:
    assert encode({"a": "<b>&\u2028\u2029é"}) == (
        b'{"a":"\\u003cb\\u003e\\u0026\\u2028\\u2029' + "é".encode() + b'"}'
    )


def test_encode_survives_half_a_surrogate_pair() -> None:
    assert encode({"id": "\ud800<"}) == b'{"id":"?\\u003c"}'


# --- parse ------------------------------------------------------------------------------------


def test_parse_tags_reads_the_recorded_document() -> None:
    models = parse_tags(TAGS)
    assert len(models) == len(TAGS["models"])
    assert models["slow:latest"] == InstalledModel(
        name="slow:latest",
        digest="9adbc43b3517503a7c300d13ca77f9266d0521ba0a36bb0620749ae2256fdcd3",
        size_bytes=269709183,
        capabilities=frozenset({"completion"}),
        spelling="slow:latest",
        modified_ns=1_795_485_413_396_728_542,
    )
    assert models["tool:latest"].capabilities == {"completion", "tools"}


def test_parse_tags_tells_embedders_by_their_capabilities() -> None:
    doc = {"models": [tag("a", capabilities=["embedding", 5]), tag("b", capabilities="embedding")]}
    assert [model.is_embedder for model in parse_tags(doc).values()] == [True, False]


def test_parse_ps_reads_the_recorded_document() -> None:
    assert parse_ps(orjson.loads(HTTP["ps-loaded"].answer)) == {
        "det:latest": ResidentModel(
            name="det:latest",
            digest="d7faee3aaa546033698cb1a818360bdbbf59819dc5129f1bce1c11bb77e15be7",
            size_bytes=6301941,
            size_vram_bytes=0,
            context_length=4096,
        )
    }


@pytest.mark.parametrize(
    "doc", [None, [], 5, "x", {}, {"models": None}, {"models": {}}, {"models": [None, 5, {}]}]
)
def test_parse_gives_nothing_when_the_document_is_odd(doc: object) -> None:
    assert parse_tags(doc) == {}
    assert parse_ps(doc) == {}


@given(ODD)
def test_parse_never_raises(doc: object) -> None:
    for model in parse_tags({"models": [doc]}).values():
        assert model.size_bytes >= 0
    for row in parse_ps({"models": [doc]}).values():
        assert row.size_bytes >= 0
