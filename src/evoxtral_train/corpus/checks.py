"""Finds the problems in a corpus, row by row, before any time is spent on training.

Some make packing reject the row (`rejected`). The others silently harm training or evaluation:

    clipped, silent                          damaged or missing audio
    too_little_speech, too_much_speech       for the text: a truncated clip, or the wrong transcript
    duplicate_audio, near_duplicate_text     counted twice
    sentence_in_two_splits, speaker_in_two_splits     held-out data leaks into training
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..config.data import Check
from ..data.manifest import ManifestRow
from ..text.normalize import normalize_words
from ..text.tags import find_tags, strip_tags
from ..units import SAMPLE_RATE_HZ

_FRAME_SAMPLES = 320  # 20 ms
_FULL_SCALE = 0.999
_FLAT_SAMPLES = 3  # this many in a row at full scale are clipping, not a peak
_SPARE_S = 2.0  # allowance for silence around the speech


@dataclass(frozen=True)
class Finding:
    """A problem: its kind, its row, and the reason. `line` and `id` are the manifest's."""

    line: int
    id: str | None
    kind: str
    reason: str


@dataclass(frozen=True)
class Sound:
    """What the checks keep of a clip's audio. `digest` is of the samples at 16 bits, so that a WAV and its FLAC agree."""

    duration_s: float
    digest: bytes
    clipped_share: float
    loudest_dbfs: float

    @classmethod
    def of(cls, samples: np.ndarray) -> "Sound":
        """`samples`: mono float32 at 16 kHz."""
        rounded = np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2")
        frames = samples[: len(samples) // _FRAME_SAMPLES * _FRAME_SAMPLES].reshape(-1, _FRAME_SAMPLES)
        power = float(np.mean(np.square(frames, dtype=np.float64), axis=1).max(initial=0.0))
        return cls(
            duration_s=len(samples) / SAMPLE_RATE_HZ,
            digest=hashlib.blake2b(rounded.tobytes(), digest_size=16).digest(),
            clipped_share=_clipped_share(samples),
            loudest_dbfs=10 * np.log10(power + 1e-12),
        )


def _clipped_share(samples: np.ndarray) -> float:
    """The share of samples in runs of at least three at full scale.

    >>> _clipped_share(np.array([0.2, 1.0, 1.0, 1.0, -0.3, 1.0, -1.0, 0.1], np.float32))
    0.375
    """
    high = np.abs(samples) >= _FULL_SCALE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], high, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= _FLAT_SAMPLES].sum() / max(len(samples), 1))


def check_sound(row: ManifestRow, sound: Sound, limits: Check) -> Iterator[Finding]:
    """Problems that show in a single clip."""

    def finding(kind: str, reason: str) -> Finding:
        return Finding(row.line, row.id, kind, reason)

    if sound.clipped_share > limits.clipped_share:
        yield finding("clipped", f"{sound.clipped_share:.1%} of the samples are clipped at full scale — record it at lower level")
    if sound.loudest_dbfs < limits.silent_dbfs:
        yield finding("silent", f"its loudest 20 ms reach {sound.loudest_dbfs:.0f} dBFS — is this the right file?")
        return
    if row.text is None:
        return
    letters = sum(letter.isalnum() for letter in strip_tags(row.text))
    slowest, fastest = limits.letters_per_second
    shortest = letters / fastest
    longest = letters / slowest + limits.seconds_per_tag * len(find_tags(row.text)) + _SPARE_S
    what = f"{letters} letters and {len(find_tags(row.text))} tags in {sound.duration_s:.1f} s"
    if sound.duration_s < shortest:
        yield finding("too_little_speech", f"{what}: less than {shortest:.1f} s is unlikely — is the clip cut short?")
    elif sound.duration_s > longest:
        yield finding("too_much_speech", f"{what}: more than {longest:.1f} s is unlikely — is the transcript complete?")


class Corpus:
    """What the checks between rows keep of each row: a few hundred bytes."""

    def __init__(self):
        self._rows: list[tuple[int, str, str, str | None, str]] = []  # line, id, split, speaker, words
        self._sounds: dict[bytes, int] = {}
        self._same_sound: list[tuple[int, int]] = []

    def add(self, row: ManifestRow, sound: Sound) -> None:
        place = len(self._rows)
        self._rows.append((row.line, row.id, row.split, row.speaker, normalize_words(strip_tags(row.text or ""))))
        first = self._sounds.setdefault(sound.digest, place)
        if first != place:
            self._same_sound.append((place, first))

    def findings(self, limits: Check) -> Iterator[Finding]:
        """Problems that show only between rows. Each is reported at the later row and names the earlier one."""
        for place, first in self._same_sound:
            yield self._finding(place, "duplicate_audio", f"the same audio as {self._name(first)} — keep one of the two")
        yield from self._two_splits("sentence_in_two_splits", ((row[4], place) for place, row in enumerate(self._rows)))
        yield from self._two_splits("speaker_in_two_splits", ((row[3], place) for place, row in enumerate(self._rows)))
        yield from self._near_duplicates(limits.near_duplicate)

    def _two_splits(self, kind: str, keys: Iterable[tuple[str | None, int]]) -> Iterator[Finding]:
        """One finding for each further split in which a key occurs. RAFT's clips count as training."""
        firsts: dict[str, dict[str, int]] = defaultdict(dict)
        for key, place in keys:
            if key:
                firsts[key].setdefault(_seen_in(self._rows[place][2]), place)
        for key, places in firsts.items():
            (split, first), *others = sorted(places.items(), key=lambda split_and_place: split_and_place[1])
            for other, place in others:
                what = f"{key[:60]!r} is in {other} and, as {self._name(first)}, in {split}"
                yield self._finding(place, kind, f"{what} — keep it in one split (evoxtral data import, deal.group_by)")

    def _near_duplicates(self, least: float) -> Iterator[Finding]:
        """Texts within training, or within one held-out split, whose similarity is at least `least`. Candidates come from MinHash
        over 4-grams of letters."""
        from datasketch import MinHash, MinHashLSH
        from rapidfuzz import fuzz

        # Similar strings share fewer 4-grams than letters, so search below `least`: recall matters more than speed.
        index = MinHashLSH(threshold=max(0.3, 4 * least - 3.2), num_perm=64, weights=(0.2, 0.8))
        texts: dict[str, int] = {}
        for place, (_, _, split, _, words) in enumerate(self._rows):
            if not words:
                continue
            if words in texts:
                first = texts[words]
                if _seen_in(self._rows[first][2]) == _seen_in(split):  # otherwise it is a sentence_in_two_splits
                    yield self._finding(place, "near_duplicate_text", f"the same words as {self._name(first)}")
                continue
            texts[words] = place
            sketch = MinHash(num_perm=64)
            sketch.update_batch([words[at : at + 4].encode("utf-8") for at in range(max(len(words) - 3, 1))])
            alike = [(fuzz.ratio(words, self._rows[other][4]) / 100, -other) for other in index.query(sketch)]
            if alike and max(alike)[0] >= least:
                share, other = max(alike)
                yield self._finding(place, "near_duplicate_text", f"{share:.0%} the words of {self._name(-other)}")
            index.insert(place, sketch)

    def _finding(self, place: int, kind: str, reason: str) -> Finding:
        return Finding(self._rows[place][0], self._rows[place][1], kind, reason)

    def _name(self, place: int) -> str:
        return f"{self._rows[place][1]} (row {self._rows[place][0]})"


def _seen_in(split: str) -> str:
    """`raft` is training data too: it may share sentences and speakers with `train`."""
    return "train" if split == "raft" else split
