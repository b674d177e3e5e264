"""A clip as a phonetician would describe it: loudness, pitch, voicing, timbre, tempo and pauses, in some fifty numbers.

It uses no model, so it shows what is in the sound itself, whatever a base hears of it.
"""

import numpy as np
from scipy.signal import find_peaks

from ..units import SAMPLE_RATE_HZ

_HOP_S = 0.02
_WINDOW_SAMPLES, _HOP_SAMPLES = 640, int(_HOP_S * SAMPLE_RATE_HZ)
_PITCH_HZ = (60, 450)
_OCTAVE_COST = 0.03  # a period repeats at twice its length, too: take the shortest (Boersma 1993)
_SOUNDING_DB = 35.0  # below the clip's loud frames
_VOICED = 0.5
_STRETCH_FRAMES = 50  # 1 s
_LONG_PAUSE_S = 0.15


def describe_clip(samples: np.ndarray) -> np.ndarray:
    """Mono float32 at 16 kHz -> float32 [features]."""
    padded = np.pad(samples, (0, max(0, _WINDOW_SAMPLES - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW_SAMPLES)[::_HOP_SAMPLES]
    loudness_db = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-9)
    pitch, voicing = _pitch(frames)
    centroid_khz, flatness_db, tilt_db = _timbre(frames)
    sounding = loudness_db > max(np.percentile(loudness_db, 95) - _SOUNDING_DB, -70.0)
    voiced = sounding & (voicing > _VOICED)
    tracks = [(loudness_db, sounding), (pitch, voiced), (voicing, sounding), (centroid_khz, sounding),
              (flatness_db, sounding), (tilt_db, sounding)]  # fmt: skip
    found = [value for track, counted in tracks for value in _spread(track, counted)]
    found += [value for track, counted in tracks for value in _range_over_stretches(track, counted)]
    found += _rhythm(loudness_db, sounding, voiced, flatness_db)
    return np.array(found, np.float32)


def _pitch(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log2(pitch / 100 Hz) and the height of the autocorrelation's peak, from 0 to 1, per frame."""
    size, window = 2 * _WINDOW_SAMPLES, np.hanning(_WINDOW_SAMPLES)
    low, high = SAMPLE_RATE_HZ // _PITCH_HZ[1], SAMPLE_RATE_HZ // _PITCH_HZ[0]
    power = np.abs(np.fft.rfft((frames - frames.mean(axis=1, keepdims=True)) * window, size, axis=1)) ** 2
    correlation = np.fft.irfft(power, axis=1)[:, : high + 1]
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2)[: high + 1]  # the window's own decay
    correlation = correlation / (correlation[:, :1] + 1e-9) * (of_window[0] / of_window)
    lags = np.arange(low, high + 1)
    lag = low + np.argmax(correlation[:, low:] - _OCTAVE_COST * np.log2(lags / low), axis=1)
    return np.log2(SAMPLE_RATE_HZ / lag / 100), np.clip(correlation[np.arange(len(frames)), lag], 0.0, 1.0)


def _timbre(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectral centroid (kHz), flatness (dB: 0 is noise), and energy above 2 kHz against below (dB), per frame."""
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW_SAMPLES), axis=1)) ** 2 + 1e-12
    hertz = np.fft.rfftfreq(_WINDOW_SAMPLES, 1 / SAMPLE_RATE_HZ)
    centroid_khz = power @ hertz / power.sum(axis=1) / 1000
    flatness_db = 10 * (np.mean(np.log10(power), axis=1) - np.log10(power.mean(axis=1)))
    tilt_db = 10 * np.log10(power[:, hertz > 2000].sum(axis=1) / power[:, hertz <= 2000].sum(axis=1))
    return centroid_khz, flatness_db, tilt_db


def _spread(track: np.ndarray, counted: np.ndarray) -> list[float]:
    """Mean, standard deviation, quantiles, and the mean step between neighbouring frames, over the counted frames."""
    if not counted.any():
        return [0.0] * 6
    values, pairs = track[counted], counted[1:] & counted[:-1]
    steps = np.abs(np.diff(track))[pairs]
    return [values.mean(), values.std(), *np.percentile(values, [10, 50, 90]), steps.mean() if len(steps) else 0.0]


def _range_over_stretches(track: np.ndarray, counted: np.ndarray) -> list[float]:
    """The lowest and the highest median of a second, as a tag may colour only a part of the clip."""
    starts = range(0, max(len(track) - _STRETCH_FRAMES // 2, 1), _STRETCH_FRAMES // 2)
    parts = [track[start : start + _STRETCH_FRAMES][counted[start : start + _STRETCH_FRAMES]] for start in starts]
    medians = [float(np.median(part)) for part in parts if len(part) >= _STRETCH_FRAMES // 10]
    return [min(medians), max(medians)] if medians else [0.0, 0.0]


def _rhythm(loudness_db: np.ndarray, sounding: np.ndarray, voiced: np.ndarray, flatness_db: np.ndarray) -> list[float]:
    """Syllables per second, regularity, pauses, and the longest stretches of one kind, in seconds."""
    smooth = np.convolve(loudness_db, np.full(3, 1 / 3), "same")
    peaks = find_peaks(np.where(sounding, smooth, smooth.min()), prominence=3.0)[0]
    sounding_s = max(sounding.sum() * _HOP_S, _HOP_S)
    first, last = (int(np.argmax(sounding)), len(sounding) - int(np.argmax(sounding[::-1]))) if sounding.any() else (0, 0)
    pauses = [length * _HOP_S for length in _runs(~sounding[first:last])]
    breaths = [length * _HOP_S for length in _runs(sounding & ~voiced & (flatness_db > -15))]
    envelope = smooth - smooth.mean()
    echo = np.correlate(envelope, envelope, "full")[len(envelope) - 1 :][5:20]  # repetition after 0.1 to 0.4 s
    long_pauses = sum(pause >= _LONG_PAUSE_S for pause in pauses)
    return [
        len(peaks) / sounding_s, float(np.diff(peaks).std() * _HOP_S) if len(peaks) > 2 else 0.0,
        float(echo.max() / (envelope @ envelope + 1e-9)) if len(echo) else 0.0,
        long_pauses / sounding_s, max(pauses, default=0.0), sum(pauses), max(breaths, default=0.0), sum(breaths),
        voiced.sum() * _HOP_S / sounding_s, max(_runs(voiced), default=0) * _HOP_S, sounding_s,
    ]  # fmt: skip


def _runs(flags: np.ndarray) -> list[int]:
    """The lengths of the stretches of true values: [1, 1, 0, 1] -> [2, 1]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return (edges[1::2] - edges[::2]).tolist()
