"""The merges over whole pools: random lists of up to twenty hosts, some of which gave no answer."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.ollama.merge import encode, merge_ps, merge_tags, parse_ps, parse_tags, v1_models
from sollol_proxy.ollama.names import stored
from sollol_proxy.ollama.timestamps import instant_ns

Doc = dict[str, Any]

NAMES = st.sampled_from(
    [
        *("tiny", "tiny:latest", "Tiny:latest", "library/tiny:latest", "tiny:local", "tiny:7b"),
        *("ns/tiny:latest", "NS/Tiny:7B", "example.com/ns/tiny:latest", "gpt-oss:20b-cloud"),
    ]
)
DIGESTS = st.sampled_from([letter * 64 for letter in "abc"])
INSTANTS = st.sampled_from(
    [
        *("2026-01-01T01:00:00Z", "2026-01-01T01:00:00.5Z", "2026-01-01T01:00:00.000000001Z"),
        *("2026-01-01T02:00:00.000000002+01:00", "2025-12-31T22:30:00-02:30", "soon", ""),
        *("2026-01-01T01:00:01Z", "2319-03-06T01:44:26.83719659Z", "0001-01-01T00:00:00Z"),
    ]
)
SIZES = st.integers(0, 2**40)

TAG = st.fixed_dictionaries(
    {
        "name": NAMES,
        "digest": DIGESTS,
        "modified_at": INSTANTS,
        "size": SIZES,
        "details": st.just({"family": "llama", "families": None}),
    }
)
# Only a broken host leaves one of these out.
ROW = st.builds(
    lambda row, share, without: {
        key: value
        for key, value in (row | {"size_vram": row["size"] * share // 8}).items()
        if key != without
    },
    st.fixed_dictionaries(
        {
            "name": NAMES,
            "size": SIZES,
            "digest": DIGESTS,
            "expires_at": INSTANTS,
            "context_length": st.sampled_from([0, 2048, 4096, 131072]),
        }
    ),
    st.integers(0, 8),
    st.sampled_from(["", "", "expires_at", "context_length"]),
)

FAILED: st.SearchStrategy[Any] = st.sampled_from(
    [None, [], "Internal Server Error", 5, {}, {"error": "busy"}, {"models": None}, {"models": {}}]
)
ODD_ENTRIES: st.SearchStrategy[Any] = st.sampled_from(
    [None, 5, [], {}, {"name": ""}, {"name": None}, {"digest": "d"}]
)


def pools(entries: st.SearchStrategy[Doc]) -> st.SearchStrategy[list[Any]]:
    """What one to twenty hosts answered; a host has a name once, as on a real disk."""

    def answer(models: list[Doc], odd: list[Any]) -> Doc:
        once = {stored(entry["name"]): entry for entry in models}
        return {"models": [*once.values(), *odd]}

    answered = st.builds(answer, st.lists(entries, max_size=4), st.lists(ODD_ENTRIES, max_size=1))
    return st.lists(answered | FAILED, min_size=1, max_size=20)


TAG_POOLS = pools(TAG)
PS_POOLS = pools(ROW)


def listed(docs: Iterable[Any]) -> list[Doc]:
    """The usable entries of all hosts that answered with a list."""
    lists = [doc.get("models") for doc in docs if isinstance(doc, dict)]
    entries = [entry for models in lists if isinstance(models, list) for entry in models]
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("name")]


def instant(entry: Doc, key: str) -> int:
    return instant_ns(entry.get(key)) or 0


def age(entry: Doc) -> tuple[int, str]:
    return instant(entry, "modified_at"), entry["digest"]


def shuffled(docs: list[Any], rng: random.Random) -> list[Any]:
    other = list(docs)
    rng.shuffle(other)
    return other


# --- tags -------------------------------------------------------------------------------------


@given(TAG_POOLS)
def test_merged_tags_have_every_name_once_and_the_newest_of_each(docs: list[Any]) -> None:
    newest: dict[str, tuple[int, str]] = {}
    for entry in listed(docs):
        key = stored(entry["name"])
        newest[key] = max(newest.get(key, age(entry)), age(entry))
    merged = merge_tags(docs)["models"]
    assert {stored(entry["name"]): age(entry) for entry in merged} == newest
    assert len(merged) == len(newest)


@given(TAG_POOLS, st.randoms(use_true_random=False))
def test_merged_tags_are_the_same_in_whatever_order_hosts_come(
    docs: list[Any], rng: random.Random
) -> None:
    def what_counts(tags: Doc) -> list[tuple[int, str, tuple[int, str]]]:
        """Seconds decide the order of the list; within one of them it is free."""
        found = [
            (instant(entry, "modified_at") // 10**9, stored(entry["name"]), age(entry))
            for entry in tags["models"]
        ]
        assert [row[0] for row in found] == sorted((row[0] for row in found), reverse=True)
        return sorted(found)

    assert what_counts(merge_tags(shuffled(docs, rng))) == what_counts(merge_tags(docs))


@given(TAG_POOLS, FAILED, st.randoms(use_true_random=False))
def test_merged_tags_do_not_change_when_one_more_host_fails(
    docs: list[Any], failed: Any, rng: random.Random
) -> None:
    more = list(docs)
    more.insert(rng.randrange(len(docs) + 1), failed)
    assert merge_tags(more) == merge_tags(docs)
    assert merge_tags([doc for doc in docs if listed([doc])]) == merge_tags(docs)


@given(TAG_POOLS, st.data())
def test_merged_tags_may_be_merged_in_steps(docs: list[Any], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(docs)))
    halves = [merge_tags(docs[:cut]), merge_tags(docs[cut:])]
    by_key = [
        {stored(entry["name"]): age(entry) for entry in tags["models"]}
        for tags in (merge_tags(halves), merge_tags(docs))
    ]
    assert by_key[0] == by_key[1]


@given(TAG_POOLS)
def test_parsed_tags_agree_with_the_merged_list_on_the_newest(docs: list[Any]) -> None:
    """Who compares hosts' models and who merges their lists must not choose differently."""
    models = [model for doc in docs for model in parse_tags(doc).values()]
    merged = parse_tags(merge_tags(docs))
    assert set(merged) == {model.name for model in models}
    for name, chosen in merged.items():
        newest = max((m.modified_ns, m.digest) for m in models if m.name == name)
        assert (chosen.modified_ns, chosen.digest) == newest


# --- /v1/models -------------------------------------------------------------------------------


@given(TAG_POOLS)
def test_v1_models_of_a_pool_are_its_tags_in_their_order(docs: list[Any]) -> None:
    tags = merge_tags(docs)
    data = v1_models(tags)["data"]
    assert [entry["id"] for entry in data or []] == [entry["name"] for entry in tags["models"]]
    assert (data is None) is not tags["models"]
    for entry, tag in zip(data or [], tags["models"], strict=True):
        assert entry["created"] == instant(tag, "modified_at") // 10**9
        assert entry["object"] == "model"


# --- ps ---------------------------------------------------------------------------------------


def figures(rows: Iterable[Doc]) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """By name and digest: size, video memory, shortest context, latest expiry."""
    groups = defaultdict(list)
    for row in rows:
        groups[stored(row["name"]), row["digest"]].append(row)
    return {
        key: (
            sum(row["size"] for row in group),
            sum(row["size_vram"] for row in group),
            min((c for row in group if (c := row.get("context_length", 0))), default=0),
            # Go's zero time is before 1970, and later than none.
            max(
                (i for row in group if (i := instant_ns(row.get("expires_at"))) is not None),
                default=0,
            ),
        )
        for key, group in groups.items()
    }


@given(PS_POOLS)
def test_merged_ps_has_every_row_once_and_adds_up(docs: list[Any]) -> None:
    merged = merge_ps(docs)["models"]
    assert figures(merged) == figures(listed(docs))
    assert len(merged) == len(figures(merged))
    assert all(row["size_vram"] <= row["size"] for row in merged)
    seconds = [instant(row, "expires_at") // 10**9 for row in merged]
    assert seconds == sorted(seconds, reverse=True)


@given(PS_POOLS, st.randoms(use_true_random=False))
def test_merged_ps_is_the_same_in_whatever_order_hosts_come(
    docs: list[Any], rng: random.Random
) -> None:
    one, other = merge_ps(docs)["models"], merge_ps(shuffled(docs, rng))["models"]
    assert figures(one) == figures(other)


@given(PS_POOLS)
def test_merged_ps_merged_alone_is_itself(docs: list[Any]) -> None:
    merged = merge_ps(docs)
    assert merge_ps([merged]) == merged
    assert merge_ps([merged, None, {"error": "busy"}]) == merged


@given(PS_POOLS, FAILED, st.randoms(use_true_random=False))
def test_merged_ps_does_not_change_when_one_more_host_fails(
    docs: list[Any], failed: Any, rng: random.Random
) -> None:
    more = list(docs)
    more.insert(rng.randrange(len(docs) + 1), failed)
    assert merge_ps(more) == merge_ps(docs)


@given(PS_POOLS)
def test_merged_ps_names_what_some_host_has_in_memory(docs: list[Any]) -> None:
    resident = {name for doc in docs for name in parse_ps(doc)}
    assert set(parse_ps(merge_ps(docs))) == resident
    known = [set(row) for row in listed(docs)]
    for row in merge_ps(docs)["models"]:
        assert set(row) <= set().union(*known)


@given(TAG_POOLS, PS_POOLS)
def test_merges_leave_hosts_documents_alone_and_fit_into_json(
    tags: list[Any], resident: list[Any]
) -> None:
    before = copy.deepcopy((tags, resident))
    for merged in (merge_tags(tags), merge_ps(resident), v1_models(merge_tags(tags))):
        assert orjson.loads(encode(merged)) == merged
    assert (tags, resident) == before


# --- found by the above -----------------------------------------------------------------------


def test_merged_tags_keep_a_model_that_was_copied_to_the_tag_local() -> None:
    """`:local` is a source where a model is asked for, and an ordinary tag on a disk."""
    models = [{"name": f"x:{tag}", "digest": "d", "modified_at": ""} for tag in ("latest", "local")]
    assert merge_tags([{"models": models}]) == {"models": models}
    assert set(parse_tags({"models": models})) == {"x:latest", "x:local"}


def test_merged_ps_takes_a_row_without_expiry_beside_one_of_zero_time() -> None:
    zero = {"name": "x:latest", "digest": "d", "expires_at": "0001-01-01T00:00:00Z"}
    without = {"name": "x:latest", "digest": "d"}
    for hosts in ([zero, without], [without, zero]):
        assert merge_ps([{"models": [row]} for row in hosts]) == {"models": [zero]}
