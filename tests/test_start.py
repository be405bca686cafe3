"""What a start does not load: nothing that serving requests has no use for."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNWANTED = ("sollol_proxy.lab", "numpy", "scipy", "matplotlib", "hypothesis", "pytest")


@pytest.mark.parametrize("module", ["sollol_proxy.cli", "sollol_proxy.server.lifecycle"])
def test_start_loads_nothing_of_the_lab(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "sollol_proxy.server.lifecycle" in loaded
    assert [name for name in loaded if name.startswith(UNWANTED)] == []
