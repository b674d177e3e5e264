"""Selects the candidates to train on: the best of each clip, without the clips with the lowest rewards. Rewards of different
profiles cannot be compared, so the lowest are dropped among the clips of each profile.

Candidates and scores are streamed clip by clip, twice. The first pass uses the rewards to choose the clips, the second sorts each
clip's candidates into curated and dropped. Only a few numbers per clip stay in memory.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import nsmallest
from itertools import groupby, zip_longest
from typing import TypeVar

from ..config.training import Curate
from ..records import REFERENCE, Candidate, CuratedRow, DroppedRow, ScoredCandidate

RowT = TypeVar("RowT", Candidate, ScoredCandidate)


def clips_kept(clips: int, rule: Curate) -> int:
    """How many clips are kept if no two rewards are equal: 808 clips and a share of 0.1 leave 727 by either rule."""
    share = Fraction(str(rule.drop_lowest_share))
    return int(clips * (1 - share)) if rule.drop_by == "share" else clips - int(clips * share) - 1


def threshold_of(rewards: Sequence[float], drop_lowest_share: float) -> float:
    """The reward that a clip must exceed, as in the original RAFT code: sorted(rewards)[n // 10] for a share of 0.1. All clips at
    the threshold are dropped."""
    return sorted(rewards)[int(len(rewards) * Fraction(str(drop_lowest_share)))]


ScoredClip = list[tuple[Candidate, ScoredCandidate]]
"""A clip's candidates with their scores, by candidate id."""


def in_clip_order(rows: Iterable[RowT]) -> Iterator[RowT]:
    """The same rows. Raises ValueError unless the rows of a clip are consecutive and sorted by candidate id."""
    seen, before = set(), None
    for row in rows:
        if before is None or row.utterance_id != before.utterance_id:
            if row.utterance_id in seen:
                raise ValueError(f"the candidates of clip {row.utterance_id!r} are not in consecutive rows")
            seen.add(row.utterance_id)
        elif row.candidate_id <= before.candidate_id:
            raise ValueError(f"the candidates of clip {row.utterance_id!r} are not sorted by candidate_id, or one is there twice")
        before = row
        yield row


def by_clip(candidates: Iterable[Candidate], scores: Iterable[ScoredCandidate]) -> Iterator[ScoredClip]:
    """Two streams in the same order, joined, a clip at a time. Raises ValueError as `in_clip_order` does, and when a candidate
    has no score or a score no candidate."""

    def joined() -> Iterator[tuple[Candidate, ScoredCandidate]]:
        for candidate, score in zip_longest(in_clip_order(candidates), scores):
            if candidate is None or score is None or _key(candidate) != _key(score):
                raise ValueError("candidates and scores do not have the same (utterance_id, candidate_id) keys, each once")
            yield candidate, score

    return (list(rows) for _, rows in groupby(joined(), key=lambda pair: pair[0].utterance_id))


def _key(row: Candidate | ScoredCandidate) -> tuple[str, int]:
    return row.utterance_id, row.candidate_id


def best_and_worst(clip: ScoredClip) -> tuple[tuple[Candidate, ScoredCandidate], tuple[Candidate, ScoredCandidate]]:
    """The candidates with the highest and the lowest reward; ties go to the lowest candidate id."""
    best = min(clip, key=lambda pair: (-pair[1].reward, pair[1].candidate_id))
    return best, min(clip, key=lambda pair: (pair[1].reward, pair[1].candidate_id))


@dataclass(frozen=True)
class Selection:
    """The clips to train on. `rewards`: profile -> those of their best candidates. `reasons`: profile -> why its other clips are
    dropped. `candidates`: the number of candidates of all clips."""

    clips: frozenset[str]
    rewards: dict[str, Sequence[float]]
    reasons: dict[str, str]
    candidates: int

    @classmethod
    def of(cls, clips: Iterable[ScoredClip], rule: Curate) -> "Selection":
        """All but the clips with the lowest rewards of their best candidates, by share (ties: by utterance id) or by threshold,
        among the clips of each profile. With `skip_without_spread` a clip whose candidates all have one reward does not count:
        its best is no better than its worst."""
        best: dict[str, list[tuple[float, str]]] = defaultdict(list)
        kept, rewards, reasons, count = set(), {}, {}, 0
        for clip in clips:
            count += len(clip)
            candidate, score = best_and_worst(clip)[0]
            ranked = best[score.profile]
            if not (rule.skip_without_spread and is_flat(clip)):
                ranked.append((-score.reward, candidate.utterance_id))  # negated: sorted, the best comes first
        for profile, ranked in sorted(best.items()):
            highest, reason = _highest(ranked, rule)
            kept.update(utterance_id for _, utterance_id in highest)
            rewards[profile] = array("d", (-negated for negated, _ in highest))
            reasons[profile] = reason if len(best) == 1 else f"{reason} (profile {profile})"
        return cls(frozenset(kept), rewards, reasons, count)

    def sort(self, clip: ScoredClip, rule: Curate) -> Iterator[CuratedRow | DroppedRow]:
        """What becomes of each candidate of a clip."""
        (best, best_score), _ = best_and_worst(clip)
        flat = rule.skip_without_spread and is_flat(clip)
        for candidate, score in clip:
            if flat:
                reason = "all candidates of this clip have this reward"
            elif candidate is not best:
                reason = f"candidate {best.candidate_id} of this clip has reward {best_score.reward:g}"
            elif candidate.utterance_id not in self.clips:
                reason = self.reasons[score.profile]
            else:
                yield CuratedRow(*_key(candidate), candidate.text, candidate.token_ids, score.reward)
                continue
            yield DroppedRow(*_key(candidate), score.reward, reason)


def _highest(ranked: list[tuple[float, str]], rule: Curate) -> tuple[list[tuple[float, str]], str]:
    """Of (negated reward, utterance id): those to keep, and why the others are dropped."""
    if rule.drop_by == "threshold" and ranked:
        threshold = threshold_of([-negated for negated, _ in ranked], rule.drop_lowest_share)
        return [each for each in ranked if -each[0] > threshold], f"not above the threshold of {threshold:g}"
    highest = sorted(ranked)[: clips_kept(len(ranked), rule)]
    return highest, f"among the lowest {rule.drop_lowest_share:.0%} of clips"


def is_flat(clip: ScoredClip) -> bool:
    return len({score.reward for _, score in clip}) == 1


def curate(
    candidates: Sequence[Candidate], scores: Iterable[ScoredCandidate], rule: Curate
) -> tuple[list[CuratedRow], list[DroppedRow]]:
    """The whole curation in memory, with scores in any order: join by (utterance_id, candidate_id), keep the best per clip (ties:
    the lowest candidate id), drop the clips that `Selection` leaves out. Rows keep the order of the candidates.

    Raises ValueError as `by_clip` does.
    """
    places = {_key(row): place for place, row in enumerate(candidates)}
    ordered = sorted(scores, key=lambda row: places.get(_key(row), -1))
    selection = Selection.of(by_clip(candidates, ordered), rule)
    rows = [row for clip in by_clip(candidates, ordered) for row in selection.sort(clip, rule)]
    return [row for row in rows if isinstance(row, CuratedRow)], [row for row in rows if isinstance(row, DroppedRow)]


Reference = tuple[str, list[int]]
"""A clip's packed target: its text and its token ids."""


def replay(curated: Collection[str], references: Mapping[str, Reference], share: float, seed: int) -> Iterator[CuratedRow]:
    """Reference targets to train on as well, for `share` × len(`curated`) clips drawn with `seed`, preferring clips that were not
    curated. A replayed row has reward 0 and id REFERENCE."""
    count = min(round(share * len(curated)), len(references))
    drawn = nsmallest(count, references, key=lambda clip: (clip in curated, hashlib.sha256(f"{seed}\0{clip}".encode()).digest()))
    return (CuratedRow(clip, REFERENCE, *references[clip], 0.0) for clip in drawn)
