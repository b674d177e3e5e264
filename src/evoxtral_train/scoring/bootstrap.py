"""Intervals over clips: the bias-corrected and accelerated bootstrap (BCa: Efron 1987), widened for few clips.

A measure is a function of weights, how often each row counts: sums over sums, or means of such. It is taken on the
data, on resamples of as many clips, and with each clip left out. Percentiles of the resamples alone are too narrow and,
for skewed measures such as false tags per clip, in the wrong place; tests/test_intervals.py counts how often they hold the
truth.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm, t

Measure = Callable[[np.ndarray], np.ndarray]
"""weights [draws, rows] -> values [draws], NaN where it is not defined."""

LEVEL = 0.95
_BLOCK = 512


class Clips:
    """The unit that is drawn. Rows of one id (several runs of a study, pooled) are drawn together."""

    def __init__(self, ids: Sequence[str], samples: int, seed: int):
        numbers = {identity: number for number, identity in enumerate(dict.fromkeys(ids))}
        self.of_row = np.array([numbers[identity] for identity in ids])
        self.count = len(numbers)
        rng = np.random.default_rng(seed)
        self._drawn = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=samples)

    def measure(self, measure: Measure, counted: np.ndarray | None = None) -> dict:
        """{value, low, high}; all None when the measure is not defined on the data.

        `counted` [rows]: which rows it depends on at all; of a single clip there is no interval.
        """
        value = float(measure(np.ones((1, len(self.of_row))))[0])
        if np.isnan(value):
            return {"value": None, "low": None, "high": None}
        drawn = np.concatenate([measure(block[:, self.of_row].astype(float)) for block in self._blocks(self._drawn)])
        drawn = drawn[~np.isnan(drawn)]
        clips = self.count if counted is None else len(set(self.of_row[counted].tolist()))
        low, high = interval(value, drawn, self._left_out(measure), self.count) if clips > 1 and len(drawn) else (None, None)
        return {"value": value, "low": low, "high": high}

    def _left_out(self, measure: Measure) -> np.ndarray:
        """The measure without each clip in turn."""
        values = []
        for start in range(0, self.count, _BLOCK):
            clips = np.arange(start, min(start + _BLOCK, self.count))
            values.append(measure((self.of_row[None, :] != clips[:, None]).astype(float)))
        return np.concatenate(values)

    @staticmethod
    def _blocks(drawn: np.ndarray):
        return np.array_split(drawn, max(1, len(drawn) // _BLOCK))


def interval(value: float, drawn: np.ndarray, left_out: np.ndarray, clips: int, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) by BCa, with Student's quantile in the normal one's place, which few clips need."""
    if drawn.min() == drawn.max():
        return float(drawn[0]), float(drawn[0])
    drawn, value = np.round(drawn, 12), round(value, 12)  # what is equal but for rounding is equal
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    bias = norm.ppf(np.clip(below, 1 / (2 * len(drawn)), 1 - 1 / (2 * len(drawn))))
    left_out = left_out[~np.isnan(left_out)]
    deviations = left_out.mean() - left_out
    spread = np.sum(deviations**2)
    acceleration = np.sum(deviations**3) / (6 * spread**1.5) if spread > 0 else 0.0
    reach = t.ppf((1 + level) / 2, clips - 1)
    places = [norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-reach, reach)]
    low, high = np.quantile(drawn, np.clip(places, 0.0, 1.0))
    return float(low), float(high)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Measure:
    """Sum over sum; NaN where the denominators sum to 0."""

    def measure(weights: np.ndarray) -> np.ndarray:
        above, below = weights @ numerators, weights @ denominators
        return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)

    return measure
