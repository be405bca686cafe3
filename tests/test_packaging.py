"""The built packages work where the checkout is not: command, templates, page."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import sollol_proxy

ROOT = Path(__file__).parents[1]


def build(source: Path, target: str, into: Path) -> Path:
    """Build the `wheel` or `sdist` of a source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "-d", str(into)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as a package index's users may have to."""
    unpacked = tmp_path_factory.mktemp("source")
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(unpacked)], check=True)
    (source,) = unpacked.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it, and an empty folder to start from.

    Nothing of the caller's environment reaches what runs there, PYTHONPATH least of all.
    """

    bin: Path
    cwd: Path

    def run(self, *command: str) -> str:
        program = str(self.bin / command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=self.cwd, env={}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    root = tmp_path_factory.mktemp("venv")
    venv.create(root, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin/python"), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], check=True)
    # The dependencies come from here, without the .pth files that lead into the checkout: those
    # count only in a folder that is itself a site directory.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(bin=root / "bin", cwd=tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def page(installation: Installation) -> Iterator[str]:
    """The address of a proxy that the installed command serves, without hosts."""
    process = subprocess.Popen(
        [installation.bin / "sollol-proxy", "--listen", "127.0.0.1:0"],
        cwd=installation.cwd,
        env={},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield address_printed_by(process)
            process.send_signal(signal.SIGTERM)
            # Reads on while it waits: a full pipe would stop the process before its end.
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()


def address_printed_by(process: subprocess.Popen[str]) -> str:
    """The first address with a real port in what a process prints."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if match := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
            return match[0]
    pytest.fail(f"no address was printed: {seen}")


def test_sdist_has_what_a_packager_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    templates = {f"templates/{path.name}" for path in (ROOT / "templates").iterdir()}
    assert templates
    assert names >= templates | {"LICENSE", "README.md", "Makefile", "sollol.yaml", ".ci/run"}
    assert {"deploy/compose.yaml", "docs/architecture.md", "tests/test_packaging.py"} <= names


def test_wheel_has_the_templates_inside_the_package_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if name.startswith("sollol_proxy/templates/")}
    assert inside == {
        f"sollol_proxy/templates/{path.name}" for path in (ROOT / "templates").iterdir()
    }
    top = {name.partition("/")[0] for name in names}
    version = sollol_proxy.__version__
    assert top == {"sollol_proxy", f"sollol_proxy-{version}.dist-info"}
    assert "sollol_proxy/py.typed" in names


def test_installed_package_is_not_the_checkout(installation: Installation) -> None:
    code = "import sollol_proxy; print(sollol_proxy.__file__)"
    file = installation.run("python", "-c", code).strip()
    assert Path(file).is_relative_to(installation.bin.parent)


def test_installed_command_says_its_version(installation: Installation) -> None:
    assert sollol_proxy.__version__ in installation.run("sollol-proxy", "--version")


def test_installed_command_serves_the_page(page: str) -> None:
    with urllib.request.urlopen(f"{page}/sollol/", timeout=60) as answer:
        assert answer.status == 200
        assert "</html>" in answer.read().decode()
