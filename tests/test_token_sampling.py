"""Sampling: Hugging Face's filters, and noise that depends on the row alone."""

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from evoxtral_train.decoding.sampling import Sampling, choose, gumbel_noise, row_key

OTHERS = ((1.3, 0.8, 7), (1.0, 1.0, 0), (0.5, 1.0, 3), (2.0, 0.99, 0))
SLOW = [pytest.param(*filters, marks=pytest.mark.slow) for filters in OTHERS]


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(0.7, 0.9, 0), *SLOW])
def test_filters_equal_hugging_faces(temperature, top_p, top_k):
    """Over many draws exactly the tokens that Hugging Face's warpers leave are drawn, as often as they should be."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, draws = 600, 60_000
    logits = torch.randn(1, vocabulary, generator=generator) * 3
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    probabilities = warped.softmax(-1)[0]
    keys = torch.tensor([row_key(0, "a", i) for i in range(draws)])
    positions = torch.full((draws,), 50)
    drawn = choose(logits.expand(draws, -1), Sampling(temperature, top_p, top_k), keys, positions)
    shares = torch.bincount(drawn, minlength=vocabulary) / draws
    assert (shares[probabilities == 0] == 0).all()
    likely = probabilities > 0.002
    spread = (probabilities[likely] * (1 - probabilities[likely]) / draws).sqrt()
    assert ((shares[likely] - probabilities[likely]).abs() < 5 * spread).all()


def test_noise_is_standard_gumbel_and_differs_by_row_position_and_token():
    keys = torch.tensor([row_key(1, "clip", i) for i in range(300)])
    at = torch.full((300,), 40)
    noise = gumbel_noise(keys, at, torch.arange(300).expand(300, -1))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.04)
    assert len(set(noise[:, 5].tolist())) == 300
    assert (gumbel_noise(keys, at + 1, torch.arange(300).expand(300, -1)) != noise).all()
    assert abs(np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]) < 0.02


def test_temperature_zero_is_greedy():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert choose(logits, Sampling(), torch.tensor([1]), torch.tensor([0])).tolist() == [1]
