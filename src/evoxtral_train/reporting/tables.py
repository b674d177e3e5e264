"""Evaluation reports as tables: Markdown for files, aligned columns for the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..plain_text import escape_markdown

_MEASURES = ("f1", "precision", "recall", "hallucination", "emphasis_f1", "wer", "cer")
_NAMES = {"f1": "F1", "emphasis_f1": "emphasis F1", "wer": "WER", "cer": "CER"}
_SHORT = {
    "micro F1": ("micro", "f1"),
    "precision": ("micro", "precision"),
    "recall": ("micro", "recall"),
    "false tags": ("false_tags_per_untagged_clip",),
    "WER": ("wer", "micro"),
}


def systems_table(systems: Mapping[str, dict]) -> str:
    """All measures: one line each, one column per system, value [95% interval]. Measures that no system has are left out."""
    header, rows = systems_rows(systems)
    return markdown_table(map(escape_markdown, header), rows)


def systems_rows(systems: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `systems_table`."""
    rows = [[title, *map(interval, _row(systems, path))] for title, path in _paths(systems) if any(_row(systems, path))]
    return ["measure", *systems], rows


def short_rows(systems: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one line per system with micro F1, precision and recall, false tags per untagged clip, and WER if words are
    written."""
    columns = [[title, *map(short_interval, _row(systems, path))] for title, path in _SHORT.items() if any(_row(systems, path))]
    header, *rows = zip(["system", *systems], *columns, strict=True)
    return list(header), [list(row) for row in rows]


def _paths(systems: Mapping[str, dict]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(title, path in a report) of every measure."""
    yield from _family_paths("micro", "macro")
    yield "false tags per untagged clip", ("false_tags_per_untagged_clip",)
    yield "tags per clip", ("tags_per_clip",)
    yield "WER", ("wer", "micro")
    yield "CER", ("cer", "micro")
    words = max((report["emphasis"]["reference_words"] for report in systems.values() if "emphasis" in report), default=0)
    yield f"emphasis F1 ({words:,} words)", ("emphasis", "micro", "f1")
    yield from _family_paths("placed micro", "placed macro", "card", "bench")


def _family_paths(*families: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for family in families:
        for measure in _MEASURES:
            yield f"{family} {_NAMES.get(measure, measure)}", (*family.split(), measure)


def _row(systems: Mapping[str, dict], path: tuple[str, ...]) -> list[dict | None]:
    """The measure of each system; None if its report lacks it."""
    return [_find(report, path) for report in systems.values()]


def per_tag_table(systems: Mapping[str, dict]) -> str:
    """One line per tag: its support, and for each system F1 (matched / predicted)."""
    header, rows = per_tag_rows(systems)
    return markdown_table(map(escape_markdown, header), [[escape_markdown(tag), *cells] for tag, *cells in rows])


def per_tag_rows(systems: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `per_tag_table`."""
    lines = []
    for tag in sorted({tag for report in systems.values() for tag in report["per_tag"]}):
        rows = [report["per_tag"].get(tag) for report in systems.values()]
        support = max((row["support"] for row in rows if row), default=0)
        cells = ("—" if row is None else f"{row['f1']:.2f} ({row['matched']}/{row['predicted']})" for row in rows)
        lines.append([tag, str(support), *cells])
    return ["tag", "support", *systems], lines


def markdown_table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown: pass names from data through `plain_text.markdown` first."""
    header = list(header)
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal, two spaces between them.

    >>> print(aligned_table(["system", "F1"], [["a", "0.50"]]))
    system  F1
    a       0.50
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)


def interval(measure: dict | None) -> str:
    """{"value": 0.7534, "low": 0.71, "high": 0.79} -> "0.753 [0.71, 0.79]"."""
    if measure is None or measure["value"] is None:
        return "—"
    if measure["low"] is None:
        return f"{measure['value']:.3f}"
    return f"{measure['value']:.3f} [{measure['low']:.2f}, {measure['high']:.2f}]"


def short_interval(measure: dict | None) -> str:
    """{"value": 0.7534, "low": 0.71, "high": 0.79} -> "0.75 [0.71–0.79]": four fit beside a name in 80 columns."""
    if measure is None or measure["value"] is None:
        return "—"
    if measure["low"] is None:
        return f"{measure['value']:.2f}"
    return f"{measure['value']:.2f} [{measure['low']:.2f}–{measure['high']:.2f}]"


def _find(report: dict, path: tuple[str, ...]) -> dict | None:
    for name in path:
        if name not in report:
            return None
        report = report[name]
    return report
