"""A reward that reads no reference: profile `counts` in expectation, under a detector's probability for each tag, compared with
the best that the detector would accept on the clip.

    E[tag F1] − 0.2 × E[extra] − 0.1 × E[missing] − attainable (+ 0.4 × word agreement)

0 is what the detector itself would write. Without the last term, the clips on which the detector is unsure would have the lowest
rewards and be dropped, and with them the tags that are hard to hear.

The detector says how probable each tag is on the clip; tags count as independent, and a clip has each at most once. Probabilities
enter linearly, so 0.9999 is worth no more than 0.99: an overconfident detector gains nothing. A tag that the detector does
not know is neither rewarded nor punished, but a second copy of any tag is one tag too many.

Words have no detector. If the target has some, a candidate is compared with the clip's other candidates: what most of them say
is more often right, and a candidate that drops or invents words stands alone (minimum Bayes risk, Goel and Byrne 2000).

docs/raft-without-labels.md compares this rule with others.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from statistics import fmean

from ..scoring.word_errors import count_word_errors
from ..text.tags import find_tags, format_tags
from .reward import PROFILES, weighted_sum

PROFILE = "verifier"


@dataclass(frozen=True)
class Unreferenced:
    """A candidate of a clip without a reference. `probabilities`: of the tags that the detector knows. `others`: the texts of the
    clip's other candidates."""

    candidate: str
    probabilities: Mapping[str, float]
    others: Sequence[str] = ()

    @cached_property
    def judged(self) -> list[str]:
        """The written tags that the detector knows, each once."""
        return [tag for tag in dict.fromkeys(find_tags(self.candidate)) if tag in self.probabilities]

    @cached_property
    def copies(self) -> int:
        """How many written tags repeat an earlier one."""
        tags = Counter(find_tags(self.candidate))
        return tags.total() - len(tags)


def expected_tag_f1(answer: Unreferenced) -> float:
    """The mean of 2 × matched / (clip's tags + written tags) over all sets of tags that the clip may have; 1 where both are
    empty. Between 0 and 1."""
    written = len(answer.judged) + answer.copies
    if not written:
        return prod(1 - probability for probability in answer.probabilities.values())
    expected = 0.0
    for tag in answer.judged:
        others = count_probabilities(value for name, value in answer.probabilities.items() if name != tag)
        mean = sum(chance * 2 / (written + 1 + count) for count, chance in enumerate(others))
        expected += answer.probabilities[tag] * mean
    return expected


def expected_extra_tags(answer: Unreferenced) -> float:
    """The expected number of false tags: the sum of 1 − p over the written tags, and 1 for each copy."""
    return sum(1 - answer.probabilities[tag] for tag in answer.judged) + answer.copies


def expected_missing_tags(answer: Unreferenced) -> float:
    """The expected number of missed tags: the sum of p over the tags that are not written."""
    return sum(value for tag, value in answer.probabilities.items() if tag not in answer.judged)


def attainable(answer: Unreferenced) -> float:
    """The highest value of the three terms above for any set of tags: that of the k most probable, for some k (swapping a tag
    for a more probable one never costs)."""
    return _attainable(tuple(sorted(answer.probabilities.items(), key=lambda pair: (-pair[1], pair[0]))))


@lru_cache(maxsize=1)  # the candidates of a clip come together
def _attainable(ranked: tuple[tuple[str, float], ...]) -> float:
    likely = sum(probability >= _NEVER_WORTH for _, probability in ranked)
    answers = (Unreferenced(format_tags([tag for tag, _ in ranked[:count]]), dict(ranked)) for count in range(likely + 1))
    return max(sum(_WEIGHTS[term.__name__] * term(answer) for term in _TERMS) for answer in answers)


def word_agreement(answer: Unreferenced) -> float:
    """The mean over the other candidates of 1 − min(WER, 1), each taken as the reference; 1 if there are none."""
    if not answer.others:
        return 1.0
    return fmean(1.0 - min(count_word_errors(other, answer.candidate).rate, 1.0) for other in answer.others)


def count_probabilities(probabilities: Iterable[float]) -> list[float]:
    """How probable it is that 0, 1, 2 … of some independent events happen (the Poisson binomial distribution).

    >>> count_probabilities([0.5, 0.5])
    [0.25, 0.5, 0.25]
    """
    chances = [1.0]
    for probability in probabilities:
        without, with_it = [chance * (1 - probability) for chance in chances], [chance * probability for chance in chances]
        chances = [one + other for one, other in zip([*without, 0.0], [0.0, *with_it], strict=True)]
    return chances


_TERMS = (expected_tag_f1, expected_extra_tags, expected_missing_tags)
COMPONENTS: dict[str, Callable[[Unreferenced], float]] = {
    component.__name__: component for component in (*_TERMS, attainable, word_agreement)
}
_COUNTS = PROFILES["counts"]
_WEIGHTS = {
    "expected_tag_f1": _COUNTS["tag_f1"], "expected_extra_tags": _COUNTS["extra_tags"],
    "expected_missing_tags": _COUNTS["missing_tags"], "attainable": -1.0, "word_agreement": _COUNTS["word_accuracy"],
}  # fmt: skip
# Writing a tag of probability p gains at most p + 0.2 p − 0.2 + 0.1 p: nothing below 0.154.
_NEVER_WORTH = -_COUNTS["extra_tags"] / (_COUNTS["tag_f1"] - _COUNTS["extra_tags"] - _COUNTS["missing_tags"])


def weights_of(target: str) -> dict[str, float]:
    """Those of profile `counts`, and −1 for `attainable`. A target without words has no term for them."""
    return {name: weight for name, weight in _WEIGHTS.items() if target != "tags" or name != "word_agreement"}


def score(weights: Mapping[str, float], answer: Unreferenced) -> tuple[float, dict[str, float]]:
    """(reward, components by name)."""
    return weighted_sum(weights, {name: COMPONENTS[name](answer) for name in weights})
