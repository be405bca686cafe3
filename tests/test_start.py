"""What a start does not load: nothing that serving requests has no use for."""

from __future__ import annotations

import signal
import subprocess
import sys

UNWANTED = (
    "sollol_proxy.lab",
    "sollol_proxy.config.effective",
    # Pages, until somebody looks at one.
    "sollol_proxy.server.models_page",
    "sollol_proxy.server.request_page",
    "sollol_proxy.server.request_row",
    "sollol_proxy.server.status",
    "aiohttp_jinja2",
    "jinja2",
    # What a library would have for people at a terminal.
    "pygments",
    "rich",
    "numpy",
    "scipy",
    "matplotlib",
    "hypothesis",
    "pytest",
)

SERVE = """
import sys
from sollol_proxy.cli import main
code = main(["serve", "--listen", "127.0.0.1:0", "--host", "http://127.0.0.1:9"])
from aiohttp import connector
print(*sys.modules)
print(connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"])
sys.exit(code)
"""

CHECK = """
import sys
from sollol_proxy.cli import main
code = main(["check"])
print(*sys.modules)
sys.exit(code)
"""


def unwanted(modules: list[str]) -> list[str]:
    return [name for name in modules if any(f"{name}.".startswith(f"{no}.") for no in UNWANTED)]


def test_serving_loads_nothing_that_it_does_not_need() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        said: list[str] = []
        for line in child.stderr:
            said.append(line)
            if "listening" in line:
                child.send_signal(signal.SIGTERM)
        assert child.stdout is not None
        modules, certificates = child.stdout.read().splitlines() or ["", ""]
    assert child.returncode == 0, said
    loaded = modules.split()
    assert "sollol_proxy.server.lifecycle" in loaded
    assert unwanted(loaded) == []
    assert certificates == "0", "a pool without https has no use for them"


def test_checking_a_configuration_loads_no_server() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "sollol_proxy.config.effective" in loaded
    assert [name for name in loaded if name.startswith(("aiohttp", "jinja2", "uvloop"))] == []


def test_lifecycle_loads_nothing_of_the_lab() -> None:
    code = "import sys, sollol_proxy.server.lifecycle; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "sollol_proxy.server.lifecycle" in loaded
    assert [name for name in loaded if name.startswith("sollol_proxy.lab")] == []
