"""Log-mel features on the model's clock, by the checkpoint's own feature extractor.

The clip is padded as the stock processor pads it: 32 tokens of silence on the left, 17 and more on
the right, after the pre-padding to 240,480 samples. That is 1,895 mel frames, not a multiple of
8; the mel is therefore padded on with log-mel silence to a whole number of audio tokens (237).
"""

import numpy as np

from ...errors import RowError
from ...units import FRAMES_PER_TOKEN, HOP_SAMPLES, MEL_BINS, SAMPLE_RATE_HZ, SILENCE_LOG_MEL
from .clock import Clock

_MARGIN_FRAMES = 2  # a window reaches 200 samples to either side: less than two hops of 160


def log_mel(samples: np.ndarray, row_tokens: int, feature_extractor, clock: Clock) -> np.ndarray:
    """Mono float32 `samples` at 16 kHz -> float32 [128, 8 × row_tokens], the clip after the left padding.

    Equal to `processor(pre-padded clip).input_features` at the stock row length (a test); longer
    rows continue in silence. Only the frames that can hear the clip are computed: the log-mel of
    digital silence is a constant. Raises ValueError when the clip is longer than the row, RowError when a
    frame is not finite, as of samples near the largest float.
    """
    margin = np.zeros(_MARGIN_FRAMES * HOP_SAMPLES, np.float32)
    tail = np.zeros(-len(samples) % HOP_SAMPLES, np.float32)
    heard = np.concatenate([margin, samples.astype(np.float32), tail, margin])
    mel = feature_extractor(heard, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np").input_features[0]
    if not np.isfinite(mel).all():
        raise RowError("its features are not finite: its samples are far too large", fix="export it between -1 and 1")
    left = clock.left_pad_tokens * FRAMES_PER_TOKEN - _MARGIN_FRAMES
    silence = np.full((MEL_BINS, left), SILENCE_LOG_MEL, np.float32)
    return pad_mel(np.concatenate([silence, mel], axis=1), row_tokens * FRAMES_PER_TOKEN)


def pad_mel(mel: np.ndarray, frames: int) -> np.ndarray:
    """[128, n] -> [128, frames], filled with silence on the right. Raises ValueError when n > frames
    or `frames` is not a multiple of 8: the encoder's reshape would fail, or broadcast in silence."""
    if frames % FRAMES_PER_TOKEN:
        raise ValueError(f"{frames} mel frames are not a multiple of {FRAMES_PER_TOKEN}")
    if mel.shape[0] != MEL_BINS or mel.shape[1] > frames:
        raise ValueError(f"mel of shape {mel.shape} does not fit into [{MEL_BINS}, {frames}]")
    return np.pad(mel, ((0, 0), (0, frames - mel.shape[1])), constant_values=SILENCE_LOG_MEL)


def trim_silence(mel: np.ndarray) -> tuple[np.ndarray, int]:
    """Drop frames of exact digital silence at both ends: ([128, n], index of the first frame kept).
    Lossless: `restore_silence` undoes it. Two thirds of a pre-padded row are such frames."""
    sounding = np.flatnonzero((mel != np.float32(SILENCE_LOG_MEL)).any(axis=0))
    if len(sounding) == 0:
        return mel[:, :0], 0
    first, last = int(sounding[0]), int(sounding[-1])
    return mel[:, first : last + 1], first


def restore_silence(kept: np.ndarray, first_frame: int, frames: int) -> np.ndarray:
    """The first `frames` frames of the mel that `trim_silence` took apart: float32 [128, frames]."""
    mel = np.full((MEL_BINS, frames), SILENCE_LOG_MEL, np.float32)
    count = max(min(kept.shape[1], frames - first_frame), 0)
    mel[:, first_frame : first_frame + count] = kept[:, :count]
    return mel
