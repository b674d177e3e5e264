"""A diagnosis as a page and as last lines: what to do first, then the picture, then the numbers."""

from collections.abc import Mapping, Sequence
from textwrap import wrap

from ..plain_text import one_line
from ..scoring.diagnosis import ADVICE
from ..text.tags import format_tags
from . import plots
from .page import Section, Table, render
from .tables import aligned_table, short_interval

_WIDTH = 80


def page(title: str, subtitle: str, tags: Mapping[str, dict], systems: Sequence[str]) -> tuple[str, dict[str, bytes]]:
    """(the HTML, its pictures by file name). `tags`: tag -> its row in the metrics. `systems`: the adapters, the diagnosed one
    last."""
    picture = {"listeners": _picture(tags, systems)}
    sections = [
        Section("What to do", points=_advice(tags)),
        Section(
            "Who hears what",
            text="F1 of each tag with 95% intervals; in brackets: how many clips have it. The bar is what the adapter loses.",
            pictures=picture,
        ),
        Section("Tag by tag", text="F1 with 95% intervals.", table=Table(*_rows(tags, systems))),
    ]
    return render(title, subtitle, sections), picture


def last_lines(tags: Mapping[str, dict], systems: Sequence[str]) -> str:
    """The table, then the advice."""
    advice = [line for point in _advice(tags) for line in wrap(point, _WIDTH, subsequent_indent="  ")]
    return f"{aligned_table(*_rows(tags, systems))}\n\n" + "\n".join(advice)


def _grouped(tags: Mapping[str, dict]) -> dict[str, list[str]]:
    """verdict -> its tags, in the order of `ADVICE`; the adapter's weakest first."""
    ranked = sorted(tags, key=lambda tag: (tags[tag]["adapter"]["value"] or 0.0, tag))
    groups = {verdict: [tag for tag in ranked if tags[tag]["verdict"] == verdict] for verdict in ADVICE}
    return {verdict: names for verdict, names in groups.items() if names}


def _advice(tags: Mapping[str, dict]) -> list[str]:
    return [f"{verdict}: {format_tags(names)}. {ADVICE[verdict]}" for verdict, names in _grouped(tags).items()]


def _rows(tags: Mapping[str, dict], systems: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [tag, str(row["clips"]), *(short_interval(row["f1"][name]) for name in ("acoustics", "probe", *systems)), row["verdict"]]
        for names in _grouped(tags).values()
        for tag, row in ((tag, tags[tag]) for tag in names)
    ]
    return ["tag", "clips", "acoustics", "frozen audio", *systems, "lost by"], rows


def _picture(tags: Mapping[str, dict], systems: Sequence[str]) -> bytes:
    titles = {"acoustics": "acoustic features", "probe": "frozen audio", **{name: name for name in systems}}
    labels = {tag: f"{one_line(tag, 30)} ({row['clips']})" for tag, row in tags.items()}
    series = {title: {labels[tag]: _point(row["f1"][name]) for tag, row in tags.items() if row["f1"][name]["low"] is not None}
              for name, title in titles.items()}  # fmt: skip
    return plots.gaps({verdict: [labels[tag] for tag in names] for verdict, names in _grouped(tags).items()}, series, "F1")


def _point(measure: dict) -> tuple[float, float, float]:
    return measure["value"], measure["low"], measure["high"]
