"""The confusion matrix of tags: what was written instead of what.

Tags are not aligned, so within a clip missed and false tags are paired evenly. If a clip misses [sighs] and [pause] and has
a false [gasps], each of the two was confused with it by one half, and the other half of each has nothing in its place. Rows
sum to how often a tag is in the references, columns to how often it was written.

    reference [sighs] [pause] [laughs], prediction [gasps] [laughs]
                 gasps   laughs   nothing
    laughs         0       1         0
    pause         0.5      0        0.5
    sighs         0.5      0        0.5
"""

from collections import Counter
from collections.abc import Sequence

from ..records import Prediction
from ..text.tags import find_tags
from ..text.taxonomy import Taxonomy
from .tag_counts import TagCounts

NOTHING = "nothing"


def confusion(rows: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """reference tag (or "nothing") -> predicted tag (or "nothing") -> how often."""
    cells: dict[tuple[str, str], float] = Counter()
    for row in rows:
        counts = TagCounts.of(find_tags(row.reference), find_tags(row.prediction))
        for tag, number in counts.matched.items():
            cells[tag, tag] += number
        missed, false = counts.reference - counts.matched, counts.predicted - counts.matched
        misses, falses = missed.total(), false.total()
        pairs = min(misses, falses)
        for tag, number in missed.items():
            for other, times in false.items():
                cells[tag, other] += pairs * number * times / (misses * falses)
            cells[tag, NOTHING] += number * (misses - pairs) / misses
        for other, times in false.items():
            cells[NOTHING, other] += times * (falses - pairs) / falses
    table: dict[str, dict[str, float]] = {}
    for (tag, other), value in sorted(cells.items()):
        if value:
            table.setdefault(tag, {})[other] = value
    return table


def by_group(table: dict[str, dict[str, float]], taxonomy: Taxonomy) -> dict[str, dict[str, float]]:
    """The same between groups of tags; tags outside the taxonomy form the group "other"."""

    def group(tag: str) -> str:
        return NOTHING if tag == NOTHING else taxonomy.groups.get(tag, "other")

    groups: dict[str, dict[str, float]] = {}
    for tag, row in table.items():
        for other, value in row.items():
            line = groups.setdefault(group(tag), {})
            line[group(other)] = line.get(group(other), 0.0) + value
    return groups


def shares(table: dict[str, dict[str, float]], taxonomy: Taxonomy) -> dict[str, float]:
    """Shares of the reference tags: right, confused within the group, confused with another group, or missed."""
    counts = dict.fromkeys(("right", "same_group", "other_group", "missed"), 0.0)
    for tag, row in table.items():
        if tag == NOTHING:
            continue
        for other, value in row.items():
            if other == tag:
                counts["right"] += value
            elif other == NOTHING:
                counts["missed"] += value
            elif taxonomy.groups.get(tag, "other") == taxonomy.groups.get(other, "other"):
                counts["same_group"] += value
            else:
                counts["other_group"] += value
    total = sum(counts.values())
    return {name: value / total for name, value in counts.items()} if total else {}


def errors(table: dict[str, dict[str, float]]) -> list[tuple[str, str, float]]:
    """(reference tag, predicted tag, how often), the most frequent first; one of the two may be "nothing"."""
    wrong = ((tag, other, value) for tag, row in table.items() for other, value in row.items() if other != tag)
    return sorted(wrong, key=lambda error: (-error[2], error))
