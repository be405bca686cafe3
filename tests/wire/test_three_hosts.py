"""Every recorded exchange through the proxy over three hosts: who is asked, and what comes back.

`owed.CASES` says for each what that has to be.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from sollol_proxy.core.types import Outcome
from tests.support import RunningProxy, make_config, running_proxy
from tests.wire.owed import (
    ALREADY_THERE,
    ASKED_ONCE,
    RECORDED,
    TAGS,
    TIES,
    Owed,
    as_host_says,
    asked_of,
    assert_equal,
    assert_equal_but_for_ties,
    at_proxy,
    cases,
    marked,
    put_in_place,
    same_request,
    spaced,
)
from tests.wire.recordings import Exchange
from tests.wire.replay import Document, RawAnswer, ReplayHost, raw_request

COUNT = 3
PROBED = {"/api/version", "/api/tags", "/api/ps"}


@asynccontextmanager
async def three_hosts(
    prepare: Callable[[int, ReplayHost], None], **sections: Any
) -> AsyncIterator[tuple[list[ReplayHost], RunningProxy]]:
    """Hosts a, b and c, each prepared before the proxy comes to know it."""
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(ReplayHost()) for _ in range(COUNT)]
        for number, host in enumerate(hosts):
            prepare(number, host)
        entries = [{"id": id_, "url": host.url} for id_, host in zip("abc", hosts, strict=True)]
        config = make_config(*entries, **sections)
        proxy = await stack.enter_async_context(running_proxy(config))
        yield hosts, proxy
        await proxy.until_idle()
        for host in hosts:
            unmarked = {each.path for each in host.seen if not each.header("X-Course")}
            assert unmarked <= PROBED


async def ask(proxy: RunningProxy, exchange: Exchange) -> RawAnswer:
    request, how = at_proxy(exchange, proxy)
    return await raw_request("127.0.0.1", proxy.port, marked(request), **how)


def who_saw(hosts: Iterable[ReplayHost], exchange: Exchange) -> list[int]:
    """How often each host saw the client's own request."""
    return [len(same_request(host, exchange)) for host in hosts]


def alike(exchange: Exchange, *answers: Exchange) -> Callable[[int, ReplayHost], None]:
    """All hosts as the recorded one was, each with an answer, of which the last one counts on."""

    def prepare(number: int, host: ReplayHost) -> None:
        put_in_place(host, exchange)
        if answers:
            host.respond_with(answers[min(number, len(answers) - 1)])

    return prepare


@pytest.mark.parametrize("id_", cases(Owed.EQUAL))
async def test_one_host_is_asked_and_its_answer_comes_through_equal(id_: str) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, exchange)) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert_equal(answer, exchange)
        assert sorted(who_saw(hosts, exchange)) == [0, 0, 1]
        [seen] = [each for host in hosts for each in asked_of(host, exchange)]
        assert seen.body == exchange.body


@pytest.mark.parametrize("id_", cases(Owed.MERGED))
async def test_merged_answer_is_the_union_and_no_host_is_asked(id_: str) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(shares_of(exchange)) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        if id_ in TIES:
            assert_equal_but_for_ties(answer, exchange)
        else:
            assert_equal(answer, exchange)
        assert not any(asked_of(host, exchange) for host in hosts)


def shares_of(exchange: Exchange) -> Callable[[int, ReplayHost], None]:
    """What the recorded host had, spread: each model on two hosts of three, each runner on one.

    The lowest version, which is what may be relied on, is the recorded one.
    """

    def prepare(number: int, host: ReplayHost) -> None:
        put_in_place(host, exchange)
        host.version = ("1.0.0", "0.33.0", "0.33.1")[number]
        host.tags = _kept(host.tags, lambda index: index % COUNT != number)
        host.ps = _kept(host.ps, lambda index: index % COUNT == number)

    return prepare


def _kept(document: Document, belongs: Callable[[int], bool]) -> Document:
    models = document["models"]
    return {"models": [model for index, model in enumerate(models) if belongs(index)]}


@pytest.mark.parametrize("id_", [*cases(Owed.LOCAL), *cases(Owed.OURS)])
async def test_no_host_is_asked_for_what_is_settled_here(id_: str) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange)) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        if id_ in cases(Owed.LOCAL):
            assert_equal(answer, exchange)
        else:
            assert answer.status == 200
        assert not any(asked_of(host, exchange) for host in hosts)


@pytest.mark.parametrize("id_", cases(Owed.CUT))
async def test_stream_that_was_cut_is_not_asked_of_another_host(id_: str) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, exchange)) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert answer.body.startswith(exchange.answer)
        assert "broke off" in json.loads(answer.body.splitlines()[-1])["error"]
        assert sorted(who_saw(hosts, exchange)) == [0, 0, 1]


@pytest.mark.parametrize("id_", cases(Owed.RETRIED))
async def test_every_host_is_asked_once_when_each_fails_before_its_first_byte(id_: str) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, exchange), retries={"attempts": COUNT}) as (
        hosts,
        proxy,
    ):
        answer = await ask(proxy, exchange)
        if exchange.status is None:
            assert answer.status == 502
        else:
            assert_equal(answer, exchange)
        assert who_saw(hosts, exchange) == [1, 1, 1]


_WELL = {
    "/api/generate": "generate-stream",
    "/api/chat": "chat-stream",
    "/api/embed": "embed-single",
    "/v1/chat/completions": "v1-chat-stream",
    "/v1/embeddings": "v1-embeddings-float",
    "/v1/messages": "v1-messages-stream",
    "/v1/responses": "v1-responses",
}


@pytest.mark.parametrize("id_", cases(Owed.RETRIED))
async def test_second_host_answers_when_the_first_fails_before_its_first_byte(id_: str) -> None:
    exchange = RECORDED[id_]
    well = RECORDED[_WELL[exchange.path]]
    queue = ReplayHost().pinned
    queue[exchange.method, exchange.path].extend([exchange, well])

    def prepare(number: int, host: ReplayHost) -> None:
        put_in_place(host, exchange)
        host.pinned = queue

    async with three_hosts(prepare) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert_equal(answer, well)
        assert sorted(who_saw(hosts, exchange)) == [0, 1, 1]
        assert dict(answer.headers)["X-SOLLOL-Attempts"] == "2"


# Broadcasts


@pytest.mark.parametrize("id_", cases(Owed.BROADCAST))
async def test_every_host_carries_it_out_and_it_is_answered_once(id_: str) -> None:
    exchange = RECORDED[id_]
    said = as_host_says(exchange)
    async with three_hosts(alike(exchange, said)) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert_equal(answer, exchange)
        assert sum(who_saw(hosts, exchange)) == times_asked(id_)
        bodies = [each.body for host in hosts for each in same_request(host, exchange)]
        assert all(spaced(body) == spaced(said.body) for body in bodies)


def times_asked(id_: str) -> int:
    if id_ in ALREADY_THERE and RECORDED[id_].method == "POST":
        return 0
    return 1 if id_ in ASKED_ONCE else COUNT


UPLOADS = ("blob-post-201", "blob-chunked-post", "blob-expect-100", "blob-post-model")


@pytest.mark.parametrize("id_", UPLOADS)
async def test_blob_is_sent_only_to_hosts_that_lack_it(id_: str) -> None:
    exchange = RECORDED[id_]

    def prepare(number: int, host: ReplayHost) -> None:
        host.tags = TAGS
        if number == 1:
            host.blobs.add(exchange.path.removeprefix("/api/blobs/"))
        else:
            host.respond_with(exchange)

    async with three_hosts(prepare) as (hosts, proxy):
        assert_equal(await ask(proxy, exchange), exchange)
        assert who_saw(hosts, exchange) == [1, 0, 1]


async def test_blob_counts_as_there_only_when_every_host_has_it() -> None:
    there, missing = RECORDED["blob-head-200"], RECORDED["blob-head-404"]

    def prepare(number: int, host: ReplayHost) -> None:
        host.tags = TAGS
        host.respond_with(missing if number == 1 else there)

    async with three_hosts(prepare) as (hosts, proxy):
        assert_equal(await ask(proxy, there), missing)
        assert who_saw(hosts, there) == [1, 1, 1]


def pulled(*lines: str, id_: str = "pull-offline") -> Exchange:
    """A pull that a host answers with these records."""
    asked = RECORDED[id_]
    return replace(
        RECORDED["pull-offline"],
        body=as_host_says(asked).body,
        chunks=tuple(line.encode() + b"\n" for line in lines),
    )


MANIFEST = '{"status":"pulling manifest"}'
DIGEST = f"sha256:{'5' * 64}"
LAYER = f'{{"status":"pulling {"5" * 12}","digest":"{DIGEST}","total":10,"completed":10}}'
SUCCESS = '{"status":"success"}'


def failing(exchange: Exchange) -> Exchange:
    """An answer to the same request by a host whose disk is full."""
    error = b'{"error":"no space left on device"}'
    return replace(
        exchange,
        status=500,
        reason="Internal Server Error",
        answer_headers=(
            ("Content-Type", "application/json; charset=utf-8"),
            ("Content-Length", str(len(error))),
        ),
        framing="content-length",
        chunks=(error,),
        ended="complete",
    )


def leaving(exchange: Exchange) -> Exchange:
    return replace(exchange, status=None, chunks=(), ended="eof")


IN_PART = (
    *UPLOADS,
    *("create-from-stream", "create-from-nostream", "create-files-stream", "create-files-nostream"),
)
"""Done when one host has done it; the others are named."""


@pytest.mark.parametrize("fail", [failing, leaving])
@pytest.mark.parametrize("id_", IN_PART)
async def test_success_of_the_others_counts_when_one_host_fails(
    id_: str, fail: Callable[[Exchange], Exchange]
) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, fail(exchange), exchange)) as (hosts, proxy):
        assert_equal(await ask(proxy, exchange), exchange)
        assert who_saw(hosts, exchange) == [1, 1, 1]
        [record] = proxy.services.journal.latest(1)
        assert record.outcome is Outcome.PARTIAL
        assert record.hosts == ("b", "c")
        assert [host_id for host_id, _ in record.failures] == ["a"]


async def test_pull_is_a_success_when_one_host_of_three_fails() -> None:
    exchange = RECORDED["pull-offline"]
    good = pulled(MANIFEST, LAYER, SUCCESS)
    bad = pulled(MANIFEST, '{"error":"pull model manifest: no space left on device"}')
    async with three_hosts(alike(exchange, bad, good)) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        *_, bar, last = [json.loads(line) for line in answer.body.splitlines()]
        assert (answer.status, answer.ended) == (200, "complete")
        assert last == {"status": "success"}
        assert bar["digest"] == DIGEST
        assert bar["completed"] in (20, 30)
        assert answer.body.count(b"success") == answer.body.count(b"pulling manifest") == 1
        assert b"error" not in answer.body
        assert who_saw(hosts, exchange) == [1, 1, 1]
        [record] = proxy.services.journal.latest(1)
        assert (record.outcome, record.hosts) == (Outcome.PARTIAL, ("b", "c"))
        assert dict(record.failures)["a"].endswith("no space left on device")


@pytest.mark.parametrize("fail", [failing, leaving])
@pytest.mark.parametrize("id_", ["pull-offline", "pull-offline-nostream"])
async def test_pull_is_a_success_when_one_host_gives_no_stream(
    id_: str, fail: Callable[[Exchange], Exchange]
) -> None:
    exchange = RECORDED[id_]
    good = pulled(MANIFEST, LAYER, SUCCESS, id_=id_)
    async with three_hosts(alike(exchange, fail(good), good)) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert answer.status == 200
        assert json.loads(answer.body.splitlines()[-1]) == {"status": "success"}
        assert who_saw(hosts, exchange) == [1, 1, 1]
        if id_ == "pull-offline-nostream":
            assert answer.body == RECORDED["create-from-nostream"].answer
            assert dict(answer.headers)["X-SOLLOL-Hosts"] == "2/3"
            assert dict(answer.headers)["X-SOLLOL-Failed-Hosts"] == "a"


WHOLE = ("copy", "delete", "generate-unload", "chat-unload")
"""Done only when no host that has the model fails."""


@pytest.mark.parametrize("id_", WHOLE)
async def test_failure_of_one_host_is_what_the_client_hears_when_all_have_to_do_it(
    id_: str,
) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, failing(exchange), exchange)) as (hosts, proxy):
        assert_equal(await ask(proxy, exchange), failing(exchange))
        assert who_saw(hosts, exchange) == [1, 1, 1]
        [record] = proxy.services.journal.latest(1)
        assert (record.outcome, record.hosts) == (Outcome.PARTIAL, ("b", "c"))


@pytest.mark.parametrize("id_", WHOLE)
async def test_client_hears_of_a_host_that_left_when_all_have_to_do_it(id_: str) -> None:
    exchange = RECORDED[id_]

    def prepare(number: int, host: ReplayHost) -> None:
        put_in_place(host, exchange)
        # The HTTP client asks again by itself what may be asked twice, as DELETE may.
        host.respond_with(exchange if number else leaving(exchange), times=1 if number else 2)

    async with three_hosts(prepare) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert answer.status == 502
        assert json.loads(answer.body)["error"].startswith("host a ")
        assert "done on b, c only" in json.loads(answer.body)["error"]
        assert all(who_saw(hosts, exchange))


NOT_FOUND = {
    "copy": RECORDED["copy-missing"],
    "delete": RECORDED["delete-missing"],
    "generate-unload": RECORDED["generate-missing-model"],
    "chat-unload": RECORDED["chat-missing-model"],
}


def without_it(exchange: Exchange) -> Exchange:
    """What a host says that turns out not to have the model any more."""
    return replace(NOT_FOUND[exchange.id], path=exchange.path, method=exchange.method)


@pytest.mark.parametrize("id_", WHOLE)
async def test_success_counts_when_the_other_hosts_have_lost_the_model(id_: str) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, exchange, without_it(exchange))) as (hosts, proxy):
        assert_equal(await ask(proxy, exchange), exchange)
        assert who_saw(hosts, exchange) == [1, 1, 1]
        [record] = proxy.services.journal.latest(1)
        assert (record.outcome, record.hosts) == (Outcome.COMPLETED, ("a",))


@pytest.mark.parametrize("id_", WHOLE)
async def test_client_hears_once_in_ollamas_words_when_all_hosts_have_lost_the_model(
    id_: str,
) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, without_it(exchange))) as (hosts, proxy):
        assert_equal(await ask(proxy, exchange), NOT_FOUND[id_])
        assert who_saw(hosts, exchange) == [1, 1, 1]


HAVING = {
    "copy": "det",
    "delete": "det-copy",
    "generate-unload": "det",
    "create-from-stream": "det",
}


@pytest.mark.parametrize("id_", HAVING)
async def test_hosts_without_the_model_are_left_alone(id_: str) -> None:
    exchange = RECORDED[id_]
    alone = {"X-SOLLOL-Hosts": "2/2"}

    def prepare(number: int, host: ReplayHost) -> None:
        alike(exchange, exchange)(number, host)
        if number == 1:
            models = host.tags["models"]
            kept = [model for model in models if model["name"] != f"{HAVING[id_]}:latest"]
            assert len(kept) == len(models) - 1
            host.tags = {"models": kept}

    async with three_hosts(prepare) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert_equal(answer, exchange)
        assert who_saw(hosts, exchange) == [1, 0, 1]
        if exchange.framing != "chunked":
            assert alone.items() <= dict(answer.headers).items()


@pytest.mark.parametrize("id_", ["create-files-stream", "create-files-nostream"])
async def test_model_is_created_where_its_blob_is(id_: str) -> None:
    exchange = RECORDED[id_]

    def prepare(number: int, host: ReplayHost) -> None:
        alike(exchange, exchange)(number, host)
        if number == 1:
            host.blobs.clear()

    async with three_hosts(prepare) as (hosts, proxy):
        assert_equal(await ask(proxy, exchange), exchange)
        assert who_saw(hosts, exchange) == [1, 0, 1]
        [record] = proxy.services.journal.latest(1)
        assert (record.outcome, record.hosts) == (Outcome.PARTIAL, ("a", "c"))


@pytest.mark.parametrize("id_", ["pull-offline", "create-from-stream", "create-from-nostream"])
async def test_client_hears_once_when_every_host_leaves(id_: str) -> None:
    exchange = RECORDED[id_]
    async with three_hosts(alike(exchange, leaving(exchange))) as (hosts, proxy):
        answer = await ask(proxy, exchange)
        assert (answer.status, answer.ended) == (502, "complete")
        assert list(json.loads(answer.body)) == ["error"]
        assert who_saw(hosts, exchange) == [1, 1, 1]


def test_failures_are_tried_on_every_kind_of_broadcast() -> None:
    tried = {*IN_PART, *WHOLE, "pull-offline", "pull-offline-nostream"}
    good = {id_ for id_ in cases(Owed.BROADCAST) if (RECORDED[id_].status or 0) < 300}
    assert good - tried == ALREADY_THERE | {"create-missing-blob", "create-from-unknown"}
