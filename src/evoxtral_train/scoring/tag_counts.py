"""Tags of a reference and a prediction, compared as multisets, without position."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TagCounts:
    """Of one clip: tags in the reference, tags predicted, and tags in both (as multisets)."""

    reference: Counter
    predicted: Counter
    matched: Counter

    @classmethod
    def of(cls, reference: Sequence[str], predicted: Sequence[str]) -> "TagCounts":
        """["sighs", "sighs"] against ["sighs", "pause"] -> 2, 2, 1."""
        wanted, got = Counter(reference), Counter(predicted)
        return cls(wanted, got, wanted & got)


def f1(counts: TagCounts) -> float:
    """2 × matched / (reference + predicted); 1 when both are empty."""
    size = counts.reference.total() + counts.predicted.total()
    return 2 * counts.matched.total() / size if size else 1.0
