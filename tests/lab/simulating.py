"""The command `simulate`, called in this process."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sollol_proxy.lab import simulate


def simulate_options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    return parser.parse_args(words)


def lines_of(directory: Path, *words: str) -> list[dict[str, Any]]:
    """What the command writes with these arguments, but for what differs from run to run."""
    path = directory / "runs.jsonl"
    assert simulate.run(simulate_options(*words, "--json", str(path))) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("decisions_p99_ms", None)
    return lines
