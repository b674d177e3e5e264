"""A self-contained HTML page with text, tables, pictures and audio."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined

_INTERVAL = re.compile(r"[+-]?[\d.]+ \[.+\]")


@dataclass(frozen=True)
class Table:
    """`rows`: cells as text; the first cell of a row is its name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Line:
    """A labelled line of marked text: (stretch, "same" | "missed" | "false")."""

    label: str
    stretches: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ClipView:
    """A clip to play, with what was said and what each system wrote side by side. `audio`: a FLAC file's bytes, or None if the
    file is gone."""

    title: str
    reference: Line
    written: Sequence[Line]
    audio: bytes | None = None


@dataclass(frozen=True)
class Section:
    """A heading with optional text, clips, table, list and pictures (name -> PNG). Folded sections are at the end of the page,
    with their text beside the heading, and open with a click."""

    title: str
    text: str = ""
    points: Sequence[str] = ()
    table: Table | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)
    clips: Sequence[ClipView] = ()
    folded: bool = False


def render(title: str, subtitle: str, sections: Sequence[Section], warnings: Sequence[str] = ()) -> str:
    """The page's HTML, with `warnings` at the top. Data is escaped: a transcript cannot become markup."""
    loader = PackageLoader(__package__, "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_url"] = lambda content, kind: f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    environment.filters["width"] = lambda png: int.from_bytes(png[16:20]) // 2  # from the header; plots have double resolution
    environment.filters["parts"] = lambda cell: cell.partition(" ") if _INTERVAL.fullmatch(cell) else (cell, "", "")
    template = environment.get_template("page.html.j2")
    return template.render(title=title, subtitle=subtitle, sections=sections, warnings=warnings)
