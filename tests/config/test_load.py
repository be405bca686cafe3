from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sollol_proxy.config.environment import variables
from sollol_proxy.config.load import load
from sollol_proxy.config.schema import Config
from sollol_proxy.errors import ConfigError
from tests.config.reading import POLICIES, mistakes, read

# For each key a text that is right and differs from the default, in a file and in a variable.
EXAMPLES = {
    "SOLLOL_LISTEN": ("'[::1]:80'", "[::1]:80"),
    "SOLLOL_POLICY": ("mine.policies:Greedy", "mine.policies:Greedy"),
    "SOLLOL_DRIFT": ("newest", "newest"),
    "SOLLOL_HOSTS": ("['http://a', b]", "http://a, b"),
    "SOLLOL_IDENTITY": ("mine:11434", "mine:11434"),
    "SOLLOL_MODELS": ("{'llama*': {hosts: ['mine:11434']}}", "{llama*: {hosts: ['mine:11434']}}"),
    "SOLLOL_QUEUE__MAX_WAITING": ("7", "7"),
    "SOLLOL_QUEUE__DEADLINE": ("5m", "5m"),
    "SOLLOL_QUEUE__AGEING": ("30", "30"),
    "SOLLOL_QUEUE__BOOST": ("0", "0"),
    "SOLLOL_QUEUE__OVERTAKING": ("90s", "90s"),
    "SOLLOL_QUEUE__NO_HOST_WAIT": ("0", "0"),
    "SOLLOL_QUEUE__DEFAULT_PRIORITY": ("1", "1"),
    "SOLLOL_QUEUE__ROUTE_PRIORITIES": ("{/api/embed: 3}", "{/api/embed: 3}"),
    "SOLLOL_PROBES__INTERVAL": ("1s", "1s"),
    "SOLLOL_PROBES__TAGS_INTERVAL": ("1s", "1s"),
    "SOLLOL_PROBES__TIMEOUT": ("1s", "1s"),
    "SOLLOL_RETRIES__ATTEMPTS": ("2", "2"),
    "SOLLOL_RETRIES__EJECT_AFTER": ("2", "2"),
    "SOLLOL_RETRIES__BACKOFF": ("500ms", "500ms"),
    "SOLLOL_RETRIES__BACKOFF_MAX": ("1h", "1h"),
    "SOLLOL_ALERTS__FIRST_TOKEN": ("1s", "1s"),
    "SOLLOL_ALERTS__SUCCESS_RATIO": (".5", ".5"),
    "SOLLOL_ALERTS__QUEUE_DEPTH": ("2", "2"),
    "SOLLOL_ALERTS__QUEUE_WAIT": ("2s", "2s"),
    "SOLLOL_LIMITS__BODY": ("1GiB", "1GiB"),
    "SOLLOL_LIMITS__CONNECT": ("1s", "1s"),
    "SOLLOL_LIMITS__DRAIN": ("0s", "0s"),
    "SOLLOL_LIMITS__RECORDS": ("2", "2"),
    "SOLLOL_LOG__LEVEL": ("debug", "debug"),
    "SOLLOL_LOG__FORMAT": ("json", "json"),
    "SOLLOL_STATE": ("'${DIR}/7'", "/srv/7"),
    "SOLLOL_STATE_INTERVAL": ("1m", "1m"),
    "SOLLOL_DECISION_LOG": ("'7'", "7"),
    "SOLLOL_DECISION_LOG_SIZE": ("1MiB", "1MiB"),
    "SOLLOL_ORIGINS": ("['*', 'http://x']", "*,http://x"),
    "SOLLOL_TEMPLATES": ("'${DIR}/t'", "/srv/t"),
}
DIR = {"DIR": "/srv"}
# What a key needs beside it: ids have to be those of hosts.
BESIDE = {"SOLLOL_IDENTITY": "hosts: [mine]\n", "SOLLOL_MODELS": "hosts: [mine]\n"}


def nested(path: tuple[str | int, ...], text: str) -> str:
    return "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(path)) + f"    {text}\n"


def at(config: Config, path: tuple[str | int, ...]) -> Any:
    value: Any = config
    for part in path:
        value = getattr(value, str(part))
    return value


def test_examples_cover_every_key() -> None:
    assert set(EXAMPLES) == set(variables())


@pytest.mark.parametrize("variable", EXAMPLES)
def test_key_is_reached_from_file_and_environment(variable: str) -> None:
    path = variables()[variable]
    in_file, in_variable = EXAMPLES[variable]
    beside = BESIDE.get(variable, "")
    by_file, _ = read(beside + nested(path, in_file), environment=DIR)
    by_variable, _ = read(beside, environment={variable: in_variable})
    assert by_file == by_variable
    assert at(by_file, path) != at(Config(), path)


@pytest.mark.parametrize(
    ("in_file", "in_environment", "flag", "policy"),
    [
        (None, None, None, "completion_time"),
        ("round_robin", None, None, "round_robin"),
        ("round_robin", "least_in_flight", None, "least_in_flight"),
        ("round_robin", "", None, "round_robin"),
        ("round_robin", None, "seven_factor", "seven_factor"),
        ("round_robin", "least_in_flight", "seven_factor", "seven_factor"),
        (None, "least_in_flight", "seven_factor", "seven_factor"),
    ],
)
def test_flag_outranks_environment_outranks_file_outranks_default(
    in_file: str | None, in_environment: str | None, flag: str | None, policy: str
) -> None:
    text = f"policy: {in_file}" if in_file else ""
    environment = {} if in_environment is None else {"SOLLOL_POLICY": in_environment}
    assert read(text, environment=environment, policy=flag)[0].policy == policy


def test_flag_replaces_the_hosts_of_the_file() -> None:
    config, _ = read("hosts: [a, b]", environment={"SOLLOL_HOSTS": "c"}, hosts=["d", "e"])
    assert [host.id for host in config.hosts] == ["d:11434", "e:11434"]


def test_environment_reaches_into_a_section_that_is_empty_or_missing() -> None:
    environment = {"SOLLOL_QUEUE__MAX_WAITING": "1", "SOLLOL_QUEUE__DEADLINE": "1s"}
    for text in ("queue:", "", "queue: {deadline: 9s}"):
        config, _ = read(text, environment=environment)
        assert (config.queue.max_waiting, config.queue.deadline) == (1, 1.0)


@pytest.mark.parametrize("text", ["", "null", "# only a comment", "hosts:\nqueue:\nmodels:", "{}"])
def test_file_that_says_nothing_means_the_defaults(text: str) -> None:
    assert read(text)[0] == Config()


def test_optional_key_is_switched_off_by_null_in_the_environment() -> None:
    environment = {
        "SOLLOL_QUEUE__DEADLINE": "null",
        "SOLLOL_TEMPLATES": "null",
        "SOLLOL_IDENTITY": "null",
    }
    text = "queue: {deadline: 5s}\ntemplates: x\nidentity: a:11434\nhosts: [a]"
    config, _ = read(text, environment=environment)
    assert (config.queue.deadline, config.templates, config.identity) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SOLLOL_LISTENS", "did you mean `SOLLOL_LISTEN`?"),
        ("SOLLOL_QUEUE_MAX_WAITING", "did you mean `SOLLOL_QUEUE__MAX_WAITING`?"),
    ],
)
def test_unknown_variable_is_a_mistake(name: str, hint: str) -> None:
    ((_, key, message),) = mistakes("", environment={name: "x"})
    assert key == name
    assert message.startswith("unknown variable; ")
    assert hint in message


@pytest.mark.parametrize(
    "name",
    [
        "SOLLOL_CONFIG",
        "SOLLOL_PORT",
        "SOLLOL_SERVICE_HOST",
        "SOLLOL_PROXY_SERVICE_PORT_HTTP",
        "SOLLOL_PROXY_PORT_11434_TCP",
        "SOLLOL_PORT_11434_TCP_ADDR",
        "OTHER",
    ],
)
def test_variable_is_let_be_when_it_is_not_ours(name: str) -> None:
    assert read("", environment={name: "tcp://10.0.0.1:11434"})[0] == Config()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: "), (b"\xff\xfe", "is not UTF-8 text")],
)
def test_file_that_cannot_be_read_is_one_mistake(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "given.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "given.yaml"), environment={}, flags={}, policies=POLICIES)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{tmp_path / 'given.yaml'}: {message}")


def test_directory_or_impossible_name_is_one_mistake() -> None:
    for name in (os.curdir, "a\0b"):
        with pytest.raises(ConfigError) as caught:
            load(name, environment={}, flags={}, policies=POLICIES)
        assert len(caught.value.problems) == 1


def test_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_bytes(b"\xef\xbb\xbflisten: a:1")
    config = load(str(tmp_path / "given.yaml"), environment={}, flags={}, policies=POLICIES)
    assert config.listen == "a:1"
