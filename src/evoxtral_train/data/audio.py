"""Audio files to mono float32 at 16 kHz: any format libsndfile reads, any rate, any channels."""

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..errors import RowError
from ..units import SAMPLE_RATE_HZ


def read_audio(path: Path, max_seconds: float) -> np.ndarray:
    """float32 [samples] at 16 kHz; channels are averaged, other rates resampled with soxr (HQ).

    Raises RowError when the file is missing, unreadable, empty, longer than `max_seconds` or
    holds a sample that is not finite.
    """
    if not path.is_file():
        raise RowError(f"no such audio file: {path}", fix="paths are relative to the manifest")
    try:
        info = soundfile.info(path)
        if info.frames == 0:
            raise RowError(f"audio is empty: {path}")
        if info.duration > max_seconds:
            raise RowError(
                f"audio lasts {info.duration:.1f} s, the limit is {max_seconds:g} s", fix="cut it, or raise audio.max_seconds"
            )
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise RowError(f"audio cannot be read: {error}", fix="is it a whole WAV, FLAC, OGG or MP3 file?") from None
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise RowError(f"audio holds {int((~np.isfinite(mono)).sum())} samples that are not finite", fix="export it again")
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    if len(mono) == 0:
        raise RowError(f"audio is empty: {path}")
    return np.ascontiguousarray(mono, np.float32)


def encode_flac(samples: np.ndarray) -> bytes:
    """Mono float samples at 16 kHz as a 16-bit FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
