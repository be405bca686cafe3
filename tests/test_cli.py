from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from sollol_proxy import __version__, cli
from sollol_proxy.cli import main
from sollol_proxy.config.schema import Config
from sollol_proxy.errors import ConfigError, ConfigProblem
from sollol_proxy.lab import demo
from sollol_proxy.server import lifecycle


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """The configurations that the command would have served, in an empty directory."""
    seen: list[Config] = []

    async def serve(config: Config) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr(lifecycle, "serve", serve)
    monkeypatch.setattr(cli, "CONFIG_FILES", ("sollol.yaml", str(tmp_path / "etc.yaml")))
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.parametrize("command", [[], ["serve"]])
def test_serve_is_the_default_command(command: list[str], served: list[Config]) -> None:
    arguments = ["--host", "http://a:1", "--host", "b", "--listen", "a:1"]
    assert main([*command, *arguments, "--policy", "round_robin"], {}) == 0
    (config,) = served
    assert [host.url for host in config.hosts] == ["http://a:1", "http://b:11434"]
    assert (config.listen, config.policy) == ("a:1", "round_robin")


def test_serve_starts_with_a_warning_when_there_are_no_hosts(
    served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], {}) == 0
    assert served == [Config()]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "--host URL" in warning


def test_serve_gives_no_warning_when_there_is_a_host(
    served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], {"SOLLOL_HOSTS": "a"}) == 0
    assert len(served[0].hosts) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("files", "environment", "flag", "listen"),
    [
        (["etc.yaml"], None, None, "etc.yaml:1"),
        (["sollol.yaml", "etc.yaml"], None, None, "sollol.yaml:1"),
        (["sollol.yaml", "etc.yaml", "x.yaml"], "x.yaml", None, "x.yaml:1"),
        (["sollol.yaml", "x.yaml", "y.yaml"], "x.yaml", "y.yaml", "y.yaml:1"),
        (["sollol.yaml"], "", None, "sollol.yaml:1"),
    ],
)
def test_configuration_is_found(
    files: list[str], environment: str | None, flag: str | None, listen: str, served: list[Config]
) -> None:
    for name in files:
        Path(name).write_text(f"listen: {name}:1")
    variables = {} if environment is None else {"SOLLOL_CONFIG": environment}
    assert main(["--config", flag] if flag else [], variables) == 0
    assert served[0].listen == listen


@pytest.mark.parametrize(
    "command", [["serve", "--config", "missing.yaml"], ["check", "missing.yaml"]]
)
def test_named_file_that_is_missing_is_a_mistake(
    command: list[str], served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sollol.yaml").write_text("")
    assert main(command, {}) == 2
    assert served == []
    assert capsys.readouterr().err.startswith("missing.yaml: cannot be read: ")


@pytest.mark.parametrize("command", [["--config", "x.yaml"], ["check", "x.yaml"]])
def test_mistakes_are_one_line_each_and_exit_2(
    command: list[str], served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.yaml").write_text("listen: x\nqueue:\n  max_waiting: four\n")
    assert main(command, {"SOLLOL_POLICY": "best"}) == 2
    out, err = capsys.readouterr()
    assert (out, served) == ("", [])
    lines = err.splitlines()
    assert lines[0].startswith('x.yaml:1: listen: "x" is not ADDRESS:PORT')
    assert lines[1] == 'x.yaml:3: queue.max_waiting: "four" is not a whole number'
    assert lines[2].startswith('environment: SOLLOL_POLICY: "best" is no policy; ')
    assert len(lines) == 3


def test_check_prints_what_is_in_effect(
    served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.yaml").write_text("hosts: [a]\nlisten: ${A}")
    environment = {"A": "a:1", "SOLLOL_LOG__FORMAT": "json"}
    assert main(["check", "x.yaml"], environment) == 0
    printed = capsys.readouterr().out
    for line in ("listen: ${A}", "- url: http://a:11434", "  format: json", "  body: 256MiB"):
        assert line in printed.splitlines()
    Path("again.yaml").write_text(printed)
    assert main(["check", "again.yaml"], {"A": "a:1"}) == 0
    assert capsys.readouterr().out == printed
    assert served == []


def test_check_looks_where_serve_looks_when_no_file_is_named(
    served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sollol.yaml").write_text("listen: a:1")
    assert main(["check"], {}) == 0
    assert capsys.readouterr().out.startswith("listen: a:1\n")
    assert served == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(98, "address in use"), 1, "sollol-proxy: [Errno 98] address in use\n"),
        (ConfigError([ConfigProblem("x", 1, "k", "wrong")]), 2, "x:1: k: wrong\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_of_the_server_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    text: str,
    served: list[Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def serve(config: Config) -> int:
        raise error

    monkeypatch.setattr(lifecycle, "serve", serve)
    assert main(["--host", "a"], {}) == code
    assert capsys.readouterr().err == text
    assert served == []


@pytest.mark.parametrize(
    ("arguments", "listen", "simulate"),
    [
        ([], None, False),
        (["--simulate"], None, True),
        (["--listen", "127.0.0.1:0"], "127.0.0.1:0", False),
    ],
)
def test_demo_gets_its_arguments(
    arguments: list[str], listen: str | None, simulate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    async def fake(listen: str | None, *, simulate: bool) -> int:
        seen.append((listen, simulate))
        return 3

    monkeypatch.setattr(demo, "demo", fake)
    assert main(["demo", *arguments], {}) == 3
    assert seen == [(listen, simulate)]


@pytest.mark.parametrize(
    "arguments",
    [["--hosts", "a"], ["--host"], ["serv"], ["check", "a", "b"], ["demo", "--listen", "x"]],
)
def test_arguments_that_make_no_sense_are_one_line_and_exit_2(
    arguments: list[str], served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments, {})
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert served == []


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_help_and_version_are_of_the_whole_command(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([flag], {})
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    if flag == "--version":
        assert printed == f"sollol-proxy {__version__}\n"
    else:
        assert all(command in printed for command in ("serve", "check", "demo"))


def started(config: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, on a free port."""
    return subprocess.Popen(
        [sys.executable, "-m", "sollol_proxy", "--listen", "127.0.0.1:0"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "SOLLOL_LOG__FORMAT": "json", "SOLLOL_CONFIG": str(config)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_process_serves_until_sigterm(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("hosts: [127.0.0.1:1]")
    with started(config) as process:
        assert process.stderr is not None
        url = next(json.loads(line)["url"] for line in process.stderr if '"listening"' in line)
        # An answer means that the loop turns, so the signal has its handler.
        with urllib.request.urlopen(f"{url}/sollol/live") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait() == 0


def test_process_ends_with_2_and_one_line_when_the_file_is_missing(tmp_path: Path) -> None:
    with started(tmp_path / "x.yaml") as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert err == f"{tmp_path}/x.yaml: cannot be read: No such file or directory\n"
