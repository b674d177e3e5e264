"""Cuts a recording of any length into segments that a model can hear: utterances, at most `max_s` long, that together hold every
sound. Only silence is dropped.

What sound is, `sound_levels` says; the noise floor is the lowest level of any 0.2 s from 15 s before a frame to 15 s after it.

An utterance ends at a silence of `patience_s`, which is longer than any pause that a tag stands for. One that is longer than
`max_s` is cut in its longest silence that no tag could stand for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter1d, minimum_filter1d, uniform_filter1d

from ..config.transcription import Segmentation
from ..units import samples_to_seconds, seconds_to_samples
from .sound_levels import BANDS, FRAME_SAMPLES, FRAMES_PER_S, REACH_FRAMES, SMOOTH_FRAMES, decibels, frame_powers, is_sound

_CHUNK_FRAMES = 10 * FRAMES_PER_S  # taken in at once
_SHORTEST_QUIET_S = 0.1
_SHORTEST_PIECE_S = 5.0  # of an utterance that is cut, if it can be avoided


@dataclass(frozen=True)
class SoundSegment:
    """A part of a recording.

    `start_samples`: where it begins in the recording. `samples`: float32 [samples] at 16 kHz. `quiet`: (start_s, end_s) of the
    silences of at least 0.1 s inside it, from the recording's start.
    """

    start_samples: int
    samples: np.ndarray
    quiet: tuple[tuple[float, float], ...]

    @property
    def end_samples(self) -> int:
        return self.start_samples + len(self.samples)


def segments_of(blocks: Iterable[np.ndarray], settings: Segmentation) -> Iterator[SoundSegment]:
    """The segments of a recording, in order and without overlap, as soon as enough of it has been read (about `max_s` + 30 s).

    `blocks` are mono float32 [samples] at 16 kHz, of any lengths; what they raise passes through. A recording of at most `max_s`
    without a silence of `patience_s` is one segment, sample for sample. A silent one has none.
    """
    heard, rules = _Heard(blocks), _Rules.of(settings)
    first = _first_sound(heard, 0, rules)
    start = first - rules.margin if first is not None and first >= rules.patience else 0
    while first is not None:
        end = _utterance_end(heard, first, start + rules.horizon, rules.patience)
        longest = start * FRAME_SAMPLES + rules.max_samples
        if end is not None and heard.samples_before(end) <= longest:
            yield heard.segment(start, min(_with_margin(heard, end, rules), longest))
            first = _first_sound(heard, end, rules)
            start = first - rules.margin if first is not None else end
        else:
            latest = start + rules.max_samples // FRAME_SAMPLES
            latest = latest if end is None else min(latest, end - rules.piece)
            cut = _best_cut(heard, start + rules.piece, latest, rules.pause)
            yield heard.segment(start, heard.samples_before(cut))
            start = first = cut
        heard.forget(start)


@dataclass(frozen=True)
class _Rules:
    """The settings in frames."""

    max_samples: int
    patience: int
    pause: int
    margin: int
    piece: int

    @classmethod
    def of(cls, settings: Segmentation) -> "_Rules":
        # Rounded so that no silence of `patience_s` is too short, and margins of two segments do not overlap.
        return cls(
            max_samples=seconds_to_samples(settings.max_s),
            patience=int(settings.patience_s * FRAMES_PER_S),
            pause=int(settings.pause_s * FRAMES_PER_S),
            margin=int(settings.margin_s * FRAMES_PER_S),
            piece=int(min(_SHORTEST_PIECE_S, settings.max_s / 4) * FRAMES_PER_S),
        )

    @property
    def horizon(self) -> int:
        """How far from a segment's start the utterance's end is searched, in frames: it decides where to cut."""
        return self.max_samples // FRAME_SAMPLES + self.piece + self.patience


class _Heard:
    """The part of a recording that is still needed: its samples, and of each frame the level and whether it is sound.

    Frames are counted from the recording's start. `origin` is the first that is kept, `judged` the first that is not yet known to
    be sound or not: its noise floor needs what follows.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._chunks = _chunks(blocks)
        self._samples = np.empty(0, np.float32)
        self._power = np.empty((0, BANDS))  # from `_power_origin` on, which reaches back for the noise floor
        self._power_origin = 0
        self._sound = np.empty(0, bool)  # of the frames from `origin` to `judged`
        self.origin = 0
        self.finished = False

    @property
    def judged(self) -> int:
        return self.origin + len(self._sound)

    @property
    def total_samples(self) -> int:
        """Of what was read so far."""
        return self.origin * FRAME_SAMPLES + len(self._samples)

    def samples_before(self, frame: int) -> int:
        return min(frame * FRAME_SAMPLES, self.total_samples)

    def read_to(self, frame: int) -> None:
        """Reads until the frames before this one are judged, or the recording ends."""
        while self.judged < frame and not self.finished:
            chunk = next(self._chunks, None)
            self.finished = chunk is None
            if chunk is not None:
                self._samples = np.concatenate([self._samples, chunk])
                self._power = np.concatenate([self._power, frame_powers(chunk)])
            self._judge()

    def _judge(self) -> None:
        levels_db = decibels(self._power)
        smooth_db = decibels(uniform_filter1d(self._power, SMOOTH_FRAMES, axis=0, mode="nearest"))
        floor_db = minimum_filter1d(smooth_db, 2 * REACH_FRAMES + 1, axis=0)
        loudest_db = maximum_filter1d(levels_db, 2 * REACH_FRAMES + 1, axis=0)
        sound = is_sound(levels_db, floor_db, loudest_db)
        known = len(sound) - (0 if self.finished else REACH_FRAMES + SMOOTH_FRAMES)
        self._sound = np.concatenate([self._sound, sound[self.judged - self._power_origin : max(known, 0)]])

    def sounds(self, start: int, end: int | None = None) -> np.ndarray:
        """The frames of [start, end) that are sound, as far as they are judged."""
        return start + np.flatnonzero(self._sound[start - self.origin : None if end is None else end - self.origin])

    def quiet_runs(self, start: int, end: int) -> np.ndarray:
        """[runs, 2]: the first frame of each silence in [start, end), and the one after its last."""
        quiet = ~self._sound[start - self.origin : end - self.origin]
        return start + np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)

    def powers(self, start: int, end: int) -> np.ndarray:
        return self._power[start - self._power_origin : end - self._power_origin].sum(axis=1)

    def segment(self, start: int, end_samples: int) -> SoundSegment:
        """From a frame to a sample."""
        start_samples, offset = start * FRAME_SAMPLES, self.origin * FRAME_SAMPLES
        samples = self._samples[start_samples - offset : end_samples - offset].copy()
        quiet = (
            (samples_to_seconds(first * FRAME_SAMPLES), samples_to_seconds(min(last * FRAME_SAMPLES, end_samples)))
            for first, last in self.quiet_runs(start, -(-end_samples // FRAME_SAMPLES))
        )
        return SoundSegment(start_samples, samples, tuple(span for span in quiet if span[1] - span[0] >= _SHORTEST_QUIET_S))

    def forget(self, frame: int) -> None:
        """Drops what lies before this frame."""
        self._samples = self._samples[(frame - self.origin) * FRAME_SAMPLES :]
        self._sound = self._sound[frame - self.origin :]
        self.origin = frame
        behind = max(min(frame, self.judged - REACH_FRAMES - SMOOTH_FRAMES) - self._power_origin, 0)
        self._power = self._power[behind:]
        self._power_origin += behind


def _first_sound(heard: _Heard, begin: int, rules: _Rules) -> int | None:
    """The first frame of sound from `begin` on; None if there is none. Forgets the silence before it, but for a margin."""
    while not len(sounds := heard.sounds(begin)):
        if heard.finished:
            return None
        begin = heard.judged
        if begin - heard.origin > rules.patience:
            heard.forget(begin - rules.margin)
        heard.read_to(begin + 1)
    return int(sounds[0])


def _utterance_end(heard: _Heard, first: int, horizon: int, patience: int) -> int | None:
    """The frame after the last sound before the first silence of `patience` frames; None if that lies beyond the horizon."""
    heard.read_to(horizon)
    sounds = heard.sounds(first, horizon)
    if len(gaps := np.flatnonzero(np.diff(sounds) > patience)):
        return int(sounds[gaps[0]]) + 1
    last = int(sounds[-1]) + 1
    ends_here = min(horizon, heard.judged) - last >= patience or heard.finished and heard.judged <= horizon
    return last if ends_here else None


def _with_margin(heard: _Heard, end: int, rules: _Rules) -> int:
    """Where a segment ends whose last sound is before this frame, in samples: a short silence at the recording's end is kept."""
    at_the_end = heard.judged - end < rules.patience
    return heard.total_samples if at_the_end else heard.samples_before(end + rules.margin)


def _best_cut(heard: _Heard, earliest: int, latest: int, pause: int) -> int:
    """The middle of the longest silence shorter than a pause, else the quietest frame outside a pause; of equals, the last."""
    runs = heard.quiet_runs(heard.origin, heard.judged)
    runs = runs[(runs[:, 0] < latest) & (runs[:, 1] > earliest)][::-1]
    lengths = runs[:, 1] - runs[:, 0]
    if (lengths < pause).any():
        longest = runs[np.argmax(np.where(lengths < pause, lengths, 0))]
        return int(np.clip(longest.mean(), earliest, latest))
    powers = heard.powers(earliest, latest)
    for first, last in runs:
        powers[max(first - earliest, 0) : last - earliest] = np.inf
    return latest - 1 - int(np.argmin(powers[::-1]))


def _chunks(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same samples in chunks of 10 s, whatever the blocks; the last one is shorter."""
    waiting, samples, size = [], 0, _CHUNK_FRAMES * FRAME_SAMPLES
    for block in blocks:
        waiting.append(block)
        samples += len(block)
        if samples >= size:
            joined = np.concatenate(waiting)
            whole = samples - samples % size
            yield from np.split(joined[:whole], whole // size)
            waiting, samples = [joined[whole:]], samples - whole
    if samples:
        yield np.concatenate(waiting)
