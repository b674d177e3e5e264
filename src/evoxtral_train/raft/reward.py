"""Rule-based rewards: a weighted sum of named components, each a pure function of one candidate.

`card` is the published reward (Evoxtral-Realtime model card; see `published`) and never changes:

    0.4 × max(0, 1 − WER) + 0.4 × tag F1 + 0.2 × (1 − hallucination rate)

If the target has only tags, the candidate has no words: WER is 1 and its term is always 0, as the card
says of the published adapter. Because its terms are rates, extra tags are cheap: a third false tag costs less
than the first, and on a clip with many tags almost nothing.

`counts` is ours. It charges a fixed price for each false, missing and misplaced tag, and ignores
words if the target has none:

    tag F1 − 0.2 × extra − 0.1 × missing − 0.1 × misplaced (+ 0.4 × (1 − min(WER, 1)))

Both read the clip's reference. `verifier` does not: see that module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..config.sections import Placement
from ..scoring import published, tag_counts
from ..scoring.placement import placed_counts, time_places, word_places
from ..scoring.tag_counts import TagCounts
from ..scoring.word_errors import count_word_errors
from ..text.tags import find_tags


@dataclass(frozen=True)
class Answer:
    """A candidate and its clip's full tagged transcript. `with_words`: whether the target has words. If times are known, `events`
    are the reference's tags {tag, start_s, end_s} and `written` the candidate's {tag, at_s}. `placement`: how far a tag may be
    from its place."""

    reference: str
    candidate: str
    with_words: bool
    events: list[dict] | None = None
    written: list[dict] | None = None
    placement: Placement = Placement()

    @property
    def counts(self) -> TagCounts:
        return TagCounts.of(find_tags(self.reference), find_tags(self.candidate))


def published_word_accuracy(answer: Answer) -> float:
    """max(0, 1 − WER) by `published`; 1 if the reference has no words."""
    return published.word_accuracy(answer.reference, answer.candidate)


def published_tag_f1(answer: Answer) -> float:
    """F1 of the clip's tags by `published.card`."""
    return published.card(answer.reference, answer.candidate)["f1"]


def published_faithfulness(answer: Answer) -> float:
    """1 − the share of written tags whose name is not among the reference's; 1 if no tag was written."""
    return 1.0 - published.hallucination(answer.reference, answer.candidate)


def word_accuracy(answer: Answer) -> float:
    """1 − min(WER, 1) of the normalised words, tags stripped; 1 if neither has a word."""
    return 1.0 - min(count_word_errors(answer.reference, answer.candidate).rate, 1.0)


def tag_f1(answer: Answer) -> float:
    """2 × matched / (reference + predicted) of the tags as multisets; 1 if neither has a tag."""
    return tag_counts.f1(answer.counts)


def extra_tags(answer: Answer) -> float:
    """predicted − matched: the number of false tags. A count, not a rate."""
    return float(answer.counts.predicted.total() - answer.counts.matched.total())


def missing_tags(answer: Answer) -> float:
    """reference − matched: the number of missed tags."""
    return float(answer.counts.reference.total() - answer.counts.matched.total())


def misplaced_tags(answer: Answer) -> float:
    """matched − matched in place: the number of right tags in the wrong place, or without a place. In seconds if times are known,
    else in words; 0 if the target has neither, because then places are unknown."""
    if answer.events is not None and answer.written is not None:
        placed = placed_counts(*time_places(answer.events, answer.written), answer.placement.tolerance_s)
    elif answer.with_words:
        placed = placed_counts(*word_places(answer.reference, answer.candidate), answer.placement.tolerance_words)
    else:
        return 0.0
    return float(max(answer.counts.matched.total() - placed.matched.total(), 0))


COMPONENTS: dict[str, Callable[[Answer], float]] = {
    component.__name__: component
    for component in (
        published_word_accuracy, published_tag_f1, published_faithfulness,
        word_accuracy, tag_f1, extra_tags, missing_tags, misplaced_tags,
    )
}  # fmt: skip
PROFILES: dict[str, dict[str, float]] = {
    "card": {"published_word_accuracy": 0.4, "published_tag_f1": 0.4, "published_faithfulness": 0.2},
    "counts": {"word_accuracy": 0.4, "tag_f1": 1.0, "extra_tags": -0.2, "missing_tags": -0.1, "misplaced_tags": -0.1},
}


def weights_of(profile: str, target: str, changed: dict[str, float] | None = None) -> dict[str, float]:
    """The weights of a profile for a target, overridden by `changed`; weight 0 removes a component."""
    weights = PROFILES[profile] | (changed or {})
    if target == "tags" and profile != "card":
        weights.pop("word_accuracy", None)  # a constant: the candidate has no words
    return {name: weight for name, weight in weights.items() if weight}


def score(weights: dict[str, float], answer: Answer) -> tuple[float, dict[str, float]]:
    """(reward, components by name)."""
    return weighted_sum(weights, {name: COMPONENTS[name](answer) for name in weights})


def weighted_sum(weights: Mapping[str, float], components: dict[str, float]) -> tuple[float, dict[str, float]]:
    """(the reward, rounded so that equal rewards are equal, and the components)."""
    return round(sum(weight * components[name] for name, weight in weights.items()), 10), components


def formula(weights: dict[str, float]) -> str:
    """{"tag_f1": 1, "extra_tags": -0.2} -> "1 × tag_f1 − 0.2 × extra_tags"."""
    terms = [f"{'−' if weight < 0 else '+'} {abs(weight):g} × {name}" for name, weight in weights.items()]
    return " ".join(terms).removeprefix("+ ")
