from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.reading import mistakes, problems, read


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("listen: a", 1, "listen", '"a" is not ADDRESS:PORT'),
        ("\npolicy: round_robbin", 2, "policy", "did you mean `round_robin`?"),
        (
            "\npolicy: x",
            2,
            "policy",
            "known: completion_time, seven_factor, least_in_flight, round_robin",
        ),
        ("policy: 7", 1, "policy", "7 is not text"),
        ("hosts: a", 1, "hosts", '"a" is not a list'),
        ("hosts:\n- a\n- 7", 3, "hosts[1]", "7 is not a group of `key: value` lines"),
        ("hosts:\n- id: x\n", 2, "hosts[0].url", "is missing"),
        ("hosts:\n- url: ftp://x", 2, "hosts[0].url", "has a scheme"),
        ("hosts:\n- http://me:secret@x", 2, "hosts[0].url", '"http://***@x" has more than'),
        ("hosts:\n- me:secret@x", 2, "hosts[0].url", '"***@x" has more than'),
        ("hosts:\n- url: a\n  slot: 4", 3, "hosts[0].slot", "unknown key; did you mean `slots`?"),
        ("hosts:\n- url: a\n  slots: four", 3, "hosts[0].slots", '"four" is not a whole number'),
        ("hosts:\n- url: a\n  slots: 1.5", 3, "hosts[0].slots", "1.5 is not a whole number"),
        ("hosts:\n- url: a\n  slots: true", 3, "hosts[0].slots", "true is not a number"),
        ("hosts:\n- url: a\n  slots:", 3, "hosts[0].slots", "null is not a whole number"),
        ("hosts:\n- url: a\n  slots: 0", 3, "hosts[0].slots", "0 is less than 1"),
        ("hosts:\n- url: a\n  slots: 9999", 3, "hosts[0].slots", "9999 is more than 1024"),
        ("hosts:\n- url: a\n  id: a b", 3, "hosts[0].id", '"a b" is no id'),
        ("hosts:\n- url: a\n  labels: {x: 7}", 3, "hosts[0].labels.x", "7 is not text"),
        ("hosts:\n- url: a\n  model_slots: 7", 3, "hosts[0].model_slots", "is not a group"),
        ("hosts:\n- url: a\n  memory: 7xb", 3, "hosts[0].memory", '"7xb" is not a size'),
        ("hosts:\n- url: a\n  tasks:\n  - chat", 4, "hosts[0].tasks[0]", "known: generation,"),
        ("hosts:\n- url: a\n  models: {alow: []}", 3, "hosts[0].models.alow", "mean `allow`?"),
        ("hosts:\n- a\n\n- url: a\n", 4, "hosts[1].id", "hosts[0] has the same id"),
        ("hosts:\n- a\n- url: b\n  id: a:11434", 4, "hosts[1].id", "hosts[0] has the same id"),
        ("queue: 7", 1, "queue", "7 is not a group of `key: value` lines"),
        ("queue:\n  foo: 7", 2, "queue.foo", "unknown key; known: max_waiting, deadline, ageing"),
        ("queue:\n  ageing: 0", 2, "queue.ageing", "0 is less than 1ms"),
        ("queue:\n  ageing: 5x", 2, "queue.ageing", '"5x" is not a duration; write seconds'),
        ("queue:\n  deadline: 9999h", 2, "queue.deadline", '"9999h" is more than 8784h'),
        ("queue:\n  deadline: 1e999", 2, "queue.deadline", "is not a number"),
        ("queue:\n  route_priorities:\n    /api/x: 1", 3, "queue.route_priorities./api/x", "/api/"),
        ("drift: new", 1, "drift", '"new" is not known here; did you mean `newest`?'),
        ("identity: a", 1, "identity", "no host has this id; the pool has no hosts"),
        ("hosts: [gpu-a, x]\nidentity: gpu-a", 2, "identity", "; did you mean `gpu-a:11434`?"),
        ("hosts: [gpu-a, x]\nidentity: q", 2, "identity", "; known: gpu-a:11434, x:11434"),
        ("identity: 7", 1, "identity", "7 is not text"),
        ("models: 7", 1, "models", "7 is not a group of `key: value` lines"),
        ("models:\n  a: 7", 2, "models.a", "7 is not a group of `key: value` lines"),
        ("models:\n  a:\n    host: [x]", 3, "models.a.host", "unknown key; did you mean `hosts`?"),
        ("models:\n  a:\n    hosts: x", 3, "models.a.hosts", '"x" is not a list'),
        ("models:\n  a:\n    hosts:\n    - 7", 4, "models.a.hosts[0]", "7 is not text"),
        (
            "hosts: [box]\nmodels:\n  a*:\n    hosts:\n    - box:11434\n    - box:11433",
            6,
            "models.a*.hosts[1]",
            "no host has this id; did you mean `box:11434`?",
        ),
        ("models:\n  a: {}\n  '': {}", 3, "models.", "is empty; write a model's name"),
        ("models:\n  a: {}\n  ' ':", 3, "models. ", "is empty; write a model's name"),
        ("models:\n  a:\n  A:latest:", 3, "models.A:latest", "`a` stands before it and covers it"),
        ("models:\n  a*:\n  ab:7b:", 3, "models.ab:7b", "`a*` stands before it and covers it"),
        ("models:\n  '[key]':\n    hosts: [x]", 3, "models.[key].hosts[0]", "no host has this id"),
        (
            "hosts:\n- url: a\n  models: {deny: ['b*']}\nmodels:\n  b:7b: {hosts: ['a:11434']}",
            5,
            "models.b:7b.hosts[0]",
            "this host may not serve the model",
        ),
        ("models:\n  a:\n    num_ctx: 8k", 3, "models.a.num_ctx", '"8k" is not a whole number'),
        ("models:\n  a:\n    num_ctx: 3", 3, "models.a.num_ctx", "3 is less than 4"),
        (
            "models:\n  a:\n    num_ctx: 8192\n    max_num_ctx: 8192",
            4,
            "models.a.max_num_ctx",
            "has no effect beside num_ctx",
        ),
        ("state: ' '", 1, "state", '" " is no file name'),
        ("\ndecision_log: logs/", 2, "decision_log", '"logs/" is no file name'),
        ("state: 7", 1, "state", "7 is not text"),
        ("state_interval: 0", 1, "state_interval", "0 is less than 1ms"),
        ("log:\n  level: debugg", 2, "log.level", '"debugg" is not known here; did you mean'),
        ("retries:\n  backoff: 2m", 2, "retries.backoff", "backoff_max (1m) is shorter than"),
        ("retries:\n  backoff_max: 1ms", 2, "retries.backoff_max", "is shorter than backoff (1s)"),
        ("limits:\n  body: 0", 2, "limits.body", "0 is less than 1"),
        ("- a", 1, "", "a list is not a group of `key: value` lines"),
        ("text", 1, "", '"text" is not a group of `key: value` lines'),
        ("listens: x", 1, "listens", "unknown key; did you mean `listen`?"),
        ("a: 1\na: 2", 2, "a", "given twice; first on line 1"),
        ("a: 1\n b: 2", 2, "", "not YAML: "),
        ("origins:\n - ${NOT_SET}", 2, "origins[0]", "variable NOT_SET is not set"),
    ],
)
def test_mistake_has_its_line_key_and_plain_words(
    text: str, line: int, key: str, message: str
) -> None:
    found = mistakes(text)
    assert [(where, what) for where, what, _ in found][-1] == (line, key)
    assert message in found[-1][2]
    assert "Input should" not in found[-1][2]
    assert "Value error" not in found[-1][2]


def test_mistakes_come_all_at_once_in_order() -> None:
    text = "log: {level: x}\nqueue:\n  ageing: x\n  max_waiting: x\nlog: {}\nhosts:\n- a b\n- [a]\n"
    environment = {
        "SOLLOL_ORIGIN": "x",
        "SOLLOL_LIMITS__BODY": "x",
        "SOLLOL_ALERTS__QUEUE_DEPTH": "[",
    }
    found = mistakes(text, environment=environment, listen="x", policy="x")
    assert [(line, key) for line, key, _ in found] == [
        (1, "log.level"),
        (3, "queue.ageing"),
        (4, "queue.max_waiting"),
        (5, "log"),
        (7, "hosts[0].url"),
        (8, "hosts[1]"),
        (None, "SOLLOL_ORIGIN"),
        (None, "SOLLOL_ALERTS__QUEUE_DEPTH"),
        (None, "SOLLOL_LIMITS__BODY"),
        (None, "--policy"),
        (None, "--listen"),
    ]


def test_every_repeated_id_is_named() -> None:
    assert [key for _, key, _ in mistakes("hosts: [a, b, a, b]")] == ["hosts[2].id", "hosts[3].id"]


def test_mistake_in_a_file_value_is_forgiven_when_the_environment_replaces_it() -> None:
    assert read("listen: x", environment={"SOLLOL_LISTEN": "a:1"})[0].listen == "a:1"


def test_mistake_in_a_section_stays_when_the_environment_sets_a_key_of_it() -> None:
    assert mistakes("queue: 7", environment={"SOLLOL_QUEUE__MAX_WAITING": "1"})[0][1] == "queue"


@pytest.mark.parametrize(
    "text",
    [
        "queue: {max_waiting: '${SECRET}'}",
        "queue: '${SECRET}'",
        "policy: ${SECRET}",
        "log: {level: '${SECRET}'}",
        "hosts: ['${SECRET}']",
        "hosts: [{url: a, memory: '${SECRET}'}]",
    ],
)
def test_secret_of_the_environment_is_not_in_a_mistake(text: str) -> None:
    ((_, _, message),) = mistakes(text, environment={"SECRET": "hunter 2"})
    assert "hunter" not in message
    assert '"${SECRET}"' in message


@pytest.mark.parametrize("text", ["identity: ${SECRET}", "models: {a: {hosts: ['${SECRET}']}}"])
def test_secret_of_the_environment_is_not_in_a_mistake_about_an_id(text: str) -> None:
    ((_, _, message),) = mistakes(text, environment={"SECRET": "hunter 2"})
    assert "hunter" not in message


def test_mistake_in_an_id_is_of_the_variable_or_flag_that_brought_it() -> None:
    environment = {"SOLLOL_IDENTITY": "q", "SOLLOL_MODELS": "{a: {hosts: [q]}}"}
    found = mistakes("hosts: [box]", environment=environment)
    assert [key for _, key, _ in found] == ["SOLLOL_IDENTITY", "SOLLOL_MODELS"]
    assert [key for _, key, _ in mistakes("identity: box:11434", hosts=["x"])] == ["identity"]


def test_ids_are_not_compared_with_hosts_that_are_wrong_themselves() -> None:
    text = "hosts: [a b]\nidentity: a\nmodels: {x: {hosts: [a]}}"
    assert [key for _, key, _ in mistakes(text)] == ["hosts[0].url"]


SCALARS = ["x", "7", "-1", "1.5", "true", "null", "[]", "1h", "${X}", "9e999", "http://a", "@"]
ESCAPES = ['"\\0"', '"\\ud800"', '"\\n"', "''", "!!int"]
KEYS = ["listen", "policy", "hosts", "queue", "limits", "log", "origins", "url", "slots", "labels"]
MORE_KEYS = [
    "models",
    "identity",
    "drift",
    "llama*",
    "allow",
    "level",
    "body",
    "backoff",
    "retries",
    "route_priorities",
]


def _mapping(items: dict[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"


YAML = st.recursive(
    st.sampled_from([*SCALARS, *ESCAPES]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from([*KEYS, *MORE_KEYS, *ESCAPES]), inner, max_size=4).map(
            _mapping
        )
    ),
    max_leaves=12,
)


@given(st.text(st.characters(exclude_categories=["Cs"])) | YAML, st.text(), YAML)
def test_load_raises_nothing_but_config_error_of_single_lines_on_any_text(
    text: str, variable: str, yaml: str
) -> None:
    environment = {"X": variable, "SOLLOL_HOSTS": variable, "SOLLOL_QUEUE__ROUTE_PRIORITIES": yaml}
    for problem in problems(text, environment=environment, listen=variable):
        assert str(problem).isprintable()
        assert problem.message != "does not fit here"
