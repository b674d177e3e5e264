"""How often each clip is drawn in an epoch.

Natural: once each. Square-root: with tags as classes, a class of n clips is drawn as if it had sqrt(n): a clip's
weight is that of its rarest tag, 1 / sqrt(n) (Mahajan et al. 2018, section 2.2, for several labels to an image).
Clips without tags are a class of their own, and `untagged_share` can give them any share of the draws: the
replay of plain speech.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..data.splits import UNTAGGED
from ..errors import UsageError


def clip_weights(tags: Sequence[Sequence[str]], kind: str, untagged_share: float | None) -> np.ndarray | None:
    """How often each clip is drawn in an epoch, on average: float64 [clips] that sum to the number of clips;
    None if every clip is drawn once. Raises UsageError for a share that no clip can fill.

    >>> clip_weights([["laughs"], ["laughs"], ["laughs"], ["laughs"], ["gasps"], []], "square_root", 0.25)
    array([0.75, 0.75, 0.75, 0.75, 1.5 , 1.5 ])
    """
    if kind == "natural" and untagged_share is None:
        return None
    classes = [set(found) or {UNTAGGED} for found in tags]
    counts = Counter(each for found in classes for each in found)
    if kind == "square_root":
        weights = np.array([max(1 / math.sqrt(counts[each]) for each in found) for found in classes])
    else:
        weights = np.ones(len(classes))
    if untagged_share is not None:
        plain = np.array([found == {UNTAGGED} for found in classes])
        for group, share in ((plain, untagged_share), (~plain, 1 - untagged_share)):
            if share and not group.any():
                what = "without" if group is plain else "with"
                raise UsageError(f"no clip {what} tags is available", where="train.untagged_share", fix="set it to null")
            weights[group] *= share / weights[group].sum() if group.any() else 0.0
    return weights / weights.sum() * len(weights)


def draw(weights: np.ndarray, position: float) -> list[int]:
    """One epoch, in order of the clips: each occurs as often as its weight, rounded up or down.

    `position` in [0, 1) decides which are rounded up (systematic sampling, which has the least variance).

    >>> draw(np.array([0.5, 1.5, 1.0]), position=0.25)
    [0, 1, 2]
    >>> draw(np.array([0.5, 1.5, 1.0]), position=0.75)
    [1, 1, 2]
    """
    ends = np.cumsum(weights)
    marks = position + np.arange(len(weights))
    return np.minimum(np.searchsorted(ends, marks, side="right"), len(weights) - 1).tolist()
