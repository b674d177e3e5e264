"""Synthesised non-verbal sounds; each function returns mono float32 samples at 16 kHz.

Simple source-filter models: a glottal pulse train or noise, two or three resonances, and
the envelope that makes it sound like a laugh or a sigh. Levels are relative; the caller
sets the loudness.
"""

import numpy as np
from scipy.signal import lfilter

from ..units import SAMPLE_RATE_HZ

Sound = np.ndarray


def laughs(rng: np.random.Generator, pitch_hz: float) -> Sound:
    """Four to six voiced "ha" bursts at about 5 Hz, falling in pitch and loudness."""
    bursts = int(rng.integers(4, 7))
    parts = []
    for index in range(bursts):
        length_s = rng.uniform(0.09, 0.12)
        fall = 1.0 - 0.06 * index
        vowel = _voiced(length_s, 1.7 * pitch_hz * fall, 1.5 * pitch_hz * fall, rng)
        vowel = _resonate(vowel, [(750, 120), (1250, 150), (2600, 250)])
        breath = _resonate(_noise(0.07, rng), [(1200, 500), (2500, 900)])
        parts += [_shape(vowel, 0.1, 0.4) * 0.93**index, 0.25 * _shape(breath, 0.3, 0.4)]
    return _join(parts)


def sighs(rng: np.random.Generator, pitch_hz: float) -> Sound:
    """A long exhalation with falling resonance and a trace of voice at the start."""
    length_s = rng.uniform(0.8, 1.1)
    breath = _sweep(_noise(length_s, rng), 1500, 500)
    voice = _resonate(_voiced(length_s, 1.1 * pitch_hz, 0.6 * pitch_hz, rng), [(600, 150), (1100, 200)])
    decay = np.linspace(1.0, 0.0, len(voice)) ** 2
    return _join([_shape(breath + 0.5 * _unit(voice) * decay, 0.15, 0.7)])


def gasps(rng: np.random.Generator, pitch_hz: float) -> Sound:
    """A short inhalation: bright noise that rises and stops abruptly."""
    length_s = rng.uniform(0.28, 0.4)
    breath = _sweep(_noise(length_s, rng), 1400, 4200)
    return _join([_shape(breath, 0.75, 0.05)])


def clears_throat(rng: np.random.Generator, pitch_hz: float) -> Sound:
    """Two rough low bursts: irregular pulses at about 60 Hz through a closed throat."""
    parts = []
    for length_s in (rng.uniform(0.16, 0.22), rng.uniform(0.22, 0.32)):
        rough = _voiced(length_s, 62, 52, rng, jitter=0.35) + 0.6 * _unit(_noise(length_s, rng))
        parts += [_shape(_resonate(rough, [(320, 90), (900, 200)]), 0.08, 0.3), np.zeros(_count(0.07))]
    return _join(parts[:-1])


def crying(rng: np.random.Generator, pitch_hz: float) -> Sound:
    """Three sobs: high wavering wails with wet sniffs between them."""
    parts = []
    for _ in range(3):
        length_s = rng.uniform(0.25, 0.34)
        wail = _voiced(length_s, 2.3 * pitch_hz, 1.7 * pitch_hz, rng, vibrato_hz=8.0)
        wail = _resonate(wail, [(500, 100), (1900, 150), (3000, 300)])
        sniff = _resonate(_noise(0.1, rng), [(4500, 1200)])
        parts += [_shape(wail, 0.15, 0.4), 0.4 * _shape(sniff, 0.6, 0.2), np.zeros(_count(0.04))]
    return _join(parts[:-1])


SOUNDS = {"laughs": laughs, "sighs": sighs, "gasps": gasps, "clears throat": clears_throat, "crying": crying}


def _count(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE_HZ)


def _noise(length_s: float, rng: np.random.Generator) -> Sound:
    return rng.standard_normal(_count(length_s))


def _voiced(
    length_s: float, from_hz: float, to_hz: float, rng: np.random.Generator, jitter: float = 0.02, vibrato_hz: float = 0.0
) -> Sound:
    """Glottal pulses gliding from one pitch to another."""
    count = _count(length_s)
    time_s = np.arange(count) / SAMPLE_RATE_HZ
    pitch_hz = np.linspace(from_hz, to_hz, count) * (1 + 0.08 * np.sin(2 * np.pi * vibrato_hz * time_s))
    wander = np.repeat(rng.standard_normal(count // 80 + 1), 80)[:count]
    phase = np.cumsum(pitch_hz * (1 + jitter * wander)) / SAMPLE_RATE_HZ
    pulses = np.diff(np.floor(phase), prepend=0.0)
    return lfilter([1.0], [1.0, -0.95], pulses)


def _resonate(signal: Sound, formants: list[tuple[float, float]]) -> Sound:
    """Parallel two-pole resonances, each given as (centre Hz, bandwidth Hz)."""
    total = np.zeros_like(signal)
    for index, (centre_hz, width_hz) in enumerate(formants):
        radius = np.exp(-np.pi * width_hz / SAMPLE_RATE_HZ)
        angle = 2 * np.pi * centre_hz / SAMPLE_RATE_HZ
        total += _unit(lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], signal)) * 0.6**index
    return total


def _sweep(signal: Sound, from_hz: float, to_hz: float) -> Sound:
    """The signal through a band-pass whose centre moves: a cross-fade between two resonances."""
    mix = np.linspace(0.0, 1.0, len(signal))
    start = _resonate(signal, [(from_hz, 0.5 * from_hz)])
    end = _resonate(signal, [(to_hz, 0.5 * to_hz)])
    return start * (1 - mix) + end * mix


def _shape(signal: Sound, attack_share: float, release_share: float) -> Sound:
    """The signal at unit level with linear attack and release, given as shares of its length."""
    position = np.linspace(0.0, 1.0, len(signal))
    envelope = np.minimum(position / attack_share, 1.0) * np.minimum((1.0 - position) / release_share, 1.0)
    return _unit(signal) * envelope


def _unit(signal: Sound) -> Sound:
    return signal / max(float(np.sqrt(np.mean(signal**2))), 1e-9)


def _join(parts: list[Sound]) -> Sound:
    return np.concatenate(parts).astype(np.float32)
