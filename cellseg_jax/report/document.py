"""HTML pages from Jinja2 templates: one offline file each, style and script inline.

A template extends "report/page.html.jinja" and uses the macros of "report/parts.html.jinja".
Every value is escaped, but for Markup, which only `svg`, `soft` and the templates make, from
escaped parts. A name that a template uses and nobody gives is an error.
"""

import functools
import pathlib
import re
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
NONE = "–"  # for what was not measured; tables sort it last


class Cell(NamedTuple):
    """A cell of a table that is more than its text.

    Args:
      text: stands first.
      note: small, after the text.
      below: small lines under both.
      kind: CSS class of the text.
      mark: (text, CSS class) that stands last, such as a verdict; the class is its tooltip.
      meter: a number in [0, 1], drawn as a bar below.
    """

    text: object
    note: object = ""
    below: tuple = ()
    kind: str = ""
    mark: tuple[str, str] | None = None
    meter: float | None = None


def render(template: str, **values) -> str:
    """The page that a template makes of values.

    Args:
      template: its file in the package, such as "runs/page.html.jinja".
    """
    return environment().get_template(template).render(values)


def number(value, form: str = ".4f") -> str:
    """A number as text, a dash where there is none."""
    return NONE if value is None or value != value else f"{value:{form}}"


def plain(value) -> str:
    """A value of a JSON file in words: lists and dicts without their brackets."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)


def count(amount: int, what: str) -> str:
    """A number and its noun, such as 1 row or 2 rows."""
    return f"{amount:,} {what}{'' if amount == 1 else 's'}"


def soft(text) -> Markup:
    """HTML of a text that may break after an underscore."""
    return Markup(escape(text).replace("_", Markup("_<wbr>")))


def anchor(text: str) -> str:
    """The id of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def headings(body: Markup) -> list[tuple[str, Markup]]:
    """(id, HTML) of the headings in rendered sections."""
    found = re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', body)
    return [(name, Markup(text)) for name, text in found]


@functools.cache
def environment() -> jinja2.Environment:
    """The one that all templates of this package are rendered in."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.filters |= {f.__name__: f for f in (number, plain, anchor, headings)}
    return made
