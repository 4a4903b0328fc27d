"""HTML pages from `templates/`, each one file that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """The page of a template; a value that the template asks for and is not given raises `jinja2.UndefinedError`."""
    return _ENVIRONMENT.get_template(template).render(**values)
