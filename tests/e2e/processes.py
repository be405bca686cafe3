"""The real command and the lab hosts as child processes, which clients of any kind can ask."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

import yaml

PATIENCE_S = 30.0
"""How long a condition may take to come true before a test gives up; not a measure of speed."""

Json = dict[str, Any]
T = TypeVar("T")

_READY = "listening on "


@dataclass(frozen=True)
class LabHost:
    """A lab host in a process of its own; those with faults are told them here."""

    url: str

    def fault(self, kind: str, **details: Any) -> None:
        """Put a fault of `sollol_proxy.lab.faults` in force."""
        _ask(f"{self.url}/sim/fault", {"kind": kind, **details})

    def clear(self) -> None:
        _ask(f"{self.url}/sim/clear", {})

    def stats(self) -> Json:
        """The counts of `sollol_proxy.lab.simstats`."""
        return _ask(f"{self.url}/sim/stats")

    def until(self, holds: Callable[[Json], bool]) -> Json:
        """Wait until the counts satisfy a condition."""
        return until(self.stats, holds)


@dataclass(frozen=True)
class Proxy:
    """`sollol-proxy serve` in a process of its own."""

    url: str

    def hosts(self) -> list[Json]:
        return list(_ask(f"{self.url}/sollol/hosts")["hosts"])

    def requests(self) -> list[Json]:
        """The last finished requests, newest first."""
        return list(_ask(f"{self.url}/sollol/requests")["requests"])

    def completed(self) -> dict[str, int]:
        """Jobs that ended well, by host id."""
        return {host["id"]: host["completed"] for host in self.hosts()}

    def until_hosts(self, holds: Callable[[list[Json]], bool]) -> list[Json]:
        """Wait until the hosts' states satisfy a condition."""
        return until(self.hosts, holds)

    def until_not_resident(self, model: str) -> None:
        """Wait until no host is known to hold the model."""
        self.until_hosts(lambda hosts: not any(_holds(host, model) for host in hosts))

    def until_idle(self) -> None:
        """Wait until every slot is free."""
        self.until_hosts(lambda hosts: not any(host["in_flight"] for host in hosts))

    def until_up(self) -> None:
        """Wait until all hosts are healthy and their models known."""
        self.until_hosts(
            lambda hosts: all(host["state"] == "healthy" and host["installed"] for host in hosts)
        )


@contextmanager
def lab_hosts(module: str, arguments: Sequence[Sequence[str]]) -> Iterator[tuple[LabHost, ...]]:
    """`python -m module` once for each list of arguments, started side by side."""
    command = [sys.executable, "-m", module, "--until-eof"]
    # Entered before any of them is waited for, and closed whatever happens to the others.
    processes = [
        subprocess.Popen(
            [*command, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for words in arguments
    ]
    try:
        yield tuple(LabHost(_announced(process)) for process in processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=PATIENCE_S)


@contextmanager
def serving(directory: Path, host_urls: Sequence[str], **sections: Any) -> Iterator[Proxy]:
    """`sollol-proxy serve` for the block.

    directory: where its configuration file is written. sections: of that file.
    At its end the command has to leave with code 0, without a complaint of its own in the log.
    """
    config = directory / "sollol.yaml"
    # Probes that follow quickly, so that a test need not wait for what the proxy knows.
    probes = {"interval": "200ms", "tags_interval": "1s"}
    config.write_text(yaml.safe_dump({"log": {"format": "json"}, "probes": probes, **sections}))
    command = [sys.executable, "-m", "sollol_proxy", "serve", "--config", str(config)]
    command += ["--listen", "127.0.0.1:0"]
    for url in host_urls:
        command += ["--host", url]
    process = subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True)
    log = _Log(process)
    try:
        yield Proxy(log.listening_url())
    except BaseException:
        process.kill()
        log.end()
        raise
    process.terminate()
    log.end()
    assert process.returncode == 0, log.lines
    assert not log.complaints(), log.complaints()


class _Log:
    """The command's standard error, read by a thread so that the pipe never fills."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._ready: Queue[str] = Queue()
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def listening_url(self) -> str:
        url = self._ready.get(timeout=PATIENCE_S)
        assert url, "".join(self.lines)
        return url

    def complaints(self) -> list[str]:
        """Lines that are no JSON (a traceback, a warning of Python's) or of level error."""
        return [line for line in self.lines if _record(line).get("level") in (None, "error")]

    def end(self) -> None:
        """Read to the end, and leave nothing open."""
        self._process.wait(timeout=PATIENCE_S)
        self._reader.join(timeout=PATIENCE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            if (record := _record(line)).get("event") == "listening":
                self._ready.put(record["url"])
        self._ready.put("")


def _record(line: str) -> Json:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _announced(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line.startswith(_READY), line
    return line.removeprefix(_READY)


def _holds(host: Json, model: str) -> bool:
    return any(resident["name"] == model for resident in host["resident"])


def _ask(url: str, body: Json | None = None) -> Json:
    """The JSON at an address; with a body it is posted there."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data)) as answer:
        document: Json = json.load(answer)
    return document


def until(ask: Callable[[], T], holds: Callable[[T], bool]) -> T:
    """Ask until the answer satisfies a condition."""
    gives_up_s = time.monotonic() + PATIENCE_S
    while not holds(value := ask()):
        assert time.monotonic() < gives_up_s, value
    return value
