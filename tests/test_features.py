"""Log-mel on the model's clock: equal to the stock processor where the two should agree."""

import numpy as np
import pytest
import torch

from evoxtral_train.families.realtime.family import pad_mel
from evoxtral_train.units import PREPAD_SAMPLES, samples_to_tokens


def speechlike(samples: int, seed: int = 0) -> np.ndarray:
    """16-bit noise in bursts: the stock processor passes audio through a 16-bit WAV."""
    rng = np.random.default_rng(seed)
    wave = rng.standard_normal(samples) * np.repeat(rng.random(samples // 800 + 1), 800)[:samples] * 0.1
    return (np.round(wave * 32768).clip(-32768, 32767) / 32768).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 159, 16_000, 47_123, PREPAD_SAMPLES, 300_001])
def test_equal_to_the_stock_processor_on_the_pre_padded_clip(processor, family, samples):
    clip = speechlike(samples)
    prepadded = np.pad(clip, (0, max(PREPAD_SAMPLES - samples, 0)))
    stock = processor(prepadded, return_tensors="np", sampling_rate=16_000)["input_features"][0]
    ours = family.mel(clip, 8 * family.clock.stock_tokens(samples))
    assert ours.shape == stock.shape
    np.testing.assert_allclose(ours, stock, atol=2e-6)


def test_longer_rows_continue_in_silence(family):
    clip = speechlike(20_000)
    short = family.mel(clip, 237 * 8)
    long = family.mel(clip, 300 * 8)
    np.testing.assert_array_equal(long[:, : 237 * 8], short)
    assert (long[:, 237 * 8 :] == np.float32(-0.625)).all()


def test_240480_samples_straight_through_are_1503_frames_and_the_encoder_refuses_them(processor, model):
    mel = processor.feature_extractor(np.zeros(PREPAD_SAMPLES, np.float32), sampling_rate=16_000).input_features
    assert mel.shape == (1, 128, 1503)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        model.get_audio_features(torch.from_numpy(np.asarray(mel)))
    padded = pad_mel(np.asarray(mel)[0], 1504)
    assert model.get_audio_features(torch.from_numpy(padded)[None]).pooler_output.shape[1] == 188


def test_padding_refuses_what_would_break_the_reshape():
    with pytest.raises(ValueError, match="1503 mel frames are not a multiple of 8"):
        pad_mel(np.zeros((128, 1500), np.float32), 1503)
    with pytest.raises(ValueError, match="does not fit"):
        pad_mel(np.zeros((128, 17), np.float32), 16)


def test_the_first_frames_do_not_depend_on_how_many_are_asked_for(family):
    clip = speechlike(48_000)
    np.testing.assert_array_equal(family.mel(clip, 40 * 8), family.mel(clip, 100 * 8)[:, : 40 * 8])


def test_trimming_silence_loses_nothing(family):
    mel = family.mel(speechlike(30_000), 237 * 8)
    kept, start = family.trim_silence(mel)
    assert kept.shape[1] < 200
    np.testing.assert_array_equal(family.restore_silence(kept, start, 237 * 8), mel)
    for tokens in (1, start // 8, start // 8 + 1, 125):
        np.testing.assert_array_equal(family.restore_silence(kept, start, 8 * tokens), mel[:, : 8 * tokens])
    nothing, start = family.trim_silence(np.full((128, 16), np.float32(-0.625)))
    assert family.restore_silence(nothing, start, 16).shape == (128, 16)


def test_tokens_cover_samples():
    assert [samples_to_tokens(n) for n in (0, 1, 1280, 1281)] == [0, 1, 1, 2]
