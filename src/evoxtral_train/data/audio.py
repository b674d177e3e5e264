"""Audio files to mono float32 at 16 kHz: any format libsndfile reads, any rate, any number of channels.

Headers are not trusted. No buffer is sized by a header; samples are counted as they are decoded; and a file with less audio than
its header promises is refused, not packed at half its length.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from ..errors import RowError
from ..reading import why_not_a_file
from ..units import SAMPLE_RATE_HZ, TOKEN_S
from .containers import is_cut_off, promised_share

LOUDEST = 16.0
"""Limit in times full scale (+24 dB); no recording reaches it. Louder data was never scaled to ±1 (16-bit values reach 32,768) or
is not sound. Far beyond this limit the mel would overflow float32."""
_RATES_HZ = (1_000, 768_000)  # well beyond what recorders use
_BLOCK_FRAMES = 8192
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's value for a FLAC that was written to a stream
_UNKNOWN_FORMAT = 1  # libsndfile's SF_ERR_UNRECOGNISED_FORMAT
_TRUSTED_S = 3600.0  # beyond this, the frames are counted


class UnknownFormat(RowError):
    """libsndfile does not know the file's format."""


class Sound(soundfile.SoundFile):
    """A sound file that is read from start to end. By default soundfile seeks after every block, which fails if the length is
    unknown."""

    def seekable(self) -> bool:
        return False

    @property
    def promised(self) -> int | None:
        """The number of frames in the header; None if unknown."""
        return None if self.frames == _UNKNOWN_FRAMES else self.frames

    def all_blocks(self) -> Iterator[np.ndarray]:
        """float32 [frames, channels]. Raises RowError if the file is empty or shorter than its header says."""
        frames, stopped = 0, False
        try:
            # Never read past the promised end: the FLAC decoder fails on tags after it.
            while len(block := self.read(min(_BLOCK_FRAMES, self.frames - frames), dtype="float32", always_2d=True)):
                frames += len(block)
                yield block
        except soundfile.LibsndfileError:
            stopped = True
        if stopped and self.promised is None:
            raise cut_short("it cannot be decoded further", frames, self.samplerate)
        if self.promised is not None and self.promised - frames > TOKEN_S * self.samplerate:
            raise cut_short(f"its header says {self.promised / self.samplerate:.1f} s", frames, self.samplerate)
        if not frames:
            raise RowError("audio is empty")

    def mono_blocks(self) -> Iterator[np.ndarray]:
        """float32 [frames], channels averaged. Raises RowError like `all_blocks` and `check_samples`."""
        for block in self.all_blocks():
            yield check_samples(block).mean(axis=1)


def read_audio(path: Path, max_seconds: float) -> np.ndarray:
    """float32 [samples] at 16 kHz; channels are averaged, other rates resampled with soxr (HQ).

    Raises RowError if the file is missing, unreadable, truncated, empty, longer than `max_seconds`, or contains a sample that
    is not finite or beyond `LOUDEST`.
    """
    require_file(path)
    return decode_audio(path, max_seconds)


def decode_audio(source: Path | BinaryIO, max_seconds: float = float("inf")) -> np.ndarray:
    """Like `read_audio`, but also takes an open binary file."""
    with opened_sound(source) as file:
        parts, frames, rate_hz = [], 0, file.samplerate
        for block in file.mono_blocks():
            frames += len(block)
            if frames > max_seconds * rate_hz:
                lasts = f"{file.promised / rate_hz:.1f} s" if file.promised else f"more than {max_seconds:g} s"
                raise RowError(f"audio lasts {lasts}, the limit is {max_seconds:g} s", fix="cut it, or raise audio.max_seconds")
            parts.append(block)
    mono = to_model_rate(np.concatenate(parts), rate_hz)
    if len(mono) == 0:
        raise RowError("audio is empty")
    return mono


def check_samples(samples: np.ndarray) -> np.ndarray:
    """Returns the samples unchanged. Raises RowError for one that is not finite or beyond `LOUDEST`."""
    if not np.isfinite(samples).all():
        count = int((~np.isfinite(samples)).sum())
        raise RowError(f"audio contains {count} samples that are not finite", fix="export it again")
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > LOUDEST:
        raise RowError(f"audio reaches {peak:.3g} times full scale, the limit is {LOUDEST:g}", fix="scale it to ±1")
    return samples


def to_model_rate(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Mono samples at `rate_hz` -> float32 at 16 kHz. Raises RowError for a rate that no recorder uses."""
    check_rate(rate_hz)
    if rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    return np.ascontiguousarray(samples, np.float32)


def check_rate(rate_hz: int) -> None:
    """Raises RowError for a rate that no recorder uses."""
    low, high = _RATES_HZ
    if not low <= rate_hz <= high:
        raise RowError(f"audio has a sample rate of {rate_hz} Hz", fix=f"resample it to between {low:,} and {high:,} Hz")


def duration_of(path: Path) -> float:
    """Seconds, from the file's header; counted if the header gives no length or more than an hour. Raises RowError if there is no
    audio, or less than the header says."""
    require_file(path)
    with opened_sound(path) as file:
        frames = file.frames if file.frames <= _TRUSTED_S * file.samplerate else sum(map(len, file.all_blocks()))
        return frames / file.samplerate


def encode_flac(samples: np.ndarray) -> bytes:
    """Mono float samples at 16 kHz as a 16-bit FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def require_file(path: Path) -> None:
    """Raises RowError if the path is no file."""
    reason = why_not_a_file(path)
    if reason in ("does not exist", "is a folder, not a file"):
        raise RowError(f"no such audio file: {path}", fix="paths are relative to the manifest")
    if reason:
        raise RowError(f"the audio file {reason}: {path}")


@contextmanager
def opened_sound(source: Path | BinaryIO) -> Iterator[Sound]:
    """Raises RowError if there is no audio in it, or if the file is truncated."""
    try:
        with source.open("rb") if isinstance(source, Path) else source as content:
            share, cut_off = promised_share(content), is_cut_off(content)
            content.seek(0)
            with _sound(content) as file:
                rate_hz = file.samplerate
                if share is not None and file.frames * (share - 1) > TOKEN_S * rate_hz:
                    raise cut_short(f"its header says {file.frames * share / rate_hz:.1f} s", file.frames, rate_hz)
                if cut_off:
                    raise cut_short("its last page is missing", file.frames, rate_hz)
                yield file
    except soundfile.SoundFileError as error:
        what = getattr(error, "error_string", str(error)).removeprefix("Error : ")
        error_class = UnknownFormat if getattr(error, "code", None) == _UNKNOWN_FORMAT else RowError
        raise error_class(f"audio cannot be read: {what}", fix="is it a whole WAV, FLAC, OGG or MP3 file?") from None
    except OSError as error:
        raise RowError(f"audio cannot be read: {error.strerror or error}") from None


def _sound(content: BinaryIO) -> Sound:
    try:
        return Sound(content)
    except TypeError:  # soundfile treats *.raw as headerless
        raise RowError("audio has no header", fix="convert the raw samples to a WAV file") from None


def cut_short(promise: str, frames: int, rate_hz: int) -> RowError:
    """The error for a file with less audio than it promises; `frames` is what there is."""
    what = f"audio is cut short: {promise}, but there are only {frames / rate_hz:.1f} s"
    return RowError(what, fix="copy it again, or leave the row out")
