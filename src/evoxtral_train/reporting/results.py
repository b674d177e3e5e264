"""The results of an evaluation, and what to show first: the leading systems and the clips to play."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..config.evaluation import System
from ..records import Prediction
from ..scoring.significance import own_systems, sentence
from ..text.tags import find_tags


@dataclass(frozen=True)
class Training:
    """How the systems were trained. `losses`: name -> [(step, loss)]; `rewards`: round -> rewards of its candidates."""

    losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    rewards: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The input of the page and of the last lines on the terminal. `reports` and `rows`: by system. `audio_of`: clip id -> FLAC
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
        """The systems without filters and yardsticks; all systems if there are no others."""
        filters = own_systems(self.systems)
        leading = [system.name for system in self.systems if system.name not in filters and not system.is_yardstick]
        return [name for name in leading if name in self.reports] or list(self.reports)

    @property
    def yardsticks(self) -> dict[str, str]:
        """name -> "chance" or "probe"."""
        return {system.name: system.yardstick for system in self.systems if system.is_yardstick and system.name in self.reports}

    @property
    def final(self) -> str:
        """The last leading system that wrote a tag: the end of the pipeline."""
        return [*self.leading[:1], *(name for name in self.leading if self.reports[name]["predicted_tags"])][-1]

    @property
    def in_short(self) -> dict[str, dict]:
        """The reports of the short table: the leading systems, then the yardsticks."""
        return {name: self.reports[name] for name in dict.fromkeys([*self.leading, *self.yardsticks])}


def sentences(comparisons: Sequence[dict]) -> list[str]:
    """Each comparison in one sentence."""
    return [sentence(comparison) for comparison in comparisons]


def drawn_clips(evaluation: Evaluation) -> list[Prediction]:
    """Three tagged clips, chosen by the hash of their ids: results cannot influence the choice, and all systems share it. If
    there are fewer, untagged clips fill up."""
    return sorted(evaluation.rows[evaluation.final], key=lambda row: (not find_tags(row.reference), _hash(row.id), row.id))[:3]


def how_drawn(evaluation: Evaluation) -> str:
    """How `drawn_clips` chose its clips, for the reader."""
    report = evaluation.reports[evaluation.final]
    tagged, shown = report["clips"] - report["clips_without_reference_tags"], len(drawn_clips(evaluation))
    of = f"{shown} of {tagged} tagged clips" if tagged >= shown else f"{shown} clips"
    return f"{of}, drawn by the hash of their ids"


def units(evaluation: Evaluation) -> str:
    """The unit of the intervals: "clips" or "speakers"."""
    return f"{next(iter(evaluation.reports.values()))['intervals']['unit']}s"


def _hash(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()
