"""File, environment and flags → configuration, with every mistake at once.

A flag outranks the environment, the environment the file, the file the defaults. Mistakes come
in the order of the file, then of the environment, then of the command line. Whether hosts fit
together (no id twice) is checked once each of them is right by itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sollol_proxy.config.document import Document, Path, read_document
from sollol_proxy.config.environment import Setting, read_environment
from sollol_proxy.config.hints import hint
from sollol_proxy.config.schema import MISPLACED, Config
from sollol_proxy.config.wording import describe, dotted, printable, quoted
from sollol_proxy.errors import ConfigError, ConfigProblem

ENVIRONMENT = "environment"
COMMAND_LINE = "command line"

_FLAGS: dict[str, str] = {"listen": "--listen", "policy": "--policy", "hosts": "--host"}
_DOTTED_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and what its file says where it names variables.

    written: by path, the text of values with `${NAME}` in them, for showing instead of the value.
    """

    config: Config
    written: Mapping[Path, str]


def load(
    path: str | None,
    *,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    policies: Collection[str],
) -> Config:
    """The configuration alone; see `load_as_written`."""
    return load_as_written(path, environment=environment, flags=flags, policies=policies).config


def load_as_written(
    path: str | None,
    *,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    policies: Collection[str],
) -> Loaded:
    """The configuration from a file (None: no file), the environment and flags.

    flags: `listen`, `policy` and `hosts` (list of URLs); None stands for a flag not given.
    policies: names that `policy` may have, beside `package.module:Class`, which is not imported.

    Raises:
        ConfigError: any mistake, with all others; a file that cannot be read among them.
    """
    text, unreadable = ("", None) if path is None else _read(path)
    if unreadable is not None:
        raise ConfigError([unreadable])
    draft = _Draft(path or "defaults", read_document(text, environment))
    settings, mistakes = read_environment(environment)
    for name, message in mistakes:
        draft.add(ConfigProblem(ENVIRONMENT, None, name, message))
    for setting in settings:
        draft.lay_over(setting, ENVIRONMENT)
    for key, value in flags.items():
        if value is not None:
            draft.lay_over(Setting(_FLAGS[key], (key,), value), COMMAND_LINE)
    config = draft.validated(policies)
    return Loaded(config, draft.written)


class _Draft:
    """Data on its way to a configuration, with where each value came from and what is wrong."""

    def __init__(self, source: str, document: Document) -> None:
        self.written = document.written
        self._source = source
        self._data = {} if document.data is None else document.data
        self._lines = document.lines
        self._settings: dict[Path, tuple[str, str]] = {}
        self._problems: list[ConfigProblem] = []
        self._unusable = {mistake.path for mistake in document.mistakes}
        for mistake in document.mistakes:
            key = dotted(mistake.path)
            self.add(ConfigProblem(source, mistake.line, key, mistake.message))

    def add(self, problem: ConfigProblem) -> None:
        """Note one mistake; whatever the file holds, it will be one line."""
        key, message = printable(problem.key), printable(problem.message)
        self._problems.append(replace(problem, key=key, message=message))

    def lay_over(self, setting: Setting, source: str) -> None:
        """Let a value from outside the file take the place of the file's."""
        section = self._data
        for part in setting.path[:-1]:
            section = self._child(section, part)
        if not isinstance(section, dict):
            return  # The file's mistake, which validation will report.
        section[setting.path[-1]] = setting.value
        self._settings[setting.path] = (source, setting.name)
        depth = len(setting.path)
        for path in [path for path in self.written if path[:depth] == setting.path]:
            del self.written[path]

    def validated(self, policies: Collection[str]) -> Config:
        """The configuration.

        Raises:
            ConfigError: every mistake noted so far and those found now.
        """
        self._spell_out_bare_hosts()
        self._check_policy(policies)
        try:
            config = Config.model_validate(self._data)
        except ValidationError as errors:
            for error in errors.errors(include_url=False):
                self._add_found(error)
        else:
            if not self._problems:
                return config
        raise ConfigError(sorted(self._problems, key=self._order))

    @staticmethod
    def _child(section: Any, key: str | int) -> Any:
        if not isinstance(section, dict):
            return None
        if section.get(key) is None:
            section[key] = {}
        return section[key]

    def _spell_out_bare_hosts(self) -> None:
        hosts = self._data.get("hosts") if isinstance(self._data, dict) else None
        if not isinstance(hosts, list):
            return
        for index, host in enumerate(hosts):
            if isinstance(host, str):
                hosts[index] = {"url": host}
                path: Path = ("hosts", index)
                if path in self.written:
                    self.written[*path, "url"] = self.written.pop(path)

    def _check_policy(self, policies: Collection[str]) -> None:
        policy = self._data.get("policy") if isinstance(self._data, dict) else None
        if isinstance(policy, str) and policy not in policies:
            path: Path = ("policy",)
            if not _DOTTED_CLASS.fullmatch(policy):
                shown = str(self._shown(path, policy))
                self._add_at(path, f"{quoted(shown)} is no policy{hint(shown, policies)}")

    def _add_found(self, error: ErrorDetails) -> None:
        path = error["loc"]
        if path and path[-1] == "[key]":  # pydantic's mark for a key that is wrong itself
            path = path[:-1]
        if error["type"] == MISPLACED:
            for below, message in error["ctx"]["mistakes"]:
                self._add_at((*path, *below), message)
        else:
            self._add_at(path, describe(error, self._shown(path, error["input"])))

    def _add_at(self, path: Path, message: str) -> None:
        for length in range(len(path), -1, -1):
            if path[:length] in self._settings:
                source, name = self._settings[path[:length]]
                self.add(ConfigProblem(source, None, name, message))
                return
            if path[:length] in self._unusable:
                return  # Already said why.
            if path[:length] in self._lines:
                line = self._lines[path[:length]]
                self.add(ConfigProblem(self._source, line, dotted(path), message))
                return
        self.add(ConfigProblem(self._source, None, dotted(path), message))

    def _shown(self, path: Path, fallback: Any) -> Any:
        """The value as it was written: before `500ms` became 0.5, and `${NAME}` what it holds."""
        if path in self.written:
            return self.written[path]
        value: Any = self._data
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return fallback
        return value

    def _order(self, problem: ConfigProblem) -> tuple[int, int]:
        sources = (self._source, ENVIRONMENT, COMMAND_LINE)
        return sources.index(problem.source), problem.line or 0


def _read(path: str) -> tuple[str, ConfigProblem | None]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read(), None
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        message = (
            "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "is no file name"
        )
    return "", ConfigProblem(path, None, "", message)
