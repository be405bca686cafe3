"""The deployment files agree with each other, with the command, and with their own tools."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sollol_proxy.config.schema import LimitsSection

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "sollol-proxy.service"


def document(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def dockerfile_setting(instruction: str) -> str:
    (value,) = re.findall(rf"^{instruction} (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return str(value)


def unit_setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value)


def run(*command: str | Path) -> None:
    """Run a tool that checks one of the files; skip when the machine does not have it."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stderr.lower()


def test_compose_publishes_on_loopback_only() -> None:
    services = document("compose.yaml")["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_compose_names_its_own_services_as_hosts() -> None:
    services = document("compose.yaml")["services"]
    hosts = re.findall(r"http://([\w-]+):11434", " ".join(services["proxy"]["command"]))
    assert len(hosts) == 2
    assert set(hosts) <= set(services)


def test_compose_mounts_files_that_exist() -> None:
    services = document("compose.yaml")["services"]
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert files
    assert [file for file in files if not (DEPLOY / file).is_file()] == []


def test_prometheus_asks_the_port_that_the_image_serves() -> None:
    (job,) = document("prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    port = dockerfile_setting("EXPOSE")
    assert target == f"proxy:{port}"
    assert f"SOLLOL_LISTEN=0.0.0.0:{port}" in (ROOT / "Dockerfile").read_text()


def test_dockerignore_lets_through_what_the_dockerfile_copies() -> None:
    copies = re.findall(
        r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    copied = {source for line in copies for source in line.split()}
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert copied == allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_stopping_waits_longer_than_the_drain() -> None:
    grace = document("compose.yaml")["services"]["proxy"]["stop_grace_period"]
    drain_s = LimitsSection().drain
    assert float(grace.removesuffix("s")) > drain_s
    assert float(unit_setting("TimeoutStopSec")) > drain_s


def test_unit_starts_the_installed_command_with_a_file() -> None:
    command = shlex.split(unit_setting("ExecStart"))
    assert Path(command[0]).name == "sollol-proxy"
    assert command[1:] == ["serve", "--config", "/etc/sollol/sollol.yaml"]


def test_unit_passes_systemds_own_check(tmp_path: Path) -> None:
    # The command is not installed where this runs, and systemd checks that it is there.
    text = UNIT.read_text().replace("/opt/sollol-proxy/bin/sollol-proxy", "/bin/true")
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    run("systemd-analyze", "verify", "--man=no", unit)


def test_prometheus_file_passes_promtool() -> None:
    run("promtool", "check", "config", DEPLOY / "prometheus.yml")
