"""An evaluation as text: a command's last lines, and the whole of it as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from .results import Evaluation, drawn_clips, how_drawn, sentences, units
from .tables import aligned_table, per_tag_table, short_rows, systems_table

_WIDTH = 80


def last_lines(found: Evaluation, files: Sequence[Path]) -> str:
    """What `eval` and `compare` end with: clips as said → written, the short table, a sentence for each comparison, gates
    that were not passed, and where the rest is. `files`: what was written, the page last."""
    untagged = found.reports[found.final]["clips_without_reference_tags"]
    note = f"95% intervals over {units(found)}. False tags: per untagged clip, of which there are {untagged}."
    parts = [
        "\n".join([f"said → written by {found.final} ({how_drawn(found)})", *_clips(found)]),
        f"{aligned_table(*short_rows(found.in_short))}\n{note}",
        "\n".join(line for each in sentences(found.comparisons) for line in wrap(each, _WIDTH, subsequent_indent="  ")),
        "\n".join(f"NOT PASSED: {gate}" for gate in found.gates_not_passed),
        _where(files),
    ]
    return "\n\n".join(part for part in parts if part)


def markdown(found: Evaluation) -> str:
    """Every measure of every system, the comparisons, and each tag."""
    points = "\n".join(f"- {each}" for each in sentences(found.comparisons))
    note = f"Values with 95% intervals over {units(found)}; docs/evaluation.md defines each measure."
    parts = [systems_table(found.reports), note, points, "F1 (matched / predicted) of each tag:", per_tag_table(found.reports)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _clips(found: Evaluation) -> list[str]:
    """Two lines for each clip, both cut where they do not fit."""
    lines = []
    for row in drawn_clips(found):
        lines += _cut(row.reference, "  ") + _cut(row.prediction or "(nothing)", "  → ")
    return lines


def _cut(text: str, indent: str) -> list[str]:
    return wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), max_lines=2, placeholder=" …")


def _where(files: Sequence[Path]) -> str:
    if not files:
        return "`--output NAME` writes every measure and a page to listen to."
    *others, page = files
    return f"Every measure: {', '.join(map(str, others))}\nTo look at and listen to: {page}"
