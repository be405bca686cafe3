"""Where the page's templates are, and the environment that renders them.

An installed wheel carries them inside the package; a checkout has them beside it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from sollol_proxy.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    import jinja2

_PACKAGE = Path(__file__).resolve().parent.parent
_ANCHOR = "status.html"


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


def folders(override: str | None = None) -> list[Path]:
    """Where a template is looked for, file by file: in `override`, then in the shipped folder.

    Raises:
        ConfigError: `override` is no folder, or the shipped folder is missing.
    """
    shipped = folder()
    if override is None:
        return [shipped]
    if not Path(override).is_dir():
        raise _problem(f"{override!r} is not a folder", key="templates")
    return [Path(override), shipped]


def environment(places: list[Path] | None = None) -> jinja2.Environment:
    """An environment that escapes everything and fails on a name that does not exist.

    places: where templates are looked for; None = the shipped ones alone.

    Raises:
        ConfigError: as `folders`.
    """
    import aiohttp_jinja2  # not before a page is asked for: see `Pages`
    import jinja2

    # An application of its own: the one that serves is closed for changes by then, and a template
    # must not reach the configuration.
    made = aiohttp_jinja2.setup(
        web.Application(),
        loader=jinja2.FileSystemLoader(folders() if places is None else places),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        default_helpers=False,
    )
    del made.globals["app"]
    return made


class Pages:
    """What turns views into HTML.

    The engine is loaded when the first page is asked for: most proxies never show one, and it
    takes 2 MB and a twentieth of a start.
    """

    def __init__(self, override: str | None = None) -> None:
        """Look where the templates are.

        Raises:
            ConfigError: as `folders`.
        """
        self._places = folders(override)

    def render(self, template: str, page: object) -> str:
        """The page in HTML. page: what the template knows under this name; nothing else."""
        return self._environment.get_template(template).render(page=page)

    @cached_property
    def _environment(self) -> jinja2.Environment:
        return environment(self._places)


PAGES = web.AppKey("pages", Pages)


def install(app: web.Application, override: str | None = None) -> None:
    """Gives `app` its `PAGES`.

    Raises:
        ConfigError: as `folders`.
    """
    app[PAGES] = Pages(override)


def _problem(message: str, *, key: str) -> ConfigError:
    return ConfigError([ConfigProblem(source="templates", line=None, key=key, message=message)])
