from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.ollama.names import (
    asked,
    canonical,
    canonical_pattern,
    display,
    is_cloud,
    is_storable,
    is_valid,
    namespace,
    stored,
)

PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,9}", fullmatch=True)
WORDS = ("Tiny", "latest", "local", "cloud", "-cloud", "library", "registry.ollama.ai", "://")
PIECES = st.lists(st.sampled_from([*WORDS, *"a:/ .@İ\u212a"]), max_size=9).map("".join)
ANY_TEXT = st.text() | PIECES


@pytest.mark.parametrize(
    "spelling",
    [
        "tiny",
        "tiny:latest",
        "library/tiny",
        "registry.ollama.ai/library/tiny:latest",
        "https://registry.ollama.ai/library/tiny",
        "Tiny",
        "tiny:LATEST",
        "tiny:local",
        "tiny:latest:local",
        "TINY:Local",
        "tiny: local ",
        "http://registry.ollama.ai/library/tiny:latest",
        "Registry.Ollama.AI/Library/Tiny:Latest:LOCAL",
        "  tiny\n",
        "\v\f\r\ttiny\x85\xa0\u2003\u3000",
    ],
)
def test_canonical_is_the_same_for_all_spellings_of_one_model(spelling: str) -> None:
    assert canonical(spelling) == "tiny:latest"
    assert is_valid(spelling)
    assert not is_cloud(spelling)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ""),
        ("Qwen2.5-Coder:7B", "qwen2.5-coder:7b"),
        ("other/Copy:V1", "other/copy:v1"),
        ("example.com/library/x", "example.com/library/x:latest"),
        ("localhost:5000/ns/x", "localhost:5000/ns/x:latest"),
        ("x:cloud", "x:cloud"),
        ("x:20b:cloud", "x:20b-cloud"),
        ("x:20b-cloud", "x:20b-cloud"),
        ("X:20B:Cloud", "x:20b-cloud"),
        ("x:20b-CLOUD", "x:20b-cloud"),
        ("ns/x:cloud", "ns/x:cloud"),
        ("registry.ollama.ai/library/x:20b:cloud", "x:20b-cloud"),
        ("x-cloud", "x-cloud:latest"),
        ("x-cloud:cloud", "x-cloud:cloud"),
        ("x-local", "x-local:latest"),
        ("x:my-local", "x:my-local"),
        ("registry.ollama.ai/other/x", "other/x:latest"),
        ("example.com/library/x:latest", "example.com/library/x:latest"),
        ("x:latest:7b", "x:latest:7b"),
        ("x:cloud:local", "x:cloud:local"),
        ("x:local:local", "x:local:local"),
        ("not/a/name/at/all", "not/a/name/at/all"),
        ("A@sha256:B", "a@sha256:b"),
        ("X\N{KELVIN SIGN}", "X\N{KELVIN SIGN}"),
    ],
)
def test_canonical_of_other_names(name: str, expected: str) -> None:
    assert canonical(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("X:Local", "x:local"),
        ("library/x:local", "x:local"),
        ("x:20b-Cloud", "x:20b-cloud"),
        ("x:cloud", "x:cloud"),
        ("x:20b:cloud", "x:20b:cloud"),
        (" x ", " x "),
        ("", ""),
    ],
)
def test_stored_takes_a_name_as_it_lies(name: str, expected: str) -> None:
    assert stored(name) == expected
    assert stored(expected) == expected


@given(ANY_TEXT)
def test_stored_is_the_key_of_what_a_name_asks_for(name: str) -> None:
    """What a host lists under the key that was asked for is found."""
    assert stored(stored(name)) == stored(name)
    if is_valid(name):
        assert stored(canonical(name)) == canonical(name)
        assert is_storable(canonical(name))


@pytest.mark.parametrize("part", ["host", "namespace", "model", "tag"])
@given(st.data())
def test_names_ignore_the_case_of_each_part(part: str, data: st.DataObject) -> None:
    names = {
        "host": data.draw(PART),
        "namespace": data.draw(PART),
        "model": data.draw(PART),
        "tag": data.draw(PART),
    }
    as_written = "{host}/{namespace}/{model}:{tag}".format(**names)
    names[part] = names[part].swapcase()
    swapped = "{host}/{namespace}/{model}:{tag}".format(**names)
    assert canonical(swapped) == canonical(as_written)
    assert stored(swapped) == stored(as_written)
    assert display(swapped).lower() == display(as_written).lower()


@given(ANY_TEXT)
def test_canonical_is_idempotent(name: str) -> None:
    assert canonical(canonical(name)) == canonical(name)


@given(ANY_TEXT)
def test_display_is_idempotent_and_has_the_key_of_its_name(name: str) -> None:
    assert display(display(name)) == display(name)
    if name.isascii():
        assert display(name).lower() == canonical(name)


@given(PART, PART, st.booleans(), st.booleans(), st.booleans())
def test_canonical_ignores_what_is_default(
    model: str, tag: str, with_namespace: bool, with_host: bool, with_scheme: bool
) -> None:
    prefix = "library/" if with_namespace or with_host else ""
    prefix = f"registry.ollama.ai/{prefix}" if with_host else prefix
    prefix = f"http://{prefix}" if with_scheme and with_host else prefix
    assert canonical(f"{prefix}{model}:{tag}") == canonical(f"{model}:{tag}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nosuch", "nosuch:latest"),
        ("library/NoSuch", "NoSuch:latest"),
        ("ns/Det:V2", "ns/Det:V2"),
        ("Registry.Ollama.AI/Library/x:Tag", "x:Tag"),
    ],
)
def test_display_keeps_case_and_drops_defaults(name: str, expected: str) -> None:
    assert display(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        ":tag",
        "x:",
        "/x",
        "a//x",
        "h//n/x",
        "/n/x",
        "https://x",
        "https://n/x",
        "-x",
        ".x",
        "x:-t",
        "x:.t",
        "é",
        "x\N{KELVIN SIGN}",
        "n.s/x",
        "-n/x",
        "-h/n/x",
        ".h/n/x",
        "h/n/m/x",
        "x@sha256:ab",
        "x@sha256-ab",
        "x:latest@sha256:" + "a" * 64,
        "x+q4:t",
        "",
        " ",
        "a b",
        "x:a b",
        "x\0",
        "\x1fx",
        "x\x1c",
        "x :t",
        f"x:{'t' * 81}",
        "m" * 81,
        f"{'n' * 81}/m",
        f"{'h' * 351}/n/m",
    ],
)
def test_name_is_invalid(name: str) -> None:
    assert not is_valid(name)
    assert not is_storable(name)
    assert canonical(name) == (name.strip(" ").lower() if name.isascii() else name)


@pytest.mark.parametrize(
    "name",
    [
        "m" * 80,
        f"x:{'t' * 80}",
        f"{'n' * 80}/m",
        f"{'h' * 350}/{'n' * 80}/{'m' * 80}:{'t' * 80}",
        f"https://{'h' * 350}/{'n' * 80}/{'m' * 80}:{'t' * 80}",
        "x.y:q4_K-M",
        "_x",
        "0",
        "x--..__",
        "h.io:80/n-s/m.x:t",
        "_h/_n/_m:_t",
        "x:cloud",
        "x:local",
        "x:20b-cloud",
    ],
)
def test_name_is_valid(name: str) -> None:
    assert is_valid(name)
    assert is_storable(name)


@pytest.mark.parametrize(
    ("name", "asked", "named"),
    [
        # Blanks are forgiven, and sources are read, only where a model is asked for.
        (" x", True, False),
        ("x\n", True, False),
        ("x:t:local", True, False),
        ("x:20b:cloud", True, False),
        ("x: cloud", True, False),
        (":local", False, False),
        (":cloud", False, False),
        ("x:-cloud", False, False),
        # Two sources are refused, and three colons are no name anyway.
        ("x:cloud:local", False, False),
        ("x:local:cloud", False, False),
        ("x:CLOUD:Local", False, False),
        ("x:local:local", False, False),
        ("x:cloud:cloud", False, False),
        ("x:20b-cloud:cloud", False, False),
        ("x:20b-cloud:local", False, False),
        ("x:20b:cloud:local", False, False),
        ("x:a-cloud-cloud", False, True),
    ],
)
def test_name_is_valid_where_ollama_takes_it(name: str, asked: bool, named: bool) -> None:
    assert is_valid(name) is asked
    assert is_storable(name) is named


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x:cloud", True),
        ("ns/x:CLOUD", True),
        ("gpt-oss:20b-cloud", True),
        ("x:20b:cloud", True),
        ("x-cloud", False),
        ("x-cloud:7b", False),
        ("x:cloudy", False),
        ("cloud", False),
        ("h:cloud/n/x", False),
        ("h:x-cloud/n/x", False),
        ("x: Cloud ", True),
        ("x-cloud:local", False),
        ("ns/x:20B-CLOUD", True),
        ("", False),
    ],
)
def test_name_asks_for_the_cloud(name: str, expected: bool) -> None:
    assert is_cloud(name) is expected


@pytest.mark.parametrize(
    ("name", "expected"), [("x", "library"), ("ns/x:1", "ns"), ("", "library")]
)
def test_namespace_is_library_when_none_is_written(name: str, expected: str) -> None:
    assert namespace(name) == expected


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("llama3", ["llama3:latest"], ["llama3:8b", "llama3.1:latest"]),
        ("Llama3:8B", ["llama3:8b"], ["llama3:latest"]),
        ("llama3*", ["llama3:latest", "llama3:8b", "llama3.1:70b"], ["llama:8b", "ns/llama3:8b"]),
        ("llama3:*", ["llama3:latest", "llama3:8b"], ["llama3.1:8b"]),
        ("qwen*:7b", ["qwen:7b", "qwen2.5:7b"], ["qwen:14b", "qwen2.5:latest"]),
        ("qwen?", ["qwen2:latest", "qwen3:8b"], ["qwen:latest", "qwen25:latest"]),
        ("*-embed", ["nomic-embed:latest", "nomic-embed:v1.5"], ["nomic-embed-text:latest"]),
        ("library/phi*", ["phi3:mini"], ["ns/phi3:mini"]),
        ("https://registry.ollama.ai/library/phi?", ["phi4:latest"], ["phi:latest"]),
        ("ns/*", ["ns/x:latest"], ["x:latest"]),
        ("*", ["x:latest", "ns/x:7b", "example.com/ns/x:7b"], []),
        ("gpt*:20b:cloud", ["gpt-oss:20b-cloud"], ["gpt-oss:20b", "gpt-oss:cloud"]),
        ("*:cloud", ["x:cloud", "ns/x:cloud"], ["x:20b-cloud", "x:latest"]),
        ("*:*-cloud", ["x:20b-cloud"], ["x:cloud", "x-cloud:7b"]),
        ("[lq]*:local", ["llama3:8b", "qwen3:latest"], ["phi:latest"]),
    ],
)
def test_pattern_matches_canonical_names(
    pattern: str, matches: list[str], others: list[str]
) -> None:
    key = canonical_pattern(pattern)
    assert [name for name in matches + others if fnmatchcase(name, key)] == matches


@given(PART, PART)
def test_pattern_without_wildcards_is_the_name(model: str, tag: str) -> None:
    assert canonical_pattern(f"{model}:{tag}") == canonical(f"{model}:{tag}")


@pytest.mark.parametrize("piece", [":local", ":cloud", "a", "/", ":"])
def test_name_is_not_taken_apart_when_it_is_too_long(piece: str) -> None:
    name = "m" + piece * 1_000_000
    assert canonical(name) == name
    assert not is_valid(name)


@given(ANY_TEXT | ANY_TEXT.map(lambda name: name * 200))
def test_asked_says_what_the_name_says_however_often_it_is_asked(name: str) -> None:
    expected = (canonical(name), is_cloud(name)) if is_valid(name) else None
    assert asked(name) == expected
    assert asked(name) == expected
