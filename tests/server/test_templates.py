"""Where the templates are found, and how strict the environment is."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from aiohttp import web

from sollol_proxy.errors import ConfigError
from sollol_proxy.server import templates


def _put_templates(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "status.html").write_text("shipped")
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "site" / "sollol_proxy"
    package.mkdir(parents=True)
    return package


def test_folder_is_inside_the_package_when_it_is_installed(package: Path) -> None:
    inside = _put_templates(package / "templates")
    _put_templates(package.parent / "templates")
    assert templates.folder(package) == inside


def test_folder_is_beside_the_package_in_a_checkout(package: Path) -> None:
    beside = _put_templates(package.parent / "templates")
    assert templates.folder(package) == beside


def test_folder_passes_over_a_stranger_of_the_same_name(package: Path) -> None:
    (package.parent / "templates").mkdir()
    (package.parent / "templates" / "base.html").write_text("somebody else's")
    with pytest.raises(ConfigError, match="templates are missing"):
        templates.folder(package)


def test_folder_names_both_places_when_neither_holds_templates(package: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        templates.folder(package)
    assert str(package / "templates") in str(caught.value)
    assert str(package.parent / "templates") in str(caught.value)


def test_every_shipped_template_compiles() -> None:
    env = templates.environment()
    names = env.list_templates()
    assert {"base.html", "status.html", "request.html"} <= set(names)
    for name in names:
        env.get_template(name)


def test_override_replaces_only_the_files_it_has(tmp_path: Path) -> None:
    (tmp_path / "_empty.html").write_text("<p>Ask the operators.</p>")
    env = templates.environment(templates.folders(str(tmp_path)))
    assert env.get_template("_empty.html").render() == "<p>Ask the operators.</p>"
    shipped = (templates.folder() / "status.html").read_text(encoding="utf-8")
    assert env.loader is not None
    assert env.loader.get_source(env, "status.html")[0] == shipped


def test_override_that_is_no_folder_is_a_mistake_of_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        templates.Pages(str(tmp_path / "nowhere"))
    assert [problem.key for problem in caught.value.problems] == ["templates"]


def test_environment_escapes_whatever_the_extension() -> None:
    template = templates.environment().from_string("{{ word }}")
    assert template.render(word="<b>&\"'") == "&lt;b&gt;&amp;&#34;&#39;"


def test_environment_refuses_a_name_that_does_not_exist() -> None:
    with pytest.raises(jinja2.UndefinedError):
        templates.environment().from_string("{{ nobody }}").render()


def test_page_is_all_that_a_template_knows(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("{{ page }}{{ app is defined or request is defined }}")
    app = web.Application()
    templates.install(app, str(tmp_path))
    assert app[templates.PAGES].render("page.html", "<b>") == "&lt;b&gt;False"
