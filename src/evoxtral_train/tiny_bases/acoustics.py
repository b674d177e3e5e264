"""Acoustic descriptions, as a phonetician would note them: one vector per 80 ms audio token.

Used only to train the tiny base: a model that has learned only words on a small corpus
does not represent how they were said, and a frozen audio path cannot learn it later. The base
therefore learns to describe loudness, pitch, voicing, brightness and silence, but never tags.
"""

import numpy as np

from ..units import SAMPLE_RATE_HZ, TOKEN_S, TOKEN_SAMPLES

BANDS = 16
DESCRIPTORS = 8 + BANDS
SURROUNDINGS = 14
_SILENT_DB = -55.0
_SLOW_S = 1.0
_WINDOW_TOKENS = 25
"""`surroundings` are measured over two seconds around a token."""
_RHYTHM_HZ = ((1.5, 3.5), (3.5, 6.0), (6.0, 10.0))
"""Sobs, laughter and stammering repeat at these rates."""
_RHYTHM_FRAMES, _FRAMES_PER_S = 128, 100


def describe(samples: np.ndarray, mel: np.ndarray) -> np.ndarray:
    """Mono float32 at 16 kHz and its log-mel [128, 8 × tokens] -> float32 [tokens, 24].

    Columns: loudness (dB), log2 pitch over 100 Hz (0 where unvoiced), voicing (0 to 1), spectral
    centroid (kHz), running means of loudness and pitch over the sounding tokens (1 s), log seconds
    of silence so far, share of sounding tokens in the last second; then 16 mel bands.
    """
    tokens = mel.shape[1] // 8
    frames = np.zeros((tokens, TOKEN_SAMPLES), np.float32)
    flat = samples[: frames.size]
    frames.reshape(-1)[: len(flat)] = flat
    loudness_db = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-9)
    pitch, voicing = _pitch(frames)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(TOKEN_SAMPLES), axis=1))
    hertz = np.fft.rfftfreq(TOKEN_SAMPLES, 1 / SAMPLE_RATE_HZ)
    centroid_khz = (spectrum @ hertz) / (spectrum.sum(axis=1) + 1e-6) / 1000
    sounding = loudness_db > _SILENT_DB
    voiced = sounding & (voicing > 0.5)
    columns = [
        loudness_db, np.where(voiced, pitch, 0.0), np.where(sounding, voicing, 0.0), np.where(sounding, centroid_khz, 0.0),
        _running(loudness_db, sounding, start=-60.0), _running(pitch, voiced, start=0.0),
        _silence_so_far(sounding), _running(sounding.astype(float), np.ones(tokens, bool), start=0.0),
    ]  # fmt: skip
    bands = mel.reshape(BANDS, 128 // BANDS, tokens, 8).mean(axis=(1, 3)).T
    return np.concatenate([np.stack(columns, axis=1), bands], axis=1).astype(np.float32)


def surroundings(description: np.ndarray, mel: np.ndarray) -> np.ndarray:
    """`describe`'s result and the log-mel it was made from -> float32 [tokens, 14], each over about two seconds around a token:
    mean and spread of the sounding tokens' loudness and brightness, of the voiced tokens' pitch; the changes of loudness
    and pitch from token to token; the shares of sounding and of voiced tokens; of the loudness contour, its spread within a
    token (80 ms) and its rhythm at about 2, 5 and 8 Hz.
    """
    loudness, pitch, voicing, brightness = description[:, :4].T
    sounding = loudness > _SILENT_DB
    voiced = sounding & (voicing > 0.5)
    contour = mel.mean(axis=0)
    within = contour.reshape(len(description), -1).std(axis=1)
    everywhere = np.ones(len(description), bool)
    spans = [
        *_around(loudness, sounding), *_around(brightness, sounding), *_around(pitch, voiced),
        _around(np.abs(np.diff(loudness, prepend=loudness[:1])), sounding)[0],
        _around(np.abs(np.diff(pitch, prepend=pitch[:1])), voiced)[0],
        _around(sounding.astype(float), everywhere)[0], _around(voiced.astype(float), everywhere)[0],
        _around(within, everywhere)[0],
    ]  # fmt: skip
    return np.concatenate([np.stack(spans, axis=1), _rhythm(contour, len(description))], axis=1).astype(np.float32)


def _around(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread over the tokens around each one that count; 0 where none does."""

    def total(each: np.ndarray) -> np.ndarray:
        return np.convolve(each, np.ones(_WINDOW_TOKENS), "full")[_WINDOW_TOKENS // 2 :][: len(each)]

    size = np.maximum(total(counts.astype(float)), 1.0)
    mean = total(np.where(counts, values, 0.0)) / size
    square = total(np.where(counts, values**2, 0.0)) / size
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def _rhythm(contour: np.ndarray, tokens: int) -> np.ndarray:
    """How strongly the loudness contour [8 × tokens] repeats at each rate, around each token: [tokens, 3]."""
    half = _RHYTHM_FRAMES // 2
    padded = np.pad(contour, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _RHYTHM_FRAMES)[4::8][:tokens]
    windows = (windows - windows.mean(axis=1, keepdims=True)) * np.hanning(_RHYTHM_FRAMES)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    hertz = np.fft.rfftfreq(_RHYTHM_FRAMES, 1 / _FRAMES_PER_S)
    return np.stack([np.log1p(power[:, (hertz >= low) & (hertz < high)].mean(axis=1)) for low, high in _RHYTHM_HZ], axis=1)


def _pitch(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log2(pitch / 100 Hz) and the autocorrelation's peak between 60 and 450 Hz, per frame."""
    spectrum = np.fft.rfft(frames - frames.mean(axis=1, keepdims=True), 2 * TOKEN_SAMPLES, axis=1)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :TOKEN_SAMPLES]
    correlation = correlation / (correlation[:, :1] + 1e-6)
    low, high = SAMPLE_RATE_HZ // 450, SAMPLE_RATE_HZ // 60
    lag = low + np.argmax(correlation[:, low:high], axis=1)
    voicing = np.clip(correlation[np.arange(len(frames)), lag], 0.0, 1.0)
    return np.log2(SAMPLE_RATE_HZ / lag / 100.0), voicing


def _running(values: np.ndarray, counts: np.ndarray, start: float) -> np.ndarray:
    share = 1 - np.exp(-TOKEN_S / _SLOW_S)
    level, out = start, np.empty(len(values))
    for index, (value, counted) in enumerate(zip(values, counts, strict=True)):
        if counted:
            level = level + share * (value - level)
        out[index] = level
    return out


def _silence_so_far(sounding: np.ndarray) -> np.ndarray:
    run, out = 0.0, np.empty(len(sounding))
    for index, sounds in enumerate(sounding):
        run = 0.0 if sounds else run + TOKEN_S
        out[index] = np.log1p(min(run, 3.0))
    return out
