"""`sollol.yaml` says what the schema says, key for key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sollol_proxy.config.document import read_document
from sollol_proxy.config.load import load
from sollol_proxy.config.schema import Config, HostSection, ModelSection, Section
from sollol_proxy.core.policies import POLICIES

PATH = Path(__file__).parents[1] / "sollol.yaml"
TEXT = PATH.read_text()
# Examples are indented behind their `#`, prose is not.
UNCOMMENTED = re.sub(r"(?m)^#(?=  )", "", TEXT)


def loaded(path: Path) -> Config:
    return load(str(path), environment={}, flags={}, policies=POLICIES)


def keys(section: type[Section]) -> dict[str, Any]:
    """The keys of a section in order, each section below as such a mapping."""
    return {
        name: keys(field.annotation)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        else None
        for name, field in section.model_fields.items()
    }


def said(data: Any, shape: dict[str, Any]) -> dict[str, Any]:
    """The keys of a document, as deep as `shape` has sections."""
    return {name: said(data[name], below) if (below := shape.get(name)) else None for name in data}


def test_shipped_file_equals_the_defaults() -> None:
    assert loaded(PATH) == Config()


def test_shipped_file_has_every_key_in_the_order_of_the_schema() -> None:
    shape = keys(Config)
    assert list(said(read_document(TEXT).data, shape).items()) == list(shape.items())


def test_shipped_examples_are_valid_and_have_every_key_of_a_host(tmp_path: Path) -> None:
    path = tmp_path / "sollol.yaml"
    path.write_text(UNCOMMENTED)
    bare, full = loaded(path).hosts
    assert bare == HostSection(url=bare.url)
    for name in HostSection.model_fields:
        assert getattr(full, name) != getattr(bare, name), name
    shape = keys(HostSection)
    document = read_document(UNCOMMENTED).data["hosts"][1]
    assert said(document, shape) == shape


def test_shipped_examples_are_valid_and_have_every_key_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "sollol.yaml"
    path.write_text(UNCOMMENTED)
    sections = loaded(path).models.values()
    for name in ModelSection.model_fields:
        default = getattr(ModelSection(), name)
        assert any(getattr(section, name) != default for section in sections), name


@pytest.mark.parametrize("text", [TEXT, UNCOMMENTED], ids=["defaults", "examples"])
def test_shipped_file_explains_every_key(text: str) -> None:
    lines = text.splitlines()
    for path, number in read_document(text).lines.items():
        # Below a host's own keys stand the user's words.
        if path and isinstance(path[-1], str) and (path[0] != "hosts" or len(path) <= 3):
            assert lines[number - 2].lstrip(" -").startswith("#"), path


def test_shipped_file_names_every_policy() -> None:
    assert all(name in TEXT for name in POLICIES)
