"""Changes to a clip while training: loudness, noise, a room, speed, pitch and bit depth, by audiomentations.

The changes to a clip depend only on the seed, the epoch and its id. A tag must stay true: a loud whisper is no
longer a whisper. `limits` therefore limits the changes for each tag, and the tightest limit counts.

The clip keeps its clock: stretching never goes so far that its target no longer fits its row, reverberation is cut at the clip's
end, and the times of words and tags follow the speed.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np

from ..config.training import Augmentation
from ..data.audio import read_audio
from ..errors import RowError, UsageError
from ..families.base import ClipSize, Family, Row
from ..text.tags import find_tags
from ..units import SAMPLE_RATE_HZ
from .reader import Example, PackedSplit

_MOST_BITS = 16  # of a recording


@dataclass(frozen=True)
class Bounds:
    """The allowed changes to one clip; 0 or None: no change. `stretch_to`: the factor on the clip's length."""

    gain_db: float
    noise_snr_db: tuple[float, float] | None
    stretch_to: tuple[float, float] | None
    pitch_semitones: float
    room: bool
    bit_depth: tuple[int, int] | None


def bounds_of(config: Augmentation, tags: list[str], longest: float) -> Bounds:
    """The tightest of the limits of a clip's tags; the clip may become at most `longest` times as long."""
    limits = [config.limits[tag] for tag in tags if tag in config.limits]

    def tightest(name: str, least: float) -> float:
        return min([least, *(value for each in limits if (value := getattr(each, name)) is not None)])

    def at_least(name: str, span: tuple[float, float] | None) -> tuple[float, float] | None:
        if span is None:
            return None
        low = max([span[0], *(value for each in limits if (value := getattr(each, name)) is not None)])
        return low, max(low, span[1])

    stretch = 1 + tightest("stretch", config.stretch)
    return Bounds(
        gain_db=tightest("gain_db", config.gain_db),
        noise_snr_db=at_least("noise_snr_db", config.noise_snr_db),
        stretch_to=(1 / stretch, min(stretch, longest)) if stretch > 1 else None,
        pitch_semitones=tightest("pitch_semitones", config.pitch_semitones),
        room=config.room and all(each.room for each in limits),
        bit_depth=at_least("bit_depth", config.bit_depth),
    )


def augment(samples: np.ndarray, bounds: Bounds, config: Augmentation, seed: int) -> tuple[np.ndarray, float]:
    """Mono float32 at 16 kHz -> (changed samples, factor on their length). Never louder than full scale."""
    import audiomentations as transforms  # of an extra

    rng = np.random.default_rng(seed)
    wanted = rng.random(6) < config.probability
    drawn = rng.uniform(-1, 1, 4)
    with _seeded(int(rng.integers(2**31))):
        length = len(samples)
        if wanted[0] and bounds.stretch_to:
            low, high = bounds.stretch_to
            rate = 1 / (low + (high - low) * (drawn[0] + 1) / 2)
            stretch = transforms.TimeStretch(min_rate=rate, max_rate=rate, leave_length_unchanged=False, p=1.0)
            samples = stretch(samples, SAMPLE_RATE_HZ)[: int(high * length)]
        factor = len(samples) / length
        if wanted[1] and bounds.pitch_semitones:
            shift = float(drawn[1] * bounds.pitch_semitones)
            samples = transforms.PitchShift(min_semitones=shift, max_semitones=shift, p=1.0)(samples, SAMPLE_RATE_HZ)
        if wanted[2] and bounds.room:
            samples = _at_level_of(samples, _room(transforms, config)(samples, SAMPLE_RATE_HZ))
        if wanted[3] and bounds.noise_snr_db:
            samples = _noise(transforms, config, bounds.noise_snr_db)(samples, SAMPLE_RATE_HZ)
        if wanted[4] and bounds.gain_db:
            gain = float(drawn[3] * bounds.gain_db)
            samples = transforms.Gain(min_gain_db=gain, max_gain_db=gain, p=1.0)(samples, SAMPLE_RATE_HZ)
        samples = samples / max(float(np.abs(samples).max(initial=0.0)), 1.0)
        if wanted[5] and bounds.bit_depth:
            samples = _crushed(transforms, samples, bounds.bit_depth)
    return np.ascontiguousarray(samples, np.float32), factor


def check_augmentation(config: Augmentation) -> None:
    """Raises UsageError if the extra `augment` is needed and not installed, and for a folder of noises or rooms that is missing
    or contains no files."""
    if not config.probability:
        return
    if find_spec("audiomentations") is None:
        fix = "run: pip install 'evoxtral[augment]', or set probability to 0"
        raise UsageError("audiomentations is not installed", where="augmentation", fix=fix)
    for name in ("noise_folder", "room_folder"):
        folder = getattr(config, name)
        if folder and not (folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))):
            raise UsageError("no folder with audio files", where=f"augmentation.{name}: {folder}", fix="correct it, or set null")


def _room(transforms, config: Augmentation):
    if config.room_folder:
        return transforms.ApplyImpulseResponse(str(config.room_folder), p=1.0, leave_length_unchanged=True)
    # Ray tracing would use its own random generator, which cannot be seeded.
    return transforms.RoomSimulator(p=1.0, leave_length_unchanged=True, use_ray_tracing=False)


def _at_level_of(samples: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """A simulated room makes speech softer. Restore the level, which is part of the meaning."""
    before, after = _level(samples), _level(changed)
    return changed * (before / after) if after else changed


def _level(samples: np.ndarray) -> float:
    """Root mean square; 1 is full scale."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _crushed(transforms, samples: np.ndarray, bit_depth: tuple[int, int]) -> np.ndarray:
    """With fewer bits, but with steps no larger than the clip's level: larger ones would turn a quiet clip into silence."""
    level = _level(samples)
    low = max(bit_depth[0], math.ceil(1 - math.log2(level)) if level else _MOST_BITS)
    if low >= _MOST_BITS:
        return samples
    return transforms.BitCrush(low, max(low, bit_depth[1]), p=1.0)(samples, SAMPLE_RATE_HZ)


def _noise(transforms, config: Augmentation, snr_db: tuple[float, float]):
    low, high = snr_db
    if config.noise_folder:
        return transforms.AddBackgroundNoise(str(config.noise_folder), min_snr_db=low, max_snr_db=high, p=1.0)
    return transforms.AddColorNoise(min_snr_db=low, max_snr_db=high, min_f_decay=-6.0, max_f_decay=0.0, p=1.0)


@dataclass(frozen=True)
class Augmenter:
    """Training rows of a packed split with changed audio."""

    config: Augmentation
    split: PackedSplit
    family: Family

    def row(self, index: int, epoch: int) -> tuple[Row, np.ndarray]:
        """The row of clip `index`, and its mel up to `needed_tokens`. Raises RowError when the audio is missing."""
        example, layout = self.split.examples[index], self.split.layout
        samples = read_audio(self.split.audio_of(index), math.inf)
        longest = layout.longest_samples(self.split.clip(index), len(example.target_ids)) / len(samples)
        digest = hashlib.sha256(f"{self.config.seed}\0{epoch}\0{example.id}".encode()).digest()
        bounds = bounds_of(self.config, find_tags(example.text), longest)
        changed, factor = augment(samples, bounds, self.config, int.from_bytes(digest[:8], "big"))
        try:
            row = self._lay_out(index, example, len(changed), factor)
        except RowError:  # words crowded at the clip's end may need one token more than `longest_samples` assumes
            changed, row = samples, self._lay_out(index, example, len(samples), 1.0)
        return row, self.family.mel(changed, layout.mel_frames(self._changed(example, len(changed)), row.needed_tokens))

    def _changed(self, example: Example, samples: int) -> ClipSize:
        """The sizes of the clip, now that long, in its row."""
        return replace(self.split.layout.measure(samples, 0, example.language), row_tokens=example.row_tokens)

    def _lay_out(self, index: int, example: Example, samples: int, factor: float) -> Row:
        layout, clip = self.split.layout, self._changed(example, samples)
        target_ids = layout.retimed(example.target_ids, self.split.heard_of(index), factor, clip)
        return layout.lay_out(clip, target_ids)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """audiomentations uses the two global generators: seed both, and restore their state afterwards."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)
