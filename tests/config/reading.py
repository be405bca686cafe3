"""A text as a configuration file, for the tests of the loader."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sollol_proxy.config.effective import effective_yaml
from sollol_proxy.config.load import load_as_written
from sollol_proxy.config.schema import Config
from sollol_proxy.errors import ConfigError, ConfigProblem

POLICIES = ("completion_time", "seven_factor", "least_in_flight", "round_robin")


def read(
    text: str, *, environment: Mapping[str, str] | None = None, **flags: Any
) -> tuple[Config, str]:
    """The configuration, and it written out again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "given.yaml")
        path.write_text(text, encoding="utf-8", newline="")
        loaded = load_as_written(
            str(path), environment=environment or {}, flags=flags, policies=POLICIES
        )
    return loaded.config, effective_yaml(loaded.config, loaded.written)


def problems(
    text: str, *, environment: Mapping[str, str] | None = None, **flags: Any
) -> list[ConfigProblem]:
    """Every mistake; none where there is none."""
    try:
        read(text, environment=environment, **flags)
    except ConfigError as error:
        return error.problems
    return []


def mistakes(
    text: str, *, environment: Mapping[str, str] | None = None, **flags: Any
) -> list[tuple[int | None, str, str]]:
    """Line, key and message of every mistake."""
    found = problems(text, environment=environment, **flags)
    return [(problem.line, problem.key, problem.message) for problem in found]
