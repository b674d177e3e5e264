"""Finds the utterances of a stream while it is heard.

The causal sibling of `segments`: `sound_levels` says what sound is, but the noise floor looks back only, and no frame waits for
the next. It listens for silence, not for the absence of speech. A microphone that is switched
on brings noise louder than the silence before it. If the noise stays faint and steady for a second, it counts as silence after
all.

An utterance ends at a silence of `patience_s`. One that grows too long is cut: from two thirds of `max_s` on in the first silence
that no tag could stand for, at `max_s` where the last second was quietest.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..config.transcription import Segmentation
from ..units import seconds_to_samples
from .sound_levels import (
    BANDS,
    FRAME_SAMPLES,
    FRAMES_PER_S,
    REACH_FRAMES,
    SMOOTH_FRAMES,
    decibels,
    frame_powers,
    is_faint_noise,
    is_sound,
)

_BLOCK_SAMPLES = 10 * FRAMES_PER_S * FRAME_SAMPLES  # judged at once, at most
_SHORTEST_GAP_FRAMES = FRAMES_PER_S // 5  # 0.2 s: the shortest silence to cut in
_STEADY_FRAMES = FRAMES_PER_S  # faint noise that is steady for this long is silence, also if it was quieter before
_RECENT_FRAMES = FRAMES_PER_S  # how far back a cut lies at most where there is no such silence


@dataclass(frozen=True)
class Started:
    """An utterance begins at this sample of the stream."""

    at_samples: int


@dataclass(frozen=True)
class Sounded:
    """The open utterance has sound up to this sample, unless that turns out to be faint noise."""

    until_samples: int


@dataclass(frozen=True)
class Ended:
    """The utterance ends before this sample: after a silence, cut for its length, or by `Endpointer.commit`."""

    at_samples: int
    reason: Literal["silence", "length", "commit"]


class Endpointer:
    """The utterances of one stream, mono at 16 kHz. Positions are samples from its start.

    `patience_s` replaces that of the settings. Utterances do not overlap. Together they hold every frame that counts as sound
    when it arrives. Steady noise 12 dB below what came before may be the room, and is left out. One that was cut is followed by
    another that begins at the cut, as soon as it has sound.
    """

    def __init__(self, settings: Segmentation, patience_s: float):
        self._max_samples = seconds_to_samples(settings.max_s)
        # In frames. A silence of `patience_s` fills one frame less if it begins within one.
        self._patience = int(patience_s * FRAMES_PER_S) - 1
        self._pause = int(settings.pause_s * FRAMES_PER_S)
        self._margin = min(int(settings.margin_s * FRAMES_PER_S), self._patience // 2)
        self._begin(0)

    def hear(self, samples: np.ndarray) -> list[Started | Sounded | Ended]:
        """What the next float32 [samples] tell, in order. The result does not depend on how the samples are split, except that a
        call reports only its last Sounded."""
        events, sound_end = [], self._sound_end
        self._rest = np.concatenate([self._rest, samples])
        whole = len(self._rest) // FRAME_SAMPLES * FRAME_SAMPLES
        for start in range(0, whole, _BLOCK_SAMPLES):
            events += self._hear_frames(self._rest[start : min(start + _BLOCK_SAMPLES, whole)])
        self._rest = self._rest[whole:].copy()
        if self.is_open and self._sound_end > sound_end:
            events.append(Sounded(self._at(self._sound_end)))
        return events

    def commit(self) -> list[Started | Ended]:
        """Ends the utterance here, if one is open. What follows is heard as a new stream, but positions go on."""
        end = self._at(self._frame) + len(self._rest)
        events = self._hear_frames(self._rest) if len(self._rest) else []
        if self.is_open:
            events.append(Ended(end, "commit"))
        self._begin(end)
        return events

    def _begin(self, at_samples: int) -> None:
        self.is_open = False
        self._origin = at_samples  # all below is counted in frames from here
        self._frame = 0  # the next one
        self._start = 0  # of the utterance; while none is open, where the next one begins if its sound comes within the patience
        self._sound_end = 0  # the frame after the last sound
        self._after_pause = 0  # the first sound after the last silence that a tag may stand for
        self._levels = _Levels()
        self._recent = deque([], _RECENT_FRAMES)  # powers of the last frames
        self._rest = np.empty(0, np.float32)  # samples that do not fill a frame yet

    def _at(self, frame: int) -> int:
        return self._origin + frame * FRAME_SAMPLES

    def _hear_frames(self, samples: np.ndarray) -> list[Started | Ended]:
        events, end = [], self._at(self._frame) + len(samples)
        powers = frame_powers(samples)
        sounds, faint = self._levels.judge(powers)
        for sound, is_noise, power in zip(sounds.tolist(), faint.tolist(), powers.sum(axis=1).tolist(), strict=True):
            if is_noise:
                sound = False
                self._sound_end = min(self._sound_end, max(self._frame + 1 - _STEADY_FRAMES, self._start))
            cut = self._cut(sound, min(self._at(self._frame + 1), end))
            if cut is not None:
                events.append(Ended(self._at(cut), "length"))
                self.is_open, self._start = False, cut
                if self._sound_end > cut:
                    events.append(self._open())
            silent = self._frame - self._sound_end
            if sound:
                if silent >= self._pause:
                    self._after_pause = self._frame
                if not self.is_open:
                    self._start = self._start if silent < self._patience else self._frame - self._margin
                    events.append(self._open())
                self._sound_end = self._frame + 1
            elif self.is_open and silent + 1 >= self._patience:
                events.append(Ended(self._at(self._sound_end + self._margin), "silence"))
                self.is_open = False
            self._recent.append(power)
            self._frame += 1
        return events

    def _open(self) -> Started:
        self.is_open = True
        return Started(self._at(self._start))

    def _cut(self, sound: bool, end_samples: int) -> int | None:
        """Where the utterance must end instead of taking in the next frame, which ends at `end_samples`; None if it need not."""
        if not self.is_open:
            return None
        silent = self._frame - self._sound_end
        middle = (self._sound_end + self._frame) // 2
        late = 3 * (middle - self._start) * FRAME_SAMPLES >= 2 * self._max_samples
        if sound and late and _SHORTEST_GAP_FRAMES <= silent < self._pause:
            return middle
        if end_samples - self._at(self._start) <= self._max_samples:
            return None
        if silent >= _SHORTEST_GAP_FRAMES:  # it may become a pause, which belongs to what follows
            return self._sound_end + _SHORTEST_GAP_FRAMES // 2
        first = max(self._frame - len(self._recent), self._after_pause)
        powers = list(self._recent)[first - self._frame :]
        return self._frame - 1 - int(np.argmin(powers[::-1]))


class _Levels:
    """Tells sound from silence by the levels so far. All sums have one order: it does not matter how many frames come at once."""

    def __init__(self):
        self._powers = np.full((SMOOTH_FRAMES - 1, BANDS), np.inf)  # the last ones; before the stream no mean is low
        self._floors = [_Lowest(REACH_FRAMES) for _ in range(BANDS)]
        self._peaks = [_Lowest(REACH_FRAMES) for _ in range(BANDS)]  # of negative levels, as those below
        self._last_floors = [_Lowest(_STEADY_FRAMES - SMOOTH_FRAMES + 1) for _ in range(BANDS)]
        self._last_peaks = [_Lowest(_STEADY_FRAMES, -np.inf) for _ in range(BANDS)]  # before the stream no second is faint

    def judge(self, powers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the next float64 [frames, bands], both bool [frames]: is the frame sound, and was the last second faint noise.

        The noise floor is the lowest mean of 0.2 s in the last 15 s. Where that tells nothing, the frame's own level is tried
        as the floor: after loud sound that was there from the beginning, silence counts as silence at once.
        """
        self._powers = np.concatenate([self._powers, powers])
        means_db = decibels(sum(self._powers[first : first + len(powers)] for first in range(SMOOTH_FRAMES)) / SMOOTH_FRAMES)
        self._powers = self._powers[1 - SMOOTH_FRAMES :]
        levels_db = decibels(powers)
        floor_db, loudest_db = _lowest(self._floors, means_db), -_lowest(self._peaks, -levels_db)
        sound = is_sound(levels_db, floor_db, loudest_db) & is_sound(levels_db, np.minimum(floor_db, levels_db), loudest_db)
        return sound, is_faint_noise(_lowest(self._last_floors, means_db), -_lowest(self._last_peaks, -levels_db))


class _Lowest:
    """The lowest of the last `reach` values, at a constant cost for each."""

    def __init__(self, reach: int, before: float = np.inf):
        self._reach = reach
        self._index = 0
        self._ahead = deque([(-1, before)])  # (index, value) of those that may still become the lowest, which comes first

    def push(self, value: float) -> float:
        while self._ahead and self._ahead[-1][1] >= value:
            self._ahead.pop()
        self._ahead.append((self._index, value))
        if self._ahead[0][0] <= self._index - self._reach:
            self._ahead.popleft()
        self._index += 1
        return self._ahead[0][1]


def _lowest(bands: list[_Lowest], levels_db: np.ndarray) -> np.ndarray:
    """[frames, bands], of each frame and those before it."""
    return np.array([[band.push(level) for band, level in zip(bands, frame, strict=True)] for frame in levels_db.tolist()])
