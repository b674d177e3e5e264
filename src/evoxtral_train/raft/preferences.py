"""Selects the clips that give a preference pair, for DPO: those whose best candidate has a higher reward than the worst.

Rewards of different profiles cannot be compared, and neither can their differences: the smallest are dropped among the pairs of
each profile.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from ..config.training import Pairs
from .curation import ScoredClip, best_and_worst, is_flat


@dataclass(frozen=True)
class Preferences:
    """`clips`: those that give a pair. `gaps`: profile -> the differences in reward of its pairs, largest first. `flat`: how many
    clips have one reward for all candidates. `dropped`: how many pairs `rule` dropped."""

    clips: frozenset[str]
    gaps: Mapping[str, list[float]]
    flat: int
    dropped: int

    @classmethod
    def of(cls, clips: Iterable[ScoredClip], rule: Pairs) -> "Preferences":
        """Of n pairs of a profile, the ⌊n × share⌋ with the smallest differences are dropped (ties: by utterance id)."""
        ranked: dict[str, list[tuple[float, str]]] = defaultdict(list)
        flat = 0
        for clip in clips:
            if is_flat(clip):
                flat += 1
                continue
            (candidate, best), (_, worst) = best_and_worst(clip)
            ranked[best.profile].append((worst.reward - best.reward, candidate.utterance_id))  # the largest comes first
        kept = {profile: sorted(pairs)[: pairs_kept(len(pairs), rule)] for profile, pairs in sorted(ranked.items())}
        return cls(
            clips=frozenset(utterance_id for pairs in kept.values() for _, utterance_id in pairs),
            gaps={profile: [-negated for negated, _ in pairs] for profile, pairs in kept.items()},
            flat=flat,
            dropped=sum(len(pairs) - len(kept[profile]) for profile, pairs in ranked.items()),
        )


def pairs_kept(pairs: int, rule: Pairs) -> int:
    """Of 15 pairs, a share of 0.1 drops one."""
    return pairs - int(pairs * Fraction(str(rule.drop_lowest_share)))
