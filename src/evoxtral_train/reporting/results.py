"""The results of an evaluation, and what to show first: the leading systems and the clips to play."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

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
    """Three tagged clips, chosen by the hash of their ids, with different first tags if there are so many: results cannot
    influence the choice, and all systems share it. If there are fewer tagged clips, untagged ones fill up."""
    drawn, count = [], Counter()
    for row in sorted(evaluation.rows[evaluation.final], key=lambda row: (_hash(row.id), row.id)):
        tag = _first_tag(row)
        drawn.append((tag is None, count[tag], row))
        count[tag] += 1
    return [row for *_, row in sorted(drawn, key=itemgetter(0, 1))][:3]


def how_drawn(evaluation: Evaluation) -> str:
    """How `drawn_clips` chose its clips, for the reader: "3 of 350 tagged clips, one per tag, drawn by hash"."""
    report, drawn = evaluation.reports[evaluation.final], drawn_clips(evaluation)
    tagged = report["clips"] - report["clips_without_reference_tags"]
    of = f"{len(drawn)} of {tagged} tagged clips" if tagged >= len(drawn) else f"{len(drawn)} clips"
    tags = {_first_tag(row) for row in drawn}
    different = ", one per tag" if len(tags) == len(drawn) > 1 and None not in tags else ""
    return f"{of}{different}, drawn by hash"


def _first_tag(row: Prediction) -> str | None:
    return next(iter(find_tags(row.reference)), None)


def units(evaluation: Evaluation) -> str:
    """The unit of the intervals: "clips" or "speakers"."""
    return f"{next(iter(evaluation.reports.values()))['intervals']['unit']}s"


def _hash(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()
