"""A diagnosis as a page and as last lines: what to do first, then the picture, then the numbers."""

from collections.abc import Mapping
from textwrap import wrap

from ..plain_text import one_line
from ..scoring.diagnosis import ADVICE
from ..text.tags import format_tags
from . import plots
from .page import Section, Table, render
from .tables import aligned_table, short_interval

ACOUSTICS, PROBE = "acoustic features", "frozen audio"
"""The names of the two probes among the listeners; the others are adapters."""
_WIDTH = 80


def page(title: str, subtitle: str, tags: Mapping[str, dict]) -> tuple[str, dict[str, bytes]]:
    """(the HTML, its pictures by file name). `tags`: tag -> as `diagnose` gives it."""
    picture = {"listeners": _picture(tags)}
    sections = [
        Section("What to do", points=_advice(tags)),
        Section(
            "Who hears what",
            text="F1 of each tag with 95% intervals; in brackets: how many clips have it. The bar is what the adapter loses.",
            pictures=picture,
        ),
        Section("Tag by tag", text="F1 with 95% intervals.", table=Table(*_rows(tags))),
    ]
    return render(title, subtitle, sections), picture


def last_lines(tags: Mapping[str, dict]) -> str:
    """The table, then the advice."""
    advice = [line for point in _advice(tags) for line in wrap(point, _WIDTH, subsequent_indent="  ")]
    return f"{aligned_table(*_rows(tags))}\n\n" + "\n".join(advice)


def _grouped(tags: Mapping[str, dict]) -> dict[str, list[str]]:
    """verdict -> its tags, in the order of `ADVICE`; the adapter's weakest first."""
    ranked = sorted(tags, key=lambda tag: (_adapter(tags[tag])["value"] or 0.0, tag))
    groups = {verdict: [tag for tag in ranked if tags[tag]["verdict"] == verdict] for verdict in ADVICE}
    return {verdict: names for verdict, names in groups.items() if names}


def _advice(tags: Mapping[str, dict]) -> list[str]:
    return [f"{verdict}: {format_tags(names)}. {ADVICE[verdict]}" for verdict, names in _grouped(tags).items()]


def _adapter(row: dict) -> dict:
    """The F1 of the diagnosed adapter."""
    return list(row["f1"].values())[-1]


def _rows(tags: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [tag, str(tags[tag]["clips"]), *map(short_interval, tags[tag]["f1"].values()), verdict]
        for verdict, names in _grouped(tags).items()
        for tag in names
    ]
    return ["tag", "clips", *next(iter(tags.values()))["f1"], "verdict"], rows


def _picture(tags: Mapping[str, dict]) -> bytes:
    labels = {tag: f"{one_line(tag, 30)} ({row['clips']})" for tag, row in tags.items()}
    series: dict[str, dict] = {}
    for tag, row in tags.items():
        for name, measure in row["f1"].items():
            if measure["low"] is not None:
                series.setdefault(name, {})[labels[tag]] = _point(measure)
    groups = {verdict: [labels[tag] for tag in names] for verdict, names in _grouped(tags).items()}
    return plots.gaps(groups, series, (PROBE, list(next(iter(tags.values()))["f1"])[-1]), "F1")


def _point(measure: dict) -> tuple[float, float, float]:
    return measure["value"], measure["low"], measure["high"]
