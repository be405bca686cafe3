"""The layers: page, drawing and contract agree, and the contracts hold and bite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def contract_layers() -> list[list[str]]:
    """Layers of the contract, top first; those that stand side by side share an entry."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = document["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [sorted(re.findall(r"\w+", layer)) for layer in layers]


def page_section(heading: str) -> str:
    """One section of the architecture page, without its heading."""
    page = (ROOT / "docs/architecture.md").read_text()
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def page_layers() -> list[list[str]]:
    """Layers of the page's table, top first."""
    cells = re.findall(r"^\| (`.*?) \|", page_section("Layers"), re.MULTILINE)
    return [sorted(re.findall(r"`(\w+)", cell)) for cell in cells]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of `root`'s pyproject.toml on the package below it."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def test_page_lists_the_layers_of_the_contract() -> None:
    assert page_layers() == contract_layers()


def test_drawing_points_only_downwards() -> None:
    rank = {name: i for i, layer in enumerate(contract_layers()) for name in layer}
    drawing = re.search(r"```mermaid\n(.*?)```", page_section("Layers"), re.DOTALL)
    assert drawing is not None
    arrows = re.findall(r"(\w+)(?:\[.*?\])? --> (\w+)", drawing[1])
    assert {name for arrow in arrows for name in arrow} == set(rank) - {"__main__"}
    assert [(upper, lower) for upper, lower in arrows if rank[upper] >= rank[lower]] == []


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("core/clock.py", "import time\n"),
        ("ollama/loop.py", "import asyncio\n"),
        ("core/upwards.py", "import sollol_proxy.config.schema\n"),
        ("server/upwards.py", "import sollol_proxy.lab\n"),
        ("metrics_beside.py", ""),
    ],
)
def test_contracts_break_when_a_file_does_not_belong(tmp_path: Path, file: str, text: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sollol_proxy", tmp_path / "sollol_proxy", ignore=ignored)
    (tmp_path / "sollol_proxy" / file).write_text(text)
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert Path(file).stem in result.stdout
