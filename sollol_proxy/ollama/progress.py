"""The progress of one pull or creation on several hosts, as one stream of Ollama's records.

What one host alone says comes through as it is. Of several hosts:

    layers    one bar per digest: totals and completed bytes are sums, and never shrink
    statuses  each text once; once layers move, only when every host that goes on has said it
    the end   one `success` if any host succeeded, else one error; nothing after it

A host goes on until it says an error or its part is over. What is odd is left out where there
are several hosts to speak for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import orjson

from sollol_proxy.ollama.merge import encode

UNFINISHED = "ended without success"
"""The failure of a host that ended its stream as if all were well and did not say so."""

MOST_LAYER_BYTES = 2**50
"""Of one layer; a host that says more is mistaken. The sums fit the integers of clients."""

MOST_NAMES = 4_096
"""Different digests, and different texts, that are told; a model has some dozens of layers."""

LONGEST_TEXT = 4_096
"""Characters of a status or digest. The longest that is known has about 90."""

KEPT_BYTES = 2**22
"""Of records kept for those who join later; beyond it the oldest are forgotten."""

_SUCCESS = "success"


@dataclass(frozen=True, slots=True)
class Record:
    """One line for the client.

    key: the layer's digest, where a newer record says all that an older one did; None for a
        record that must not be dropped.
    line: with its newline.
    """

    key: str | None
    line: bytes


@dataclass(frozen=True, slots=True)
class _Said:
    """A line of a host that can be understood. error: "" when it is none."""

    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: str = ""

    @property
    def is_success(self) -> bool:
        return self.status == _SUCCESS and not self.digest


@dataclass(slots=True)
class _Part:
    """What one host has come to.

    error, error_line: the first error of its own. failure: "" until it is over and has failed.
    """

    says_success: bool = False
    is_over: bool = False
    failure: str = ""
    error: str = ""
    error_line: bytes = b""

    @property
    def goes_on(self) -> bool:
        return not self.is_over and not self.error

    def hear(self, said: _Said, line: bytes) -> None:
        self.says_success = self.says_success or said.is_success
        if said.error and not self.error:
            self.error, self.error_line = said.error, line

    def end(self, failure: str | None) -> None:
        self.is_over = True
        if self.error:
            self.failure = self.error
        elif failure is not None or not self.says_success:
            self.failure = failure or UNFINISHED


class Progress:
    """One operation, from its first record to its last."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._parts = {host_id: _Part() for host_id in hosts}
        alone = len(self._parts) == 1
        self._view: _Alone | _Together = _Alone() if alone else _Together(self._parts)
        self._shown: dict[str | int, Record] = {}
        self._shown_bytes = 0
        self._numbers = count()

    def feed(self, host_id: str, line: bytes) -> list[Record]:
        """What the client is to be told for a line of a host.

        line: whatever it holds. Only the last one of a body may lack its newline; it gets one.
        """
        part = self._parts[host_id]
        if part.is_over or not line:
            return []
        line = line if line.endswith(b"\n") else line + b"\n"
        said = _understood(line)
        records = self._view.heard(host_id, said, line)
        if said is not None:
            part.hear(said, line)
            records += self._view.left(host_id) if said.error else []
        return self._show(records)

    def end(self, host_id: str, failure: str | None) -> list[Record]:
        """What the client is to be told because the host's part is over.

        failure: why it failed. None is believed only of a host that said `success` and no error.
        """
        part = self._parts[host_id]
        if part.is_over:
            return []
        part.end(failure)
        records = self._view.left(host_id)
        if self.is_over:
            records += self._view.closed(bool(self.succeeded), self.error_line)
        return self._show(records)

    def catch_up(self) -> list[Record]:
        """What somebody who joins now is to be told first: the newest of each layer, and the rest.

        In the order in which they first came.
        """
        return list(self._shown.values())

    @property
    def is_over(self) -> bool:
        """Whether every host's part is."""
        return all(part.is_over for part in self._parts.values())

    @property
    def succeeded(self) -> tuple[str, ...]:
        """The hosts that have done it, in the order given."""
        parts = self._parts.items()
        return tuple(host_id for host_id, part in parts if part.is_over and not part.failure)

    @property
    def failures(self) -> Mapping[str, str]:
        """The hosts whose part is over and failed, with the reason, in the order given."""
        return {host_id: part.failure for host_id, part in self._parts.items() if part.failure}

    @property
    def error_line(self) -> bytes:
        """What stands for all failures: the first host's own words, else the first reason.

        Empty unless the operation is over and no host succeeded.
        """
        if not self.is_over or self.succeeded:
            return b""
        parts = self._parts.values()
        own = (part.error_line for part in parts if part.error_line)
        made = (encode({"error": part.failure}, newline=True) for part in parts)
        return next(own, None) or next(made, b"")

    def _show(self, records: list[Record]) -> list[Record]:
        """Keep the records for those who join later."""
        for record in records:
            key = next(self._numbers) if record.key is None else record.key
            known = self._shown.get(key)
            self._shown[key] = record
            self._shown_bytes += len(record.line) - (len(known.line) if known else 0)
        while self._shown_bytes > KEPT_BYTES and len(self._shown) > 1:
            oldest = next(iter(self._shown))
            self._shown_bytes -= len(self._shown.pop(oldest).line)
        return records


class _Alone:
    """One host: its lines as they are. `success` and what may follow it wait for the end."""

    def __init__(self) -> None:
        self._held: list[tuple[_Said | None, Record]] = []
        self._held_bytes = 0
        self._has_told_error = False

    def heard(self, host_id: str, said: _Said | None, line: bytes) -> list[Record]:
        record = Record((said and said.digest) or None, line)
        if said is not None and said.error:
            self._has_told_error = True
        if not self._held and not (said and said.is_success):
            return [record]
        if self._held_bytes < KEPT_BYTES:
            self._held.append((said, record))
            self._held_bytes += len(line)
        return []

    def left(self, host_id: str) -> list[Record]:
        return []

    def closed(self, has_succeeded: bool, error_line: bytes) -> list[Record]:
        if has_succeeded:
            return [record for _, record in self._held]
        records = [record for said, record in self._held if not (said and said.is_success)]
        return records if self._has_told_error else [*records, Record(None, error_line)]


@dataclass(slots=True)
class _Layer:
    """One digest on all hosts. by_host: total and completed bytes as last said."""

    by_host: dict[str, tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    completed: int = 0

    def hear(self, host_id: str, said: _Said, going_on: Iterable[str]) -> None:
        """Take a host's figures in. Those that go on and were not heard yet will need as much."""
        self.by_host[host_id] = (said.total, min(said.completed, said.total))
        totals, completed = zip(*self.by_host.values(), strict=True)
        unheard = sum(other not in self.by_host for other in going_on)
        self.total = max(self.total, sum(totals) + unheard * max(totals))
        self.completed = max(self.completed, sum(completed))


class _Together:
    """Several hosts: layers added up, statuses once and in step."""

    def __init__(self, parts: Mapping[str, _Part]) -> None:
        self._parts = parts
        self._layers: dict[str, _Layer] = {}
        self._texts: set[str] = set()
        # Texts in the order in which they were first said, and who has said each.
        self._held: dict[str, set[str]] = {}

    def heard(self, host_id: str, said: _Said | None, line: bytes) -> list[Record]:
        if said is None or not self._parts[host_id].goes_on or said.error or said.is_success:
            return []
        if max(len(said.status), len(said.digest)) > LONGEST_TEXT:
            return []
        return self._layer(host_id, said) if said.digest else self._status(host_id, said.status)

    def left(self, host_id: str) -> list[Record]:
        """One host less to wait for."""
        return self._in_step()

    def closed(self, has_succeeded: bool, error_line: bytes) -> list[Record]:
        last = encode({"status": _SUCCESS}, newline=True) if has_succeeded else error_line
        return [Record(None, last)]

    def _layer(self, host_id: str, said: _Said) -> list[Record]:
        layer = self._layers.get(said.digest)
        if layer is None:
            if len(self._layers) >= MOST_NAMES:
                return []
            layer = self._layers[said.digest] = _Layer()
        layer.hear(host_id, said, self._going_on())
        entry: dict[str, str | int] = {"status": said.status, "digest": said.digest}
        # Go leaves zeros out.
        entry |= {"total": layer.total} if layer.total else {}
        entry |= {"completed": layer.completed} if layer.completed else {}
        return [Record(said.digest, encode(entry, newline=True))]

    def _status(self, host_id: str, text: str) -> list[Record]:
        if text in self._texts:
            return []
        if text not in self._held and len(self._texts) + len(self._held) >= MOST_NAMES:
            return []
        self._held.setdefault(text, set()).add(host_id)
        return self._in_step()

    def _in_step(self) -> list[Record]:
        """The texts that nobody who goes on has still to say, up to the first that somebody has."""
        waited_for = set(self._going_on()) if self._layers else set()
        records = []
        while self._held:
            text = next(iter(self._held))
            if not waited_for <= self._held[text]:
                break
            del self._held[text]
            self._texts.add(text)
            records.append(Record(None, encode({"status": text}, newline=True)))
        return records

    def _going_on(self) -> Iterable[str]:
        return (host_id for host_id, part in self._parts.items() if part.goes_on)


def _understood(line: bytes) -> _Said | None:
    """A line's record; None for what is none, or no sensible one."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    if error := value.get("error"):
        return _Said(error=error if isinstance(error, str) else encode(error).decode())
    status, digest = value.get("status", ""), value.get("digest", "")
    total, completed = value.get("total", 0), value.get("completed", 0)
    texts_are_texts = isinstance(status, str) and isinstance(digest, str)
    if not (texts_are_texts and _is_size(total) and _is_size(completed)):
        return None
    if not digest and (not status or total or completed):
        return None
    return _Said(status, digest, total, completed)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_LAYER_BYTES
