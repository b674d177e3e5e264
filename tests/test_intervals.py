"""Intervals of one system hold the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, poisson

from evoxtral_train.scoring.intervals import Units, no_spread_interval, ratio

EXPERIMENTS, SAMPLES = 2000, 400


def corpus(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(matched, predicted, wanted) tags of clips of which some are harder than others, a third without tags."""
    ease = rng.beta(2, 2, clips)
    wanted = rng.choice([0, 1, 2, 3], clips, p=[0.3, 0.35, 0.25, 0.1])
    matched = rng.binomial(wanted, ease)
    false = rng.poisson(0.4 * (1 - ease) + 0.1)
    return matched.astype(float), (matched + false).astype(float), wanted.astype(float)


def measures(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    matched, predicted, wanted = found
    untagged = (wanted == 0).astype(float)
    size = predicted + wanted
    card = np.divide(2 * matched, size, out=np.ones_like(size), where=size > 0)
    return {
        "micro F1": (2 * matched, size),
        "card F1": (card, np.ones_like(size)),
        "false tags per untagged clip": (predicted * untagged, untagged),
    }


def coverage(clips: int) -> dict[str, float]:
    """The share of experiments whose interval holds the truth."""
    rng = np.random.default_rng(1)
    truth = {name: above.sum() / below.sum() for name, (above, below) in measures(corpus(rng, 2_000_000)).items()}
    held = dict.fromkeys(truth, 0)
    for experiment in range(EXPERIMENTS):
        drawn = Units([str(index) for index in range(clips)], SAMPLES, seed=experiment)
        for name, (above, below) in measures(corpus(rng, clips)).items():
            most = None if name == "false tags per untagged clip" else 1.0
            found = drawn.measure(ratio(above, below), below > 0, most)
            held[name] += found["low"] <= truth[name] <= found["high"]
    return {name: count / EXPERIMENTS for name, count in held.items()}


@pytest.mark.parametrize("clips", [30, *(pytest.param(clips, marks=pytest.mark.slow) for clips in (50, 100, 200))])
def test_the_interval_holds_the_truth_in_93_to_97_percent_of_experiments(clips):
    """With few untagged clips (9 of 30, 15 of 50) that of false tags holds it more often: without any, bounds are exact."""
    for name, share in coverage(clips).items():
        most = 1.0 if clips <= 50 and name == "false tags per untagged clip" else 0.97
        assert 0.93 <= share <= most, (name, share)


RARE = {
    "60 untagged clips, 0.02 false tags each": (lambda rng: (rng.poisson(0.02, 60), np.ones(60)), 0.02, None),
    "15 untagged clips, 0.1 false tags each": (lambda rng: (rng.poisson(0.1, 15), np.ones(15)), 0.1, None),
    "precision 0.99 on 100 clips": (lambda rng: (rng.binomial(1, 0.99, 100), np.ones(100)), 0.99, 1.0),
}


FIRST, *OTHERS = RARE


@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_intervals_of_rare_events_hold_the_truth_in_at_least_93_percent(name):
    """Where all clips agree the bootstrap has no spread, and its interval would be a point."""
    draw, truth, most = RARE[name]
    rng, held = np.random.default_rng(3), 0
    for experiment in range(EXPERIMENTS):
        above, below = draw(rng)
        names = [str(index) for index in range(len(above))]
        found = Units(names, SAMPLES, experiment).measure(ratio(above.astype(float), below), below > 0, most)
        held += found["low"] <= truth <= found["high"]
    assert held / EXPERIMENTS >= 0.93, held / EXPERIMENTS


def test_bounds_without_spread_are_the_exact_ones():
    """Clopper and Pearson's and Poisson's, as scipy has them."""
    exact = binomtest(0, 60).proportion_ci(method="exact")
    assert no_spread_interval(0.0, 60) == pytest.approx((exact.low, exact.high))
    exact = binomtest(100, 100).proportion_ci(method="exact")
    assert no_spread_interval(1.0, 100) == pytest.approx((exact.low, exact.high))
    low, high = no_spread_interval(0.0, 60, most=None)
    assert low == 0
    assert poisson.cdf(0, 60 * high) == pytest.approx(0.025)
    assert no_spread_interval(0.5, 1) == pytest.approx((0.0125, 0.9875)), "one clip says next to nothing"


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 5))
def test_an_interval_holds_its_value_and_pooled_runs_do_not_narrow_it(clips, seed):
    found = measures(corpus(np.random.default_rng(seed), clips))["card F1"]
    once = Units([str(index) for index in range(clips)], 200, 0).measure(ratio(*found))
    assert once["low"] - 1e-9 <= once["value"] <= once["high"] + 1e-9
    ids = [str(index) for _ in range(3) for index in range(clips)]
    pooled = Units(ids, 200, 0).measure(ratio(*(np.tile(each, 3) for each in found)))
    assert pooled == pytest.approx(once)
