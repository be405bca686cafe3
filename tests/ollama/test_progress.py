from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.ollama import progress
from sollol_proxy.ollama.progress import UNFINISHED, Progress, Record
from tests.wire.recordings import Exchange, all_exchanges

SUCCESS = {"status": "success"}
ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64


def line(**members: Any) -> bytes:
    return orjson.dumps(members) + b"\n"


def layer(digest: str, total: int, completed: int = 0, status: str = "pulling") -> bytes:
    return line(status=status, digest=digest, total=total, completed=completed)


def told(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [orjson.loads(record.line) for record in records]


# --- one host ---------------------------------------------------------------------------------

STREAMED = [
    exchange
    for exchange in all_exchanges()
    if exchange.raw_path in ("/api/pull", "/api/create", "/api/push")
    and exchange.answer.endswith(b"}\n")
]


@pytest.mark.parametrize("exchange", STREAMED, ids=lambda exchange: exchange.id)
def test_progress_of_one_host_is_the_recorded_answer(exchange: Exchange) -> None:
    alone = Progress(["a"])
    records = [
        record
        for written in exchange.answer.splitlines(keepends=True)
        for record in alone.feed("a", written)
    ]
    records += alone.end("a", None)
    assert b"".join(record.line for record in records) == exchange.answer
    assert alone.is_over
    has_succeeded = b'"success"' in exchange.answer
    assert alone.succeeded == (("a",) if has_succeeded else ())
    assert alone.error_line == (b"" if has_succeeded else exchange.answer.splitlines(True)[-1])


@given(st.lists(st.binary(max_size=30) | st.sampled_from([line(**SUCCESS), layer(ONE, 5, 2)])))
def test_progress_of_one_host_comes_through_byte_for_byte(lines: list[bytes]) -> None:
    alone = Progress(["a"])
    written = [text.replace(b"\n", b" ") + b"\n" for text in lines] + [line(**SUCCESS)]
    records = [record for text in written for record in alone.feed("a", text)]
    assert line(**SUCCESS) not in [record.line for record in records]
    records += alone.end("a", None)
    assert [record.line for record in records] == written


def test_progress_of_one_host_holds_success_until_its_part_is_over() -> None:
    alone = Progress(["a"])
    assert alone.feed("a", line(**SUCCESS)) == []
    assert alone.feed("a", b"odd\n") == []
    assert alone.catch_up() == []
    records = [Record(None, line(**SUCCESS)), Record(None, b"odd\n")]
    assert alone.end("a", None) == records
    assert alone.catch_up() == records


def test_progress_of_one_host_ends_in_an_error_when_it_broke_after_success() -> None:
    alone = Progress(["a"])
    alone.feed("a", line(**SUCCESS))
    assert told(alone.end("a", "connection reset")) == [{"error": "connection reset"}]
    assert (alone.succeeded, alone.failures) == ((), {"a": "connection reset"})


def test_progress_of_one_host_has_one_error_when_it_said_one_itself() -> None:
    alone = Progress(["a"])
    own = b'{"error":"no such model","status":400}\n'
    assert alone.feed("a", own) == [Record(None, own)]
    # Ollama's creation from an unknown model goes on after its error.
    assert alone.feed("a", line(**SUCCESS)) == []
    assert alone.end("a", None) == []
    assert alone.failures == {"a": "no such model"}
    assert alone.error_line == own


def test_progress_gives_a_line_its_newline_when_the_body_ended_without() -> None:
    alone = Progress(["a"])
    assert alone.feed("a", b'{"status":"x"}') == [Record(None, b'{"status":"x"}\n')]
    assert alone.feed("a", b"") == []
    assert alone.end("a", None) == [Record(None, line(error=UNFINISHED))]


def test_progress_keeps_the_newest_record_of_a_layer_for_those_who_join_later() -> None:
    alone = Progress(["a"])
    for text in (line(status="x"), layer(ONE, 9, 1), line(status="y"), layer(ONE, 9, 8)):
        alone.feed("a", text)
    assert [r.line for r in alone.catch_up()] == [
        line(status="x"),
        layer(ONE, 9, 8),
        line(status="y"),
    ]


def test_progress_forgets_the_oldest_records_when_a_host_never_stops() -> None:
    alone = Progress(["a"])
    long = line(status="x" * 100_000)
    for number in range(100):
        alone.feed("a", line(status=f"{number}"))
        alone.feed("a", long)
    kept = alone.catch_up()
    assert sum(len(record.line) for record in kept) <= progress.KEPT_BYTES
    assert kept[-2].line == line(status="99")


# --- layers of several hosts ------------------------------------------------------------------


def test_progress_counts_hosts_that_have_not_spoken_yet() -> None:
    both = Progress(["a", "b"])
    text = f'{{"status":"pulling","digest":"{ONE}","total":200,"completed":40}}\n'
    assert both.feed("a", layer(ONE, 100, 40)) == [Record(ONE, text.encode())]
    assert told(both.feed("b", layer(ONE, 100, 10)))[0]["completed"] == 50
    assert told(both.feed("b", layer(ONE, 100, 100)))[0] == {
        "status": "pulling",
        "digest": ONE,
        "total": 200,
        "completed": 140,
    }


def test_progress_does_not_count_hosts_that_are_out() -> None:
    three = Progress(["a", "b", "c"])
    three.feed("a", line(error="disk full"))
    three.end("b", "connection refused")
    assert told(three.feed("c", layer(ONE, 100, 40)))[0]["total"] == 100


def test_progress_never_shrinks_when_a_part_starts_again() -> None:
    both = Progress(["a", "b"])
    both.feed("a", layer(ONE, 100, 60))
    both.feed("b", layer(ONE, 100, 30))
    assert told(both.feed("a", layer(ONE, 100, 0)))[0]["completed"] == 90
    assert told(both.feed("a", layer(ONE, 50, 50)))[0] == {
        "status": "pulling",
        "digest": ONE,
        "total": 200,
        "completed": 90,
    }


def test_progress_leaves_zeros_out_as_go_does() -> None:
    both = Progress(["a", "b"])
    assert told(both.feed("a", layer(ONE, 7))) == [
        {"status": "pulling", "digest": ONE, "total": 14}
    ]
    assert told(both.feed("a", layer(TWO, 0))) == [{"status": "pulling", "digest": TWO}]


@pytest.mark.parametrize(
    "odd",
    [
        b"\n",
        b"pulling\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"5\n",
        b"{}\n",
        b'{"status":5}\n',
        b'{"status":null}\n',
        b'{"status":""}\n',
        b'{"error":""}\n',
        b'{"error":null}\n',
        line(status="pulling", total=5, completed=1),
        line(status="pulling", digest=""),
        line(status="pulling", digest=5, total=5),
        line(status=["x"], digest=ONE, total=5),
        layer(ONE, -1),
        layer(ONE, 5, -1),
        layer(ONE, 2**50 + 1),
        b'{"status":"pulling","digest":"x","total":1e3}\n',
        b'{"status":"pulling","digest":"x","total":true}\n',
        b'{"status":"pulling","digest":"x","total":"5"}\n',
        b'{"status":"pulling","digest":"x","total":' + b"9" * 300 + b"}\n",
        b"[" * 100_000 + b"\n",
        line(status="x" * 5_000),
        layer("x" * 5_000, 5),
    ],
    ids=lambda odd: odd[:40],
)
def test_progress_leaves_out_what_is_odd_when_there_are_several_hosts(odd: bytes) -> None:
    both = Progress(["a", "b"])
    both.feed("a", layer(TWO, 5, 1))
    is_plain = odd == line(status="pulling", digest="")
    assert both.feed("a", odd) == []
    assert both.catch_up() == [Record(TWO, layer(TWO, 10, 1))]
    both.end("a", None)
    # An empty digest is none, so that one is a status, and came when nobody else went on.
    records = both.end("b", None)
    assert told(records)[-1] == {"error": UNFINISHED}
    assert len(records) == 1 + is_plain
    alone = Progress(["a"])
    assert [record.line for record in alone.feed("a", odd)] == [odd]


def test_progress_tells_no_more_than_so_many_layers_and_texts() -> None:
    both = Progress(["a", "b"])
    limit = progress.MOST_NAMES
    shown = sum(len(both.feed("a", line(status=f"{number}"))) for number in range(limit + 9))
    assert shown == limit
    shown = sum(len(both.feed("a", layer(f"{number}", 5))) for number in range(limit + 9))
    assert shown == limit


# --- statuses of several hosts ----------------------------------------------------------------


def test_progress_tells_a_status_once_and_at_once_before_layers_move() -> None:
    both = Progress(["a", "b"])
    manifest = line(status="pulling manifest")
    assert both.feed("a", manifest) == [Record(None, manifest)]
    assert both.feed("b", manifest) == []


def test_progress_holds_a_status_until_every_host_has_said_it_once_layers_move() -> None:
    three = Progress(["a", "b", "c"])
    three.feed("a", layer(ONE, 5))
    verifying, writing = line(status="verifying sha256 digest"), line(status="writing manifest")
    assert three.feed("a", verifying) == []
    assert three.feed("a", writing) == []
    assert three.feed("b", writing) == []
    assert three.feed("b", verifying) == []
    assert three.feed("c", writing) == []
    # Only now are both known everywhere; `verifying` was said first.
    assert [r.line for r in three.feed("c", verifying)] == [verifying, writing]


@pytest.mark.parametrize("leaves", ["error", "end"])
def test_progress_waits_for_no_host_that_is_out(leaves: str) -> None:
    both = Progress(["a", "b"])
    both.feed("a", layer(ONE, 5))
    status = line(status="writing manifest")
    assert both.feed("a", status) == []
    records = both.feed("b", line(error="no")) if leaves == "error" else both.end("b", "broke")
    assert [record.line for record in records] == [status]
    assert not both.is_over


def test_progress_hears_no_more_of_a_host_after_its_error() -> None:
    both = Progress(["a", "b"])
    both.feed("a", line(error="no"))
    assert both.feed("a", line(status="x")) == []
    assert both.feed("a", layer(ONE, 5)) == []
    assert told(both.feed("b", layer(ONE, 5))) == [{"status": "pulling", "digest": ONE, "total": 5}]


# --- the end ----------------------------------------------------------------------------------


def test_progress_succeeds_once_when_all_are_over_and_one_has_succeeded() -> None:
    three = Progress(["a", "b", "c"])
    assert three.feed("a", line(**SUCCESS)) == []
    assert three.end("a", None) == []
    assert three.succeeded == ("a",)
    assert not three.is_over
    assert three.end("b", "broke") == []
    assert three.end("c", None) == [Record(None, line(**SUCCESS))]
    assert three.is_over
    assert three.succeeded == ("a",)
    assert three.failures == {"b": "broke", "c": UNFINISHED}
    assert three.error_line == b""
    assert three.catch_up()[-1] == Record(None, line(**SUCCESS))


@pytest.mark.parametrize(
    ("parts", "last"),
    [
        ([("", "first"), ("", "second")], line(error="first")),
        ([("", None), ("", "second")], line(error=UNFINISHED)),
        ([("", ""), ("", "second")], line(error=UNFINISHED)),
        (
            [("", "first"), ('{"error":"own", "more":1}', "second")],
            b'{"error":"own", "more":1}\n',
        ),
        ([('{"error":"1"}', None), ('{"error":"2"}', None)], line(error="1")),
        ([('{"error":{"code":5}}', None), ("", "x")], b'{"error":{"code":5}}\n'),
    ],
)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_progress_ends_in_one_error_when_all_failed(
    parts: list[tuple[str, str | None]], last: bytes, order: list[int]
) -> None:
    both = Progress(["0", "1"])
    records = []
    for number in order:
        said, failure = parts[number]
        records += both.feed(f"{number}", said.encode())
        records += both.end(f"{number}", failure)
    assert records == [Record(None, last)]
    assert both.error_line == last
    assert both.catch_up() == records
    assert set(both.failures) == {"0", "1"}


def test_progress_says_an_odd_error_as_json() -> None:
    both = Progress(["a", "b"])
    both.feed("a", b'{"error":{"code":5}}\n')
    both.end("a", "ignored")
    assert both.failures == {"a": '{"code":5}'}


@pytest.mark.parametrize("hosts", [["a"], ["a", "b"]])
@pytest.mark.parametrize("said", [line(**SUCCESS), line(status="x"), b"odd\n"])
def test_progress_says_nothing_any_more_when_it_is_over(hosts: list[str], said: bytes) -> None:
    over = Progress(hosts)
    for host_id in hosts:
        over.feed(host_id, said)
        over.end(host_id, None)
    before = over.catch_up(), over.succeeded, over.failures, over.error_line
    for host_id in hosts:
        for more in (line(status="y"), layer(ONE, 5), line(error="no"), line(**SUCCESS)):
            assert over.feed(host_id, more) == []
        assert over.end(host_id, "broke") == []
    assert (over.catch_up(), over.succeeded, over.failures, over.error_line) == before


def test_progress_of_several_hosts_hears_no_more_of_one_whose_part_is_over() -> None:
    both = Progress(["a", "b"])
    both.end("a", "broke")
    assert both.feed("a", line(status="y")) == []
    assert both.feed("a", line(error="own words, too late")) == []
    assert both.end("b", "gone") == [Record(None, line(error="broke"))]


# --- random histories -------------------------------------------------------------------------


@dataclass
class History:
    """What hosts say and how they end, in one interleaving. `bytes`: a line; else: the end."""

    hosts: list[str]
    events: list[tuple[str, bytes | str | None]] = field(default_factory=list)


STATUSES = ["pulling manifest", "verifying sha256 digest", "writing manifest", "<odd & ends>"]
DIGESTS = st.sampled_from([ONE, TWO, "sha256:model", "0000000000000000000"])
# Hosts mostly agree on a layer's size, as they do where the digest tells the truth.
SIZES = {ONE: 1_000, TWO: 7, "sha256:model": 2**40, "0000000000000000000": 0}
GOOD = (
    st.sampled_from(STATUSES).map(lambda text: line(status=text))
    | st.builds(
        lambda digest, share: layer(digest, SIZES[digest], SIZES[digest] * share // 100),
        DIGESTS,
        st.integers(0, 100),
    )
    | st.builds(layer, DIGESTS, st.integers(0, 2_000), st.integers(0, 3_000))
    | st.just(line(**SUCCESS))
)
ODD = st.sampled_from(
    [b"\n", b"x\n", b"[1]\n", b'{"digest":5}\n', layer(ONE, -5), line(status=None)]
) | st.binary(max_size=9).map(lambda text: text.replace(b"\n", b"") + b"\n")
ERROR_LINES = (b'{"error":"no"}\n', b'{"error":"full","status":507}\n')
ERRORS = st.sampled_from(ERROR_LINES)


@st.composite
def histories(
    draw: st.DrawFn, lines: st.SearchStrategy[bytes] = GOOD | ODD | ERRORS, most_hosts: int = 20
) -> History:
    hosts = [f"h{number}" for number in range(draw(st.integers(1, most_hosts)))]
    scripts: dict[str, list[bytes | str | None]] = {}
    for host_id in hosts:
        script: list[bytes | str | None] = [*draw(st.lists(lines, max_size=6))]
        if draw(st.booleans()):
            script.append(line(**SUCCESS))
        script.append(draw(st.sampled_from([None, None, "broke", ""])))
        scripts[host_id] = script
    turns = [host_id for host_id, script in scripts.items() for _ in script]
    draw(st.randoms(use_true_random=False)).shuffle(turns)
    return History(hosts, [(host_id, scripts[host_id].pop(0)) for host_id in turns])


def play(target: Progress, host_id: str, event: bytes | str | None) -> list[Record]:
    if isinstance(event, bytes):
        return target.feed(host_id, event)
    return target.end(host_id, event)


def run(history: History, hosts: Sequence[str] = ()) -> tuple[Progress, list[list[Record]]]:
    target = Progress(hosts or history.hosts)
    return target, [play(target, host_id, event) for host_id, event in history.events]


def flat(steps: list[list[Record]]) -> list[Record]:
    return [record for step in steps for record in step]


def is_end(record: Record) -> bool:
    value = orjson.loads(record.line)
    return value == SUCCESS or "error" in value


@given(histories())
def test_progress_ends_once_and_last_whatever_hosts_do(history: History) -> None:
    target, steps = run(history)
    assert target.is_over
    assert set(target.succeeded) | set(target.failures) == set(history.hosts)
    assert not set(target.succeeded) & set(target.failures)
    if len(history.hosts) == 1:
        return
    ends = [record for record in flat(steps) if is_end(record)]
    assert ends == [steps[-1][-1]]
    assert (orjson.loads(ends[0].line) == SUCCESS) is bool(target.succeeded)
    assert all(record.line.endswith(b"\n") for record in flat(steps))


@given(histories())
def test_progress_believes_a_host_only_that_said_success_and_no_error(history: History) -> None:
    target, _ = run(history)
    for host_id in history.hosts:
        said = [event for who, event in history.events if who == host_id]
        good = line(**SUCCESS) in said and said[-1] is None
        # The odd lines are too short for a record of an error, but may be that word.
        has_erred = any(event in ERROR_LINES for event in said)
        assert (host_id in target.succeeded) is (good and not has_erred)
        if has_erred:
            assert target.failures[host_id] in ("no", "full")
        elif not good:
            assert target.failures[host_id] == (said[-1] or UNFINISHED)


@given(histories())
def test_progress_never_shrinks_and_never_overflows(history: History) -> None:
    _, steps = run(history)
    if len(history.hosts) == 1:
        return
    seen: dict[str, tuple[int, int]] = {}
    for record in flat(steps):
        if record.key is None:
            continue
        value = orjson.loads(record.line)
        assert list(value) == [
            key for key in ("status", "digest", "total", "completed") if value.get(key)
        ]
        assert value["digest"] == record.key
        total, completed = value.get("total", 0), value.get("completed", 0)
        assert completed <= total <= len(history.hosts) * 2**40
        known_total, known_completed = seen.get(record.key, (0, 0))
        assert total >= known_total
        assert completed >= known_completed
        seen[record.key] = (total, completed)


HONEST = st.builds(
    lambda digest, share: layer(digest, SIZES[digest], SIZES[digest] * share // 100),
    DIGESTS,
    st.integers(0, 100),
)


@given(histories(HONEST))
def test_progress_bar_does_not_jump_when_hosts_agree(history: History) -> None:
    """A total is known from its first record on: it changes only for hosts that are out."""
    target = Progress(history.hosts)
    out: set[str] = set()
    going_on_at_first: dict[str, int] = {}
    best: dict[tuple[str, str], int] = {}
    for host_id, event in history.events:
        for record in play(target, host_id, event):
            if record.key is None:
                continue
            value = orjson.loads(record.line)
            first = len(history.hosts) - len(out)
            hosts_counted = going_on_at_first.setdefault(record.key, first)
            assert value.get("total", 0) == SIZES[record.key] * hosts_counted
        if not isinstance(event, bytes):
            out.add(host_id)
            continue
        said = orjson.loads(event)
        if "digest" in said:
            known = best.get((host_id, said["digest"]), 0)
            best[host_id, said["digest"]] = max(known, said["completed"])
    for record in target.catch_up():
        if record.key is not None:
            sum_of_best = sum(value for (_, key), value in best.items() if key == record.key)
            assert orjson.loads(record.line).get("completed", 0) <= sum_of_best


@given(histories())
def test_progress_tells_statuses_in_step(history: History) -> None:
    if len(history.hosts) == 1:
        return
    target = Progress(history.hosts)
    out: set[str] = set()
    layers_move = False
    first_said: list[str] = []
    said_by: dict[str, set[str]] = {}
    told_so_far: list[str] = []
    for host_id, event in history.events:
        value = understood(event)
        if host_id not in out and value.get("status") in STATUSES:
            said_by.setdefault(value["status"], set()).add(host_id)
            if value["status"] not in first_said:
                first_said.append(value["status"])
        if not isinstance(event, bytes) or value.get("error"):
            out.add(host_id)
        records = play(target, host_id, event)
        layers_move = layers_move or any(record.key is not None for record in records)
        going_on = set(history.hosts) - out
        for record in records:
            status = orjson.loads(record.line).get("status")
            if record.key is None and status in STATUSES:
                assert not layers_move or going_on <= said_by[status]
                told_so_far.append(status)
        if not layers_move:
            assert told_so_far == first_said
        elif len(told_so_far) < len(first_said):
            # What comes next is held for good reason.
            assert not going_on <= said_by[first_said[len(told_so_far)]]
    assert told_so_far == first_said


def understood(event: bytes | str | None) -> dict[str, Any]:
    try:
        value = json.loads(event) if isinstance(event, bytes) else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) and not value.get("digest") else {}


@given(histories(GOOD | ERRORS), st.data())
def test_progress_is_the_same_with_odd_lines_among_the_others(
    history: History, data: st.DataObject
) -> None:
    events: list[tuple[str, bytes | str | None]] = []
    for host_id, event in history.events:
        if data.draw(st.booleans()):
            events.append((host_id, data.draw(ODD)))
        events.append((host_id, event))
    if len(history.hosts) > 1:
        _, plain = run(history)
        target, mixed = run(History(history.hosts, events))
        assert flat(mixed) == flat(plain)
        assert target.is_over


@given(histories(), st.randoms(use_true_random=False))
def test_progress_is_the_same_in_whatever_order_hosts_are_given(
    history: History, rng: random.Random
) -> None:
    shuffled = list(history.hosts)
    rng.shuffle(shuffled)
    first, plain = run(history)
    second, other = run(history, shuffled)
    assert flat(other)[:-1] == flat(plain)[:-1]  # only whose error is told may differ
    assert set(second.succeeded) == set(first.succeeded)
    assert second.failures == first.failures


def state(records: Iterable[Record]) -> tuple[list[bytes], dict[str, bytes]]:
    """What a client shows: the lines that must not be dropped, and the newest of each layer."""
    records = list(records)
    return (
        [record.line for record in records if record.key is None],
        {record.key: record.line for record in records if record.key is not None},
    )


@given(histories(), st.data())
def test_progress_is_the_same_for_those_who_join_later(
    history: History, data: st.DataObject
) -> None:
    target = Progress(history.hosts)
    joins_at = data.draw(st.integers(0, len(history.events)))
    late: list[Record] = []
    early: list[Record] = []
    for number, (host_id, event) in enumerate(history.events):
        if number == joins_at:
            late = target.catch_up()
            assert len(history.hosts) == 1 or not any(is_end(record) for record in late)
        records = play(target, host_id, event)
        early += records
        late += records
    if joins_at == len(history.events):
        late = target.catch_up()
    assert state(late) == state(early)
    assert state(target.catch_up()) == state(early)


@given(histories(most_hosts=1))
def test_progress_of_one_host_loses_and_adds_nothing_but_the_end(history: History) -> None:
    target, steps = run(history)
    written = [event for _, event in history.events if isinstance(event, bytes)]
    lines = [record.line for record in flat(steps)]
    if target.succeeded:
        assert lines == written
        return
    has_erred = any(text in ERROR_LINES for text in written)
    expected = [text for text in written if text != line(**SUCCESS)]
    assert lines == expected + ([] if has_erred else [target.error_line])
    assert target.error_line in lines
