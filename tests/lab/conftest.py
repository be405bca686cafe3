"""The real lab host, once for all tests that ask it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def engine_url() -> Iterator[str]:
    """Base address of an engine host in a process of its own."""
    command = [sys.executable, "-m", "sollol_proxy.lab.engine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            assert ready.startswith("listening on ")
            yield ready.split()[-1]
        finally:
            process.terminate()
