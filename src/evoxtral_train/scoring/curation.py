"""Which candidates to train on: the best of each clip, then all but the lowest share of clips."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from ..config.schema import Curate
from ..records import REFERENCE, Candidate, CuratedRow, DroppedRow, ScoredCandidate


def clips_kept(clips: int, rule: Curate) -> int:
    """How many clips stay where no two rewards are equal: 808 clips and a share of 0.1 leave 727 by either rule."""
    share = Fraction(str(rule.drop_lowest_share))
    return int(clips * (1 - share)) if rule.drop_by == "share" else clips - int(clips * share) - 1


def threshold_of(rewards: Sequence[float], drop_lowest_share: float) -> float:
    """The reward that a clip must exceed, as in the original RAFT code: sorted(rewards)[n // 10] for a share of 0.1. Clips that
    share the threshold all go."""
    return sorted(rewards)[int(len(rewards) * Fraction(str(drop_lowest_share)))]


def curate(
    candidates: Sequence[Candidate], scores: Sequence[ScoredCandidate], rule: Curate
) -> tuple[list[CuratedRow], list[DroppedRow]]:
    """Join by (utterance_id, candidate_id), keep the best per clip (ties: the lowest candidate id), then drop the clips with the
    lowest rewards, by share (ties: by utterance id) or by threshold. Curated rows come in the order of the candidates. With
    `skip_without_spread` a clip whose candidates all have one reward is dropped first: its best is no better than its worst.

    Raises ValueError when a candidate has no score, or a score no candidate, or a key comes twice.
    """
    texts = {(row.utterance_id, row.candidate_id): row.text for row in candidates}
    clips = _by_clip(candidates, scores)
    best = {clip: min(rows, key=lambda row: (-row.reward, row.candidate_id)) for clip, rows in clips.items()}
    flat = {clip for clip, rows in clips.items() if rule.skip_without_spread and len({row.reward for row in rows}) == 1}
    kept, reason_dropped = _kept([row for clip, row in best.items() if clip not in flat], rule)
    curated, dropped = [], []
    for clip, rows in clips.items():
        for row in rows:
            text = texts[row.utterance_id, row.candidate_id]
            if clip in flat:
                dropped.append(DroppedRow(clip, row.candidate_id, row.reward, "all candidates of this clip have this reward"))
            elif row is not best[clip]:
                reason = f"candidate {best[clip].candidate_id} of this clip has reward {best[clip].reward:g}"
                dropped.append(DroppedRow(clip, row.candidate_id, row.reward, reason))
            elif clip not in kept:
                dropped.append(DroppedRow(clip, row.candidate_id, row.reward, reason_dropped))
            else:
                curated.append(CuratedRow(clip, row.candidate_id, text, row.reward))
    return curated, dropped


def _kept(best: Sequence[ScoredCandidate], rule: Curate) -> tuple[set[str], str]:
    """(the clips that stay, why the others go)."""
    if rule.drop_by == "threshold" and best:
        threshold = threshold_of([row.reward for row in best], rule.drop_lowest_share)
        return {row.utterance_id for row in best if row.reward > threshold}, f"not above the threshold of {threshold:g}"
    ranked = sorted(best, key=lambda row: (-row.reward, row.utterance_id))
    stay = clips_kept(len(best), rule)
    return {row.utterance_id for row in ranked[:stay]}, f"among the lowest {rule.drop_lowest_share:.0%} of clips"


def best_and_worst(
    candidates: Sequence[Candidate], scores: Sequence[ScoredCandidate], min_gap: float = 0.0
) -> list[tuple[ScoredCandidate, ScoredCandidate]]:
    """(best, worst) of each clip whose rewards lie further apart than `min_gap`, in the order of the candidates;
    ties go to the lowest candidate id. Raises ValueError as `curate` does."""
    pairs = []
    for rows in _by_clip(candidates, scores).values():
        best = min(rows, key=lambda row: (-row.reward, row.candidate_id))
        worst = min(rows, key=lambda row: (row.reward, row.candidate_id))
        if best.reward - worst.reward > min_gap:
            pairs.append((best, worst))
    return pairs


def _by_clip(candidates: Sequence[Candidate], scores: Sequence[ScoredCandidate]) -> dict[str, list[ScoredCandidate]]:
    """The scores of each clip, joined by key, in the order of the candidates."""
    by_key = {(each.utterance_id, each.candidate_id): each for each in scores}
    keys = dict.fromkeys((each.utterance_id, each.candidate_id) for each in candidates)
    if len(by_key) != len(scores) or len(keys) != len(candidates) or by_key.keys() != keys.keys():
        raise ValueError("candidates and scores do not hold the same (utterance_id, candidate_id) keys, each once")
    clips: dict[str, list[ScoredCandidate]] = defaultdict(list)
    for key in keys:
        clips[key[0]].append(by_key[key])
    return clips


def replay(curated: Sequence[CuratedRow], references: dict[str, str], share: float, seed: int) -> list[CuratedRow]:
    """`curated` and, drawn by `seed`, reference targets of `share` times as many clips: first of those
    that were not curated. `references`: clip -> target text. A replayed row has reward 0 and id REFERENCE."""
    kept = {row.utterance_id for row in curated}
    wanted = min(round(share * len(curated)), len(references))
    drawn = sorted(references, key=lambda clip: (clip in kept, hashlib.sha256(f"{seed}\0{clip}".encode()).digest()))
    return [*curated, *(CuratedRow(clip, REFERENCE, references[clip], 0.0) for clip in drawn[:wanted])]
