from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.config.effective import effective_yaml
from sollol_proxy.config.schema import QUEUED_PATHS, Config
from sollol_proxy.core.types import TaskType
from tests.config.reading import POLICIES, read

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "no",
        "null",
        "~",
        "1e5",
        "1_0",
        "0x1",
        "1:30",
        "2026-01-01",
        "${A}",
        "$$",
        "<<",
        "&a",
        "7",
        "=",
    ]
)
DURATION = st.floats(0.001, 366 * 86400)
SLOTS = st.integers(1, 1024)


def section(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


HOST = st.fixed_dictionaries(
    {"url": st.from_regex(r"(https?://)?[a-z]{1,9}(:[1-9][0-9]{0,3})?(/[a-z$]+)?", fullmatch=True)},
    optional={
        "id": st.from_regex(r"[!-.0-~]{1,9}", fullmatch=True),
        "slots": SLOTS,
        "model_slots": st.dictionaries(TEXT, SLOTS, max_size=2),
        "max_models": SLOTS,
        "priority": st.integers(0, 999),
        "labels": st.dictionaries(TEXT, TEXT, max_size=3),
        "memory": st.none() | st.integers(0, 2**50),
        "tasks": st.lists(st.sampled_from(TaskType), max_size=3),
        "models": section(allow=st.lists(TEXT, max_size=2), deny=st.lists(TEXT, max_size=2)),
    },
)
CONFIG = section(
    state=st.none() | st.sampled_from(["s", "~", "${A}", "7", "null"]),
    state_interval=DURATION,
    decision_log=st.none() | st.just("/var/log/$"),
    decision_log_size=st.integers(1, 2**40),
    listen=st.sampled_from(["127.0.0.1:1", "[::1]:0", "box:65535"]),
    policy=st.sampled_from(POLICIES),
    hosts=st.lists(HOST, max_size=3, unique_by=lambda host: host.get("id", host["url"])),
    queue=section(
        max_waiting=st.integers(0, 10**6),
        deadline=st.none() | DURATION,
        ageing=DURATION,
        no_host_wait=st.floats(0, 1),
        route_priorities=st.dictionaries(
            st.sampled_from(sorted(QUEUED_PATHS)), st.integers(1, 10), max_size=2
        ),
    ),
    probes=section(interval=DURATION, timeout=DURATION),
    alerts=section(success_ratio=st.floats(0, 1)),
    limits=section(body=st.integers(1, 2**50), records=st.integers(1, 100_000)),
    log=section(level=st.sampled_from(["debug", "error"]), format=st.just("json")),
    origins=st.lists(TEXT, max_size=3),
    templates=st.none() | TEXT,
    drift=st.sampled_from(["mix", "newest"]),
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    data = draw(CONFIG)
    for index, host in enumerate(data.get("hosts", ())):
        host["id"] = f"{index}{host.get('id', '')}"
    ids = [host["id"] for host in data.get("hosts", ())]
    if ids:
        data["identity"] = draw(st.none() | st.sampled_from(ids))
        # No exact name, which a host's own patterns might forbid it.
        placed = section(hosts=st.lists(st.sampled_from(ids), max_size=2))
        patterns = st.sampled_from(["*", "a*", "[!$]?:7b", "'*", "null*"])
        data["models"] = draw(st.dictionaries(patterns, placed, max_size=3))
    return Config.model_validate(data)


@given(configs())
def test_effective_yaml_loads_to_the_same_configuration(config: Config) -> None:
    text = effective_yaml(config)
    assert read(text) == (config, text)


@given(TEXT)
def test_effective_yaml_keeps_text_as_text_for_any_reader_of_yaml(text: str) -> None:
    document = yaml.safe_load(effective_yaml(Config(origins=(text,))))
    assert document["origins"] == [text.replace("$", "$$")]


def test_effective_yaml_is_readable() -> None:
    text = effective_yaml(Config())
    for line in ("  ageing: 1m", "  body: 256MiB", "  deadline: null", "  no_host_wait: 2s"):
        assert line in text.splitlines()


def test_secret_of_the_environment_is_never_printed() -> None:
    text = (
        "hosts:\n- url: http://x\n  labels: {key: 'a${SECRET}'}\n- ${HOST}\n"
        "queue: {max_waiting: '${COUNT}'}\n"
    )
    environment = {"SECRET": "hunter2", "HOST": "hidden", "COUNT": "7"}
    config, shown = read(text, environment=environment)
    assert (config.hosts[0].labels, config.queue.max_waiting) == ({"key": "ahunter2"}, 7)
    assert config.hosts[1].url == "http://hidden:11434"
    assert "hunter2" not in shown
    assert "url: ${HOST}" in shown
    assert read(shown, environment=environment) == (config, shown)


def test_value_from_a_variable_in_the_file_is_shown_when_the_environment_replaces_it() -> None:
    config, shown = read("listen: ${A}", environment={"A": "a:1", "SOLLOL_LISTEN": "b:2"})
    assert config.listen == "b:2"
    assert "listen: b:2\n" in shown
