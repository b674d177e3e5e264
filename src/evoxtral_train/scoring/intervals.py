"""Confidence intervals of one system's measures, over clips or groups of clips.

A measure is a function of weights (how often each row counts): a ratio of sums, or a mean of such ratios. Its interval is the
bias-corrected and accelerated bootstrap (BCa: Efron 1987), with Student's quantile to correct for few units. Plain percentiles
are too narrow and, for skewed measures such as false tags per clip, off-centre.

If all units agree, the bootstrap has no spread and would claim certainty. Then `no_spread_interval` gives exact bounds:
Clopper–Pearson for values between 0 and 1, Poisson for counts. tests/test_intervals.py measures the coverage of all these.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import chi2, norm, t

Measure = Callable[[np.ndarray], np.ndarray]
"""weights [draws, rows] -> values [draws], NaN where undefined."""

LEVEL = 0.95
_BLOCK = 512


class Units:
    """The resampled units: clips or groups of clips (speakers). `names`: the unit of each row; rows of one unit stay together."""

    def __init__(self, names: Sequence[str], samples: int, seed: int):
        self.of_row, self.count = numbered(names)
        rng = np.random.default_rng(seed)
        self._drawn = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=samples)

    def measure(self, measure: Measure, counted: np.ndarray | None = None, most: float | None = 1.0) -> dict:
        """{value, low, high}; all None if the measure is undefined on the data.

        `counted` [rows]: the rows that can affect it (None: all). `most`: its largest possible value (None: no limit).
        """
        value = float(measure(np.ones((1, len(self.of_row))))[0])
        if np.isnan(value):
            return {"value": None, "low": None, "high": None}
        drawn = np.concatenate([measure(block[:, self.of_row].astype(float)) for block in self._blocks(self._drawn)])
        drawn = np.round(drawn[~np.isnan(drawn)], 12)  # values that differ only by rounding are equal
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
    """(each name's number in order of appearance, how many there are): a, b, a -> [0, 1, 0], 2."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]), len(numbers)


def bca_interval(value: float, drawn: np.ndarray, left_out: np.ndarray, units: int, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) by BCa, with Student's quantile instead of the normal one."""
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
    """(low, high) if all `units` agree: a new unit may differ with a probability of up to `unseen_share`, and then by as much as
    possible. At 0 and 1 these are the Clopper–Pearson bounds. Without a limit (`most` None) the upper bound is Poisson's: 3.69
    events in as many units.

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
    """The largest plausible share of units of a kind that did not occur among `units`: 1 − 0.025^(1/n)."""
    return 1 - ((1 - level) / 2) ** (1 / units)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Measure:
    """The ratio of the sums; NaN where the denominators sum to 0."""

    def measure(weights: np.ndarray) -> np.ndarray:
        above, below = weights @ numerators, weights @ denominators
        return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)

    return measure
