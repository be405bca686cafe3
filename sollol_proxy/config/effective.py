"""A configuration written out in the shape of `sollol.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from sollol_proxy.config.document import SCALARS, Path
from sollol_proxy.config.schema import Config

_NOTHING_WRITTEN: Mapping[Path, str] = {}


def effective_yaml(config: Config, written: Mapping[Path, str] = _NOTHING_WRITTEN) -> str:
    """Every key with the value it has, as a file that loads to the same configuration.

    Durations and sizes are text such as `30s` and `256MiB`. A value that the file takes from a
    variable is shown as the file has it, `${NAME}`, so that no secret of the environment is
    printed. An id that was made from such a URL is shown: ids are public everywhere.

    written: see `load.Loaded`.
    """
    data = _as_written(config.model_dump(mode="json"), (), written)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _as_written(value: Any, path: Path, written: Mapping[Path, str]) -> Any:
    if path in written:
        return written[path]
    if isinstance(value, dict):
        return {key: _as_written(item, (*path, key), written) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_written(item, (*path, index), written) for index, item in enumerate(value)]
    return value.replace("$", "$$") if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Quotes text that this loader or any reader of YAML 1.1 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: the loader takes none."""
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text with a line break in double quotes: in any other style a reader folds it to a blank."""
    style = '"' if _LINE_BREAK.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_LINE_BREAK = re.compile("[\n\r\x85\u2028\u2029]")
_Dumper.add_representer(str, _represent_text)

for _tag, _pattern, _first in SCALARS:
    _Dumper.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)
