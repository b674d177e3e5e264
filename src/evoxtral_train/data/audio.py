"""Audio files to mono float32 at 16 kHz: any format libsndfile reads, any rate, any channels."""

import io
from pathlib import Path
from typing import BinaryIO

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
    return decode_audio(path, max_seconds)


def decode_audio(source: Path | BinaryIO, max_seconds: float = float("inf")) -> np.ndarray:
    """As `read_audio`, also from a file's bytes."""
    try:
        with soundfile.SoundFile(source) as file:
            seconds = file.frames / file.samplerate
            if file.frames == 0:
                raise RowError(f"audio is empty: {source}")
            if seconds > max_seconds:
                raise RowError(
                    f"audio lasts {seconds:.1f} s, the limit is {max_seconds:g} s", fix="cut it, or raise audio.max_seconds"
                )
            samples, rate_hz = file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise RowError(f"audio cannot be read: {error}", fix="is it a whole WAV, FLAC, OGG or MP3 file?") from None
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise RowError(f"audio holds {int((~np.isfinite(mono)).sum())} samples that are not finite", fix="export it again")
    mono = to_model_rate(mono, rate_hz)
    if len(mono) == 0:
        raise RowError(f"audio is empty: {source}")
    return mono


def to_model_rate(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Mono samples at `rate_hz` -> float32 at 16 kHz."""
    if rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    return np.ascontiguousarray(samples, np.float32)


def duration_of(path: Path) -> float:
    """Seconds, from the file's header alone. Raises RowError when there is none to read."""
    try:
        return soundfile.info(path).duration
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise RowError(f"audio cannot be read: {error}") from None


def encode_flac(samples: np.ndarray) -> bytes:
    """Mono float samples at 16 kHz as a 16-bit FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
