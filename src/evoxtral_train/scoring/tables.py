"""Evaluation reports as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence

_COLUMNS = (
    ("micro F1", ("micro", "f1")),
    ("micro P", ("micro", "precision")),
    ("micro R", ("micro", "recall")),
    ("macro F1", ("macro", "f1")),
    ("placed micro F1", ("placed", "micro", "f1")),
    ("card F1", ("card", "f1")),
    ("card P", ("card", "precision")),
    ("card R", ("card", "recall")),
    ("card halluc.", ("card", "hallucination")),
    ("false tags / untagged clip", ("false_tags_per_untagged_clip",)),
    ("tags / clip", ("tags_per_clip",)),
    ("WER", ("wer", "micro")),
    ("CER", ("cer", "micro")),
    ("emphasis F1", ("emphasis", "micro", "f1")),
)


def systems_table(systems: Mapping[str, dict]) -> str:
    """One line per system, value [95% interval]; columns that no system has are left out."""
    return markdown_table(*systems_rows(systems))


def systems_rows(systems: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `systems_table`."""
    columns = [(title, path) for title, path in _COLUMNS if any(_find(report, path) is not None for report in systems.values())]
    rows = [[name, *(interval(_find(report, path)) for _, path in columns)] for name, report in systems.items()]
    return ["system", *(title for title, _ in columns)], rows


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


def interval(measure: dict | None) -> str:
    """{"value": 0.7534, "low": 0.71, "high": 0.79} -> "0.753 [0.71, 0.79]"."""
    if measure is None or measure["value"] is None:
        return "—"
    if measure["low"] is None:
        return f"{measure['value']:.3f}"
    return f"{measure['value']:.3f} [{measure['low']:.2f}, {measure['high']:.2f}]"


def _find(report: dict, path: tuple[str, ...]) -> dict | None:
    for name in path:
        if name not in report:
            return None
        report = report[name]
    return report
