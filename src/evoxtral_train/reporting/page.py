"""One HTML file that needs no other: text, tables, and pictures inside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Table:
    """`rows`: cells as text, the first of each row is its name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, and under it what there is of text, a list, a table and pictures (name -> PNG)."""

    title: str
    text: str = ""
    points: Sequence[str] = ()
    table: Table | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page's HTML. What stands in the data is escaped: a transcript cannot become markup."""
    environment = Environment(loader=PackageLoader(__package__, "templates"), autoescape=True, undefined=StrictUndefined)
    environment.filters["data_url"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return environment.get_template("page.html.j2").render(title=title, subtitle=subtitle, sections=sections)
