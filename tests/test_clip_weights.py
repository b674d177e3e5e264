"""How often clips are drawn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoxtral_train.errors import UsageError
from evoxtral_train.training.clip_weights import clip_weights, draw
from evoxtral_train.training.dataset import StepSampler

TAGS = [["laughs"]] * 16 + [["gasps"]] * 4 + [["sighs", "laughs"]] + [[]] * 9


def test_square_root_literally():
    """laughs 17 clips, gasps 4, sighs 1, untagged 9: weights 1/√17, 1/2, 1 (the rarest tag counts), 1/3."""
    weights = clip_weights(TAGS, "square_root", None)
    plain = np.array([17**-0.5] * 16 + [0.5] * 4 + [1.0] + [1 / 3] * 9)
    np.testing.assert_allclose(weights, plain / plain.sum() * 30)
    assert clip_weights(TAGS, "natural", None) is None


@pytest.mark.parametrize("kind", ["natural", "square_root"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_untagged_clips_take_their_share(kind, share):
    weights = clip_weights(TAGS, kind, share)
    assert weights.sum() == pytest.approx(30)
    assert weights[21:].sum() == pytest.approx(30 * share)


def test_a_share_that_no_clip_can_fill_is_refused():
    with pytest.raises(UsageError, match=r"train.untagged_share: no clip without tags"):
        clip_weights([["laughs"]], "natural", 0.3)
    with pytest.raises(UsageError, match=r"no clip with tags"):
        clip_weights([[]], "square_root", 0.3)
    assert clip_weights([["laughs"]], "natural", 0.0).tolist() == [1.0]


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=50), st.floats(0, 0.999))
def test_every_clip_is_drawn_as_often_as_its_weight_says_rounded(raw, position):
    weights = np.array(raw) / sum(raw) * len(raw)
    drawn = Counter(draw(weights, position))
    assert drawn.total() == len(raw)
    for clip, weight in enumerate(weights):
        assert np.floor(weight - 1e-9) <= drawn[clip] <= np.ceil(weight + 1e-9)


def test_draw_literally():
    assert draw(np.array([0.5, 1.5, 1.0]), position=0.25) == [0, 1, 2]
    assert draw(np.array([0.5, 1.5, 1.0]), position=0.75) == [1, 1, 2]


def test_the_sampler_draws_by_weight_anew_in_every_epoch_and_the_same_again():
    weights, told = clip_weights(TAGS, "square_root", 0.3), []
    sampler = StepSampler([1] * 30, rows_per_step=8, seed=0, weights=weights, on_epoch=told.append)
    epochs = []
    for epoch in (0, 1, 0, *range(2, 400)):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] != epochs[1]
    assert told[:3] == [0, 1, 0]
    counts = np.bincount([row for epoch in epochs for row in epoch], minlength=30) / len(epochs)
    np.testing.assert_allclose(counts, weights, atol=0.08)
