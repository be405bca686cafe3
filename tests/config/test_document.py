from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.config.document import Mistake, read_document

WORDS = [
    "&x ",
    "*x",
    "!!int ",
    "- ",
    "\\U",
    "FFFFFFFF",
    "${A}",
    "1e9",
    "null",
    "%YAML",
    "---",
    "<<",
]
YAML_LIKE = st.lists(st.sampled_from([*WORDS, *"ab1.:,-?[]{}!|>'\"$#@`~ \n\t\x00\x85\ufeff"])).map(
    "".join
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("-12", -12),
        ("1.5", 1.5),
        (".5e1", 5.0),
        ("1e3", 1000.0),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("2026-01-01", "2026-01-01"),
        ("9" * 5000, "9" * 5000),
        ("'7'", "7"),
        ("!!str 7", "7"),
        ("!!int '7'", 7),
        ("{7: a, null: b}", {"7": "a", "null": "b"}),
        ("[1, [2]]", [1, [2]]),
        ("$$A ${A}", "$$A ${A}"),
    ],
)
def test_document_reads_values(text: str, value: Any) -> None:
    document = read_document(text)
    assert (document.data, document.mistakes) == (value, [])


def test_document_knows_the_line_of_every_key_and_item() -> None:
    document = read_document("a: 1\n\nb:\n  - x\n  -\n    c:\n      2\n")
    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 6,
        ("b", 1, "c"): 6,
    }


def test_document_replaces_variables_and_keeps_what_was_written() -> None:
    text = "a: ${X}-${X}\nb: $$HOME $HOME\nc: ['$${X}', '${Y}']\n${X}: 1"
    document = read_document(text, {"X": "x", "Y": "${X}"})
    assert document.data == {"a": "x-x", "b": "$HOME $HOME", "c": ["${X}", "${X}"], "${X}": 1}
    assert document.written == {("a",): "${X}-${X}", ("c", 1): "${Y}"}


@pytest.mark.parametrize(
    ("text", "path", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", ("a",), 3, "given twice; first on line 1"),
        ("a: 1\nb: [1", (), 2, "not YAML"),
        ("a: 1\nb: 'x", (), 2, "not YAML"),
        ("a: 1\n\tb: 2", (), 2, "not YAML"),
        ("a: 1\n---\nb: 2", (), 2, "single document"),
        ("a: 1\nb: \x07", (), 2, "does not allow"),
        ('a: 1\nb: "\\UFFFFFFFF"', (), 2, "out of range"),
        ("a: 1\nb: &x 2", (), 2, "anchors"),
        ("a: 1\nb: *x", (), 2, "anchors"),
        ("a: &x [*x]", (), 1, "anchors"),
        ("a:\n- !!python/name:os.system x", ("a", 0), 2, "tag"),
        ("a: 1\nb: !!set {x}", ("b",), 2, "tag"),
        ("a: 1\nb: !!int x", ("b",), 2, "does not fit its tag !!int"),
        ("a: 1\nb: {[1]: 2}", ("b",), 2, "a key has to be text"),
        ("a: 1\nb: ${NOT_SET}", ("b",), 2, "the environment variable NOT_SET is not set"),
        ("[" * 50, (), 1, "nested too deeply"),
    ],
)
def test_document_names_the_mistake(text: str, path: Any, line: int, message: str) -> None:
    (mistake,) = read_document(text, {}).mistakes
    assert (mistake.path, mistake.line) == (path, line)
    assert message in mistake.message


def test_document_names_every_variable_that_is_missing() -> None:
    document = read_document("a: ${X}${Y}", {})
    assert document.mistakes == [
        Mistake(("a",), 1, "the environment variable X is not set"),
        Mistake(("a",), 1, "the environment variable Y is not set"),
    ]


@given(st.text() | YAML_LIKE)
def test_document_never_raises_on_any_text(text: str) -> None:
    document = read_document(text, {"A": "x"})
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + 2
    assert all(1 <= mistake.line <= lines for mistake in document.mistakes)
