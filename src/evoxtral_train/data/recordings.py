"""A recording of any length as a stream of blocks: mono float32 at 16 kHz, in memory that does not grow with its length.

libsndfile reads WAV, FLAC, Ogg, MP3 and their like, and the blocks are then, sample for sample, what `read_audio` returns. PyAV
(FFmpeg), an extra, reads what libsndfile does not know: M4A, MP4, WebM, AAC. Arrays pass through the same interface.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from ..errors import RowError
from ..reading import why_not_a_file
from ..units import SAMPLE_RATE_HZ, TOKEN_S, samples_to_seconds
from .audio import UnknownFormat, check_rate, check_samples, cut_short, opened_sound
from .containers import is_cut_off

_BLOCK_SAMPLES = 8192
_LONGEST_GAP_S = 3600.0
# Formats of FFmpeg that hold sound themselves. Others, such as playlists, make it open further files or addresses.
_FORMATS = "mov,matroska,aac,ac3,amr,asf,avi,caf,flv,mpegts"


@dataclass(frozen=True)
class Recording:
    """`blocks()` reads the recording from its start: float32 [samples] at 16 kHz, none empty. A fault that shows only further on
    raises RowError there, after the blocks before it.

    `duration_s` is what the header says, for progress only; None if it does not say.
    """

    blocks: Callable[[], Iterator[np.ndarray]]
    duration_s: float | None


def open_recording(source: Path | np.ndarray) -> Recording:
    """A file, or mono float samples [samples] at 16 kHz. No file stays open between calls of `blocks`.

    Raises RowError, here or while the blocks are read, if the file is missing, unreadable, truncated, empty, or contains a sample
    that is not finite or beyond `LOUDEST`; if its format needs PyAV and that is not installed; if the array is not mono floats.
    """
    if isinstance(source, np.ndarray):
        return _in_memory(source)
    if not isinstance(source, Path):
        raise TypeError(f"a recording is a path or a NumPy array, not {type(source).__name__}")
    if reason := why_not_a_file(source):
        raise RowError("no such audio file" if reason == "does not exist" else f"the audio file {reason}")
    try:
        with opened_sound(source) as file:
            check_rate(file.samplerate)
            duration_s = None if file.promised is None else file.promised / file.samplerate
        return Recording(partial(_sound_blocks, source), duration_s)
    except UnknownFormat as unknown:
        with _opened_container(source, unknown) as container:
            duration_s = container.duration and container.duration / 1e6
        return Recording(partial(_container_blocks, source, unknown), duration_s)


def _in_memory(samples: np.ndarray) -> Recording:
    if samples.ndim != 1 or samples.dtype.kind != "f":
        shape = " × ".join(map(str, samples.shape))
        fix = "pass mono float samples at 16 kHz, within ±1"
        raise RowError(f"the audio is an array of {shape} {samples.dtype} values", fix=fix)
    if not len(samples):
        raise RowError("audio is empty")

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(samples), _BLOCK_SAMPLES):
            yield check_samples(samples[start : start + _BLOCK_SAMPLES]).astype(np.float32)

    return Recording(blocks, samples_to_seconds(len(samples)))


def _sound_blocks(path: Path) -> Iterator[np.ndarray]:
    with opened_sound(path) as file:
        yield from _at_model_rate(file.mono_blocks(), file.samplerate)


def _at_model_rate(blocks: Iterator[np.ndarray], rate_hz: int) -> Iterator[np.ndarray]:
    """The same samples, whatever the blocks, as `to_model_rate` returns for all at once."""
    if rate_hz == SAMPLE_RATE_HZ:
        yield from blocks
        return
    stream, samples = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32"), 0
    for block in blocks:
        if len(resampled := stream.resample_chunk(block)):
            samples += len(resampled)
            yield resampled
    if len(rest := stream.resample_chunk(np.empty(0, np.float32), last=True)):
        yield rest
    elif not samples:
        raise RowError("audio is empty")


@contextmanager
def _opened_container(path: Path, unknown: UnknownFormat) -> Iterator[Any]:
    """An `av` container with an audio stream. Raises RowError if there is none, or if the file is cut off."""
    try:
        import av
    except ImportError:
        raise RowError(unknown.what, fix=f"{unknown.fix} M4A, MP4, WebM and AAC need: pip install 'evoxtral[av]'") from None
    try:
        with path.open("rb") as content:
            if is_cut_off(content):
                raise RowError("audio is cut short: the file ends before its last part", fix="copy it again, or leave it out")
            content.seek(0)
            try:
                container = av.open(content, options={"format_whitelist": _FORMATS})
            except (av.FFmpegError, ValueError):
                what = "audio cannot be read: neither libsndfile nor FFmpeg knows its format"
                raise RowError(what, fix="is it a whole sound file?") from None
            with container:
                if not container.streams.audio:
                    raise RowError("the file has no audio track")
                yield container
    except OSError as error:
        raise RowError(f"audio cannot be read: {error.strerror or error}") from None


def _container_blocks(path: Path, unknown: UnknownFormat) -> Iterator[np.ndarray]:
    with _opened_container(path, unknown) as container:
        rate_hz = container.streams.audio[0].rate
        check_rate(rate_hz)
        yield from _at_model_rate(_decoded(container, rate_hz), rate_hz)


def _decoded(container: Any, rate_hz: int) -> Iterator[np.ndarray]:
    """Mono float32 blocks of the first audio stream. A gap in its timestamps is silence, so that times stay the recording's own.
    Raises RowError if a packet is missing or damaged."""
    import av

    stream, frames, packets, origin_s = container.streams.audio[0], 0, 0, None
    to_float = av.AudioResampler(format="fltp", rate=rate_hz)
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in packet.decode():
                origin_s = frame.time if origin_s is None else origin_s
                for silence in _silence(frame.time - origin_s - frames / rate_hz if frame.time is not None else 0.0, rate_hz):
                    frames += len(silence)
                    yield silence
                for converted in to_float.resample(frame):
                    frames += converted.samples
                    yield check_samples(converted.to_ndarray()).mean(axis=0)
    except (av.FFmpegError, ValueError):
        raise cut_short("it cannot be decoded further", frames, rate_hz) from None
    if packets < stream.frames:
        raise cut_short(f"it should have {stream.frames} packets", frames, rate_hz)
    if not frames:
        raise RowError("audio is empty")


def _silence(gap_s: float, rate_hz: int) -> Iterator[np.ndarray]:
    """Zeros for a gap that no rounding explains."""
    if gap_s > _LONGEST_GAP_S:
        raise RowError(f"the audio's timestamps jump by {gap_s:.0f} s", fix="convert it to WAV or FLAC")
    missing = round(gap_s * rate_hz) if gap_s > TOKEN_S else 0
    for start in range(0, missing, _BLOCK_SAMPLES):
        yield np.zeros(min(_BLOCK_SAMPLES, missing - start), np.float32)
