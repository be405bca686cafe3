"""What the pages claim, as far as a machine can check it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from sollol_proxy.config.schema import Config, HostSection, ModelSection
from sollol_proxy.core.policies import POLICIES
from sollol_proxy.ollama.routes import ROUTES, Plan
from sollol_proxy.server import control

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
README = PAGES[0].read_text()
SOURCE = "\n".join(path.read_text() for path in (ROOT / "sollol_proxy").rglob("*.py"))

SERVED = {re.sub(r"{.*?}", "<>", path) for _, path, _ in control.ROUTES}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def section(heading: str) -> str:
    """One section of the README, its subsections included."""
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def own_paths(text: str) -> set[str]:
    """Paths under /sollol/, and /metrics, that a text names; parameters as <>."""
    named = [match[0] for match in re.finditer(r"(?<![\w.])/sollol/[\w/<>]*(?![\w.])", text)]
    named += re.findall(r"`(/metrics)`", text)
    return {re.sub(r"<\w+>", "<>", path) for path in named}


def keys_and_defaults(table: str) -> dict[str, Any]:
    """The rows `| key | default | meaning |` of a table, defaults read as YAML."""
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`(.*?)`)? \|", table, re.MULTILINE)
    return {key: yaml.safe_load(default) if default else None for key, default in rows}


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted paths of all keys below a section, in the order of the schema."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += leaves(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return document


def anchors(page: Path) -> set[str]:
    """The fragments by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_page_names_only_make_targets_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= targets


@pages
def test_page_links_only_to_what_exists(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert broken == []


@pages
def test_page_names_only_files_that_exist(page: Path) -> None:
    names = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|html|yaml|yml|toml))`", page.read_text())
    # `core/policies/NAME.py` is for the reader to fill in; absolute paths are no files of ours.
    missing = [
        name
        for name in names
        if "NAME" not in name
        and not any((root / name).exists() for root in (ROOT, ROOT / "sollol_proxy"))
    ]
    assert missing == []


@pages
def test_page_names_only_own_paths_that_are_served(page: Path) -> None:
    assert own_paths(page.read_text()) <= SERVED


def test_readme_names_every_own_path() -> None:
    assert own_paths(README) >= SERVED - {"/sollol"}


@pages
def test_page_names_only_headers_and_metrics_of_the_code(page: Path) -> None:
    # Headers are put together from their prefix in places, so either spelling counts.
    headers = set(re.findall(r"X-SOLLOL-[\w-]+", page.read_text()))
    metrics = set(re.findall(r"`(sollol_[a-z_]+_(?:total|seconds|ratio|bytes))`", page.read_text()))
    # Prometheus appends _total to the name of a counter.
    names = {name.removesuffix("_total") for name in headers | metrics}
    assert {name for name in names if f'"{name}"' not in SOURCE} == set()


@pages
def test_page_names_only_variables_that_are_keys(page: Path) -> None:
    variables = {f"SOLLOL_{path.replace('.', '__').upper()}" for path in leaves(Config)}
    named = set(re.findall(r"\bSOLLOL_[A-Z_]+", page.read_text()))
    assert named <= variables | {"SOLLOL_CONFIG"}


def key_tables() -> list[dict[str, Any]]:
    """The README's tables of keys: of everything, of a host, of an entry of `models`."""
    text = section("Configuration")
    return [keys_and_defaults(table) for table in re.split(r"(?m)^Of each .*:$", text)]


def test_readme_table_has_every_key_with_its_default() -> None:
    rows, _, _ = key_tables()
    assert list(rows) == [path for path in leaves(Config) if path != "hosts"]
    assert Config.model_validate(nested(rows)) == Config()


def test_readme_table_has_every_key_of_a_host_with_its_default() -> None:
    _, rows, _ = key_tables()
    assert set(rows) == set(leaves(HostSection))
    bare = {"url": "http://gpu-box:11434"}
    given = nested({key: value for key, value in rows.items() if key not in ("url", "id")})
    assert HostSection.model_validate(bare | given) == HostSection.model_validate(bare)


def test_readme_table_has_every_key_of_a_model_with_its_default() -> None:
    _, _, rows = key_tables()
    assert list(rows) == leaves(ModelSection)
    assert ModelSection.model_validate(rows) == ModelSection()


def test_readme_yaml_examples_are_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert examples
    for example in examples:
        Config.model_validate(yaml.safe_load(example))


@pytest.mark.parametrize(
    ("plan", "row"),
    [
        (Plan.BALANCE, "balanced"),
        (Plan.MERGE, "merged"),
        (Plan.BROADCAST, "broadcast"),
        (Plan.IDENTITY, "to the identity"),
    ],
)
def test_readme_table_has_every_route_in_its_row(plan: Plan, row: str) -> None:
    (line,) = re.findall(rf"^\| {row}.*$", section("What it does with which path"), re.MULTILINE)
    named = re.findall(r"`([A-Z]+) (/\S*)`", line)
    assert sorted(named) == sorted((r.method, r.path) for r in ROUTES if r.plan is plan)


def test_readme_explains_every_policy() -> None:
    text = section("How it decides")
    assert [name for name in POLICIES if f"`{name}`" not in text] == []
