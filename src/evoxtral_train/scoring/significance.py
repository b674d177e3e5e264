"""Is one system better than another? A test for each declared comparison, with an interval that agrees with it.

Every comparison has one primary measure, tested at 5%, and two secondary ones, at 2.5% each. So the verdict on a pair does not
depend on which other pairs are on the page.

Two randomization tests are run and the more cautious result counts, because each fails where the other works:

- *swapped answers* (Fisher): swap each unit's two answers with probability one half. Exact if the two systems are alike; misled
  if one writes far more than the other, because swapped data then look like neither.
- *flipped contributions*: write the difference as a sum over units (jackknife pseudo-values) and flip the sign of each unit's
  share. Correct for systems that write unequally often; misled if a handful of units make up the whole difference.

p is the share of randomized data sets, including the real one, whose difference is at least as large in either direction (Phipson
and Smyth 2010). The interval holds every difference that neither test rejects: it excludes 0 exactly if p is below the level.
tests/test_significance.py measures error rates and coverage.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from ..config.evaluation import Bootstrap, System
from ..records import Prediction
from .intervals import numbered, unseen_share
from .metrics import Sums, sums, units_of

POWER = 0.8
PRIMARY_LEVEL, SECONDARY_LEVEL = 0.05, 0.025
_AT_ONCE = 1000
MEASURES = {
    "micro_f1": "micro F1", "micro_recall": "micro recall", "wer": "WER", "cer": "CER",
    "false_tags_per_untagged_clip": "false tags per untagged clip",
}  # fmt: skip


def declared(systems: Sequence[System]) -> list[tuple[str, str]]:
    """(before, after) of each comparison: a filter with its own system, any other system with the one before it. Yardsticks are
    not compared.

    base, SFT, SFT top-2, RAFT -> (base, SFT), (SFT, SFT top-2), (SFT, RAFT).
    """
    own, pairs, last = own_systems(systems), [], None
    for system in systems:
        if system.is_yardstick:
            continue
        before = own.get(system.name, last)
        if before:
            pairs.append((before, system.name))
        if system.name not in own:
            last = system.name
    return pairs


def own_systems(systems: Sequence[System]) -> dict[str, str]:
    """Each filtered system -> the unfiltered system of the same source, if that is measured too."""
    whole = {system.source: system.name for system in reversed(systems) if not system.is_filtered}
    return {system.name: whole[system.source] for system in systems if system.is_filtered and system.source in whole}


def compare_pairs(
    pairs: Sequence[tuple[str, str]], rows: dict[str, Sequence[Prediction]], with_words: bool, bootstrap: Bootstrap
) -> list[dict]:
    """[{before, after, …}, as `compare_pair` gives it], in the order of `pairs`."""
    return [
        {"before": before, "after": after} | compare_pair(rows[before], rows[after], with_words, bootstrap)
        for before, after in pairs
    ]


def compare_pair(before: Sequence[Prediction], after: Sequence[Prediction], with_words: bool, bootstrap: Bootstrap) -> dict:
    """{unit, primary, wrote_the_same, measures: {name: as `difference` gives it}}. The primary measure is micro F1, or WER if the
    references have no tags. Raises ValueError unless both have the same clips in the same order."""
    if [row.id for row in before] != [row.id for row in after]:
        raise ValueError("the two systems do not have the same clips in the same order")
    first, second = sums(before, with_words), sums(after, with_words)
    has_tags = first["micro_recall"].below.sum() > 0
    primary = "micro_f1" if has_tags or not with_words else "wer"
    words_or_recall = "cer" if primary == "wer" else "wer" if with_words else "micro_recall"
    units = units_of(before, bootstrap.unit)
    measures = {}
    for name in (primary, "false_tags_per_untagged_clip", words_or_recall):
        level = PRIMARY_LEVEL if name == primary else SECONDARY_LEVEL
        measures[name] = difference(first[name], second[name], units, level, bootstrap.permutations, bootstrap.seed)
    same = all(one.prediction == other.prediction for one, other in zip(before, after, strict=True))
    return {"unit": bootstrap.unit, "primary": primary, "wrote_the_same": same, "measures": measures}


def difference(before: Sums, after: Sums, units: Sequence[str], level: float, permutations: int, seed: int) -> dict:
    """`after` minus `before`: {value, low, high, level, p, shown, smallest_difference, units}.

    `level`: of the test; the interval's level is 1 − `level`. `units`: the unit of each row; rows of one unit go together, and
    units that cannot affect the measure are not counted. `shown`: whether the difference is significant. `smallest_difference`:
    what this many units detect with a power of 80%. Values are None if the measure is undefined for one of the two.
    """
    before, after = _by_unit(before, after, units)
    count = len(before.above)
    result = dict.fromkeys(("value", "low", "high", "p", "smallest_difference"))
    result |= {"level": level, "shown": False, "units": count}
    if before.below.sum() == 0 or after.below.sum() == 0:
        return result
    value = after.above.sum() / after.below.sum() - before.above.sum() / before.below.sum()
    low, high, p = _randomized(before, after, value, level, permutations, seed)
    shown = not low <= 0 <= high
    largest = max(1.0, *(np.max(side.above[side.below > 0] / side.below[side.below > 0]) for side in (before, after)))
    # There may be kinds of units that this sample lacks: even a unanimous sample proves nothing about the rest.
    unseen = unseen_share(count, 1 - level)
    low_unseen, high_unseen = value * (1 - unseen) - largest * unseen, value * (1 - unseen) + largest * unseen
    if shown:  # do not undo a significant result
        low_unseen, high_unseen = (max(low_unseen, 0.0), high_unseen) if value > 0 else (low_unseen, min(high_unseen, 0.0))
    low, high = max(min(low, low_unseen), -largest), min(max(high, high_unseen), largest)
    return result | {
        "value": float(value), "low": float(low), "high": float(high), "p": float(p), "shown": shown,
        "smallest_difference": _smallest_difference((high - low) / 2, count, level, largest),
    }  # fmt: skip


def _smallest_difference(reach: float, units: int, level: float, largest: float) -> float:
    """The difference that this many units detect with a power of at least `POWER`. `reach`: half the interval. Two systems that
    differ by d also differ in more units, so the variance grows by up to d: d² = (z + z')² (variance + d) / n, solved for d."""
    quantile = norm.ppf(1 - level / 2)
    squared = (quantile + norm.ppf(POWER)) ** 2 / units
    variance = (reach / quantile) ** 2 * units
    return float(min((squared * largest + math.sqrt((squared * largest) ** 2 + 4 * squared * variance)) / 2, largest))


def _by_unit(before: Sums, after: Sums, units: Sequence[str]) -> tuple[Sums, Sums]:
    """The sums per unit, for the units that can affect the measure."""
    of_row, count = numbered(units)
    before, after = (Sums(*(np.bincount(of_row, part, count) for part in side)) for side in (before, after))
    counted = np.any([*before, *after], axis=0)
    return Sums(*(part[counted] for part in before)), Sums(*(part[counted] for part in after))


def _randomized(
    before: Sums, after: Sums, value: float, level: float, permutations: int, seed: int
) -> tuple[float, float, float]:
    """(low, high, p): the wider interval of the two tests, and the larger p."""
    rng, swapped, flipped = np.random.default_rng(seed), [], []
    for start in range(0, permutations, _AT_ONCE):
        heads = rng.integers(0, 2, size=(min(_AT_ONCE, permutations - start), len(before.above))).astype(float)
        swapped.append(_swapped(before, after, heads))
        flipped.append(_flipped(before, after, value, heads))
    tests = [_inverted(value, *map(np.concatenate, zip(*draws, strict=True)), level) for draws in (swapped, flipped)]
    return min(low for low, _, _ in tests), max(high for _, high, _ in tests), max(p for _, _, p in tests)


def _swapped(before: Sums, after: Sums, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With `after`'s numerators lowered by d × its denominators (so that d is the difference under test) and the answers of the
    units with `heads` 1 [draws, units] exchanged, the difference is at_zero − d × slope. Both NaN where a side then has no
    denominator."""
    above_before, below_before, above_after, below_after = (heads @ part for part in (*before, *after))
    left, right = before.below.sum() - below_before + below_after, after.below.sum() - below_after + below_before
    left[left <= 0], right[right <= 0] = np.nan, np.nan
    at_zero = (after.above.sum() - above_after + above_before) / right - (before.above.sum() - above_before + above_after) / left
    return at_zero, (after.below.sum() - below_after) / right - below_after / left


def _flipped(before: Sums, after: Sums, value: float, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The difference as a signed sum over units of their jackknife pseudo-values / n: at_zero − d × slope. Both NaN if the
    difference rests on a single unit."""
    units = len(before.above)
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (after.above.sum() - after.above) / (after.below.sum() - after.below)
        left_out -= (before.above.sum() - before.above) / (before.below.sum() - before.below)
        # (n − 1)(mean − left out) / n is what a unit adds beyond the mean; the root undoes the shrinkage of residuals
        beyond = (units - 1) / units * (left_out.mean() - left_out) * math.sqrt(units / max(units - 1, 1))
    signs = heads * 2 - 1
    return signs @ (value / units + beyond), signs.mean(axis=1) if np.isfinite(beyond).all() else np.full(len(signs), np.nan)


def _inverted(value: float, at_zero: np.ndarray, slope: np.ndarray, level: float) -> tuple[float, float, float]:
    """(low, high, p). A draw is at least as extreme as the data for the differences d with |at_zero − d × slope| ≥ |value − d|,
    which is an interval around the value. p(d) is the share of draws whose interval contains d; at low and high it falls below
    `level`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(value - at_zero) / (1 - slope), (value + at_zero) / (1 + slope)])
    always = ~np.isfinite(ends).all(axis=0) | (np.abs(slope) > 1 - 1e-12)
    lows, highs = np.where(always, -np.inf, ends.min(axis=0)), np.where(always, np.inf, ends.max(axis=0))
    lows, highs = np.round(lows, 12), np.round(highs, 12)
    p = (np.sum((lows <= 0) & (highs >= 0)) + 1) / (len(lows) + 1)
    place = max(math.ceil(level * (len(lows) + 1) - 1), 1)
    return float(np.partition(lows, place - 1)[place - 1]), float(-np.partition(-highs, place - 1)[place - 1]), float(p)


def sentence(comparison: dict) -> str:
    """A comparison in one sentence: the primary measure with its size, then the secondary ones."""
    if comparison["wrote_the_same"]:
        return f"{comparison['after']} wrote the same as {comparison['before']}."
    (name, primary), *others = comparison["measures"].items()
    parts = [_part(name, primary), *(_part(secondary, measure) for secondary, measure in others)]
    if primary["value"] is not None and not primary["shown"]:
        parts[0] += f" ({signed(primary)}; smallest detectable: {primary['smallest_difference']:.2g})"
    return f"{comparison['after']} against {comparison['before']}: {'; '.join(parts)}."


def _part(name: str, measure: dict) -> str:
    if measure["value"] is None:
        return f"{MEASURES[name]} not defined"
    if not measure["shown"]:
        return f"no significant difference in {MEASURES[name]}"
    return f"{MEASURES[name]} {outcome_of(measure)} ({signed(measure)})"


def outcome_of(measure: dict) -> str:
    """The outcome of one measure in a word or two."""
    if not measure["shown"]:
        return "not significant"
    return "higher" if measure["value"] > 0 else "lower"


def signed(measure: dict) -> str:
    """{"value": 0.05, "low": 0.01, "high": 0.1} -> "+0.050 [+0.010, +0.100]"."""
    return f"{measure['value']:+.3f} [{measure['low']:+.3f}, {measure['high']:+.3f}]"
