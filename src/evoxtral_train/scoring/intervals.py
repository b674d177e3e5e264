"""Intervals of one system's measures, over clips or groups of clips.

A measure is a function of weights (how often each row counts): sums over sums, or means of such. Its interval is the
bias-corrected and accelerated bootstrap (BCa: Efron 1987) with Student's quantile, which few units need. Percentiles of
the resamples alone are too narrow and, for skewed measures such as false tags per clip, in the wrong place.

Where all units agree, the bootstrap has no spread, and a point would claim certainty. Then `no_spread_interval` gives exact
bounds: Clopper–Pearson for what lies between 0 and 1, Poisson for counts. tests/test_intervals.py counts how often all of
these hold the truth.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import chi2, norm, t

Measure = Callable[[np.ndarray], np.ndarray]
"""weights [draws, rows] -> values [draws], NaN where it is not defined."""

LEVEL = 0.95
_BLOCK = 512


class Units:
    """What is drawn: clips, or groups of clips (speakers). `names`: the unit of each row; rows of one unit are drawn together."""

    def __init__(self, names: Sequence[str], samples: int, seed: int):
        self.of_row, self.count = numbered(names)
        rng = np.random.default_rng(seed)
        self._drawn = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=samples)

    def measure(self, measure: Measure, counted: np.ndarray | None = None, most: float | None = 1.0) -> dict:
        """{value, low, high}; all None when the measure is not defined on the data.

        `counted` [rows]: which rows it depends on at all; None: all. `most`: the largest value it can have; None: no limit.
        """
        value = float(measure(np.ones((1, len(self.of_row))))[0])
        if np.isnan(value):
            return {"value": None, "low": None, "high": None}
        drawn = np.concatenate([measure(block[:, self.of_row].astype(float)) for block in self._blocks(self._drawn)])
        drawn = np.round(drawn[~np.isnan(drawn)], 12)  # what is equal but for rounding is equal
        units = self.count if counted is None else len(set(self.of_row[counted].tolist()))
        if len(drawn) == 0 or drawn.min() == drawn.max():
            low, high = no_spread_interval(value, units, most)
        else:
            low, high = bca_interval(value, drawn, self._left_out(measure), max(units, 2))
        return {"value": value, "low": low, "high": high}

    def _left_out(self, measure: Measure) -> np.ndarray:
        """The measure without each unit in turn."""
        values = []
        for start in range(0, self.count, _BLOCK):
            units = np.arange(start, min(start + _BLOCK, self.count))
            values.append(measure((self.of_row[None, :] != units[:, None]).astype(float)))
        return np.concatenate(values)

    @staticmethod
    def _blocks(drawn: np.ndarray):
        return np.array_split(drawn, max(1, len(drawn) // _BLOCK))


def numbered(names: Sequence[str]) -> tuple[np.ndarray, int]:
    """(the number of each name in order of appearance, how many there are): a, b, a -> [0, 1, 0], 2."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]), len(numbers)


def bca_interval(value: float, drawn: np.ndarray, left_out: np.ndarray, units: int, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) by BCa, with Student's quantile in place of the normal one."""
    value = round(value, 12)
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    bias = norm.ppf(np.clip(below, 1 / (2 * len(drawn)), 1 - 1 / (2 * len(drawn))))
    left_out = left_out[~np.isnan(left_out)]
    deviations = left_out.mean() - left_out
    spread = np.sum(deviations**2)
    acceleration = np.sum(deviations**3) / (6 * spread**1.5) if spread > 0 else 0.0
    reach = t.ppf((1 + level) / 2, units - 1)
    places = [norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-reach, reach)]
    low, high = np.quantile(drawn, np.clip(places, 0.0, 1.0))
    return float(low), float(high)


def no_spread_interval(value: float, units: int, most: float | None = 1.0, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) when all `units` agree: another unit may differ with a chance of up to `unseen_share`, and then by as much as
    can be. At 0 and at 1 these are the bounds of Clopper and Pearson. Without a limit (`most` None) the upper bound is
    Poisson's: 3.69 events in as many units.

    >>> [round(bound, 3) for bound in no_spread_interval(1.0, 100)]
    [0.964, 1.0]
    >>> [round(bound, 3) for bound in no_spread_interval(0.0, 60, most=None)]
    [0.0, 0.061]
    """
    unseen = unseen_share(units, level)
    low = value * (1 - unseen)
    if most is None:
        return low, float(value + chi2.ppf((1 + level) / 2, 2) / (2 * units))
    return low, max(value, value * (1 - unseen) + most * unseen)


def unseen_share(units: int, level: float = LEVEL) -> float:
    """The largest share of all units that may be of a kind of which `units` of them showed none: 1 − 0.025^(1/n)."""
    return 1 - ((1 - level) / 2) ** (1 / units)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Measure:
    """Sum over sum; NaN where the denominators sum to 0."""

    def measure(weights: np.ndarray) -> np.ndarray:
        above, below = weights @ numerators, weights @ denominators
        return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)

    return measure
