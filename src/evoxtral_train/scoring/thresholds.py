"""Fit the confidence that a tag needs to be kept, on clips that the adapter was not trained on.

The aim is the highest micro F1, on request with at most so many false tags per untagged clip. Micro F1 is a ratio of sums over
tags, so with λ the F1 reached so far, each tag can maximize 2 × matched − λ × kept on its own, until λ rises no more (Dinkelbach
1967). A limit on false tags is a budget that the tags share, a knapsack in whole false tags.

What fits these clips best need not fit others: a tag that was written eight times says little about its own threshold. So

- each tag's curve is mixed with that of all tags, counted as `shared` tags written: rare tags follow all, frequent ones
  themselves. With infinitely many there is one threshold for all;
- cross-validation chooses `shared`. There is one threshold for all, unless own thresholds gain more than a standard error on the
  clips left out, or no threshold does;
- a threshold is the middle of the range that keeps the same tags, not its edge.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..records import Prediction
from ..text.tags import find_tags
from .calibration import filtered
from .metrics import Sums, sums
from .tag_filter import NEVER, TagFilter, Thresholds

NONE, ONE = None, math.inf
CANDIDATES = (NONE, ONE, 80, 40, 20)
"""How many written tags the curve of all tags counts as, from the simplest on: no threshold, one for all, own ones."""
FOLDS, REPEATS = 5, 4
_MOST_STEPS = 20


@dataclass(frozen=True)
class Fitted:
    """`shared`: which of `CANDIDATES` was chosen. `before`, `after`, `held_out`: as `measure` gives them; in `held_out` each clip
    is filtered with thresholds that were fitted without it."""

    thresholds: Thresholds
    shared: float | None
    before: dict[str, float | None]
    after: dict[str, float | None]
    held_out: dict[str, float | None]


@dataclass(frozen=True)
class _Curves:
    """What each cut keeps. `cuts` [cuts]: rising thresholds; the first keeps all, the last nothing. `right`, `kept` and `false`
    [tags, cuts]: the kept tags that are right, all that are kept, and those in clips without reference tags."""

    tags: list[str]
    cuts: np.ndarray
    right: np.ndarray
    kept: np.ndarray
    false: np.ndarray
    references: int
    untagged: int


def fit(rows: Sequence[Prediction], false_tags_max: float | None = None, seed: int = 0) -> Fitted:
    """The thresholds with the highest micro F1 on other clips of this kind. `false_tags_max`: at most so many false tags per
    untagged clip of `rows`; None: no limit. `seed`: of the folds.

    Raises ValueError if there are fewer clips than folds, no reference tags, a limit but no untagged clip, or no confidences."""
    if len(rows) < FOLDS:
        raise ValueError(f"{len(rows)} clips are too few for {FOLDS}-fold cross-validation")
    if any(row.confidences is None for row in rows):
        raise ValueError("these predictions have no confidences")
    before = measure(rows)
    if before["micro_recall"] is None:
        raise ValueError("no clip has a reference tag")
    if false_tags_max is not None and before["false_tags_per_untagged_clip"] is None:
        raise ValueError("every clip has reference tags, so false tags per untagged clip cannot be limited")
    held_out = {shared: _held_out(rows, shared, false_tags_max, seed) for shared in CANDIDATES}
    shared = _choose_candidate(held_out, false_tags_max)
    thresholds = fit_shared(rows, shared, false_tags_max)
    after = measure([filtered(row, TagFilter(thresholds=thresholds)) for row in rows])
    return Fitted(thresholds, shared, before, after, measure(held_out[shared]))


def measure(rows: Sequence[Prediction]) -> dict[str, float | None]:
    """{micro_f1, micro_precision, micro_recall, false_tags_per_untagged_clip}; None where undefined."""
    totals = sums(rows, with_words=False)
    wrong = totals.pop("hallucination")
    totals["micro_precision"] = Sums(wrong.below - wrong.above, wrong.below)
    names = ("micro_f1", "micro_precision", "micro_recall", "false_tags_per_untagged_clip")
    return {name: _ratio(totals[name]) for name in names}


def _ratio(measure: Sums) -> float | None:
    return float(measure.above.sum() / measure.below.sum()) if measure.below.sum() else None


def _held_out(rows: Sequence[Prediction], shared: float | None, false_tags_max: float | None, seed: int) -> list[Prediction]:
    """Every clip `REPEATS` times, each time filtered with thresholds that were fitted without it."""
    random, kept = np.random.default_rng(seed), []
    for _ in range(REPEATS):
        fold_of = random.permutation(len(rows)) % FOLDS
        for fold in range(FOLDS):
            thresholds = fit_shared([row for row, own in zip(rows, fold_of, strict=True) if own != fold], shared, false_tags_max)
            left_out = (row for row, own in zip(rows, fold_of, strict=True) if own == fold)
            kept += [filtered(row, TagFilter(thresholds=thresholds)) for row in left_out]
    return kept


def _choose_candidate(held_out: dict[float | None, list[Prediction]], false_tags_max: float | None) -> float | None:
    """One threshold for all, unless none or own ones are better by more than a standard error; of own ones, the best."""
    false_tags = {shared: measure(rows)["false_tags_per_untagged_clip"] or 0.0 for shared, rows in held_out.items()}
    most = math.inf if false_tags_max is None else false_tags_max
    loss, error = _gain(held_out[ONE], held_out[NONE])
    if loss > error and false_tags[NONE] <= most:
        return NONE
    chosen, best = ONE, 0.0
    for shared in CANDIDATES[2:]:
        gain, error = _gain(held_out[ONE], held_out[shared])
        if gain > max(error, best) and false_tags[shared] <= max(most, false_tags[ONE]):
            chosen, best = shared, gain
    return chosen


def _gain(before: Sequence[Prediction], after: Sequence[Prediction]) -> tuple[float, float]:
    """The difference in micro F1, and its standard error over clips (the linearized ratio's)."""
    first, second = (sums(rows, with_words=False)["micro_f1"] for rows in (before, after))
    base, size = first.above.sum() / first.below.sum(), second.below.sum()
    of_clip: Counter[str] = Counter()
    for row, share in zip(after, second.above - first.above - base * (second.below - first.below), strict=True):
        of_clip[row.id] += share
    shares = np.array(list(of_clip.values()))
    return float(shares.sum() / size), float(math.sqrt(len(shares)) * shares.std() / size)


def fit_shared(rows: Sequence[Prediction], shared: float | None, false_tags_max: float | None = None) -> Thresholds:
    """The thresholds that fit these predictions best, with one of `CANDIDATES`."""
    curves = _curves_of(rows)
    if shared is NONE or not curves.tags:
        return Thresholds()
    budget = math.inf if false_tags_max is None else math.floor(false_tags_max * curves.untagged + 1e-9)
    one, f1 = _one_for_all(curves, budget)
    if shared == ONE:
        return Thresholds(one)
    weight = shared / curves.kept[:, 0].sum()
    best = {}
    for _ in range(_MOST_STEPS):
        gains = 2 * curves.right - f1 * curves.kept
        gains = gains + weight * gains.sum(axis=0)
        chosen = _choose(gains, curves.false, budget)
        places = np.arange(len(curves.tags))
        reached = _f1(curves.right[places, chosen].sum(), curves.kept[places, chosen].sum(), curves.references)
        if reached <= f1:
            break
        f1 = reached
        parts = zip(curves.tags, gains, curves.false, chosen, strict=True)
        best = {tag: _middle(curves.cuts, gain, false, cut) for tag, gain, false, cut in parts}
    return Thresholds(one, best)


def _one_for_all(curves: _Curves, budget: float) -> tuple[float, float]:
    """(threshold, micro F1)."""
    right, kept, false = curves.right.sum(axis=0), curves.kept.sum(axis=0), curves.false.sum(axis=0)
    f1 = np.array([_f1(*each, curves.references) for each in zip(right, kept, strict=True)])
    f1[false > budget] = -1
    chosen = int(f1.argmax())
    return _middle(curves.cuts, f1, false, chosen), float(f1[chosen])


def _choose(gains: np.ndarray, false: np.ndarray, budget: float) -> np.ndarray:
    """The cut of each tag [tags] with the highest sum of gains and at most `budget` false tags together."""
    if false[:, 0].sum() <= budget:
        return gains.argmax(axis=1)
    best, options = np.zeros(int(budget) + 1), []
    for gain, count in zip(gains, false, strict=True):
        reached, taken = np.full(len(best), -np.inf), np.zeros(len(best), int)
        for used in np.unique(count[count <= budget]):
            cut = int(np.where(count == used, gain, -np.inf).argmax())
            total = best[: len(best) - used] + gain[cut]
            better = total > reached[used:]
            reached[used:][better], taken[used:][better] = total[better], cut
        best = reached
        options.append(taken)
    chosen, left = [], len(best) - 1
    for taken, count in zip(reversed(options), reversed(false), strict=True):
        chosen.append(taken[left])
        left -= count[taken[left]]
    return np.array(chosen[::-1])


def _middle(cuts: np.ndarray, gain: np.ndarray, false: np.ndarray, chosen: int) -> float:
    """The middle of the range of thresholds around `chosen` that are as good, and keep as many false tags."""
    same = (np.abs(gain - gain[chosen]) < 1e-12) & (false == false[chosen])
    first = last = chosen
    while first > 0 and same[first - 1]:
        first -= 1
    while last + 1 < len(cuts) and same[last + 1]:
        last += 1
    if last == len(cuts) - 1:
        return NEVER
    return round(float((cuts[first - 1] if first else 0.0) + cuts[last]) / 2, 5)


def _f1(right: float, kept: float, references: int) -> float:
    return 2 * right / (kept + references) if kept + references else 0.0


def _curves_of(rows: Sequence[Prediction]) -> _Curves:
    tags = sorted({tag for row in rows for tag in find_tags(row.prediction)})
    confidences = sorted({value for row in rows for value in row.confidences})
    right, kept, false = (np.zeros((len(tags), len(confidences) + 1), int) for _ in range(3))
    place_of, number_of = ({value: place for place, value in enumerate(values)} for values in (tags, confidences))
    references = untagged = 0
    for row in rows:
        left = Counter(find_tags(row.reference))
        is_untagged = not left
        references, untagged = references + left.total(), untagged + is_untagged
        # The surest of a tag's copies are right: that is how many match whatever the threshold is.
        for confidence, tag in sorted(zip(row.confidences, find_tags(row.prediction), strict=True), reverse=True):
            at = place_of[tag], number_of[confidence]
            kept[at] += 1
            right[at] += left[tag] > 0
            false[at] += is_untagged
            left[tag] -= 1
    right, kept, false = (np.cumsum(each[:, ::-1], axis=1)[:, ::-1] for each in (right, kept, false))
    return _Curves(tags, np.array([*confidences, NEVER]), right, kept, false, references, untagged)
