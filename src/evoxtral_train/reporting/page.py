"""One HTML file that needs no other: text, tables, and pictures inside it."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined

_INTERVAL = re.compile(r"[+-]?[\d.]+ \[.+\]")


@dataclass(frozen=True)
class Table:
    """`rows`: cells as text, the first of each row is its name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Line:
    """A labelled line of text whose stretches are marked: (stretch, "same" | "missed" | "false")."""

    label: str
    stretches: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ClipView:
    """A clip to listen to, and side by side what was said and what each system wrote. `audio`: a FLAC file's bytes, or None
    where it is not there."""

    title: str
    reference: Line
    written: Sequence[Line]
    audio: bytes | None = None


@dataclass(frozen=True)
class Section:
    """A heading, and under it what there is of text, clips, a table, a list, and pictures (name -> PNG). Folded ones are at the
    page's end, their text beside the heading, and open with a click."""

    title: str
    text: str = ""
    points: Sequence[str] = ()
    table: Table | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)
    clips: Sequence[ClipView] = ()
    folded: bool = False


def render(title: str, subtitle: str, sections: Sequence[Section], warnings: Sequence[str] = ()) -> str:
    """The page's HTML; `warnings` stand above everything. What is in the data is escaped: a transcript cannot become markup."""
    loader = PackageLoader(__package__, "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_url"] = lambda content, kind: f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    environment.filters["width"] = lambda png: int.from_bytes(png[16:20]) // 2  # of its header; plots hold two pixels for each
    environment.filters["parts"] = lambda cell: cell.partition(" ") if _INTERVAL.fullmatch(cell) else (cell, "", "")
    template = environment.get_template("page.html.j2")
    return template.render(title=title, subtitle=subtitle, sections=sections, warnings=warnings)
