"""Evaluation reports as tables: Markdown for files, aligned columns for the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

_FAMILIES = ("micro", "macro", "card", "bench", "placed micro", "placed macro")
_MEASURES = ("f1", "precision", "recall", "hallucination", "emphasis_f1", "wer", "cer")
_NAMES = {"f1": "F1", "emphasis_f1": "emphasis F1", "wer": "WER", "cer": "CER"}
_SHORT = {
    "micro F1": ("micro", "f1"),
    "precision": ("micro", "precision"),
    "recall": ("micro", "recall"),
    "false tags": ("false_tags_per_untagged_clip",),
}


def systems_table(systems: Mapping[str, dict]) -> str:
    """Every measure: one line each, one column per system, value [95% interval]; measures that no system has are left out."""
    return markdown_table(*systems_rows(systems))


def systems_rows(systems: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `systems_table`."""
    rows = []
    for title, path in _paths(systems):
        measures = [_find(report, path) for report in systems.values()]
        if any(measure is not None for measure in measures):
            rows.append([title, *map(interval, measures)])
    return ["measure", *systems], rows


def _paths(systems: Mapping[str, dict]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(title, where it stands in a report) of every measure. The emphasised words are the reference's, so any report's."""
    for family in _FAMILIES:
        for measure in _MEASURES:
            yield f"{family} {_NAMES.get(measure, measure)}", (*family.split(), measure)
    yield "false tags per untagged clip", ("false_tags_per_untagged_clip",)
    yield "tags per clip", ("tags_per_clip",)
    yield "WER", ("wer", "micro")
    yield "CER", ("cer", "micro")
    emphasised = max((report["emphasis"]["reference_words"] for report in systems.values() if "emphasis" in report), default=0)
    yield f"emphasis F1 ({emphasised:,} emphasised words)", ("emphasis", "micro", "f1")


def short_rows(systems: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one line per system with what matters most: micro F1, its precision and recall, and false tags per
    untagged clip."""
    rows = [[name, *(short_interval(_find(report, path)) for path in _SHORT.values())] for name, report in systems.items()]
    return ["system", *_SHORT], rows


def per_tag_table(systems: Mapping[str, dict]) -> str:
    """One line per tag: its support, and for each system F1 (matched / predicted)."""
    return markdown_table(*per_tag_rows(systems))


def per_tag_rows(systems: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `per_tag_table`."""
    lines = []
    for tag in sorted({tag for report in systems.values() for tag in report["per_tag"]}):
        rows = [report["per_tag"].get(tag) for report in systems.values()]
        support = max((row["support"] for row in rows if row), default=0)
        cells = (f"{row['f1']:.2f} ({row['matched']}/{row['predicted']})" if row else "0.00 (0/0)" for row in rows)
        lines.append([tag, str(support), *cells])
    return ["tag", "support", *systems], lines


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
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
    """{"value": 0.7534, "low": 0.71, "high": 0.79} -> "0.75 [0.71–0.79]": four of them fit beside a name in 80 columns."""
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
