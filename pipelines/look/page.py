"""Self-contained HTML pages: all text is escaped, nothing is loaded, no script runs, figures and styles are inside.

Whatever is shown was written by models or strangers: what reorders or hides text is made visible as a space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.data.rules import DataError
from pipelines.look.figures import png
from pipelines.wording import plain

SHOWN = 2000  # characters of a text on a page


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table of names and values."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A titled table with a header."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """Two texts side by side."""

    title: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as a page holds it."""

    caption: str
    source: str


def pictures(figures: Mapping[str, Any]) -> tuple[Picture, ...]:
    """matplotlib figures by name."""
    return tuple(Picture(name.replace("_", " "), png(figure)) for name, figure in figures.items())


def page(template: str, **values: object) -> str:
    """The page that ``templates/<template>`` makes of ``values``; a value that is missing is an error."""
    return _environment().get_template(template).render(values)


def write_page(path: Path, html: str, option: str) -> None:
    """Write it, or raise DataError that names the command's ``option``."""
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{option} {path}: {error.strerror or error}") from None


def readable(text: str) -> str:
    """Short, and without what reorders or hides text."""
    text = "\n".join(plain(line) for line in text.split("\n"))
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pipelines.look", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
