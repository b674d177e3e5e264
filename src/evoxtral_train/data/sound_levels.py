"""What is sound and what is silence, for whole recordings (`segments`) and for streams (`endpoints`).

Sound is energy above the noise around it, not speech: a speech detector does not hear sighs, gasps and whispers. In two bands,
below and above 1 kHz, the level of a 20 ms frame is compared with the noise floor, the lowest level of any 0.2 s within reach. A
frame that rises out of the floor in neither band is quiet. Steady noise with nothing above it counts as sound,
because it may be meant. If it is faint, it counts as silence.
"""

import numpy as np

from ..units import SAMPLE_RATE_HZ

FRAME_SAMPLES = 320  # 20 ms
FRAMES_PER_S = SAMPLE_RATE_HZ // FRAME_SAMPLES
SMOOTH_FRAMES = 11  # a shorter dropout is no noise floor
REACH_FRAMES = 15 * FRAMES_PER_S  # how far the noise floor looks
_WINDOW = np.hanning(FRAME_SAMPLES).astype(np.float32)
_BAND_EDGES = [2, 20, 160]  # in bins of 50 Hz: 100 Hz to 1 kHz, 1 to 8 kHz; hum and rumble lie below
BANDS = len(_BAND_EDGES) - 1
_TILT = np.arange(FRAME_SAMPLES // 2 + 1, dtype=np.float32) / 20  # +3 dB per octave make the noise of rooms even; 1 at 1 kHz
_RISE_DB = np.array([7.0, 3.0])  # what rises further above the noise floor of its band is sound; a narrow band varies more
_CONTRAST_DB = 12.0  # steady noise is silence only if something within reach rises this far above it
_FAINT_DB = -50.0  # or if it is fainter than this
_LOWEST_DB = -90.0  # the noise floor of digital silence


def frame_powers(samples: np.ndarray) -> np.ndarray:
    """float64 [frames, bands]: the tilted power of each 20 ms of float32 [samples]; zeros fill the last frame."""
    frames = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
    spectrum = np.square(np.abs(np.fft.rfft(frames * _WINDOW))) * (2 * _TILT / (np.square(_WINDOW).sum() * FRAME_SAMPLES))
    return np.add.reduceat(spectrum, _BAND_EDGES, axis=1)[:, :-1].astype(np.float64)


def decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 1e-12))


def is_sound(levels_db: np.ndarray, floor_db: np.ndarray, loudest_db: np.ndarray) -> np.ndarray:
    """bool [frames]. All [frames, bands]: each frame's level, and the noise floor and the highest level within its reach."""
    floor_db = np.maximum(floor_db, _LOWEST_DB)
    faint = floor_db < _FAINT_DB
    has_floor = faint.all(axis=1) | ((loudest_db - floor_db > _CONTRAST_DB) & ~faint).any(axis=1)
    return (levels_db - floor_db > _RISE_DB).any(axis=1) | ~has_floor


def is_faint_noise(floor_db: np.ndarray, loudest_db: np.ndarray) -> np.ndarray:
    """bool [frames]. Both [frames, bands]: nothing within reach rises out of the noise floor, which is faint."""
    floor_db = np.maximum(floor_db, _LOWEST_DB)
    return ((loudest_db <= floor_db + _RISE_DB) & (floor_db < _FAINT_DB)).all(axis=1)
