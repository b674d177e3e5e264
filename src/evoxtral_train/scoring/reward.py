"""Rewards by rule. A profile is a weighted sum of named components, each between 0 and 1.

`card` is the published one (Evoxtral-Realtime model card) and never changes:

    0.4 × (1 − min(WER, 1)) + 0.4 × tag F1 + 0.2 × (1 − hallucination rate)

Reference is the clip's whole tagged transcript. For a target of tags alone the candidate holds no
words, so WER is 1 and its term the constant 0, as the card says of the published adapter.
"""

from collections.abc import Callable

from ..text.tags import find_tags
from . import tag_counts
from .tag_counts import TagCounts
from .word_errors import count_word_errors


def word_accuracy(reference: str, candidate: str) -> float:
    """1 − min(WER, 1) of the words, tags stripped; 1 when neither holds a word."""
    return 1.0 - min(count_word_errors(reference, candidate).rate, 1.0)


def tag_f1(reference: str, candidate: str) -> float:
    """F1 of the tags as multisets; 1 when neither holds a tag."""
    return tag_counts.f1(_counts(reference, candidate))


def tag_faithfulness(reference: str, candidate: str) -> float:
    """1 − hallucination rate: the share of written tags that the reference holds; 1 when none was written."""
    return 1.0 - tag_counts.hallucination(_counts(reference, candidate))


PROFILES: dict[str, list[tuple[str, float, Callable[[str, str], float]]]] = {
    "card": [
        ("word_accuracy", 0.4, word_accuracy),
        ("tag_f1", 0.4, tag_f1),
        ("tag_faithfulness", 0.2, tag_faithfulness),
    ],
}


def score(profile: str, reference: str, candidate: str) -> tuple[float, dict[str, float]]:
    """(reward, components by name) of one candidate against the tagged reference."""
    components = {name: component(reference, candidate) for name, _, component in PROFILES[profile]}
    reward = sum(weight * components[name] for name, weight, _ in PROFILES[profile])
    return round(reward, 10), components


def _counts(reference: str, candidate: str) -> TagCounts:
    return TagCounts.of(find_tags(reference), find_tags(candidate))
