"""Tags of a reference and a prediction compared as multisets, ignoring position."""

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
        reference_counts, predicted_counts = Counter(reference), Counter(predicted)
        return cls(reference_counts, predicted_counts, reference_counts & predicted_counts)


def f1(counts: TagCounts) -> float:
    """2 × matched / (reference + predicted); 1 if both are empty."""
    size = counts.reference.total() + counts.predicted.total()
    return 2 * counts.matched.total() / size if size else 1.0
