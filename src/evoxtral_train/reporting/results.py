"""What an evaluation found, and which of it comes first: the systems that lead, and the clips to hear."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..config.evaluation import System
from ..records import Prediction
from ..scoring.significance import own_systems, sentence
from ..text.tags import find_tags


@dataclass(frozen=True)
class Training:
    """Where a system comes from. `losses`: name -> [(step, loss)]; `rewards`: name of the round -> rewards of its candidates."""

    losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    rewards: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What the page and the terminal's last lines are made of. `reports` and `rows` by system; `audio_of`: clip id -> FLAC
    bytes, or None."""

    title: str
    source: str
    systems: Sequence[System]
    reports: dict[str, dict]
    rows: dict[str, Sequence[Prediction]]
    comparisons: Sequence[dict]
    gates_not_passed: Sequence[str]
    with_words: bool
    training: Training
    audio_of: Callable[[str], bytes | None]
    clips_shown: int

    @property
    def leading(self) -> list[str]:
        """The systems without filters and yardsticks; all of them where nothing else is there."""
        filters = own_systems(self.systems)
        leading = [system.name for system in self.systems if system.name not in filters and not system.is_yardstick]
        return [name for name in leading if name in self.reports] or list(self.reports)

    @property
    def yardsticks(self) -> dict[str, str]:
        """name -> "chance" or "probe"."""
        return {system.name: system.yardstick for system in self.systems if system.is_yardstick and system.name in self.reports}

    @property
    def final(self) -> str:
        """The last of the leading systems that wrote a tag: what all the work led to."""
        return [*self.leading[:1], *(name for name in self.leading if self.reports[name]["predicted_tags"])][-1]

    @property
    def in_short(self) -> dict[str, dict]:
        """The reports of the short table: the leading systems, then the yardsticks."""
        return {name: self.reports[name] for name in dict.fromkeys([*self.leading, *self.yardsticks])}


def sentences(comparisons: Sequence[dict]) -> list[str]:
    """Each comparison in one sentence."""
    return [sentence(each) for each in comparisons]


def drawn_clips(found: Evaluation) -> list[Prediction]:
    """Three tagged clips by the hash of their ids: no result decides which are shown, and they are the same for every
    system. Untagged clips follow where there are too few."""
    return sorted(found.rows[found.final], key=lambda row: (not find_tags(row.reference), _hash(row.id), row.id))[:3]


def how_drawn(found: Evaluation) -> str:
    """Which clips `drawn_clips` shows, for the reader."""
    report = found.reports[found.final]
    tagged, shown = report["clips"] - report["clips_without_reference_tags"], len(drawn_clips(found))
    of = f"{shown} of {tagged} tagged clips" if tagged >= shown else f"{shown} clips"
    return f"{of}, drawn by the hash of their ids"


def units(found: Evaluation) -> str:
    """What the intervals are over: "clips", or "speakers"."""
    return f"{next(iter(found.reports.values()))['intervals']['unit']}s"


def _hash(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()
