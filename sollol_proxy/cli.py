"""The command: arguments → configuration → server.

What a command needs beyond its arguments is imported by the command: a mistake in them is told at
once, and `check` needs no server.

Exit codes: 0 done, 1 could not serve (the port is taken), 2 a mistake in the configuration or
the arguments. Mistakes are one line each on standard error, never a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from sollol_proxy import __version__
from sollol_proxy.core.policies import POLICIES
from sollol_proxy.errors import ConfigError
from sollol_proxy.server.thrift import thrifty_imports

if TYPE_CHECKING:
    from sollol_proxy.config.load import Loaded

CONFIG_FILES = ("sollol.yaml", "/etc/sollol/sollol.yaml")
"""Where a configuration is looked for when none is named; the first that exists is read."""

_NO_HOSTS = (
    "no hosts yet: name them with --host URL, SOLLOL_HOSTS=URL,URL or `hosts:` in a sollol.yaml"
)


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code.

    argv, environment: the process's own unless given.

    Raises:
        SystemExit: `--help`, `--version`, or arguments that make no sense (code 2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in (*_COMMANDS, *_LAB, "-h", "--help", "--version"):
        words.insert(0, "serve")
    arguments = _parser(words[0]).parse_args(words)
    try:
        if arguments.command in _LAB:
            return int(_lab(arguments.command).run(arguments))
        return _COMMANDS[arguments.command](
            arguments, os.environ if environment is None else environment
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"sollol-proxy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Serve until a signal; without hosts too, because the page says how to name some."""
    with thrifty_imports():
        from sollol_proxy.server import lifecycle

    flags = {"listen": arguments.listen, "policy": arguments.policy, "hosts": arguments.host}
    config = _load(arguments.config, environment, flags).config
    if not config.hosts:
        print(f"sollol-proxy: {_NO_HOSTS}", file=sys.stderr)
    return lifecycle.run(lifecycle.serve(config))


def _check(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print what is in effect: file, environment and defaults together."""
    from sollol_proxy.config.effective import effective_yaml

    loaded = _load(arguments.file, environment, {})
    sys.stdout.write(effective_yaml(loaded.config, loaded.written))
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, Mapping[str, str]], int]] = {
    "serve": _serve,
    "check": _check,
}

_LAB = {
    "demo": ("sollol_proxy.lab.demo", "start a small pool and the proxy in front of it"),
    "bench": ("sollol_proxy.lab.bench", "compare policies and other proxies over real sockets"),
    "simulate": ("sollol_proxy.lab.simulate", "compare policies in virtual time"),
    "replay": ("sollol_proxy.lab.replay", "play a decision log again in virtual time"),
}
"""Commands of the laboratory: module with `add_arguments` and `run`, and what the help says.

They are imported when they are asked for: whoever serves shall not wait for them.
"""


def _lab(command: str) -> Any:
    return importlib.import_module(_LAB[command][0])


def _load(path: str | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Loaded:
    from sollol_proxy.config.environment import CONFIG_FILE
    from sollol_proxy.config.load import load_as_written

    named = path or environment.get(CONFIG_FILE) or None
    found = (name for name in CONFIG_FILES if os.path.exists(name))
    return load_as_written(
        named or next(found, None), environment=environment, flags=flags, policies=POLICIES
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser(command: str) -> argparse.ArgumentParser:
    """The command line, with the arguments of a laboratory's command only when it is asked for."""
    parser = _Parser(
        prog="sollol-proxy",
        description="One address in front of several Ollama hosts.",
        epilog="Without a command it serves: sollol-proxy --host http://gpu-box:11434",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sollol-proxy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="serve until SIGTERM or SIGINT (the default)", allow_abbrev=False
    )
    serve.add_argument(
        "--config", metavar="FILE", help=f"default: the first of {', '.join(CONFIG_FILES)}"
    )
    serve.add_argument("--listen", metavar="ADDRESS:PORT", help="default: 127.0.0.1:11434")
    serve.add_argument(
        "--host",
        metavar="URL",
        action="append",
        help="an Ollama server; may be repeated; replaces the hosts of the file",
    )
    serve.add_argument("--policy", metavar="NAME", help=f"one of {', '.join(POLICIES)}")

    check = commands.add_parser(
        "check", help="print the configuration in effect, or every mistake", allow_abbrev=False
    )
    check.add_argument("file", metavar="FILE", nargs="?", help="default: as serve finds it")

    for name, (_, text) in _LAB.items():
        lab = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == command:
            _lab(name).add_arguments(lab)
    return parser
