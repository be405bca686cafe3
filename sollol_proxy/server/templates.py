"""Where the page's templates are, and the environment that renders them.

An installed wheel carries them inside the package; a checkout has them beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import aiohttp_jinja2
import jinja2
from aiohttp import web

from sollol_proxy.errors import ConfigError, ConfigProblem

_PACKAGE = Path(__file__).resolve().parent.parent
_ANCHOR = "status.html"
_OPTIONS: Final[dict[str, Any]] = {
    "autoescape": True,
    "undefined": jinja2.StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
}


def folder(package: Path = _PACKAGE) -> Path:
    """The folder of the shipped templates: inside `package`, else beside it.

    Raises:
        ConfigError: neither place holds them; the installation is incomplete.
    """
    places = (package / "templates", package.parent / "templates")
    for place in places:
        # site-packages may hold somebody else's folder of this name.
        if (place / _ANCHOR).is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise _problem(f"the status page's templates are missing: no {_ANCHOR} in {looked}", key="")


def loader(override: str | None = None) -> jinja2.BaseLoader:
    """Loads from `override`, file by file, and the shipped folder for the rest.

    Raises:
        ConfigError: `override` is no folder, or the shipped folder is missing.
    """
    shipped = jinja2.FileSystemLoader(folder())
    if override is None:
        return shipped
    if not Path(override).is_dir():
        raise _problem(f"{override!r} is not a folder", key="templates")
    return jinja2.ChoiceLoader([jinja2.FileSystemLoader(override), shipped])


def environment(override: str | None = None) -> jinja2.Environment:
    """An environment that escapes everything and fails on a name that does not exist.

    Raises:
        ConfigError: as `loader`.
    """
    return jinja2.Environment(loader=loader(override), **_OPTIONS)


def install(app: web.Application, override: str | None = None) -> None:
    """Gives `app` the same environment, for `aiohttp_jinja2.render_template`.

    Raises:
        ConfigError: as `loader`.
    """
    env = aiohttp_jinja2.setup(app, loader=loader(override), default_helpers=False, **_OPTIONS)
    # aiohttp-jinja2 makes the application a global; a template must not reach the configuration.
    del env.globals["app"]


def _problem(message: str, *, key: str) -> ConfigError:
    return ConfigError([ConfigProblem(source="templates", line=None, key=key, message=message)])
