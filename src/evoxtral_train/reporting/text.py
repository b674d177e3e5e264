"""An evaluation as text: a command's last lines, and the full report in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from .results import Evaluation, drawn_clips, how_drawn, sentences, units
from .tables import aligned_table, per_tag_table, short_rows, systems_table

_WIDTH = 80


def last_lines(evaluation: Evaluation, files: Sequence[Path]) -> str:
    """The last lines of `eval` and `compare`: clips as said → written, the short table, a sentence for each comparison, failed
    gates, and the paths of the rest. `files`: what was written, the page last."""
    untagged = evaluation.reports[evaluation.final]["clips_without_reference_tags"]
    note = f"95% intervals over {units(evaluation)}. False tags: mean per untagged clip (n = {untagged})."
    parts = [
        "\n".join([f"said → written by {evaluation.final} ({how_drawn(evaluation)})", *_clips(evaluation)]),
        f"{aligned_table(*short_rows(evaluation.in_short))}\n{note}",
        "\n".join(line for text in sentences(evaluation.comparisons) for line in wrap(text, _WIDTH, subsequent_indent="  ")),
        "\n".join(f"NOT PASSED: {gate}" for gate in evaluation.gates_not_passed),
        _where(files),
    ]
    return "\n\n".join(part for part in parts if part)


def markdown(evaluation: Evaluation) -> str:
    """All measures of all systems, the comparisons, and each tag."""
    points = "\n".join(f"- {text}" for text in sentences(evaluation.comparisons))
    note = f"Values with 95% intervals over {units(evaluation)}; docs/evaluation.md defines each measure."
    all_measures, per_tag = systems_table(evaluation.reports), per_tag_table(evaluation.reports)
    parts = [all_measures, note, points, "F1 (matched / predicted) of each tag:", per_tag]
    return "\n\n".join(part for part in parts if part) + "\n"


def _clips(evaluation: Evaluation) -> list[str]:
    """What was said and what was written, per clip, each cut to two lines."""
    lines = []
    for row in drawn_clips(evaluation):
        lines += _cut(row.reference, "  ") + _cut(row.prediction or "(nothing)", "  → ")
    return lines


def _cut(text: str, indent: str) -> list[str]:
    return wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), max_lines=2, placeholder=" …")


def _where(files: Sequence[Path]) -> str:
    if not files:
        return "`--output NAME` writes all measures and a page with audio."
    *others, page = files
    return f"All measures: {', '.join(map(str, others))}\nOpen in a browser: {page}"
