"""Batches filled by tokens, not by count: what a padded batch costs is its rows times its longest row."""

from collections.abc import Sequence


def leading_batch(lengths: Sequence[int], budget_tokens: int) -> int:
    """How many of the first `lengths` fit into one padded batch of `budget_tokens`; at least one.

    >>> leading_batch([3, 5, 4], budget_tokens=10)
    2
    """
    longest = 0
    for count, length in enumerate(lengths):
        longest = max(longest, length)
        if count and longest * (count + 1) > budget_tokens:
            return count
    return len(lengths)
