"""Speech for the benchmarks of live streams: the demo's clips, joined by quiet, and which utterance heard which clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evoxtral_train.data.audio import read_audio
from evoxtral_train.records import read_jsonl
from evoxtral_train.units import SAMPLE_RATE_HZ, seconds_to_samples


@dataclass(frozen=True)
class Clip:
    """`row`: of the manifest."""

    row: dict
    file: Path
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


def read_clips(manifest: Path, split: str, count: int | None = None) -> list[Clip]:
    """The first clips of a split, or all."""
    rows = [row for _, row in read_jsonl(manifest) if row["split"] == split][:count]
    files = [manifest.parent / row["audio"] for row in rows]
    return [Clip(row, file, read_audio(file, 60.0)) for row, file in zip(rows, files, strict=True)]


@dataclass(frozen=True)
class Placed:
    """A clip in a stream, and where it begins there."""

    clip: Clip
    start_s: float

    @property
    def end_s(self) -> float:
        return self.start_s + self.clip.seconds

    def spans(self, kind: str) -> list[tuple[float, float]]:
        """(start_s, end_s) of its "words" or "events", on the stream's clock."""
        return [tuple(self.start_s + span[key] for key in ("start_s", "end_s")) for span in self.clip.row[kind]]


def quiet(seconds: float, level_db: float | None = None, seed: int = 0) -> np.ndarray:
    """float32 [samples] of zeros, or of white noise at this level in dBFS."""
    samples = seconds_to_samples(seconds)
    if level_db is None:
        return np.zeros(samples, np.float32)
    return (10 ** (level_db / 20) * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@dataclass(frozen=True)
class Account:
    """What became of the clips of a stream. `heard`: of each clip, the numbers of the utterances that overlap it."""

    heard: Sequence[Sequence[int]]
    extra: int  # utterances where no clip was
    joined: int  # utterances of more than one clip
    words_outside: int  # of any utterance
    events_outside: int

    @property
    def lost(self) -> int:
        """Clips without an utterance."""
        return sum(not numbers for numbers in self.heard)

    @property
    def split(self) -> int:
        """Clips of more than one utterance."""
        return sum(len(numbers) > 1 for numbers in self.heard)


def account(placed: Sequence[Placed], utterances: Sequence[tuple[float, float]]) -> Account:
    """`utterances`: (start_s, end_s), in order."""
    heard = [
        [number for number, (start_s, end_s) in enumerate(utterances) if start_s < clip.end_s and end_s > clip.start_s]
        for clip in placed
    ]
    owners = [number for numbers in heard for number in numbers]
    outside = {
        kind: sum(
            not any(start_s - 0.001 <= span[0] and span[1] <= end_s + 0.001 for start_s, end_s in utterances)
            for clip in placed for span in clip.spans(kind)
        )
        for kind in ("words", "events")
    }  # fmt: skip
    joined = len(owners) - len(set(owners))
    return Account(heard, len(utterances) - len(set(owners)), joined, outside["words"], outside["events"])
