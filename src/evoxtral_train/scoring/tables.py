"""Evaluation reports as Markdown tables."""

from collections.abc import Mapping

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
)


def systems_table(systems: Mapping[str, dict]) -> str:
    """One line per system, value [95% interval]; columns that no system has are left out."""
    columns = [(title, path) for title, path in _COLUMNS if any(_find(report, path) is not None for report in systems.values())]
    lines = [
        "| system | " + " | ".join(title for title, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, report in systems.items():
        cells = (_cell(_find(report, path)) for _, path in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def per_tag_table(systems: Mapping[str, dict]) -> str:
    """One line per tag: its support, and for each system F1 (matched / predicted)."""
    tags = sorted({tag for report in systems.values() for tag in report["per_tag"]})
    lines = ["| tag | support | " + " | ".join(systems) + " |", "|---" * (len(systems) + 2) + "|"]
    for tag in tags:
        rows = [report["per_tag"].get(tag) for report in systems.values()]
        support = max((row["support"] for row in rows if row), default=0)
        cells = (f"{row['f1']:.2f} ({row['matched']}/{row['predicted']})" if row else "0.00 (0/0)" for row in rows)
        lines.append(f"| {tag} | {support} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _find(report: dict, path: tuple[str, ...]) -> dict | None:
    for name in path:
        if name not in report:
            return None
        report = report[name]
    return report


def _cell(measure: dict | None) -> str:
    if measure is None or measure["value"] is None:
        return "—"
    if measure["low"] is None:
        return f"{measure['value']:.3f}"
    return f"{measure['value']:.3f} [{measure['low']:.2f}, {measure['high']:.2f}]"
