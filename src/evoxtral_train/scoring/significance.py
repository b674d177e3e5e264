"""Is one system better than another? A paired permutation test, and what to say of its outcome.

Under the null hypothesis it does not matter which of the two wrote which of a clip's two answers. So the answers of each
clip are swapped with probability one half, and the difference is measured again, many times: p is the share of swapped data,
the real one counted among it, whose difference is at least as large in either direction (Fisher; Phipson and Smyth 2010 for
the count). Of several comparisons in one table some come out "significant" by chance; p is therefore also given after
Holm's correction.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.stats import norm

from ..records import Prediction
from .metrics import differences, sums

ALPHA, POWER = 0.05, 0.8
_AT_ONCE = 1000
TESTED = ("micro_f1", "hallucination", "false_tags_per_untagged_clip")  # neither more nor fewer tags per clip is better
MEASURES = {
    "micro_f1": "micro F1", "hallucination": "the share of false tags", "tags_per_clip": "tags per clip",
    "false_tags_per_untagged_clip": "false tags per untagged clip",
}  # fmt: skip


def compare(
    before: Sequence[Prediction], after: Sequence[Prediction], samples: int = 2000, permutations: int = 10_000, seed: int = 0
) -> dict[str, dict]:
    """name -> {value, low, high, p, clips, clips_needed}: what `after` has more than `before`.

    `clips_needed`: as many would show a difference as large as the one seen, at 5%, with a power of 80%; None when no
    number would, or when it is shown already. Raises ValueError unless both hold the same clips in the same order.
    """
    found = differences(before, after, samples, seed)
    first, second, ids = sums(before), sums(after), [row.id for row in before]
    clips = len(set(ids))
    for name, difference in found.items():
        difference |= {"p": None, "clips": clips, "clips_needed": None}
        if difference["value"] is not None and name in TESTED:
            difference["p"] = permutation_p(first[name], second[name], ids, permutations, seed)
            if difference["p"] >= ALPHA:
                difference["clips_needed"] = clips_needed(difference, clips)
    return found


def permutation_p(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], ids: Sequence[str], permutations: int, seed: int
) -> float:
    """Two-sided p of the difference of two ratios of sums; `first` and `second`: (numerators, denominators) of each row.
    Rows of one id are swapped together."""
    numbers = {identity: number for number, identity in enumerate(dict.fromkeys(ids))}
    clip_of_row = np.array([numbers[identity] for identity in ids])
    rng = np.random.default_rng(seed)

    def difference(swapped: np.ndarray) -> np.ndarray:
        """[draws, rows] of 0 and 1 -> [draws]; NaN where one of the two has no denominator."""
        ratios = []
        for one, other in ((first, second), (second, first)):
            above, below = (swapped @ (b - a) + a.sum() for a, b in zip(one, other, strict=True))
            ratios.append(np.divide(above, below, out=np.full(len(swapped), np.nan), where=below > 0))
        return ratios[1] - ratios[0]

    observed = abs(difference(np.zeros((1, len(ids))))[0])
    extreme = 0
    for start in range(0, permutations, _AT_ONCE):
        draws = rng.integers(0, 2, size=(min(_AT_ONCE, permutations - start), len(numbers)))[:, clip_of_row].astype(float)
        extreme += int(np.sum(~(np.abs(difference(draws)) < observed - 1e-12)))  # one that is not defined counts as extreme
    return (extreme + 1) / (permutations + 1)


def clips_needed(difference: dict, clips: int) -> int | None:
    """From the interval's width: the standard error falls with the root of the number of clips."""
    if not difference["value"] or difference["low"] is None or difference["low"] == difference["high"]:
        return None
    error = (difference["high"] - difference["low"]) / (2 * norm.ppf(1 - ALPHA / 2))
    reach = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    needed = clips * (reach * error / difference["value"]) ** 2
    return max(math.ceil(needed), clips + 1)


def compare_all(systems: dict[str, Sequence[Prediction]], samples: int, seed: int, permutations: int = 10_000) -> list[dict]:
    """Every pair of systems that did not write the same, in order: {before, after, measures: {name: …, with p_holm}}."""
    pairs = []
    for before, after in combinations(systems, 2):
        if [row.prediction for row in systems[before]] != [row.prediction for row in systems[after]]:
            measures = compare(systems[before], systems[after], samples, permutations, seed)
            pairs.append({"before": before, "after": after, "measures": measures})
    tested = [measure for pair in pairs for measure in pair["measures"].values() if measure["p"] is not None]
    for measure, corrected in zip(tested, holm([measure["p"] for measure in tested]), strict=True):
        measure["p_holm"] = corrected
    return pairs


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m is multiplied by m − k + 1, and none falls below one before it.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = round(least, 12)
    return corrected


def in_words(before: str, after: str, name: str, measure: dict) -> str:
    """The outcome in a sentence."""
    what = f"{after} against {before}, {MEASURES[name]}"
    if measure["value"] is None:
        return f"{what}: not defined, one of the two wrote no tag."
    raw, corrected = measure["p"], measure.get("p_holm", measure["p"])
    chance = f"p = {raw:.2g}" if raw == corrected else f"p = {raw:.2g}, {corrected:.2g} after correction"
    if corrected < ALPHA:
        more = "higher" if measure["value"] > 0 else "lower"
        return f"{what}: {more} by {signed(measure)}, {chance}."
    said = f"{what}: no difference can be shown with {measure['clips']} clips ({signed(measure)}, {chance})"
    if measure["clips_needed"]:
        return f"{said}; if it is as large as it looks, about {_rounded(measure['clips_needed']):,} would be needed."
    return f"{said}."


def outcome_of(measure: dict) -> str:
    """The same in a word or two."""
    if measure.get("p_holm", measure["p"]) < ALPHA:
        return "higher" if measure["value"] > 0 else "lower"
    needed = measure["clips_needed"]
    return f"not shown; about {_rounded(needed):,} clips" if needed else "not shown"


def signed(measure: dict) -> str:
    """{"value": 0.05, "low": 0.01, "high": 0.1} -> "+0.050 [+0.010, +0.100]"."""
    size = f"{measure['value']:+.3f}"
    return size if measure["low"] is None else f"{size} [{measure['low']:+.3f}, {measure['high']:+.3f}]"


def _rounded(number: int) -> int:
    """To two digits: 387 -> 390."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return round(number / unit) * unit
