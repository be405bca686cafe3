"""YAML text → plain data, with the line of every key.

What is read is YAML with the scalars of YAML 1.2: `true` and `false` are the only truth values
(so `no` stays a country) and `1:30` is text, not ninety. Left out are anchors with their aliases,
which make a small file expand without bound, and tags other than the basic ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands: `("hosts", 2, "slots")`."""

_NULL, _BOOL, _INT, _FLOAT, _STR, _SEQ, _MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)
SCALARS: tuple[tuple[str, str, list[str]], ...] = (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]{1,20}", list("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,4})?",
        list("-+.0123456789"),
    ),
)
"""How plain scalars are read: tag, whole text, possible first characters."""

_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    _NULL: lambda text: None,
    _BOOL: lambda text: text.lower() == "true",
    _INT: int,
    _FLOAT: float,
    _STR: str,
}
_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)\}")
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong in the text itself. line: 1-based."""

    path: Path
    line: int
    message: str


@dataclass(slots=True)
class Document:
    """What a text says.

    lines: of the key, or of the item of a list.
    written: the text of values that name a variable, as it stands in the file.
    mistakes: in the order of the text; the data at their paths is not what was meant.
    """

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


def read_document(text: str, environment: Mapping[str, str] | None = None) -> Document:
    """The data of one YAML document; never raises, whatever the text.

    environment: replaces `${NAME}` in values, and `$$` by `$`; None leaves both as they are.
    """
    document = Document()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        document.mistakes.append(Mistake((), line, "a character that YAML does not allow"))
    except yaml.MarkedYAMLError as error:
        document.mistakes.append(_syntax_mistake(error))
    except (ValueError, OverflowError):
        # PyYAML's answer to an escape such as "\UFFFFFFFF", which names no character.
        message = "not YAML: a number or escape that is out of range"
        document.mistakes.append(Mistake((), loader.line + 1, message))
    else:
        if node is not None:
            document.data = _Constructor(document, environment).value(node, ())
    return document


class _Loader(yaml.SafeLoader):
    """Composes nodes; constructs nothing."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(None, None, "anchors (&) are not supported", mark)
        if self._depth == _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Constructor:
    """Fills a document from nodes."""

    def __init__(self, document: Document, environment: Mapping[str, str] | None) -> None:
        self._document = document
        self._environment = environment

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._document.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _CONSTRUCT:
            return self._scalar(node, path)
        return self._mistake(path, node, f"the tag {node.tag} is not supported")

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._mistake(path, key_node, "a key has to be text")
                continue
            # As written: a label named 7 or null is a name, too.
            key: str = key_node.value
            if key in data:
                first = self._document.lines[*path, key]
                self._mistake((*path, key), key_node, f"given twice; first on line {first}")
                continue
            self._document.lines[*path, key] = _line(key_node)
            data[key] = self.value(value_node, (*path, key))
        return data

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        if node.tag == _STR and self._environment is not None:
            return self._expanded(node, path, self._environment)
        try:
            return _CONSTRUCT[node.tag](text)
        except ValueError:
            kind = node.tag.rpartition(":")[2]
            return self._mistake(path, node, f"the value does not fit its tag !!{kind}")

    def _expanded(self, node: yaml.ScalarNode, path: Path, environment: Mapping[str, str]) -> str:
        def replacement(match: re.Match[str]) -> str:
            name = match[1]
            if name is None:
                return "$"
            self._document.written[path] = node.value
            if name not in environment:
                self._mistake(path, node, f"the environment variable {name} is not set")
            return environment.get(name, "")

        return _REFERENCE.sub(replacement, node.value)

    def _mistake(self, path: Path, node: yaml.Node, message: str) -> None:
        self._document.mistakes.append(Mistake(path, _line(node), message))


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1


def _syntax_mistake(error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    parts = [part for part in (error.context, error.problem) if part]
    return Mistake((), mark.line + 1 if mark else 1, f"not YAML: {', '.join(parts)}")
